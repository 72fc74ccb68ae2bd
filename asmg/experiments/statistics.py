"""Statistics over seeds and periods: means with their spread, improvements, significance, calibration error."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "EXACT_UP_TO",
    "FLIPS",
    "Array",
    "Spread",
    "Tally",
    "calibration_error",
    "improvement",
    "max_t_p",
    "mean",
    "sign_flip_p",
    "spread",
    "tally",
]

Array = npt.NDArray[np.float64]

EXACT_UP_TO = 16
"""Maximum number of differences for which all 2^n sign patterns are tried."""

FLIPS = 20_000
"""Number of sign patterns tried for more differences, the identity included."""


class Spread(NamedTuple):
    """A mean over seeds."""

    mean: float
    """Over the seeds."""
    std: float | None
    """Standard deviation over the seeds (population, as in summary.json); None for a single seed."""


def mean(values: npt.ArrayLike, axis: int | None = None) -> Any:
    """The mean without NaN; NaN if nothing is left."""
    array = np.asarray(values, np.float64)
    there = ~np.isnan(array)
    count = there.sum(axis)
    total = np.where(there, array, 0.0).sum(axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)[()]


def spread(values: npt.ArrayLike) -> Spread | None:
    """Mean and standard deviation of the seeds' values [seeds] without NaN; None if nothing is left."""
    array = np.asarray(values, np.float64)
    array = array[~np.isnan(array)]
    if not len(array):
        return None
    return Spread(float(array.mean()), float(array.std()) if len(array) > 1 else None)


def improvement(value: float, base: float, *, higher_is_better: bool) -> float:
    """By how many per cent a value is better than the base: 1.33 for an AUC of .8289 over .8180."""
    return 100 * (value - base) / base * (1 if higher_is_better else -1)


class Tally(NamedTuple):
    """A method compared with another one, over pairs of seed and period."""

    wins: int
    """Number of pairs in which it is better."""
    ties: int
    """Number of pairs in which both have the same number."""
    pairs: int
    """Number of pairs for which both have a number."""
    worst: float | None
    """By how much it is better with its worst seed, the mean over the periods; None without pairs."""
    worst_seed: int | None
    """Index of that seed."""


def tally(better: Array) -> Tally:
    """Count wins and ties.

    Args:
        better: by how much the method is better for each seed and period [seeds, periods]; NaN without a number.
    """
    by_seed = mean(better, 1)
    at = None if np.isnan(by_seed).all() else int(np.nanargmin(by_seed))
    wins, ties, pairs = (int(found.sum()) for found in (better > 0, better == 0, ~np.isnan(better)))
    return Tally(wins, ties, pairs, None if at is None else float(by_seed[at]), at)


def sign_flip_p(differences: npt.ArrayLike) -> float:
    """Two-sided p-value of the mean of paired differences [n], by flipping their signs.

    Without a real difference each sign is as likely as its opposite; p is the share of sign patterns whose mean is at
    least as far from 0. Up to `EXACT_UP_TO` differences all 2^n patterns are tried, for more the identity and
    `FLIPS` − 1 random ones, always the same.

    Raises:
        ValueError: there are no differences, or one is not finite.
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 1 or not len(d) or not np.isfinite(d).all():
        raise ValueError(f"differences: expected at least one, all finite; received {differences!r}")
    return max_t_p(d[:, None])[0]


def max_t_p(differences: npt.ArrayLike) -> list[float]:
    """p-values of several methods at once [n, methods], adjusted for their number.

    Westfall and Young's step-down procedure: all methods' signs are flipped together, and the statistic |Σ d| / √Σ d²
    of a method is compared with the largest one among itself and the less extreme methods. The probability that any
    value below 0.05 is wrong is at most 0.05; correlation of the methods does not weaken the test.

    Raises:
        ValueError: there are no differences, or one is not finite.
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 2 or not d.size or not np.isfinite(d).all():
        raise ValueError(f"differences: expected at least one, all finite; received {differences!r}")
    n = len(d)
    if n <= EXACT_UP_TO:
        kept = np.arange(2**n)[:, None] >> np.arange(n) & 1
    else:
        kept = np.random.default_rng(0).integers(0, 2, (FLIPS, n), np.int8)
        kept[0] = 1
    size = np.sqrt((d**2).sum(0))
    size[size == 0] = 1.0
    statistics = np.abs(2 * (kept @ d) - d.sum(0)) / size
    observed = np.abs(d.sum(0)) / size
    adjusted, least = [0.0] * d.shape[1], 0.0
    order = np.argsort(-observed, kind="stable")
    greatest = np.maximum.accumulate(statistics[:, order[::-1]], axis=1)[:, ::-1]
    for rank, at in enumerate(order.tolist()):
        # Sums in another order differ in their last digits.
        least = max(least, float(np.mean(greatest[:, rank] >= observed[at] - 1e-12 * np.sqrt(n))))
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
