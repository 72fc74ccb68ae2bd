"""Training of a base model: the one loop over mini-batches, and the scoring pass.

Training takes the rows that a log touches out of the tables, works on these alone, and puts them back in a step of its
own (`RowTraining`, `commit`): its cost grows with the traffic and not with the tables. The result is nevertheless what
dense Adam over whole tables computes (`asmg.adam`).

On a CPU the steps run as machine code (`asmg.kernels`); on a GPU, and where asked for, as eager torch with equal
results up to float32 rounding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from asmg import kernels
from asmg.adam import Adam, AdamState
from asmg.batch import COLD_ROW, TABLES, Epoch, InteractionBatch, PeriodData, excerpt
from asmg.field_columns import FieldColumns
from asmg.metrics import Scores, scores
from asmg.models import BaseModel, EmbeddingMLP, Params, read_rows, table_sizes

__all__ = [
    "DivergedError",
    "Execution",
    "Progress",
    "RowTraining",
    "RowUpdate",
    "commit",
    "cross_entropy",
    "evaluate",
    "narrow",
    "predict_logits",
]

Progress = Callable[[float], None]
"""Called now and then with the fraction of the work done, in [0, 1]."""

CHUNK = 32
"""Steps made in one call of compiled code, between two reports of progress."""


class DivergedError(ArithmeticError):
    """Training met a loss or a weight that is not finite; the state it started from is untouched."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how training computes; never what it computes."""

    device: str = "auto"
    """A torch device; "auto" is "cuda" where torch sees one, else "cpu"."""
    compiled: bool = True
    """On a CPU: machine code (numba) instead of eager torch."""

    def __post_init__(self) -> None:
        try:
            kind = self.torch_device.type
        except RuntimeError:
            kind = None
        if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
            raise ValueError(f"device: expected auto, cpu or a cuda device that torch sees; received {self.device!r}")

    @property
    def torch_device(self) -> torch.device:
        """The device itself."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(name)

    def uses_kernels(self, model: BaseModel) -> bool:
        """Whether training of this model runs as machine code."""
        return self.torch_device.type == "cpu" and self.scores_by_kernel(model)

    def scores_by_kernel(self, model: BaseModel) -> bool:
        """Whether scoring by this model, which is the CPU's whatever the device, runs as machine code.

        Not for a class derived from the one that the kernels are of: its forward pass may be another.
        """
        return self.compiled and type(model) is EmbeddingMLP


@dataclass(frozen=True)
class RowUpdate:
    """What training made of some rows, and of all dense parameters; `commit` puts it into whole tables."""

    rows: dict[str, Tensor]
    """Table name → int64 [n], distinct."""
    params: Params
    """Tables [n, dim], the rest whole."""
    adam: AdamState
    """The optimizer of the same; its `restless` rows are those of the whole tables."""
    sizes: dict[str, int]
    """Rows that the whole tables shall have."""
    passes: tuple[float, ...] = ()
    """What is known of the number of passes now (`asmg.base_training.BaseState.passes`)."""


def take(params: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Params:
    """The given rows of each table and all the rest, as new tensors; a row past a table's end is its cold row."""
    return {name: read_rows(p, rows[name]) if name in rows else p.clone() for name, p in params.items()}


