"""Logistic regression, learned online in one pass, as Vowpal Wabbit does it.

Of an interaction of user u and item i, the features are 1, u, i, u × i, and h × i for each h of the user's last clicks,
each 1 in a place of its own; and the statistics, standardised. The places are hashed into one table of weights
(Weinberger et al., ICML 2009; two features may share one). Adagrad (Duchi et al., JMLR 2011) learns each interaction in
turn:

    w ← w − rate · g / √(1 + Σ g²),    g = (prediction − label) · feature
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from asmg.kernels.common import ONE, ZERO, Floats, Indices, Rows, compiled, inlined
from asmg.statistics import NAMES
from asmg.yardsticks.measured import Measured

__all__ = ["LogisticRegression"]

BITS = 22
"""Of the number of a place: 4 million of them, 32 MB with Adagrad's sums."""

CROSSED = 10
"""Last clicks of a user that are crossed with the item."""

RATE = np.float32(0.05)
"""Step size."""


class LogisticRegression:
    """Hashed crosses and statistics."""

    def __init__(self) -> None:
        places = (1 << BITS) + 1 + len(NAMES)  # behind the hashed ones that of 1, and those of the statistics
        self._weights, self._squares = np.zeros(places, np.float32), np.zeros(places, np.float32)

    @property
    def config(self) -> dict[str, Any]:
        """See Predictor."""
        return {"bits": BITS, "crossed": CROSSED, "rate": float(RATE), "statistics": list(NAMES)}

    def learn(self, period: Measured) -> None:
        """See Predictor."""
        data = period.data
        _learn(
            data.user.numpy(), data.item.numpy(), data.history.numpy(), data.offsets.numpy(), period.inputs.numpy(),
            data.label.numpy(), self._weights, self._squares,
        )  # fmt: skip

    def fit(self) -> None:
        """Nothing: it has learned."""

    def logits(self, period: Measured) -> Tensor:
        """See Predictor."""
        data, out = period.data, torch.empty(len(period.data))
        _predict(
            data.user.numpy(), data.item.numpy(), data.history.numpy(), data.offsets.numpy(), period.inputs.numpy(),
            self._weights, out.numpy(),
        )  # fmt: skip
        return out


_MASK = np.uint64((1 << BITS) - 1)
_SHIFT, _FACTOR = np.uint64(32), np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
_USER, _ITEM, _USER_ITEM, _CLICK_ITEM = (np.uint64(n) for n in (1, 2, 3, 4))


@inlined
def _place(kind: np.uint64, first: int, second: int) -> np.int64:
    """The place of a feature that is made of two rows (0: of one)."""
    mixed = (np.uint64(first) << _SHIFT | np.uint64(second)) * _FACTOR + kind
    mixed = (mixed ^ mixed >> _SHIFT) * _FACTOR
    return np.int64((mixed ^ mixed >> _SHIFT) & _MASK)


@inlined
def _places(user: int, item: int, history: Rows, found: Indices) -> int:
    """The places of an interaction's features with value 1; how many they are."""
    found[0], found[1] = _place(_USER, user, 0), _place(_ITEM, item, 0)
    found[2], found[3] = _place(_USER_ITEM, user, item), 1 << BITS
    count = 4
    for q in range(min(len(history), CROSSED)):
        found[count] = _place(_CLICK_ITEM, history[q], item)
        count += 1
    return count


@inlined
def _logit(found: Indices, count: int, inputs: Floats, weights: Floats) -> np.float32:
    total = ZERO
    for n in range(count):
        total += weights[found[n]]
    for s in range(len(inputs)):
        total += weights[(1 << BITS) + 1 + s] * inputs[s]
    return total


@compiled
def _predict(
    user: Rows, item: Rows, history: Rows, offsets: Indices, inputs: Floats, weights: Floats, out: Floats
) -> None:
    """Out [N]: logits; inputs [N, S]."""
    found = np.empty(4 + CROSSED, np.int64)
    for b in range(len(user)):
        count = _places(user[b], item[b], history[offsets[b] : offsets[b + 1]], found)
        out[b] = _logit(found, count, inputs[b], weights)


@inlined
def _step(place: int, gradient: np.float32, weights: Floats, squares: Floats) -> None:
    squares[place] += gradient * gradient
    weights[place] -= RATE * gradient / np.sqrt(ONE + squares[place])


@compiled
def _learn(
    user: Rows, item: Rows, history: Rows, offsets: Indices, inputs: Floats, label: Floats, weights: Floats,
    squares: Floats,
) -> None:  # fmt: skip
    """One pass over a log; inputs [N, S]."""
    found = np.empty(4 + CROSSED, np.int64)
    for b in range(len(user)):
        count = _places(user[b], item[b], history[offsets[b] : offsets[b + 1]], found)
        error = ONE / (ONE + np.exp(-_logit(found, count, inputs[b], weights))) - label[b]
        for n in range(count):
            _step(found[n], error, weights, squares)
        for s in range(inputs.shape[1]):
            _step((1 << BITS) + 1 + s, error * inputs[b, s], weights, squares)
