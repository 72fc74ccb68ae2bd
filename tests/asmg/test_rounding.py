"""Rounded moments: on the grid, near, unbiased, and the same for the same seed."""

import torch

from asmg.adam import AdamState
from asmg.rounding import rounded_moments


def adam(values: torch.Tensor) -> AdamState:
    return AdamState(step=3, first={"w": values}, second={"w": values.abs()}, moved={}, restless={})


def test_moments_are_rounded_up_or_down_to_the_grid_and_no_further() -> None:
    """With 2 bits of mantissa the numbers between 1 and 2 are 1, 1.25, 1.5, 1.75, and twice that in the next octave."""
    values = torch.tensor([0.0, 1.0, 1.1, -1.6, 2.6, 2.0**-20 * 1.3])
    found = [rounded_moments(adam(values), 2, torch.Generator().manual_seed(n)).first["w"] for n in range(50)]
    seen = [sorted({float(one[i]) for one in found}) for i in range(len(values))]
    assert seen == [[0.0], [1.0], [1.0, 1.25], [-1.75, -1.5], [2.5, 3.0], [2.0**-20 * 1.25, 2.0**-20 * 1.5]]


def test_the_mean_of_the_error_is_zero() -> None:
    """1.1 is two fifths of the way from 1 to 1.25: its mean of 100,000 has a standard error of 0.0004."""
    rounded = rounded_moments(adam(torch.full((100_000,), 1.1)), 2, torch.Generator().manual_seed(0))
    for moments in (rounded.first, rounded.second):
        assert abs(float(moments["w"].double().mean()) - 1.1) < 0.002


def test_what_was_rounded_stays_and_equal_seeds_round_equally() -> None:
    before = adam(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    one, two = (rounded_moments(before, 7, torch.Generator().manual_seed(1)) for _ in range(2))
    again = rounded_moments(one, 7, torch.Generator().manual_seed(2))
    assert one.step == 3
    for other in (two, again):
        assert torch.equal(one.first["w"], other.first["w"])
        assert torch.equal(one.second["w"], other.second["w"])
    assert torch.equal(one.first["w"].bfloat16().float(), one.first["w"])
