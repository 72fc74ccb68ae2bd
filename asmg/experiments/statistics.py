"""What a report says of numbers: means with their spread, improvements, significance, calibration error."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "EXACT_UP_TO",
    "FLIPS",
    "Array",
    "Spread",
    "calibration_error",
    "holm",
    "improvement",
    "mean",
    "sign_flip_p",
    "spread",
]

Array = npt.NDArray[np.float64]

EXACT_UP_TO = 16
"""Differences of which all 2^n sign patterns are tried."""

FLIPS = 20_000
"""Sign patterns tried of more differences, the identity among them."""


class Spread(NamedTuple):
    """A mean over seeds."""

    mean: float
    """The mean."""
    std: float | None
    """Standard deviation over the seeds (divided by their number, as in summary.json); None of a single seed."""


def mean(values: npt.ArrayLike, axis: int | None = None) -> Any:
    """The mean of what is there: NaN is left out, and the mean of nothing is NaN."""
    array = np.asarray(values, np.float64)
    there = ~np.isnan(array)
    count = there.sum(axis)
    total = np.where(there, array, 0.0).sum(axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)[()]


def spread(values: npt.ArrayLike) -> Spread | None:
    """Mean and standard deviation of the seeds' values [seeds], NaN left out; None where nothing is left."""
    array = np.asarray(values, np.float64)
    array = array[~np.isnan(array)]
    if not len(array):
        return None
    return Spread(float(array.mean()), float(array.std()) if len(array) > 1 else None)


def improvement(value: float, base: float, *, higher_is_better: bool) -> float:
    """By how many per cent a value is better than the base, relative to the base: 1.33 of AUC .8289 over .8180."""
    return 100 * (value - base) / base * (1 if higher_is_better else -1)


def sign_flip_p(differences: npt.ArrayLike) -> float:
    """Two-sided p-value of the mean of paired differences [n], by flipping their signs.

    Were there no difference between the two of a pair, each sign would be as likely as its opposite: p is the share of
    the sign patterns whose mean is at least as far from 0. Up to `EXACT_UP_TO` differences all 2^n patterns are
    tried, of more the identity and `FLIPS` − 1 random ones, always the same.

    Raises:
        ValueError: there are no differences, or one is not finite.
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 1 or not len(d) or not np.isfinite(d).all():
        raise ValueError(f"differences: expected at least one, all finite; received {differences!r}")
    n = len(d)
    if n <= EXACT_UP_TO:
        kept = np.arange(2**n)[:, None] >> np.arange(n) & 1
    else:
        kept = np.random.default_rng(0).integers(0, 2, (FLIPS, n), np.int8)
        kept[0] = 1
    sums = np.abs(2 * (kept @ d) - d.sum())
    # Sums of the same numbers in another order differ in their last digits.
    return float(np.mean(sums >= abs(d.sum()) - 1e-12 * np.abs(d).sum()))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjustment: those below 0.05 are wrong together (any of them) with a probability of at most 0.05."""
    adjusted = [0.0] * len(p)
    least = 0.0
    for rank, at in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = least
    return adjusted


def calibration_error(events: Array, predicted: Array, clicked: Array) -> float:
    """ECE of a reliability curve: Σ_b n_b / N · |clicked_b − predicted_b|.

    Args:
        events: n_b, interactions in each bin [bins].
        predicted: mean predicted click-through rate [bins].
        clicked: share of clicks [bins].
    """
    return float((events * np.abs(clicked - predicted)).sum() / events.sum())
