"""The log of a chaos run: small, seeded, and in one order however its batches arrive."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

from asmg.datasets.synthetic import DriftConfig, DriftPeriod, drift_stream

__all__ = ["BATCH", "Log", "make_log"]

BATCH = 40
"""Events of a call."""
STEP_MS = 1_000
DRIFT = DriftConfig(users=60, items=40, events=400, categories=6)


@dataclass(frozen=True)
class Log:
    """What is sent."""

    items: list[dict[str, Any]]
    """The whole catalogue; it is sent before any event, so that no update depends on when an item came."""
    periods: list[list[dict[str, Any]]]
    """Events of period 1, 2, …; times and ids grow strictly within each."""


def make_log(closes: int, seed: int) -> Log:
    """The same log for the same arguments."""
    drift = list(islice(drift_stream(DRIFT, seed=seed), closes))
    items = {item: categories for period in drift for item, categories in period.new_items.items()}
    documents = [{"item_id": item, "categories": list(categories)} for item, categories in items.items()]
    return Log(documents, [_events(period) for period in drift])


def _events(period: DriftPeriod) -> list[dict[str, Any]]:
    first = int(period.timestamps_ms[0])
    rows = zip(period.user_ids, period.item_ids, period.labels.tolist(), strict=True)
    return [
        {
            "event_id": f"{period.number:04}-{n:06}",
            "user_id": user,
            "item_id": item,
            "label": label,
            "timestamp": first + n * STEP_MS,
        }
        for n, (user, item, label) in enumerate(rows)
    ]
