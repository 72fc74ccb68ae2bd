"""Moments of an optimizer rounded to few bits of mantissa, as training with 8-bit optimizers does.

They stay float32 with zeros in the lower bits, so whoever computes with them notices nothing, and their bytes compress
to a quarter. A state that was rounded, stored and read again equals the one in memory.
"""

from dataclasses import replace

import torch

from asmg.adam import AdamState
from asmg.models import Params

__all__ = ["MANTISSA_BITS", "rounded_moments"]

MANTISSA_BITS = 23
"""Bits of mantissa of float32."""


def rounded_moments(adam: AdamState, bits: int | None, rng: torch.Generator) -> AdamState:
    """An optimizer whose moments are rounded up or down at random, such that the mean of the error is zero.

    A step moves the second moment by a thousandth of its distance from the squared gradient, and a period may have few
    steps. Rounded to the nearest number it would never change.

    Args:
        adam: with float32 moments.
        bits: of mantissa that stay; None for all. Two numbers of 3 bits are 6 to 12 % apart, of 7
            bits (bfloat16) 0.4 to 0.8 %.
        rng: decides between up and down.
    """
    if bits is None:
        return adam
    cleared = MANTISSA_BITS - bits

    def at_random(moments: Params) -> Params:
        found = {}
        for name in sorted(moments):
            number = moments[name].contiguous().view(torch.int32)
            below = torch.randint(1 << cleared, number.shape, generator=rng, dtype=torch.int32)
            found[name] = ((number + below) >> cleared << cleared).view(torch.float32)
        return found

    return replace(adam, first=at_random(adam.first), second=at_random(adam.second))
