"""Numbers of the training state rounded to few bits of mantissa, as training with 8-bit optimizers does.

They stay float32 with zeros in the lower bits, so whoever computes with them notices nothing, and their bytes compress
to a half or less; layers keep them as bfloat16 where that is exact. A state that was rounded, stored and read again
equals the one in memory.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from asmg.adam import AdamState

__all__ = ["check_bits", "halved", "rounded", "rounded_moments"]

MANTISSA_BITS = 23
"""Bits of mantissa of float32."""


def check_bits(name: str, bits: int | None) -> None:
    """Check a number of bits of mantissa.

    Raises:
        ValueError: it is neither None, for all, nor from 0 to 22; the message begins with `name`.
    """
    if bits is not None and not 0 <= bits < MANTISSA_BITS:
        raise ValueError(f"{name}: expected None or 0 to {MANTISSA_BITS - 1}; received {bits}")


def rounded(numbers: Mapping[str, Tensor], bits: int | None, rng: torch.Generator) -> dict[str, Tensor]:
    """Numbers rounded up or down at random, such that the mean of the error is zero.

    What a period changes by little, such as the second moment, of which a step takes in a thousandth of the squared
    gradient, would never change if it were rounded to the nearest number. Numbers that were rounded before stay.

    Args:
        numbers: float32 tensors by name.
        bits: of mantissa that stay; None for all. Two numbers of 7 bits (bfloat16) are 0.4 to 0.8 % apart, of 12 bits a
            thirtieth of that.
        rng: decides between up and down.
    """
    if bits is None:
        return dict(numbers)
    cleared, found = MANTISSA_BITS - bits, {}
    for name in sorted(numbers):
        exact = numbers[name].contiguous().view(torch.int32)
        below = torch.randint(1 << cleared, exact.shape, generator=rng, dtype=torch.int32)
        found[name] = ((exact + below) >> cleared << cleared).view(torch.float32)
    return found


def rounded_moments(adam: AdamState, bits: int | None, rng: torch.Generator) -> AdamState:
    """An optimizer whose moments are `rounded`."""
    return replace(adam, first=rounded(adam.first, bits, rng), second=rounded(adam.second, bits, rng))


def halved(numbers: Tensor) -> Tensor:
    """Float32 numbers as bfloat16, if all of them are of at most 7 bits of mantissa, else as they are."""
    lower = numbers.contiguous().view(torch.int32) & 0xFFFF
    return numbers if bool(lower.any()) else numbers.bfloat16()