class RowTraining:
    """Training of a base model on the rows that some logs touch, out of tables that it leaves as they are."""

    def __init__(
        self,
        model: BaseModel,
        params: Mapping[str, Tensor],
        adam: AdamState,
        periods: Sequence[PeriodData],
        *,
        lr: float,
        execution: Execution,
    ) -> None:
        """Take the rows out.

        Args:
            params, adam: whole tables and their optimizer. Ids past a table's end start from its cold row.
            periods: the logs to learn, oldest first.
            lr: Adam's step size.
        """
        newest = periods[-1]
        if missing := set(model.tables) - set(newest.sizes):
            raise ValueError(f"data: expected rows for the tables {model.tables}; received none for {missing}")
        self.model, self.execution = model, execution
        self.sizes = {name: max(newest.sizes[name], len(params[name])) for name in model.tables}
        read = [model.reads(data) for data in periods]
        self.periods, self.rows = excerpt(read, model.tables, sizes=self.sizes, more=adam.restless)
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
        """One pass over one of `periods` (or a slice of one): argmin L(Θ | D_t, Θ_{t-1}); returns the mean loss.

        Args:
            batch_size: the last batch is as long as what is left.
            cold_rate: id dropout, see `asmg.batch.Epoch`.
            target: float32 [N] in [0, 1], learned instead of the labels.
            shuffle: in a random order instead of the log's.
            progress: told the fraction done.

        Raises:
            DivergedError: on a loss that is not finite.
        """
        order = torch.randperm(len(data), generator=rng) if shuffle else torch.arange(len(data))
        epoch = Epoch([data], [order.split(batch_size)], cold_rate=cold_rate, rng=rng)
        wanted = epoch.label if target is None else target[epoch.order]
        run = self._compiled if self.execution.uses_kernels(self.model) else self._eager
        losses = run(epoch, wanted, progress)
        self.optimizer.settle()
        sizes = np.diff(epoch.plan.bounds)
        return float((losses * sizes).sum() / sizes.sum())

    def finish(self) -> RowUpdate:
        """What came out, back on the CPU.

        Raises:
            DivergedError: a parameter is not finite.
        """
        for name, p in self.params.items():
            if not bool(torch.isfinite(p).all()):
                raise DivergedError(f"{name}: expected finite numbers after training; received NaN or infinity")
        state = self.optimizer.state
        restless = {name: rows[self.optimizer.restless(name).cpu()] for name, rows in self.rows.items()}
        parts = {n: {k: t.cpu() for k, t in getattr(state, n).items()} for n in ("first", "second", "moved")}
        adam = AdamState(step=state.step, **parts, restless=restless)
        return RowUpdate(self.rows, {n: p.cpu() for n, p in self.params.items()}, adam, self.sizes)

    def keep(self) -> tuple[Params, AdamState]:
        """A copy of where training is, to go back to with `restore`."""
        return {n: p.clone() for n, p in self.params.items()}, self.optimizer.state.clone()

    def restore(self, kept: tuple[Params, AdamState]) -> None:
        """Go back to where `keep` was called; to be called once with what it returned."""
        self.params = kept[0]
        self.optimizer = Adam(self.params, kept[1], lr=self.optimizer.lr)

    def _eager(self, epoch: Epoch, target: Tensor, progress: Progress | None) -> np.ndarray:
        losses = np.zeros(len(epoch))
        dense = [name for name in self.params if name not in self.rows]
        target = target.to(self.execution.torch_device)
        for s in range(len(epoch)):
            local = epoch.local(s, target)
            leaves = {name: self.optimizer.read(name, rows) for name, rows in local.rows.items()}
            leaves |= {name: self.params[name] for name in dense}
            leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
            (batch,) = local.batches
            loss = cross_entropy(self.model.logits(leaves, batch, local.features), batch)
            losses[s] = finite(loss.item())
            self.optimizer.step(
                dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)), local.rows
            )
            if progress:
                progress((s + 1) / len(epoch))
        return losses

    def _compiled(self, epoch: Epoch, target: Tensor, progress: Progress | None) -> np.ndarray:
        losses, optimizer = np.zeros(len(epoch)), self.optimizer
        parts = (self.params, optimizer.first, optimizer.second)
        tables, firsts, seconds = (_tables(values, self.model) for values in parts)
        moved = tuple(optimizer.moved[t].numpy() if t in self.rows else np.zeros(1, np.int32) for t in TABLES)
        dense = list(self.model.dense_shapes)
        flat, first, second = (_flat(values, dense) for values in parts)
        beta1, beta2 = optimizer.betas
        for start in range(0, len(epoch), CHUNK):
            stop = min(start + CHUNK, len(epoch))
            kernels.base_steps(
                epoch.plan, start, stop, target.numpy(), epoch.importance.numpy(),
                epoch.numeric.numpy(), epoch.weights.numpy(), epoch.sums.numpy(),
                tables, firsts, seconds, moved, flat, first, second,
                *_widths(self.model), optimizer.steps, optimizer.lr, beta1, beta2, optimizer.eps,
                optimizer.tail.numpy(), losses,
            )  # fmt: skip
            for loss in losses[start:stop]:
                finite(float(loss))
            optimizer.steps += stop - start
            if progress:
                progress(stop / len(epoch))
        for values, numbers in zip(parts, (flat, first, second), strict=True):
            pieces = torch.from_numpy(numbers).split([values[n].numel() for n in dense])
            for name, piece in zip(dense, pieces, strict=True):
                values[name].copy_(piece.view(values[name].shape))
        return losses


