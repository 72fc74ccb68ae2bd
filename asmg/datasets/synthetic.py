"""A stream of clicks with known drift, whose true click probabilities are known.

Every user has a lasting taste and a passing interest, every item a place in taste space near its category and a
popularity; interest and popularity wander from period to period (AR(1)). Each period brings new users and items, and
old ones leave. The click probability of user u and item i in period t is

    p = σ(bias + popularity_i(t) + activity_u + scale · ⟨taste_u + interest_u(t), place_i⟩)

so the AUC that p itself reaches on a period's log is the best that any model can be expected to reach there.

With `fields` clicks depend on the fields of `FIELDS` too, and the logit is more by

    main(device) + ⟨tilt(device), place_i⟩ + tide(hour) − thrift(age_u) · price_i + slot(position)

A user has an age and mostly uses one device, an item has a price (standardised in its logarithm here), and an item is
shown at a random position, which nobody knows when a prediction is made. So there are three ceilings: p itself, p
without the position (the mean over positions: what a prediction can know), and p of the pair alone (the mean over
hours and over the user's devices too: all that can be known without fields of the context).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from asmg.features import Field, Schema

__all__ = ["FIELDS", "DriftConfig", "DriftPeriod", "drift_stream"]

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_START_MS = 1_700_000_000_000
_MIDNIGHT_MS = 1_700_006_400_000
"""The next one, when a stream with fields begins: its periods are days, those of others hours."""

FIELDS = Schema(
    fields=(
        Field("device", "context", "categorical"),
        Field("position", "context", "categorical", training_only=True),
        Field("age", "user", "numeric", enter="buckets", buckets=(25.0, 35.0, 45.0, 55.0, 65.0)),
        Field("price", "item", "numeric", enter="log"),
    ),
    time=("hour",),
)
"""The fields of a stream that has any. A period is one day of the week, so that the weekday would tell nothing."""

_DEVICES = ("phone", "desktop", "tablet", "tv")
_DEVICE_SHARES = np.array([0.45, 0.3, 0.15, 0.1])
_USUAL = 0.6
"""How often a user is on its usual device, beside the times that this one is drawn like any other."""
_MAIN = np.array([0.5, 0.0, -0.3, -0.8])
_TILT = 1.5
"""Length of the direction in taste space in which each device tilts preferences."""
_TIDE = 0.6 * np.sin(2 * np.pi * (np.arange(24) - 14) / 24)
"""By hour: high in the evening, low in the morning."""
_SLOT = np.array([1.0, 0.4, 0.0, -0.5, -0.9])
"""By position, from the top."""
_AGES = (18.0, 80.0)
_THRIFT = (1.2, 0.1)
"""What a price counts for the youngest and for the oldest."""
_PRICE = (3.0, 0.8)
"""Mean and deviation of the logarithm of prices."""


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
    fields: bool = False
    """Whether clicks depend on the fields of `FIELDS` too."""

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
    contexts: Sequence[Mapping[str, Any]] = ()
    """Of each interaction, as clients send it; empty for a stream without fields."""
    new_users: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Features of users who were not active before; empty for a stream without fields."""
    item_features: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Those of `new_items`."""
    predictable: np.ndarray | None = None
    """float64 [N]: the probabilities for somebody who knows all but the position; None for a stream without fields."""
    of_pairs: np.ndarray | None = None
    """The same for somebody who knows user and item alone."""


class _Fields(NamedTuple):
    """What a stream with fields knows of users and items; users and items come and go in place."""

    rng: np.random.Generator
    """Of all that is drawn for fields alone, so that they change nothing of the rest."""
    tilt: np.ndarray
    """[devices, dim]"""
    device: np.ndarray
    """[users] the usual one."""
    age: np.ndarray
    """[users]"""
    price: np.ndarray
    """[items]"""

    @classmethod
    def drawn(cls, config: DriftConfig, seed: int) -> "_Fields":
        rng = np.random.default_rng([seed, 1])
        tilt = rng.normal(size=(len(_DEVICES), config.dim))
        tilt *= _TILT / np.linalg.norm(tilt, axis=1, keepdims=True)
        device, age = np.empty(config.users, np.int64), np.empty(config.users)
        found = cls(rng, tilt, device, age, np.empty(config.items))
        found.renew(np.arange(config.users), np.arange(config.items))
        return found

    def renew(self, users: np.ndarray, items: np.ndarray) -> None:
        """Other users and items in these places."""
        self.device[users] = self.rng.choice(len(_DEVICES), size=len(users), p=_DEVICE_SHARES)
        self.age[users] = self.rng.integers(int(_AGES[0]), int(_AGES[1]) + 1, size=len(users))
        self.price[items] = np.round(self.rng.lognormal(*_PRICE, size=len(items)), 2)

    def shown(self, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Device and position of interactions of these users."""
        n = len(user)
        other = self.rng.choice(len(_DEVICES), size=n, p=_DEVICE_SHARES)
        device = np.where(self.rng.random(n) < _USUAL, self.device[user], other)
        return device, self.rng.integers(len(_SLOT), size=n)

    def device_shares(self, user: np.ndarray) -> np.ndarray:
        """How likely each device is, [N, devices]."""
        shares = np.tile((1 - _USUAL) * _DEVICE_SHARES, (len(user), 1))
        shares[np.arange(len(user)), self.device[user]] += _USUAL
        return shares

    def of_device(self, device: int | np.ndarray, place: np.ndarray) -> np.ndarray:
        """What a device adds to the logit of items at these places [N, dim]."""
        added: np.ndarray = _MAIN[device] + (self.tilt[device] * place).sum(-1) / np.sqrt(place.shape[-1])
        return added

    def of_price(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """What the price of an item adds to the logit of a user."""
        young, old = _THRIFT
        thrift = young + (old - young) * (self.age[user] - _AGES[0]) / (_AGES[1] - _AGES[0])
        mean, deviation = _PRICE
        added: np.ndarray = -thrift * (np.log(self.price[item]) - mean) / deviation
        return added


def drift_stream(config: DriftConfig, *, seed: int = 0) -> Iterator[DriftPeriod]:
    """Endless periods of the stream; the same config and seed give the same stream.

    With and without fields it has the same users and items in the same interactions.
    """
    rng = np.random.default_rng(seed)
    c = config
    fields = _Fields.drawn(c, seed) if c.fields else None
    period_ms, start_ms = (_HOUR_MS, _START_MS) if fields is None else (_DAY_MS, _MIDNIGHT_MS)
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
        match = ((taste + interest)[user] * place[item]).sum(1) / np.sqrt(c.dim)
        logit = c.bias + popularity[item] + generosity[user] + c.scale * match
        chance = rng.random(c.events)
        within_ms = np.sort(rng.integers(_HOUR_MS, size=c.events)) * (period_ms // _HOUR_MS)
        timestamps_ms = start_ms + (number - 1) * period_ms + within_ms
        told: dict[str, Any] = {"probabilities": _sigmoid(logit)}
        if fields is not None:
            told = _with_fields(fields, logit, user, item, place, timestamps_ms)
            told["new_users"] = {f"u{user_number[u]}": {"age": int(fields.age[u])} for u in came}
            told["item_features"] = {f"i{item_number[i]}": {"price": float(fields.price[i])} for i in fresh}
        yield DriftPeriod(
            number=number,
            user_ids=[f"u{n}" for n in user_number[user]],
            item_ids=[f"i{n}" for n in item_number[item]],
            labels=(chance < told["probabilities"]).astype(np.uint8),
            timestamps_ms=timestamps_ms,
            new_items={f"i{item_number[i]}": tuple(dict.fromkeys(f"c{k}" for k in category[i])) for i in fresh},
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
    fields: _Fields, logit: np.ndarray, user: np.ndarray, item: np.ndarray, place: np.ndarray, timestamps_ms: np.ndarray
) -> dict[str, Any]:
    """What a `DriftPeriod` tells of contexts, and its probabilities."""
    device, position = fields.shown(user)
    hour = timestamps_ms // _HOUR_MS % 24
    of_pair = logit + fields.of_price(user, item)
    in_context = of_pair + fields.of_device(device, place[item]) + _TIDE[hour]
    shares, pairs = fields.device_shares(user), np.zeros(len(user))
    for other in range(len(_DEVICES)):
        added = of_pair + fields.of_device(other, place[item])
        pairs += shares[:, other] * _mean_over(_TIDE[:, None] + _SLOT, added)
    return {
        "contexts": [
            {"device": _DEVICES[d], "position": p} for d, p in zip(device.tolist(), position.tolist(), strict=True)
        ],
        "probabilities": _sigmoid(in_context + _SLOT[position]),
        "predictable": _mean_over(_SLOT, in_context),
        "of_pairs": pairs,
    }


def _mean_over(added: np.ndarray, logit: np.ndarray) -> np.ndarray:
    """The mean probability [N] over equally likely summands of the logits [N]."""
    total = np.zeros(len(logit))
    for more in added.ravel():
        total += _sigmoid(logit + more)
    return total / added.size


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    found: np.ndarray = 1 / (1 + np.exp(-logit))
    return found
