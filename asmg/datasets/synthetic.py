"""A stream of clicks with known drift, whose true click probabilities are known.

Every user has a lasting taste and a passing interest, every item a place in taste space near its category and a
popularity; interest and popularity wander from period to period (AR(1)). Each period brings new users and items, and
old ones leave. The click probability of user u and item i in period t is

    p = σ(bias + popularity_i(t) + activity_u + scale · ⟨taste_u + interest_u(t), place_i⟩)

so the AUC that p itself reaches on a period's log is the best that any model can be expected to reach there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["DriftConfig", "DriftPeriod", "drift_stream"]

_PERIOD_MS = 3_600_000
_START_MS = 1_700_000_000_000


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """Size and restlessness of the stream."""

    users: int = 2_000
    """Active users in a period."""
    items: int = 800
    """Items on offer in a period."""
    events: int = 20_000
    """Impressions a period."""
    categories: int = 16
    """Categories; every item has one or two."""
    dim: int = 4
    """Dimensions of the taste space."""
    user_turnover: float = 0.05
    """Fraction of users replaced by new ones each period."""
    item_turnover: float = 0.05
    """Fraction of items replaced by new ones each period."""
    interest_persistence: float = 0.8
    """AR(1) coefficient of a user's passing interest from period to period."""
    interest_share: float = 0.5
    """Share of a user's preference variance that is passing."""
    popularity_persistence: float = 0.8
    """AR(1) coefficient of an item's popularity."""
    bias: float = -0.5
    """Logit of the click probability of an average pair."""
    scale: float = 2.0
    """Weight of the match between user and item."""

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
class DriftPeriod:
    """One period's log in time order."""

    number: int
    """1, 2, …"""
    user_ids: list[str]
    """Length N."""
    item_ids: list[str]
    """Length N."""
    labels: np.ndarray
    """uint8 [N], drawn with `probabilities`."""
    timestamps_ms: np.ndarray
    """int64 [N], ascending epoch milliseconds."""
    probabilities: np.ndarray
    """float64 [N], the true click probabilities."""
    new_items: dict[str, tuple[str, ...]]
    """Items that were not on offer before, with their categories."""


def drift_stream(config: DriftConfig, *, seed: int = 0) -> Iterator[DriftPeriod]:
    """Endless periods of the stream; the same config and seed give the same stream."""
    rng = np.random.default_rng(seed)
    c = config
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
    fresh = np.arange(c.items)
    number = 0
    while True:
        number += 1
        user = rng.choice(c.users, size=c.events, p=visits / visits.sum())
        exposure = np.exp(popularity)
        item = rng.choice(c.items, size=c.events, p=exposure / exposure.sum())
        match = ((taste + interest)[user] * place[item]).sum(1) / np.sqrt(c.dim)
        logit = c.bias + popularity[item] + generosity[user] + c.scale * match
        probability = 1 / (1 + np.exp(-logit))
        yield DriftPeriod(
            number=number,
            user_ids=[f"u{n}" for n in user_number[user]],
            item_ids=[f"i{n}" for n in item_number[item]],
            labels=(rng.random(c.events) < probability).astype(np.uint8),
            timestamps_ms=_START_MS + (number - 1) * _PERIOD_MS + np.sort(rng.integers(_PERIOD_MS, size=c.events)),
            probabilities=probability,
            new_items={f"i{item_number[i]}": tuple(dict.fromkeys(f"c{k}" for k in category[i])) for i in fresh},
        )
        interest = innovation(interest, c.interest_persistence, float(passing))
        popularity = innovation(popularity, c.popularity_persistence, popularity_std)
        gone = rng.choice(c.users, size=round(c.user_turnover * c.users), replace=False)
        taste[gone] = lasting * rng.normal(size=(len(gone), c.dim))
        interest[gone] = passing * rng.normal(size=(len(gone), c.dim))
        generosity[gone] = 0.3 * rng.normal(size=len(gone))
        user_number[gone] = user_number.max() + 1 + np.arange(len(gone))
        fresh = rng.choice(c.items, size=round(c.item_turnover * c.items), replace=False)
        place[fresh], category[fresh] = new_items(len(fresh))
        popularity[fresh] = popularity_std * rng.normal(size=len(fresh))
        item_number[fresh] = item_number.max() + 1 + np.arange(len(fresh))
