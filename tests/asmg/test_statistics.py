"""Means, significance and calibration error of a report, against brute force and by hand."""

import itertools
import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.experiments.statistics import (
    EXACT_UP_TO,
    FLIPS,
    Spread,
    calibration_error,
    holm,
    improvement,
    mean,
    sign_flip_p,
    spread,
)

numbers = st.lists(st.integers(-9, 9).map(lambda n: n / 7), min_size=1, max_size=8)


def brute_force_p(differences: list[float]) -> float:
    """The share of all sign patterns that are at least as far from 0, in exact sums."""
    observed = abs(math.fsum(differences))
    patterns = list(itertools.product((-1, 1), repeat=len(differences)))
    far = [
        abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True))) >= observed - 1e-9
        for signs in patterns
    ]  # fmt: skip
    return sum(far) / len(far)


class TestSignFlip:
    """sign_flip_p."""

    @pytest.mark.parametrize(
        ("differences", "p"),
        [
            ([1.0], 1.0),  # +1 and −1 are equally far
            ([1.0, -1.0], 1.0),  # the mean is 0: nothing is nearer
            ([3.0, 1.0], 0.5),  # ±4 of ±4, ±2
            ([1.0, 1.0, 1.0], 0.25),  # +++ and −−− of 8
            ([2.0, 1.0, 0.0], 0.5),  # a zero has no sign
            ([0.0, 0.0], 1.0),
            ([0.1] * 7, 2 / 128),  # the least that 7 can give
        ],
    )
    def test_by_hand(self, differences: list[float], p: float) -> None:
        assert sign_flip_p(differences) == p

    @given(numbers)
    def test_brute_force(self, differences: list[float]) -> None:
        assert sign_flip_p(differences) == brute_force_p(differences)

    @given(numbers, st.randoms(use_true_random=False), st.sampled_from([0.001, 3.0, 1e6]))
    def test_laws(self, differences: list[float], random: Random, scale: float) -> None:
        """Neither who is subtracted from whom matters, nor the order, nor the unit."""
        p = sign_flip_p(differences)
        assert sign_flip_p([-d for d in differences]) == p
        assert sign_flip_p([scale * d for d in differences]) == p
        random.shuffle(differences)
        assert sign_flip_p(differences) == p

    @settings(max_examples=5, deadline=None)
    @given(st.integers(0, 1000))
    def test_random_flips_are_near_all_flips(self, seed: int) -> None:
        """Of one difference more than are tried exactly."""
        n = EXACT_UP_TO + 1
        d = np.random.default_rng(seed).normal(0.3, 1, n)
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        exact = float(np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-9))
        found = sign_flip_p(d)
        assert abs(found - exact) < 5 * math.sqrt(exact * (1 - exact) / FLIPS)
        assert found == sign_flip_p(d) == sign_flip_p(-d)  # always the same flips

    def test_the_identity_is_one_of_the_flips(self) -> None:
        """No p-value is 0: of 60 equal differences no random pattern is as far."""
        assert sign_flip_p([1.0] * 60) == 1 / FLIPS

    @pytest.mark.parametrize("n", [10, EXACT_UP_TO + 4])
    def test_p_is_uniform_where_there_is_no_difference(self, n: int) -> None:
        rng = np.random.default_rng(n)
        p = np.array([sign_flip_p(rng.normal(0, 1, n)) for _ in range(300)])
        for level in (0.05, 0.2, 0.5, 0.8):
            assert abs(np.mean(p <= level) - level) < 4 * math.sqrt(level * (1 - level) / 300)

    @pytest.mark.parametrize("differences", [[], [1.0, math.nan], [[1.0, 2.0]]])
    def test_bad_input(self, differences: list[float]) -> None:
        with pytest.raises(ValueError, match="differences: expected at least one, all finite; received"):
            sign_flip_p(differences)


class TestHolm:
    """holm."""

    @pytest.mark.parametrize(
        ("p", "adjusted"),
        [
            ([], []),
            ([0.03], [0.03]),
            ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 × .01; 2 × .03; 1 × .04, but no less than the one before
            ([0.5, 0.6], [1.0, 1.0]),
        ],
    )
    def test_by_hand(self, p: list[float], adjusted: list[float]) -> None:
        assert holm(p) == pytest.approx(adjusted)

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
    def test_rejects_what_the_procedure_rejects(self, p: list[float]) -> None:
        """Step down: the smallest against 0.05 / m, the next against 0.05 / (m − 1), …, up to the first that fails."""
        rejected = 0
        for rank, value in enumerate(sorted(p)):
            if value * (len(p) - rank) > 0.05:
                break
            rejected += 1
        assert sum(value <= 0.05 for value in holm(p)) == rejected


@pytest.mark.parametrize(
    ("value", "base", "higher", "percent"),
    [
        (0.8289, 0.8180, True, 1.33),  # the paper's table: AUC of ASMG-GRU multi and IU on Tmall
        (0.8107, 0.8180, True, -0.89),
        (0.8108, 0.7998, True, 1.38),
        (0.7564, 0.7494, True, 0.93),
        (0.6452, 0.6381, True, 1.11),
        (0.5079, 0.5382, False, 5.63),  # LogLoss
        (0.5518, 0.5382, False, -2.53),
        (0.5309, 0.5466, False, 2.87),
        (0.4299, 0.4327, False, 0.65),
    ],
)
def test_improvement_is_the_papers(value: float, base: float, higher: bool, percent: float) -> None:
    assert round(improvement(value, base, higher_is_better=higher), 2) == percent


def test_spread() -> None:
    assert spread([1.0, 3.0, math.nan]) == Spread(2.0, 1.0)
    assert spread([5.0]) == Spread(5.0, None)
    assert spread([math.nan]) is None


def test_mean_leaves_out_what_is_not_there() -> None:
    nan = math.nan
    values = [[1.0, nan, nan], [3.0, 5.0, nan]]
    assert np.array_equal(mean(values, 0), [2.0, 5.0, nan], equal_nan=True)
    assert mean(values) == 3.0
    assert math.isnan(mean([]))


def test_calibration_error_by_hand() -> None:
    # (1 × |0 − .2| + 3 × |1 − .6|) / 4
    error = calibration_error(np.array([1.0, 3.0]), np.array([0.2, 0.6]), np.array([0.0, 1.0]))
    assert error == pytest.approx(0.35)
