"""A test of two arms that may be looked at as often as one likes.

Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas: "Time-uniform central limit theory and asymptotic confidence sequences",
Annals of Statistics 52 (2024), theorem 2.2 and section 3 (randomised experiments). The interval around the difference
of the arms' means contains the true difference at *all* times, with probability 1 - α in the limit of a late first
look. So one may stop as soon as it excludes 0 without inflating the error.

An observation is one user: who is in which arm is drawn by user, so users are independent, and impressions of one user
are not.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Interval", "difference"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference of means and what it may be."""

    difference: float
    low: float
    high: float


def difference(canary: NDArray[np.bool_], values: Floats, *, share: float, alpha: float, tightest: float) -> Interval:
    """The mean of the canary's users less that of the others, with a confidence sequence.

    Each user contributes ψ = m1 - m0 + A (y - m1) / p - (1 - A) (y - m0) / (1 - p), where A says whether they are in
    the share p, and m1, m0 are the means of both arms over the users before. Its mean is unbiased whatever these are,
    and with them its variance is that of the difference of means. After n users the interval is

        mean ± σ √( 2 (nρ² + 1) / (n²ρ²) · ln( √(nρ² + 1) / α ) ).

    Args:
        canary: whether each user is in the share, in the order of the users [n].
        values: of each user, float64 [n].
        share: p, over 0 and below 1.
        alpha: probability that the true difference is ever outside.
        tightest: number of users at which the interval is about as tight as it can be; it sets ρ.
    """
    n, arm = len(values), canary.astype(np.float64)
    of_canary, of_others = _means_before(values, arm), _means_before(values, 1 - arm)
    psi = of_canary - of_others + arm * (values - of_canary) / share - (1 - arm) * (values - of_others) / (1 - share)
    wide = -2 * math.log(alpha)
    rho_squared = (wide + math.log(wide + 1)) / tightest
    grown = n * rho_squared + 1
    margin = float(psi.std()) * math.sqrt(2 * grown / (n * n * rho_squared) * math.log(math.sqrt(grown) / alpha))
    mean = float(psi.mean())
    return Interval(mean, mean - margin, mean + margin)


def _means_before(values: Floats, weights: Floats) -> Floats:
    """Mean of the values of the same arm before each user; 0 where there is none."""
    counts = np.cumsum(weights) - weights
    sums = np.cumsum(values * weights) - values * weights
    return sums / np.maximum(counts, 1)
