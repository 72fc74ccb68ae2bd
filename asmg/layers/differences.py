"""A part without tables that changes a little each period: stored as a whole, and later as differences, to the bit.

A difference has the number by which each float32, read as an integer, is larger than the one before. Small moves of a
weight change its lower bits only, so the upper bytes of the differences are zeros, which take no space when they are
packed. Integers wrap around and are added without error, so the sum is the part itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from asmg.checkpoint import Checkpoint

__all__ = ["MOST_DIFFERENCES", "difference", "is_sum", "summed"]

MOST_DIFFERENCES = 7
"""Differences after which the part is stored as a whole again: each is read in full by every update."""

SUMMED = ("generator",)
"""Names of such parts. The moments of an optimizer change too much in a period: a difference is 7 % smaller."""

DIFFERENCE = "difference."
"""Begins the kind of a difference, which ends with that of the part."""


def is_sum(part: str) -> bool:
    """Whether the part of this name is stored as a whole and differences."""
    return part in SUMMED


def difference(before: Checkpoint, after: Checkpoint) -> Checkpoint:
    """What is to be added to a part to get a later one. A tensor that cannot be subtracted is in it as a whole."""
    tensors = {}
    for name, tensor in after.tensors.items():
        old = before.tensors.get(name)
        if old is None or old.dtype != torch.float32 or tensor.dtype != torch.float32 or old.shape != tensor.shape:
            tensors[name] = tensor
        else:
            more = _bits(tensor) - _bits(old)
            # The sign goes into the lowest bit, or a small negative number would have all of its upper bits set.
            tensors[f"{DIFFERENCE}{name}"] = (more << 1) ^ (more >> 31)
    return Checkpoint(f"{DIFFERENCE}{after.kind}", after.meta, tensors)


def summed(layers: Sequence[Checkpoint]) -> Checkpoint:
    """The part.

    Args:
        layers: the whole and its differences, oldest first.
    """
    whole, *differences = layers
    found: dict[str, Tensor] = dict(whole.tensors)
    for layer in differences:
        tensors = {}
        for name, tensor in layer.tensors.items():
            if name.startswith(DIFFERENCE):
                name = name.removeprefix(DIFFERENCE)
                more = ((tensor >> 1) & 0x7FFFFFFF) ^ -(tensor & 1)
                tensor = (_bits(found[name]) + more).view(torch.float32)
            tensors[name] = tensor
        found = tensors
    newest = layers[-1]
    return Checkpoint(newest.kind.removeprefix(DIFFERENCE), newest.meta, found)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32)
