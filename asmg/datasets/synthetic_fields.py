"""The fields of the synthetic stream (`asmg.datasets.synthetic`), and how they change the click probability."""

from typing import NamedTuple

import numpy as np

from asmg.features import Field, Schema

__all__ = [
    "DAY_MS",
    "DEVICES",
    "FIELDS",
    "HOUR_MS",
    "MIDNIGHT_MS",
    "SLOT",
    "TIDE",
    "DriftFields",
    "mean_over",
    "sigmoid",
]

HOUR_MS = 3_600_000

DAY_MS = 24 * HOUR_MS

MIDNIGHT_MS = 1_700_006_400_000
"""Start of a stream with fields, the first midnight (UTC) after the start of other streams. Its periods are days, those
of other streams are hours."""

FIELDS = Schema(
    fields=(
        Field("device", "context", "categorical"),
        Field("position", "context", "categorical", training_only=True),
        Field("age", "user", "numeric", enter="buckets", buckets=(25.0, 35.0, 45.0, 55.0, 65.0)),
        Field("price", "item", "numeric", enter="log"),
    ),
    time=("hour",),
)
"""The fields of a stream with fields. There is no weekday: a period is one day, so it would be constant."""

DEVICES = ("phone", "desktop", "tablet", "tv")

_DEVICE_SHARES = np.array([0.45, 0.3, 0.15, 0.1])

_USUAL = 0.6
"""Probability that a user has its usual device; otherwise the device is drawn by _DEVICE_SHARES."""

_MAIN = np.array([0.5, 0.0, -0.3, -0.8])

_TILT = 1.5
"""Length of each device's direction in taste space."""

TIDE = 0.6 * np.sin(2 * np.pi * (np.arange(24) - 14) / 24)
"""Effect of the hour: high in the evening, low in the morning."""

SLOT = np.array([1.0, 0.4, 0.0, -0.5, -0.9])
"""Effect of the position, from the top."""

_AGES = (18.0, 80.0)
"""Youngest and oldest age in years."""

_THRIFT = (1.2, 0.1)
"""Weight of the price for the youngest and for the oldest user."""

_PRICE = (3.0, 0.8)
"""Mean and standard deviation of the logarithm of prices."""


class DriftFields(NamedTuple):
    """The fields of users and items of a stream, by their places, which new users and items take over."""

    rng: np.random.Generator
    """Separate random numbers, so that fields do not change the rest of the stream."""
    tilt: np.ndarray
    """[devices, dim], the direction of each device in taste space."""
    device: np.ndarray
    """[users], the usual device."""
    age: np.ndarray
    """[users]"""
    price: np.ndarray
    """[items]"""

    @classmethod
    def drawn(cls, users: int, items: int, dim: int, seed: int) -> "DriftFields":
        """The fields of the first users and items."""
        rng = np.random.default_rng([seed, 1])
        tilt = rng.normal(size=(len(DEVICES), dim))
        tilt *= _TILT / np.linalg.norm(tilt, axis=1, keepdims=True)
        device, age = np.empty(users, np.int64), np.empty(users)
        found = cls(rng, tilt, device, age, np.empty(items))
        found.renew(np.arange(users), np.arange(items))
        return found

    def renew(self, users: np.ndarray, items: np.ndarray) -> None:
        """Draw the fields of new users and items at these places."""
        self.device[users] = self.rng.choice(len(DEVICES), size=len(users), p=_DEVICE_SHARES)
        self.age[users] = self.rng.integers(int(_AGES[0]), int(_AGES[1]) + 1, size=len(users))
        self.price[items] = np.round(self.rng.lognormal(*_PRICE, size=len(items)), 2)

    def shown(self, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw device and position of interactions of these users [N]."""
        n = len(user)
        other = self.rng.choice(len(DEVICES), size=n, p=_DEVICE_SHARES)
        device = np.where(self.rng.random(n) < _USUAL, self.device[user], other)
        return device, self.rng.integers(len(SLOT), size=n)

    def device_shares(self, user: np.ndarray) -> np.ndarray:
        """Probability of each device [N, devices]."""
        shares = np.tile((1 - _USUAL) * _DEVICE_SHARES, (len(user), 1))
        shares[np.arange(len(user)), self.device[user]] += _USUAL
        return shares

    def of_device(self, device: int | np.ndarray, place: np.ndarray) -> np.ndarray:
        """Effect of a device on the logit of items at these places in taste space [N, dim]."""
        added: np.ndarray = _MAIN[device] + (self.tilt[device] * place).sum(-1) / np.sqrt(place.shape[-1])
        return added

    def of_price(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Effect of the price on the logit of each user and item [N]."""
        young, old = _THRIFT
        thrift = young + (old - young) * (self.age[user] - _AGES[0]) / (_AGES[1] - _AGES[0])
        mean, deviation = _PRICE
        added: np.ndarray = -thrift * (np.log(self.price[item]) - mean) / deviation
        return added


def mean_over(added: np.ndarray, logit: np.ndarray) -> np.ndarray:
    """The mean probability [N] when equally likely summands `added` are added to the logits [N]."""
    total = np.zeros(len(logit))
    for more in added.ravel():
        total += sigmoid(logit + more)
    return total / added.size


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logit))."""
    found: np.ndarray = 1 / (1 + np.exp(-logit))
    return found
