"""Training of a base model on the rows that a log touches.

Training takes the rows that a log touches out of the tables, works on these alone (`RowTraining`) and puts them back in
a separate step (`commit`). So its cost grows with the traffic and not with the tables; the result is nevertheless what
dense Adam over whole tables computes (`asmg.adam`), of all rows or, without the restless ones, of those that were just
read. Used by `asmg.base_training` and, for SML, `asmg.updaters.sml`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from asmg import kernels
from asmg.adam import Adam, AdamState
from asmg.batch import COLD_ROW, TABLES, Epoch, Excerpt, InteractionBatch, PeriodData, excerpt
from asmg.models import BaseModel, Params, placed, read_rows
from asmg.ranks import ALONE, Ranks
from asmg.training.arrays import flat_array, mlp_widths, table_arrays
from asmg.training.execution import CHUNK, DivergedError, Execution, Progress, finite
from asmg.training.parallel import ParallelSteps

__all__ = ["RowTraining", "RowUpdate", "commit", "cross_entropy", "descend", "take", "trained"]


@dataclass(frozen=True)
class RowUpdate:
    """The result of training some rows and all dense parameters; `commit` puts it into whole tables."""

    rows: dict[str, Tensor]
    """Table name → int64 [n], the distinct rows that were trained."""
    params: Params
    """The trained rows [n, dim] of each table, and the dense parameters."""
    adam: AdamState
    """The optimizer of the same; its `restless` rows count in the whole tables."""
    sizes: dict[str, int]
    """Table name → rows that the whole table has after `commit`."""
    passes: tuple[float, ...] = ()
    """The new `asmg.base_state.BaseState.passes`."""


def take(params: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Params:
    """Copies of the given rows of each table (the cold row for rows past its end) and of the other parameters."""
    return {name: read_rows(p, rows[name]) if name in rows else p.clone() for name, p in params.items()}


def trained(model: BaseModel, params: Mapping[str, Tensor], adam: AdamState, periods: Sequence[PeriodData]) -> Excerpt:
    """The logs cut down to the rows that training moves: those that they touch, and the restless ones.

    Args:
        model: the base model.
        params, adam: whole tables and their optimizer.
        periods: the logs to learn, oldest first.

    Raises:
        ValueError: the newest period lacks the rows of one of the model's tables.
    """
    newest = periods[-1]
    if missing := set(model.tables) - set(newest.sizes):
        raise ValueError(f"data: expected rows for the tables {model.tables}; received none for {missing}")
    sizes = {name: max(newest.sizes[name], len(params[name])) for name in model.tables}
    return excerpt([model.reads(data) for data in periods], model.tables, sizes=sizes, more=adam.restless)


class RowTraining:
    """Training of a base model on the rows that some logs touch; the whole tables stay unchanged."""

    def __init__(
        self,
        model: BaseModel,
        params: Mapping[str, Tensor],
        adam: AdamState,
        periods: Sequence[PeriodData],
        *,
        lr: float,
        execution: Execution,
        restless: bool = True,
    ) -> None:
        """Copy the rows out of the tables.

        Args:
            model: the base model.
            params, adam: whole tables and their optimizer. Ids past a table's end start from its cold row.
            periods: the logs to learn, oldest first.
            lr: Adam's step size.
            execution: where and how to compute.
            restless: whether the next session also takes the rows that momentum still moves after this one, see
                `asmg.training.TrainingConfig`.

        Raises:
            ValueError: the newest period lacks the rows of one of the model's tables.
        """
        self.model, self.execution, self.restless = model, execution, restless
        self.periods, self.rows = trained(model, params, adam, periods)
        self.sizes = {name: max(periods[-1].sizes[name], len(params[name])) for name in model.tables}
        device = execution.torch_device
        first, second, moved = dict(adam.first), dict(adam.second), {}
        for name, rows in self.rows.items():
            inside = rows < len(adam.moved[name])
            at = torch.where(inside, rows, COLD_ROW)
            moved[name] = torch.where(inside, adam.moved[name][at], adam.step)
            first[name], second[name] = (m[name][at] * inside.unsqueeze(1) for m in (adam.first, adam.second))
        state = AdamState(
            step=adam.step,
            first={n: (t if n in moved else t.clone()).to(device) for n, t in first.items()},
            second={n: (t if n in moved else t.clone()).to(device) for n, t in second.items()},
            moved={n: t.to(device) for n, t in moved.items()},
        )
        self.params = {n: t.to(device) for n, t in take(params, self.rows).items()}
        self.optimizer = Adam(self.params, state, lr=lr)

    def epoch(
        self,
        data: PeriodData,
        *,
        batch_size: int,
        rng: torch.Generator,
        cold_rate: float = 0.0,
        target: Tensor | None = None,
        shuffle: bool = True,
        progress: Progress | None = None,
    ) -> float:
        """One pass over one of `periods` (or a slice of one): argmin_Θ L(Θ | D_t, Θ_{t-1}).

        Args:
            data: one of `self.periods`, or a slice of one.
            batch_size: interactions of a batch; the last one may be smaller.
            rng: for the order and for id dropout.
            cold_rate: probability of id dropout, see `asmg.batch.Epoch`.
            target: float32 [N] in [0, 1], learned instead of the labels.
            shuffle: whether the order is random instead of the log's.
            progress: called with the fraction done.

        Returns:
            the mean loss over the interactions.

        Raises:
            DivergedError: a loss is NaN or infinite.
        """
        order = torch.randperm(len(data), generator=rng) if shuffle else torch.arange(len(data))
        epoch = Epoch([data], [order.split(batch_size)], cold_rate=cold_rate, rng=rng)
        wanted = epoch.label if target is None else target[epoch.order]
        ranks = self.execution.ranks_for(batch_size)
        run = self._compiled if self.execution.uses_kernels(self.model) else self._eager
        losses = run(epoch, wanted, progress, ranks)
        sizes = np.diff(epoch.plan.bounds)
        return float((losses * sizes).sum() / sizes.sum())

    def finish(self) -> RowUpdate:
        """The trained rows and their optimizer, on the CPU.

        Raises:
            DivergedError: a parameter is NaN or infinite.
        """
        for name, p in self.params.items():
            if not bool(torch.isfinite(p).all()):
                raise DivergedError(f"{name}: expected finite numbers after training; received NaN or infinity")
        state = self.optimizer.state
        restless = {
            name: rows[self.optimizer.restless(name).cpu()] if self.restless else rows[:0]
            for name, rows in self.rows.items()
        }
        parts = {n: {k: t.cpu() for k, t in getattr(state, n).items()} for n in ("first", "second", "moved")}
        adam = AdamState(step=state.step, **parts, restless=restless)
        return RowUpdate(self.rows, {n: p.cpu() for n, p in self.params.items()}, adam, self.sizes)

    def keep(self) -> tuple[Params, AdamState]:
        """A copy of the current parameters and optimizer, for `restore`."""
        return {n: p.clone() for n, p in self.params.items()}, self.optimizer.state.clone()

    def restore(self, kept: tuple[Params, AdamState]) -> None:
        """Return to a copy that `keep` made. Each copy can be restored once."""
        self.params = kept[0]
        self.optimizer = Adam(self.params, kept[1], lr=self.optimizer.lr)

    def _eager(self, epoch: Epoch, target: Tensor, progress: Progress | None, ranks: Ranks) -> np.ndarray:
        losses, fractions = np.zeros(len(epoch)), epoch.fractions(ranks)
        dense = [name for name in self.params if name not in self.rows]
        target = target.to(self.execution.torch_device)
        for s in range(len(epoch)):
            local = epoch.local(s, target, ranks)
            leaves = {name: self.optimizer.read(name, rows) for name, rows in local.rows.items()}
            leaves |= {name: self.params[name] for name in dense}
            leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
            (batch,) = local.batches
            loss = target.new_zeros(())
            if len(batch.user):
                loss = cross_entropy(self.model.logits(leaves, batch, local.features), batch) * fractions[s]
            losses[s] = descend(self.optimizer, loss, leaves, local.rows, ranks)
            if progress:
                progress((s + 1) / len(epoch))
        self.optimizer.settle()
        return losses

    def _compiled(self, epoch: Epoch, target: Tensor, progress: Progress | None, ranks: Ranks) -> np.ndarray:
        losses, optimizer = np.zeros(len(epoch)), self.optimizer
        parts = (self.params, optimizer.first, optimizer.second)
        tables, firsts, seconds = (table_arrays(values, self.model) for values in parts)
        moved = tuple(optimizer.moved[t].numpy() if t in self.rows else np.zeros(1, np.int32) for t in TABLES)
        dense = list(self.model.dense_shapes)
        flat, first, second = (flat_array(values, dense) for values in parts)
        read = (
            target.numpy(), epoch.importance.numpy(), epoch.numeric.numpy(), epoch.weights.numpy(), epoch.sums.numpy(),
            tables, firsts, seconds, moved,
        )  # fmt: skip
        settings = (optimizer.lr, *optimizer.betas, optimizer.eps)
        tail, (widths, width) = optimizer.tail.numpy(), mlp_widths(self.model)
        parallel = None if ranks.size == 1 else ParallelSteps(epoch, ranks, read, (flat, first, second), widths, width)
        for start in range(0, len(epoch), CHUNK):
            stop = min(start + CHUNK, len(epoch))
            if parallel is None:
                kernels.base_steps(
                    epoch.plan, start, stop, *read, flat, first, second, widths, width,
                    optimizer.steps, *settings, tail, losses,
                )  # fmt: skip
            else:
                parallel.run(start, stop, optimizer.steps, settings, tail, losses)
            for loss in losses[start:stop]:
                finite(float(loss))
            optimizer.steps += stop - start
            if progress:
                progress(stop / len(epoch))
        for place, name in enumerate(TABLES):
            if name in self.rows:
                table = (tables[place], firsts[place], seconds[place], moved[place])
                kernels.settle_rows(*table, optimizer.steps, *settings, tail)
        for values, numbers in zip(parts, (flat, first, second), strict=True):
            pieces = torch.from_numpy(numbers).split([values[n].numel() for n in dense])
            for name, piece in zip(dense, pieces, strict=True):
                values[name].copy_(piece.view(values[name].shape))
        return losses


def commit(params: Mapping[str, Tensor], adam: AdamState, update: RowUpdate) -> tuple[Params, AdamState]:
    """Whole tables, and their optimizer, with the updated rows in their places.

    New rows that were not trained are copies of the cold row. This is the only part of an update whose cost grows with
    the tables: each is copied once.
    """
    sizes, rows = update.sizes, update.rows

    def put(old: Tensor, new: Tensor, name: str, fill: Tensor) -> Tensor:
        return placed(old, rows[name], new, size=sizes[name], fill=fill)

    zero = torch.zeros(())
    merged = {
        name: put(p, update.params[name], name, p[COLD_ROW]) if name in rows else update.params[name]
        for name, p in params.items()
    }
    first, second = (
        {name: put(m, new[name], name, zero) if name in rows else new[name] for name, m in old.items()}
        for old, new in ((adam.first, update.adam.first), (adam.second, update.adam.second))
    )
    now = torch.tensor(update.adam.step, dtype=torch.int32)
    moved = {name: put(adam.moved[name], update.adam.moved[name], name, now) for name in rows}
    return merged, replace(update.adam, first=first, second=second, moved=moved)


def descend(optimizer: Adam, loss: Tensor, leaves: Params, rows: Mapping[str, Tensor], ranks: Ranks = ALONE) -> float:
    """One step of Adam down the gradient of a loss.

    Args:
        optimizer: of the parameters.
        loss: a scalar, computed from `leaves`; with several ranks this one's part of the loss.
        leaves: name → the parameter, or its rows that were just read, with gradients.
        rows: table name → int64 [R], the rows in `leaves`.
        ranks: the processes whose parts make up the loss.

    Returns:
        the loss.

    Raises:
        DivergedError: the loss is NaN or infinite; no step is made.
    """
    leaves = dict(sorted(leaves.items()))  # a state that was stored has its tensors in another order
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=ranks.size > 1)
    else:  # this rank has no part in the batch
        gradients = tuple(torch.zeros_like(leaf) for leaf in leaves.values())
    if ranks.size > 1:
        sums = torch.cat([loss.detach().reshape(1), *(gradient.reshape(-1) for gradient in gradients)])
        ranks.add_up(sums)
        loss, *parts = sums.split([1, *(gradient.numel() for gradient in gradients)])
        gradients = tuple(part.view(leaf.shape) for part, leaf in zip(parts, leaves.values(), strict=True))
    value = finite(loss.item())
    optimizer.step(dict(zip(leaves, gradients, strict=True)), rows)
    return value


def cross_entropy(logits: Tensor, batch: InteractionBatch) -> Tensor:
    """Mean cross-entropy of logits [B] on a batch, weighted by `batch.weight`; in nats."""
    losses = functional.binary_cross_entropy_with_logits(logits, batch.label, reduction="none")
    if batch.weight is None:
        return losses.mean()
    return (losses * batch.weight).sum() / batch.weight.sum()
