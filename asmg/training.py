"""Training: the one loop over mini-batches, its optimizer, and the scoring pass.

Each step reads only the table rows that its batch touches (`asmg.batch.localise`) and moves only those, yet the result
is what dense Adam over whole tables computes: `Adam` remembers when a row was last moved and, before the row is read
again, applies in closed form the steps that its momentum alone would have made meanwhile.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from asmg.batch import PeriodData, localise, shuffled_batches
from asmg.metrics import Scores, scores
from asmg.models import EmbeddingMLP, Params, table_sizes

__all__ = ["Adam", "AdamState", "DivergedError", "Progress", "evaluate", "predict_logits", "train_epoch"]

Progress = Callable[[float], None]
"""Called now and then with the fraction of the work done, in [0, 1]."""


class DivergedError(ArithmeticError):
    """Training met a loss that is not finite; the state it started from is untouched."""


@dataclass(frozen=True)
class AdamState:
    """Moments of every parameter, the step count, and for each table row the step at which it was last moved."""

    step: int
    first: Params
    second: Params
    moved: Params
    """Table name → int32 [rows]."""

    @classmethod
    def zeros(cls, params: Mapping[str, Tensor]) -> "AdamState":
        """The state before the first step."""
        return cls(
            step=0,
            first={name: torch.zeros_like(p) for name, p in params.items()},
            second={name: torch.zeros_like(p) for name, p in params.items()},
            moved={name: torch.zeros(rows, dtype=torch.int32) for name, rows in table_sizes(params).items()},
        )

    def grown(self, sizes: Mapping[str, int]) -> "AdamState":
        """A copy with room for `sizes` table rows; new rows have no momentum."""

        def copy(moments: Params) -> Params:
            return {
                name: functional.pad(m, (0, 0, 0, max(0, sizes[name] - len(m)))) if name in sizes else m.clone()
                for name, m in moments.items()
            }

        moved = {
            name: functional.pad(s, (0, max(0, sizes.get(name, 0) - len(s))), value=self.step)
            for name, s in self.moved.items()
        }
        return AdamState(step=self.step, first=copy(self.first), second=copy(self.second), moved=moved)


class Adam:
    """Adam (Kingma & Ba 2015) that works in place, row by row, and equals dense Adam.

    A row without gradient still moves under dense Adam, by lr·c(t)·m/(√v+ε) with m and v decaying. With ρ = β₁/√β₂ the
    J steps missed after step s sum to lr·m/(√v+ε)·Σ_{j≤J} c(s+j)ρʲ, c(t) = √(1-β₂ᵗ)/(1-β₁ᵗ), and that sum is
    H(s) - ρᴶ·H(s+J) for the tail sums H. (ε is not decayed with v, an error under ε/√v.) `read` catches rows up before
    they are used. ε is added to √v outside of the bias correction, as TensorFlow, and so the authors' release, does.
    """

    def __init__(
        self,
        params: Params,
        state: AdamState,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """Take over `params` and `state`: both are changed in place from now on."""
        self.params, self.lr, self.betas, self.eps = params, lr, betas, eps
        self._step, self._first, self._second, self._moved = state.step, state.first, state.second, state.moved
        self._tail = _tail_sums(betas)

    @property
    def state(self) -> AdamState:
        """The moments as they are now (shared, not copied)."""
        return AdamState(step=self._step, first=self._first, second=self._second, moved=self._moved)

    def read(self, table: str, rows: Tensor) -> Tensor:
        """Rows of a table (distinct, int64 [R]) as of this step, caught up with what momentum owes them."""
        self._catch_up(table, rows)
        return self.params[table][rows]

    def step(self, grads: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        """One update. `grads[name]` is [R, dim] for the distinct `rows[name]` of a table just read, else dense."""
        self._step += 1
        beta1, beta2 = self.betas
        rate = self.lr * math.sqrt(1 - beta2**self._step) / (1 - beta1**self._step)
        for name, grad in grads.items():
            first, second, param = self._first[name], self._second[name], self.params[name]
            if name in rows:
                index = rows[name]
                m = first[index].lerp_(grad, 1 - beta1)
                v = second[index].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                first[index], second[index] = m, v
                param.index_add_(0, index, m / (v.sqrt() + self.eps), alpha=-rate)
                self._moved[name][index] = self._step
            else:
                first.lerp_(grad, 1 - beta1)
                second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                param.addcdiv_(first, second.sqrt().add_(self.eps), value=-rate)

    def settle(self) -> None:
        """Catch every table row up, so that `params` is what dense Adam would hold now."""
        for table in self._moved:
            behind = torch.nonzero(self._moved[table] < self._step).squeeze(1)
            for rows in behind.split(65_536):
                self._catch_up(table, rows)

    def _catch_up(self, table: str, rows: Tensor) -> None:
        missed = self._step - self._moved[table][rows]
        behind = missed > 0
        if not bool(behind.any()):
            return
        rows, missed = rows[behind], missed[behind].double()
        beta1, beta2 = self.betas
        m, v = self._first[table][rows], self._second[table][rows]
        ratio, last = beta1 / math.sqrt(beta2), len(self._tail) - 1
        before = self._tail[(self._step - missed.long()).clamp(max=last)]
        reach = before - ratio**missed * self._tail[min(self._step, last)]
        self.params[table].index_add_(0, rows, m / (v.sqrt() + self.eps) * reach.float().unsqueeze(1), alpha=-self.lr)
        self._first[table][rows] = m * (beta1**missed).float().unsqueeze(1)
        self._second[table][rows] = v * (beta2**missed).float().unsqueeze(1)
        self._moved[table][rows] = self._step


@lru_cache
def _tail_sums(betas: tuple[float, float]) -> Tensor:
    """H(s) = Σ_{j≥1} c(s+j)·ρʲ for s = 0, 1, … until it is constant, by H(s) = ρ·(c(s+1) + H(s+1)). float64.

    c(t) is 1 to the last bit once β₂ᵗ is under 2⁻⁵³, so all later sums are the last one, ρ/(1-ρ).
    """
    beta1, beta2 = betas
    ratio = beta1 / math.sqrt(beta2)
    steps = math.ceil(-53 * math.log(2) / math.log(beta2))
    tail = [ratio / (1 - ratio)]
    for s in range(steps - 1, -1, -1):
        tail.append(ratio * (math.sqrt(1 - beta2 ** (s + 1)) / (1 - beta1 ** (s + 1)) + tail[-1]))
    return torch.tensor(tail[::-1], dtype=torch.float64)


def train_epoch(
    model: EmbeddingMLP,
    optimizer: Adam,
    data: PeriodData,
    *,
    batch_size: int,
    rng: torch.Generator,
    cold_rate: float = 0.0,
    progress: Progress | None = None,
) -> float:
    """One shuffled epoch of the base model over `data`: argmin L(Θ | D_t, Θ_{t-1}), one pass; returns the mean loss.

    Args:
        optimizer: holds the parameters, whose tables must have `data.sizes` rows; they are changed in place.
        cold_rate: id dropout, see `asmg.batch.localise`.
        progress: told the fraction done.

    Raises:
        DivergedError: on a loss that is not finite.
    """
    params, sizes = optimizer.params, table_sizes(optimizer.params)
    dense = [name for name in params if name not in sizes]
    total, done = 0.0, 0
    for batch in shuffled_batches(data, batch_size, rng):
        local = localise([batch], sizes, data.item_categories, cold_rate=cold_rate, rng=rng)
        leaves = {name: optimizer.read(name, rows) for name, rows in local.rows.items()}
        leaves |= {name: params[name] for name in dense}
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        loss = functional.binary_cross_entropy_with_logits(
            model.logits(leaves, local.batches[0], local.features), batch.label
        )
        value = finite(loss)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        optimizer.step(dict(zip(leaves, grads, strict=True)), local.rows)
        done += len(batch.user)
        total += value * len(batch.user)
        if progress:
            progress(done / len(data))
    optimizer.settle()
    return total / done


def finite(loss: Tensor) -> float:
    """The loss as a number; raises DivergedError when it is not finite."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DivergedError(f"loss: expected a finite number; received {value}")
    return value


@torch.no_grad()
def predict_logits(
    model: EmbeddingMLP, params: Mapping[str, Tensor], data: PeriodData, *, batch_size: int = 8192
) -> Tensor:
    """Logits float32 [N] of a whole log in its own order; ids that `params` has no row for are read as the cold row."""
    sizes = table_sizes(params)
    parts: list[Tensor] = []
    for index in torch.arange(len(data)).split(batch_size):
        local = localise([data.batch(index)], sizes, data.item_categories)
        leaves = {name: params[name][local.rows[name]] if name in local.rows else params[name] for name in params}
        parts.append(model.logits(leaves, local.batches[0], local.features))
    return torch.cat(parts)


def evaluate(model: EmbeddingMLP, params: Mapping[str, Tensor], data: PeriodData) -> Scores:
    """Metrics of one model on one log (progressive validation calls it before anything trains on that log)."""
    return scores(predict_logits(model, params, data), data.label)
