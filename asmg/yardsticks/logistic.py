"""Logistic regression, learned online in one pass, as by Vowpal Wabbit.

The features of an interaction of user u and item i have the value 1: a constant, u, i, u × i, h × i for each h of the
user's last clicks, and each field value v with v × i (fields of context and user) or u × v (fields of the item).
Further features are the standardised statistics and numeric fields. Features are hashed to places in one table of
weights (Weinberger et al., ICML 2009; two features may share a place). Adagrad (Duchi et al., JMLR 2011) learns each
interaction in turn:

    w ← w − rate · g / √(1 + Σ g²),    g = (prediction − label) · feature
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from asmg.kernels.common import ONE, ZERO, Doubles, Floats, Indices, Rows, compiled, inlined
from asmg.kernels.statistics import FURTHEST
from asmg.numbers import LEAST_DEVIATION
from asmg.statistics import NAMES
from asmg.yardsticks.measured import Measured

__all__ = ["LogisticRegression"]

BITS = 22
"""Bits of a place: 4 million places, 32 MB with Adagrad's sums."""

CROSSED = 10
"""Number of the user's last clicks that are crossed with the item."""

RATE = np.float32(0.05)
"""Step size."""


class LogisticRegression:
    """Hashed crosses and statistics."""

    def __init__(self) -> None:
        places = (
            (1 << BITS) + 1 + len(NAMES)
        )  # after the hashed places that of the constant, and those of the statistics
        self._weights, self._squares = np.zeros(places, np.float32), np.zeros(places, np.float32)
        self._moments: Doubles | None = None  # [3, C] sums of 1, of numeric fields and of their squares

    @property
    def config(self) -> dict[str, Any]:
        """See Predictor."""
        return {"bits": BITS, "crossed": CROSSED, "rate": float(RATE), "statistics": list(NAMES)}

    def learn(self, period: Measured) -> None:
        """See Predictor."""
        data, numbers = period.data, period.fields.numbers
        present = np.nan_to_num(numbers)
        before, own = self._moments, np.stack([(~np.isnan(numbers)).sum(0), present.sum(0), (present**2).sum(0)])
        values = _standardised(numbers, own if before is None else before)
        self._moments = own if before is None else before + own
        _learn(
            data.user.numpy(), data.item.numpy(), data.history.numpy(), data.offsets.numpy(), period.fields.rows,
            values, period.fields.request_columns, period.inputs.numpy(), data.label.numpy(), self._weights,
            self._squares,
        )  # fmt: skip

    def fit(self) -> None:
        """Do nothing: `learn` has learned."""

    def logits(self, period: Measured) -> Tensor:
        """See Predictor."""
        data, out, numbers = period.data, torch.empty(len(period.data)), period.fields.numbers
        moments = np.zeros((3, numbers.shape[1])) if self._moments is None else self._moments
        _predict(
            data.user.numpy(), data.item.numpy(), data.history.numpy(), data.offsets.numpy(), period.fields.rows,
            _standardised(numbers, moments), period.fields.request_columns, period.inputs.numpy(), self._weights,
            out.numpy(),
        )  # fmt: skip
        return out


def _standardised(numbers: Doubles, moments: Doubles) -> Floats:
    """(x - mean) / deviation of numbers [N, C], limited to ±FURTHEST; NaN stays NaN; 0 if the deviation is unknown."""
    events = np.maximum(moments[0], 1)
    mean = moments[1] / events
    deviation = np.sqrt(np.maximum(moments[2] / events - mean**2, 0))
    by = np.where(deviation > LEAST_DEVIATION, 1 / (deviation + LEAST_DEVIATION), 0)
    scaled: Floats = np.clip((numbers - mean) * by, -FURTHEST, FURTHEST).astype(np.float32)
    return scaled


_MASK = np.uint64((1 << BITS) - 1)
_SHIFT, _FACTOR = np.uint64(32), np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
_USER, _ITEM, _USER_ITEM, _CLICK_ITEM, _FIELD, _FIELD_ITEM, _USER_FIELD = (np.uint64(n) for n in range(1, 8))


