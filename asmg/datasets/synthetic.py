"""A stream of clicks with known drift and known click probabilities, for the demo, benchmarks and tests.

Every user has a lasting taste and a passing interest, every item a place in taste space near its category, and a
popularity. Interest and popularity follow AR(1) processes from period to period. Each period brings new users and
items, which replace old ones. The click probability of user u and item i in period t is

    p = σ(bias + popularity_i(t) + activity_u + scale · ⟨taste_u + interest_u(t), place_i⟩)

so the AUC of p itself on a period's log is the best that a model can be expected to reach.

With `fields` clicks also depend on the fields of `FIELDS`; the logit increases by

    main(device) + ⟨tilt(device), place_i⟩ + tide(hour) − thrift(age_u) · price_i + slot(position)

A user has an age and mostly uses one device, an item has a price (standardised in its logarithm here), and an item is
shown at a random position that is unknown at prediction time. So there are three upper bounds: p itself; p without the
position (the mean over positions), which a prediction can know; and p of the pair alone (the mean over hours and the
user's devices too), which can be known without context.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from asmg.datasets.synthetic_fields import (
    DAY_MS,
    DEVICES,
    FIELDS,
    HOUR_MS,
    MIDNIGHT_MS,
    SLOT,
    TIDE,
    DriftFields,
    mean_over,
    sigmoid,
)

__all__ = ["FIELDS", "DriftConfig", "DriftPairs", "DriftPeriod", "drift_stream"]

_START_MS = 1_700_000_000_000
"""Start of a stream without fields, milliseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """Size and drift of the stream."""

    users: int = 2_000
    """Number of active users in a period."""
    items: int = 800
    """Number of items in a period."""
    events: int = 20_000
    """Number of impressions in a period."""
    categories: int = 16
    """Number of categories; every item has one or two."""
    dim: int = 4
    """Number of dimensions of the taste space."""
    user_turnover: float = 0.05
    """Fraction of users replaced by new ones each period."""
    item_turnover: float = 0.05
    """Fraction of items replaced by new ones each period."""
    interest_persistence: float = 0.8
    """AR(1) coefficient of a user's passing interest from period to period."""
    interest_share: float = 0.5
    """Share of a user's preference variance that is passing interest."""
    popularity_persistence: float = 0.8
    """AR(1) coefficient of an item's popularity."""
    bias: float = -0.5
    """Logit of the click probability of an average pair."""
    scale: float = 2.0
    """Weight of the match between user and item."""
    fields: bool = False
    """Whether clicks also depend on the fields of `FIELDS`."""

    def __post_init__(self) -> None:
        for name in ("users", "items", "events", "categories", "dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1; received {getattr(self, name)}")
        for name in (
            "user_turnover",
            "item_turnover",
            "interest_persistence",
            "interest_share",
            "popularity_persistence",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1]; received {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class DriftPairs:
    """All pairs of a period's U users and I items, of which the log has some; without the fields of `FIELDS`."""

    user_ids: Sequence[str]
    """Length U."""
    item_ids: Sequence[str]
    """Length I."""
    of_users: np.ndarray
    """float64 [U], the part of the logit that depends on the user alone."""
    of_items: np.ndarray
    """float64 [I], the part that depends on the item alone, and the bias."""
    interests: np.ndarray
    """float64 [U, dim], taste and passing interest."""
    places: np.ndarray
    """float64 [I, dim]."""
    scale: float
    """Weight of the match between both."""

    def logits(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Logits of the click probabilities of some pairs.

        Args:
            user: places of the users in `user_ids`, integers [N].
            item: places of the items in `item_ids`, integers [N].

        Returns:
            float64 [N].
        """
        match = (self.interests[user] * self.places[item]).sum(1) / np.sqrt(self.places.shape[1])
        found: np.ndarray = self.of_items[item] + self.of_users[user] + self.scale * match
        return found

    def probabilities(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Click probabilities of some pairs, float64 [N]; the arguments are those of `logits`."""
        return sigmoid(self.logits(user, item))


@dataclass(frozen=True, kw_only=True)
class DriftPeriod:
    """One period's log in time order."""

    number: int
    """Number of the period, from 1."""
    user_ids: list[str]
    """Length N."""
    item_ids: list[str]
    """Length N."""
    labels: np.ndarray
    """uint8 [N], drawn with `probabilities`."""
    timestamps_ms: np.ndarray
    """int64 [N], ascending epoch milliseconds."""
    probabilities: np.ndarray
    """float64 [N], the true click probabilities p."""
    new_items: dict[str, tuple[str, ...]]
    """New items with their categories."""
    contexts: Sequence[Mapping[str, Any]] = ()
    """Context of each interaction as a client sends it; empty without fields."""
    new_users: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Features of new users; empty without fields."""
    item_features: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Features of `new_items`; empty without fields."""
    predictable: np.ndarray | None = None
    """float64 [N], the probabilities without knowledge of the position; None without fields."""
    of_pairs: np.ndarray | None = None
    """float64 [N], the probabilities given user and item alone; None without fields."""
    pairs: DriftPairs | None = None
    """All pairs that the log could have had, without what fields add; None of a period that was not drawn."""


def drift_stream(config: DriftConfig, *, seed: int = 0) -> Iterator[DriftPeriod]:
    """The endless periods of the stream; equal arguments give equal streams.

    Users and items of the interactions are the same with and without fields.
    """
    rng = np.random.default_rng(seed)
    c = config
    fields = DriftFields.drawn(c.users, c.items, c.dim, seed) if c.fields else None
    period_ms, start_ms = (HOUR_MS, _START_MS) if fields is None else (DAY_MS, MIDNIGHT_MS)
    centres = rng.normal(size=(c.categories, c.dim))
    popularity_std, lasting, passing = 0.7, np.sqrt(1 - c.interest_share), np.sqrt(c.interest_share)

    def new_items(n: int) -> tuple[np.ndarray, np.ndarray]:
        first, second = rng.integers(c.categories, size=(2, n))
        second = np.where(rng.random(n) < 0.5, first, second)
        place = (centres[first] + centres[second]) / 2 + 0.3 * rng.normal(size=(n, c.dim))
        return place, np.stack([first, second], 1)

    def innovation(state: np.ndarray, persistence: float, std: float) -> np.ndarray:
        noise = std * rng.normal(size=state.shape)
        moved: np.ndarray = persistence * state + np.sqrt(1 - persistence**2) * noise
        return moved

    place, category = new_items(c.items)
    popularity = popularity_std * rng.normal(size=c.items)
    taste = lasting * rng.normal(size=(c.users, c.dim))
    interest = passing * rng.normal(size=(c.users, c.dim))
    visits, generosity = rng.lognormal(sigma=1.0, size=c.users), 0.3 * rng.normal(size=c.users)
    user_number, item_number = np.arange(c.users), np.arange(c.items)
    came, fresh = np.arange(c.users), np.arange(c.items)
    number = 0
    while True:
        number += 1
        user = rng.choice(c.users, size=c.events, p=visits / visits.sum())
        exposure = np.exp(popularity)
        item = rng.choice(c.items, size=c.events, p=exposure / exposure.sum())
        pairs = DriftPairs(
            user_ids=[f"u{n}" for n in user_number],
            item_ids=[f"i{n}" for n in item_number],
            of_users=generosity.copy(),
            of_items=c.bias + popularity,
            interests=taste + interest,
            places=place.copy(),
            scale=c.scale,
        )
        logit = pairs.logits(user, item)
        chance = rng.random(c.events)
        within_ms = np.sort(rng.integers(HOUR_MS, size=c.events)) * (period_ms // HOUR_MS)
        timestamps_ms = start_ms + (number - 1) * period_ms + within_ms
        told: dict[str, Any] = {"probabilities": sigmoid(logit)}
        if fields is not None:
            told = _with_fields(fields, logit, user, item, place, timestamps_ms)
            told["new_users"] = {f"u{user_number[u]}": {"age": int(fields.age[u])} for u in came}
            told["item_features"] = {f"i{item_number[i]}": {"price": float(fields.price[i])} for i in fresh}
        yield DriftPeriod(
            number=number,
            user_ids=[pairs.user_ids[n] for n in user.tolist()],
            item_ids=[pairs.item_ids[n] for n in item.tolist()],
            labels=(chance < told["probabilities"]).astype(np.uint8),
            timestamps_ms=timestamps_ms,
            new_items={f"i{item_number[i]}": tuple(dict.fromkeys(f"c{k}" for k in category[i])) for i in fresh},
            pairs=pairs,
            **told,
        )
        interest = innovation(interest, c.interest_persistence, float(passing))
        popularity = innovation(popularity, c.popularity_persistence, popularity_std)
        came = rng.choice(c.users, size=round(c.user_turnover * c.users), replace=False)
        taste[came] = lasting * rng.normal(size=(len(came), c.dim))
        interest[came] = passing * rng.normal(size=(len(came), c.dim))
        generosity[came] = 0.3 * rng.normal(size=len(came))
        user_number[came] = user_number.max() + 1 + np.arange(len(came))
        fresh = rng.choice(c.items, size=round(c.item_turnover * c.items), replace=False)
        place[fresh], category[fresh] = new_items(len(fresh))
        popularity[fresh] = popularity_std * rng.normal(size=len(fresh))
        item_number[fresh] = item_number.max() + 1 + np.arange(len(fresh))
        if fields is not None:
            fields.renew(came, fresh)


def _with_fields(
    fields: DriftFields,
    logit: np.ndarray,
    user: np.ndarray,
    item: np.ndarray,
    place: np.ndarray,
    timestamps_ms: np.ndarray,
) -> dict[str, Any]:
    """The contexts and the probabilities of a `DriftPeriod`."""
    device, position = fields.shown(user)
    hour = timestamps_ms // HOUR_MS % 24
    of_pair = logit + fields.of_price(user, item)
    in_context = of_pair + fields.of_device(device, place[item]) + TIDE[hour]
    shares, pairs = fields.device_shares(user), np.zeros(len(user))
    for other in range(len(DEVICES)):
        added = of_pair + fields.of_device(other, place[item])
        pairs += shares[:, other] * mean_over(TIDE[:, None] + SLOT, added)
    return {
        "contexts": [
            {"device": DEVICES[d], "position": p} for d, p in zip(device.tolist(), position.tolist(), strict=True)
        ],
        "probabilities": sigmoid(in_context + SLOT[position]),
        "predictable": mean_over(SLOT, in_context),
        "of_pairs": pairs,
    }
