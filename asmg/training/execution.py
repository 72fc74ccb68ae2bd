"""Where training computes, how it reports progress and how it fails."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from asmg.models import BaseModel, EmbeddingMLP
from asmg.ranks import ALONE, Ranks

__all__ = ["CHUNK", "DivergedError", "Execution", "Progress", "finite", "part_of"]

Progress = Callable[[float], None]
"""Called from time to time with the fraction of the work that is done, in [0, 1]."""

LEAST_SHARED = 4096
"""A smaller batch of the base model is computed faster by every rank for itself than its gradients are added up."""

CHUNK = 32
"""Steps in one call of compiled code; progress is reported between calls."""


class DivergedError(ArithmeticError):
    """A loss or a weight became NaN or infinite in training. The state that training started from is unchanged."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how training computes; it does not change results beyond rounding."""

    device: str = "auto"
    """A torch device; "auto" is "cuda" if torch sees one, else "cpu"."""
    compiled: bool = True
    """Whether the CPU runs machine code (numba) instead of eager torch."""
    ranks: Ranks = ALONE
    """The processes that train together; every one of them has to do the same training on the same data."""
    least_shared: int = LEAST_SHARED
    """Interactions of a batch of the base model from which on the ranks share its work."""

    def __post_init__(self) -> None:
        try:
            kind = self.torch_device.type
        except RuntimeError:
            kind = None
        if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
            raise ValueError(f"device: expected auto, cpu or a cuda device that torch sees; received {self.device!r}")

    @property
    def torch_device(self) -> torch.device:
        """The device as torch's object."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(name)

    def ranks_for(self, batch_size: int) -> Ranks:
        """The ranks that share batches of the base model of this size: all, or each rank is alone with all of it."""
        return self.ranks if batch_size >= self.least_shared else ALONE

    def uses_kernels(self, model: BaseModel) -> bool:
        """Whether this model is trained by machine code."""
        return self.torch_device.type == "cpu" and self.scores_by_kernel(model)

    def scores_by_kernel(self, model: BaseModel) -> bool:
        """Whether this model scores logs by machine code. Scoring always runs on the CPU.

        False for a class derived from EmbeddingMLP, whose forward pass may differ from the kernels'.
        """
        return self.compiled and type(model) is EmbeddingMLP


def finite(loss: float) -> float:
    """The loss itself.

    Raises:
        DivergedError: it is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise DivergedError(f"loss: expected a finite number; received {loss}")
    return loss


def part_of(progress: Progress | None, index: int, parts: int) -> Progress | None:
    """A progress callback for part `index` (from 0) of `parts` equal parts."""
    if progress is None:
        return None
    return lambda fraction: progress(min(1.0, (index + fraction) / parts))
