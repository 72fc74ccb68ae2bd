"""Steps of the base model as machine code whose gradients are sums over ranks."""

import math

import numpy as np
import torch

from asmg import kernels
from asmg.batch import Epoch
from asmg.kernels import BaseReads
from asmg.ranks import Ranks

__all__ = ["ParallelSteps"]

AdamSettings = tuple[float, float, float, float]
"""lr, beta1, beta2 and eps."""


class ParallelSteps:
    """Steps in which each rank computes the gradients of its share of a batch, and all make the same move.

    Args:
        epoch: planned, the same on all ranks.
        ranks: the processes.
        read: arguments of `kernels.base_steps` from `target` to `moved`.
        dense: those from `dense` to `dense_second`.
        widths, width: of the MLP's input and layers, and of an item's vector.
    """

    def __init__(
        self,
        epoch: Epoch,
        ranks: Ranks,
        read: BaseReads,
        dense: tuple[np.ndarray, np.ndarray, np.ndarray],
        widths: np.ndarray,
        width: int,
    ) -> None:
        self._plan, self._ranks, self._read, self._dense, self._widths = epoch.plan, ranks, read, dense, widths
        self._fractions, self._tables = epoch.fractions(ranks), read[-4:]
        self._dim = self._tables[0][0].shape[1]
        self._buffers = kernels.base_buffers(epoch.plan, 0, len(epoch), self._dim, widths, width)
        rows = np.diff(epoch.plan.row_bounds).sum(axis=0)
        self._sums = np.zeros(1 + len(dense[0]) + self._dim * int(rows.max()), np.float32)

    def run(
        self,
        start: int,
        stop: int,
        steps: int,
        settings: AdamSettings,
        tail: np.ndarray,
        losses: np.ndarray,
    ) -> None:
        """As `kernels.base_steps`, one sum over the ranks a step: of the loss and of all gradients."""
        plan, (flat, *_) = self._plan, self._dense
        for s in range(start, stop):
            lo, hi = self._ranks.share(int(plan.bounds[s]), int(plan.bounds[s + 1]))
            ddense = self._sums[1 : 1 + len(flat)]
            grads, at = [], 1 + len(flat)
            for count in np.diff(plan.row_bounds[:, s : s + 2])[:, 0].tolist():
                grads.append(self._sums[at : at + count * self._dim].reshape(count, self._dim))
                at += count * self._dim
            self._sums[0] = kernels.base_gradients(
                plan, s, lo, hi, self._fractions[s], *self._read, flat, self._widths,
                steps, *settings, tail, self._buffers, tuple(grads), ddense,
            )  # fmt: skip
            self._ranks.add_up(torch.from_numpy(self._sums[:at]))
            losses[s] = self._sums[0]
            if not math.isfinite(losses[s]):
                return
            steps += 1
            kernels.base_move(plan, s, *self._tables, *self._dense, tuple(grads), ddense, steps, *settings)
