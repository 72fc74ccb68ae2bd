"""The log of a chaos run: small and seeded. Its times fix its order, in whatever order its batches arrive."""

from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from asmg.datasets.synthetic import DriftConfig, DriftPeriod, drift_stream
from asmg.features import Field, Schema

BATCH = 40
"""Events of a call."""
STEP_MS = 1_000
"""Time from one event to the next."""
PERIOD_MS = 3_600_000
"""Duration of a period of the synthetic stream that the log is made of."""
DRIFT = DriftConfig(users=60, items=40, events=400, categories=6)

SCHEMA = Schema(
    fields=(
        Field("device", "context", "categorical"),
        Field("page", "context", "numeric"),
        Field("place", "context", "categorical", training_only=True),
        Field("likes", "user", "multi", most=2),
        Field("age", "user", "numeric", enter="buckets", buckets=(18.0, 35.0, 50.0)),
        Field("price", "item", "numeric", enter="log"),
        Field("brand", "item", "categorical"),
    )
)
"""Fields of each kind, and of each owner."""


@dataclass(frozen=True)
class Log:
    """Everything that is sent."""

    items: list[list[dict[str, Any]]]
    """The whole catalogue, then features that its items have later. Sent before any event, so that no update depends
    on when an item arrived."""
    users: list[list[dict[str, Any]]]
    """Of each period, the features that users have from a moment in it on."""
    periods: list[list[dict[str, Any]]]
    """Events of period 1, 2, …; times and ids grow strictly within each."""


def make_log(closes: int, seed: int) -> Log:
    """The same log for the same arguments."""
    drift = list(islice(drift_stream(DRIFT, seed=seed), closes))
    random = Random(seed)
    first = int(drift[0].timestamps_ms[0])
    items = {item: categories for period in drift for item, categories in period.new_items.items()}
    catalogue: list[list[dict[str, Any]]] = [[], []]
    for item, categories in items.items():
        price, brand = round(random.lognormvariate(3, 1), 2), random.randrange(5)
        known = {"item_id": item, "categories": list(categories), "timestamp": first}
        catalogue[0].append(known | {"features": {"price": price, "brand": brand}})
        later = first + random.randrange(closes) * PERIOD_MS + STEP_MS * random.randrange(1, DRIFT.events)
        catalogue[1].append(known | {"features": {"price": price + 1}, "timestamp": later})
    return Log(catalogue, [_users(period, random) for period in drift], [_events(period, random) for period in drift])


def context_of(random: Random) -> dict[str, Any]:
    """A random context of an event or a prediction, from which each value is missing one time in ten."""
    sent = {
        "device": random.choice(["phone", "tv", "tablet", True]),
        "page": round(random.gauss(5, 2), 3),
        "place": random.randrange(4),
    }
    return {name: value for name, value in sent.items() if random.random() < 0.9}


def _users(period: DriftPeriod, random: Random) -> list[dict[str, Any]]:
    """Features of the users of a period. They differ from those of the period before, or would not be stored again."""
    first = int(period.timestamps_ms[0])
    return [
        {
            "user_id": user,
            "features": {"age": 15 + period.number + random.choice([0, 20.5]), "likes": random.sample("abcd", 2)},
            "timestamp": first + STEP_MS * random.randrange(DRIFT.events),
        }
        for user in sorted(set(period.user_ids))
    ]


def _events(period: DriftPeriod, random: Random) -> list[dict[str, Any]]:
    first = int(period.timestamps_ms[0])
    rows = zip(period.user_ids, period.item_ids, period.labels.tolist(), strict=True)
    return [
        {
            "event_id": f"{period.number:04}-{n:06}",
            "user_id": user,
            "item_id": item,
            "label": label,
            "timestamp": first + n * STEP_MS,
            "context": context_of(random),
            "weight": random.choice([0.5, 1, 2.5]),
        }
        for n, (user, item, label) in enumerate(rows)
    ]