@inlined
def _place(kind: np.uint64, first: int, second: int) -> np.int64:
    """The place of a feature of a kind and two rows; the second is 0 for a feature of one row."""
    mixed = (np.uint64(first) << _SHIFT | np.uint64(second)) * _FACTOR + kind
    mixed = (mixed ^ mixed >> _SHIFT) * _FACTOR
    return np.int64((mixed ^ mixed >> _SHIFT) & _MASK)


@inlined
def _places(
    user: int, item: int, history: Rows, fields: Rows, numbers: Floats, request_columns: int, found: Indices,
    values: Floats,
) -> int:  # fmt: skip
    """Find the places and values of an interaction's features, without the statistics; return their number.

    Args:
        user, item, history: of the interaction.
        fields, numbers: [C], rows of the field table and standardised numbers, NaN for a value of 1.
        request_columns: number of columns of context and user fields.
        found, values: get the places and the values.
    """
    found[0], found[1] = _place(_USER, user, 0), _place(_ITEM, item, 0)
    found[2], found[3] = _place(_USER_ITEM, user, item), 1 << BITS
    count = 4
    for q in range(min(len(history), CROSSED)):
        found[count] = _place(_CLICK_ITEM, history[q], item)
        count += 1
    values[:count] = ONE
    for c in range(len(fields)):
        if fields[c] < 0:
            continue
        found[count], values[count] = _place(_FIELD, fields[c], 0), ONE
        if not np.isnan(numbers[c]):
            values[count] = numbers[c]
            count += 1
            continue
        count += 1
        of_request = c < request_columns
        found[count] = _place(_FIELD_ITEM, fields[c], item) if of_request else _place(_USER_FIELD, user, fields[c])
        values[count] = ONE
        count += 1
    return count


@inlined
def _logit(found: Indices, values: Floats, count: int, inputs: Floats, weights: Floats) -> np.float32:
    total = ZERO
    for n in range(count):
        total += weights[found[n]] * values[n]
    for s in range(len(inputs)):
        total += weights[(1 << BITS) + 1 + s] * inputs[s]
    return total


@compiled
def _predict(
    user: Rows, item: Rows, history: Rows, offsets: Indices, fields: Rows, numbers: Floats, request_columns: int,
    inputs: Floats, weights: Floats, out: Floats,
) -> None:  # fmt: skip
    """Compute the logits out [N]; fields and numbers [N, C], inputs [N, S]."""
    found = np.empty(4 + CROSSED + 2 * fields.shape[1], np.int64)
    values = np.empty(len(found), np.float32)
    for b in range(len(user)):
        past = history[offsets[b] : offsets[b + 1]]
        count = _places(user[b], item[b], past, fields[b], numbers[b], request_columns, found, values)
        out[b] = _logit(found, values, count, inputs[b], weights)


@inlined
def _step(place: int, gradient: np.float32, weights: Floats, squares: Floats) -> None:
    squares[place] += gradient * gradient
    weights[place] -= RATE * gradient / np.sqrt(ONE + squares[place])


@compiled
def _learn(
    user: Rows, item: Rows, history: Rows, offsets: Indices, fields: Rows, numbers: Floats, request_columns: int,
    inputs: Floats, label: Floats, weights: Floats, squares: Floats,
) -> None:  # fmt: skip
    """Learn a log in one pass; fields and numbers [N, C], inputs [N, S]."""
    found = np.empty(4 + CROSSED + 2 * fields.shape[1], np.int64)
    values = np.empty(len(found), np.float32)
    for b in range(len(user)):
        past = history[offsets[b] : offsets[b + 1]]
        count = _places(user[b], item[b], past, fields[b], numbers[b], request_columns, found, values)
        error = ONE / (ONE + np.exp(-_logit(found, values, count, inputs[b], weights))) - label[b]
        for n in range(count):
            _step(found[n], error * values[n], weights, squares)
        for s in range(inputs.shape[1]):
            _step((1 << BITS) + 1 + s, error * inputs[b, s], weights, squares)