def commit(params: Mapping[str, Tensor], adam: AdamState, update: RowUpdate) -> tuple[Params, AdamState]:
    """Whole tables with the updated rows in their places; new rows that were not touched start as the cold row.

    The only part of an update of a base model whose cost grows with the tables: each is copied once.
    """
    sizes, rows = update.sizes, update.rows

    def placed(old: Tensor, new: Tensor, name: str, fill: Tensor) -> Tensor:
        table = old.new_empty((sizes[name], *old.shape[1:]))
        table[: len(old)] = old
        table[len(old) :] = fill
        return table.index_copy_(0, rows[name], new)

    zero = torch.zeros(())
    merged = {
        name: placed(p, update.params[name], name, p[COLD_ROW]) if name in rows else update.params[name]
        for name, p in params.items()
    }
    first, second = (
        {name: placed(m, new[name], name, zero) if name in rows else new[name] for name, m in old.items()}
        for old, new in ((adam.first, update.adam.first), (adam.second, update.adam.second))
    )
    now = torch.tensor(update.adam.step, dtype=torch.int32)
    moved = {name: placed(adam.moved[name], update.adam.moved[name], name, now) for name in rows}
    return merged, replace(update.adam, first=first, second=second, moved=moved)


def cross_entropy(logits: Tensor, batch: InteractionBatch) -> Tensor:
    """Mean cross-entropy of a batch, each interaction counting by its weight."""
    losses = functional.binary_cross_entropy_with_logits(logits, batch.label, reduction="none")
    if batch.weight is None:
        return losses.mean()
    return (losses * batch.weight).sum() / batch.weight.sum()


def finite(loss: float) -> float:
    """The loss; raises DivergedError when it is not finite."""
    if not math.isfinite(loss):
        raise DivergedError(f"loss: expected a finite number; received {loss}")
    return loss


def _tables(params: Mapping[str, Tensor], model: BaseModel) -> tuple[np.ndarray, ...]:
    """All of TABLES as arrays; a row of zeros for one that the model has not."""
    none = np.zeros((1, model.table_widths["user"]), np.float32)
    return tuple(params[table].numpy() if table in model.tables else none for table in TABLES)


def _flat(params: Mapping[str, Tensor], names: Sequence[str]) -> np.ndarray:
    """The named tensors one after the other, copied."""
    return torch.cat([params[n].reshape(-1) for n in names]).numpy()


def _widths(model: BaseModel) -> tuple[np.ndarray, int]:
    """Of the MLP's input and layers, and of an item."""
    assert isinstance(model, EmbeddingMLP), "the only model with kernels"
    return np.array(model.widths), model.item_width


def narrow(
    model: BaseModel, models: Sequence[Mapping[str, Tensor]], data: PeriodData
) -> tuple[list[Params], PeriodData]:
    """Models of one size, cut down to the rows that a log reads of them when they predict, and the log in these."""
    if data.fields is not None:
        data = replace(data, fields=data.fields.when_predicting())
    (small,), rows = excerpt([model.reads(data)], model.tables, sizes=table_sizes(models[0]))
    return [take(params, rows) for params in models], small


@torch.no_grad()
def predict_logits(
    model: BaseModel,
    params: Mapping[str, Tensor],
    data: PeriodData,
    *,
    batch_size: int = 8192,
    execution: Execution | None = None,
) -> Tensor:
    """Logits float32 [N] of a whole log in its own order; ids that `params` has no row for are read as the cold row.

    Args:
        model, params: on whatever device.
        data: the log.
        batch_size: interactions at a time, where it is not done by machine code.
        execution: whether it is; by default, where there is any. Computed on the CPU in any case.
    """
    (small,), data = narrow(model, [params], data)
    small = {name: p.cpu() for name, p in small.items()}
    features = data.features
    if (execution or Execution(device="cpu")).scores_by_kernel(model):
        logits = torch.empty(len(data))
        vectors = model.item_vectors(small, features).contiguous()
        dense = _flat(small, list(model.dense_shapes))
        fields = data.fields or FieldColumns.none(len(data))
        kernels.predict(
            data.user.numpy(), data.item.numpy(), data.history.numpy(), data.offsets.numpy(),
            fields.rows.contiguous().numpy(), fields.weights.contiguous().numpy(), fields.sums.numpy(),
            data.inputs.numpy(), small["user"].numpy(), vectors.numpy(), _tables(small, model)[3],
            _widths(model)[0], dense, logits.numpy(),
        )  # fmt: skip
        return logits
    batches = [data.batch(index) for index in torch.arange(len(data)).split(batch_size)]
    return torch.cat([model.logits(small, batch, features) for batch in batches])


def evaluate(
    model: BaseModel, params: Mapping[str, Tensor], data: PeriodData, execution: Execution | None = None
) -> Scores:
    """Metrics of one model on one log (progressive validation calls it before anything trains on that log)."""
    return scores(predict_logits(model, params, data, execution=execution), data.label)
