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
    improvement,
    max_t_p,
    mean,
    sign_flip_p,
    spread,
    tally,
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


class TestTally:
    """tally."""

    def test_by_hand(self) -> None:
        nan = math.nan
        better = np.array([[0.1, 0.0, nan, -0.2], [0.3, 0.3, 0.0, nan], [-0.1, nan, nan, nan]])
        assert tally(better) == (3, 2, 7, -0.1, 2)
        assert tally(np.zeros((2, 3))) == (0, 6, 6, 0.0, 0)
        assert tally(np.array([[-1e-9]])) == (0, 0, 1, -1e-9, 0)
        assert tally(np.array([[nan], [0.5]])) == (1, 0, 1, 0.5, 1)

    def test_of_no_pairs(self) -> None:
        assert tally(np.full((2, 3), math.nan)) == (0, 0, 0, None, None)


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


class TestMaxT:
    """max_t_p."""

    @pytest.mark.parametrize(
        ("differences", "adjusted"),
        [
            ([[1.0], [1.0], [1.0]], [0.25]),  # one method: as sign_flip_p
            # Of ±±, the first's |sum| / √2 is 2/√2, 0; the second's 0, 2/√2: each pattern has one as great as can be.
            ([[1.0, 1.0], [1.0, -1.0]], [1.0, 1.0]),
            ([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], [0.25, 0.25]),  # two that move together cost nothing
            ([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], [1.0, 0.25]),
            ([[0.1, -0.3]] * 7, [2 / 128, 2 / 128]),
        ],
    )
    def test_by_hand(self, differences: list[list[float]], adjusted: list[float]) -> None:
        assert max_t_p(differences) == adjusted

    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6))
    def test_the_procedure_step_by_step(self, n: int, methods: int, seed: int) -> None:
        d = np.random.default_rng(seed).normal(0.4, 1, (n, methods))

        def statistic(signs: tuple[int, ...], method: int) -> float:
            column = d[:, method].tolist()
            total = math.fsum(s * x for s, x in zip(signs, column, strict=True))
            return abs(total) / math.sqrt(math.fsum(x * x for x in column))

        patterns, identity = list(itertools.product((-1, 1), repeat=n)), (1,) * n
        left = sorted(range(methods), key=lambda m: -statistic(identity, m))
        expected, least = {}, 0.0
        while left:
            first = left[0]
            far = [max(statistic(p, m) for m in left) >= statistic(identity, first) - 1e-9 for p in patterns]
            least = max(least, sum(far) / len(far))
            expected[left.pop(0)] = least
        assert max_t_p(d) == [expected[m] for m in range(methods)]

    def test_any_false_finding_is_rare(self) -> None:
        """Of 8 methods that share the noise of their base, none is better: 1 in 20 times one seems so."""
        rng, wrong = np.random.default_rng(1), 0
        for _ in range(300):
            wrong += min(max_t_p(rng.normal(size=(8, 8)) + rng.normal(size=(8, 1)))) <= 0.05
        assert 2 <= wrong <= 30

    @pytest.mark.parametrize("differences", [[], [1.0], [[]], [[1.0, math.inf]]])
    def test_bad_input(self, differences: list[float]) -> None:
        with pytest.raises(ValueError, match="differences: expected at least one, all finite; received"):
            max_t_p(differences)


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
