"""How far a generated model is trusted: the evidence for serving Θ_t + α·(Θ*_t - Θ_t) with some fraction α.

Each fraction is scored on every period before anything is trained on it. Its gain is the reduction of the loss compared
with α = 0, the incremental model.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from asmg.models import Params

__all__ = ["Gain", "blend"]


class Gain(NamedTuple):
    """The gain of a fraction over α = 0 on all periods so far."""

    total: float = 0.0
    """Sum of the reductions of the interactions' losses in nats; older periods are decayed."""
    squares: float = 0.0
    """Sum of their squares, decayed likewise: the variance of `total`."""

    def after(self, reduction: Tensor, decay: float) -> "Gain":
        """The gain after one more period.

        Args:
            reduction: float64 [N], the reduction of each interaction's loss.
            decay: weight of the earlier periods, in [0, 1].
        """
        return Gain(
            decay * self.total + float(reduction.sum()),
            decay**2 * self.squares + float((reduction**2).sum()),
        )

    def certain(self, caution: float) -> float:
        """The lower bound of the gain: `caution` standard errors below it."""
        return self.total - caution * math.sqrt(self.squares)


def blend(plain: Mapping[str, Tensor], generated: Mapping[str, Tensor], fraction: float) -> Params:
    """The parameters plain + fraction·(generated - plain)."""
    return {name: torch.lerp(p, generated[name], fraction) for name, p in plain.items()}
