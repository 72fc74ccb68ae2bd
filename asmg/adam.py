"""Adam on some rows of tables, with the result of dense Adam over whole tables.

Each row has the step at which it was last moved. Before it is read again, the moves that its momentum alone would have
made since are added in closed form.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from asmg.models import Params, replace_rows, table_sizes

__all__ = ["AT_REST", "Adam", "AdamState"]

AT_REST = 1e-9
"""A row that momentum would move by less than this in total counts as at rest: float32 numbers near 0.01 are 1e-9
apart."""


@dataclass(frozen=True)
class AdamState:
    """Adam's moments and step counts."""

    step: int
    """Number of steps made."""
    first: Params
    """First moment (mean of the gradients) of each parameter, in its shape."""
    second: Params
    """Second moment (mean of the squared gradients) of each parameter, in its shape."""
    moved: Params
    """Table name → int32 [rows], the step at which each row was last moved."""
    restless: Params = field(default_factory=dict)
    """Table name → int64 [n], the rows that momentum still moves; all others are at rest (`AT_REST`)."""

    @classmethod
    def zeros(cls, params: Mapping[str, Tensor]) -> "AdamState":
        """The state before the first step."""
        return cls(
            step=0,
            first={name: torch.zeros_like(p) for name, p in params.items()},
            second={name: torch.zeros_like(p) for name, p in params.items()},
            moved={name: torch.zeros(rows, dtype=torch.int32) for name, rows in table_sizes(params).items()},
            restless={name: torch.zeros(0, dtype=torch.int64) for name in table_sizes(params)},
        )

    def check(self, params: Mapping[str, Tensor]) -> None:
        """Check a state that comes from outside.

        Raises:
            ValueError: it does not fit these parameters, or a number is not finite; the message names the tensor.
        """
        tables = table_sizes(params)
        for part, names in (("first", params), ("second", params), ("moved", tables), ("restless", tables)):
            found: Params = getattr(self, part)
            if set(found) != set(names):
                raise ValueError(f"optimizer.{part}: expected {sorted(names)}; received {sorted(found)}")
        for name, p in params.items():
            for part, moments in (("first", self.first), ("second", self.second)):
                if moments[name].shape != p.shape:
                    expected, received = tuple(p.shape), tuple(moments[name].shape)
                    raise ValueError(f"optimizer.{part}.{name}: expected shape {expected}; received {received}")
                if not bool(torch.isfinite(moments[name]).all()):
                    raise ValueError(f"optimizer.{part}.{name}: expected finite numbers; received NaN or infinity")
        for name, rows in tables.items():
            if len(self.moved[name]) != rows:
                raise ValueError(f"optimizer.moved.{name}: expected {rows} rows; received {len(self.moved[name])}")

    def forgotten(self, rows: Mapping[str, Tensor]) -> "AdamState":
        """The state with these rows (table name → int64 [n]) at rest; rows past a table's end are ignored."""
        zero, now = torch.zeros(()), torch.tensor(self.step, dtype=torch.int32)

        def put(parts: Params, value: Tensor) -> Params:
            return {n: replace_rows(p, rows[n], value) if n in rows else p for n, p in parts.items()}

        restless = {n: at[~torch.isin(at, rows[n])] if n in rows else at for n, at in self.restless.items()}
        return AdamState(self.step, put(self.first, zero), put(self.second, zero), put(self.moved, now), restless)

    def clone(self) -> "AdamState":
        """A copy."""
        return self._mapped(torch.clone)

    def copied_to(self, device: torch.device) -> "AdamState":
        """A copy on a device."""
        return self._mapped(lambda tensor: tensor.to(device, copy=True))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "AdamState":
        parts = {part: {n: change(t) for n, t in getattr(self, part).items()} for part in _PARTS}
        return AdamState(step=self.step, **parts)


_PARTS = ("first", "second", "moved", "restless")


class Adam:
    """Adam (Kingma & Ba 2015) that works in place, row by row, and equals dense Adam.

    Under dense Adam a row without gradient still moves, by lr·c(t)·m/(√v+ε) with m and v decaying. With ρ = β₁/√β₂ the
    J steps missed after step s sum to lr·m/(√v+ε)·Σ_{j≤J} c(s+j)ρʲ, c(t) = √(1-β₂ᵗ)/(1-β₁ᵗ), and that sum is
    H(s) - ρᴶ·H(s+J) for the tail sums H. (ε is not decayed with v, an error under ε/√v.) `read` adds the missed steps
    before rows are used. ε is added to √v after the bias correction, as in TensorFlow and so in the authors' release.
    """

    def __init__(
        self,
        params: Params,
        state: AdamState,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        """Take over `params` and `state`, which are then changed in place.

        Args:
            params, state: the parameters and their optimizer state.
            lr: step size.
            betas: decay of the first and the second moment, β₁ and β₂.
            eps: ε.
            shares: name → fraction of `lr` for dense parameters with smaller steps.
        """
        self.params, self.lr, self.betas, self.eps, self.shares = params, lr, betas, eps, shares or {}
        self.steps, self.first, self.second, self.moved = state.step, state.first, state.second, state.moved
        self.tail = _tail_sums(betas)

    @property
    def state(self) -> AdamState:
        """The current moments (shared, not copied)."""
        return AdamState(step=self.steps, first=self.first, second=self.second, moved=self.moved)

    def read(self, table: str, rows: Tensor) -> Tensor:
        """Distinct rows (int64 [R]) of a table at this step, after adding the moves of missed steps."""
        self._catch_up(table, rows)
        return self.params[table][rows]

    def step(self, grads: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        """One update.

        Args:
            grads: name → gradient; [R, dim] for a table, else in the parameter's shape.
            rows: table name → int64 [R], the distinct rows, which were just `read`.
        """
        self.steps += 1
        beta1, beta2 = self.betas
        rate = self.lr * math.sqrt(1 - beta2**self.steps) / (1 - beta1**self.steps)
        for name, grad in grads.items():
            first, second, param = self.first[name], self.second[name], self.params[name]
            if name in rows:
                index = rows[name]
                m = first[index].lerp_(grad, 1 - beta1)
                v = second[index].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                first[index], second[index] = m, v
                param.index_add_(0, index, m / (v.sqrt() + self.eps), alpha=-rate)
                self.moved[name][index] = self.steps
            else:
                first.lerp_(grad, 1 - beta1)
                second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                param.addcdiv_(first, second.sqrt().add_(self.eps), value=-rate * self.shares.get(name, 1.0))

    def settle(self) -> None:
        """Add the moves of missed steps to every table row: afterwards `params` equals that of dense Adam."""
        for table, moved in self.moved.items():
            self._catch_up(table, torch.arange(len(moved), device=moved.device))

    def restless(self, table: str) -> Tensor:
        """The rows, int64 [n], that momentum alone would still move by more than AT_REST in total."""
        beta1, beta2 = self.betas
        ratio = beta1 / math.sqrt(beta2)
        reach = self.lr * self.first[table].abs() / (self.second[table].sqrt() + self.eps) * ratio / (1 - ratio)
        return torch.nonzero((reach > AT_REST).any(1)).squeeze(1)

    def _catch_up(self, table: str, rows: Tensor) -> None:
        missed = self.steps - self.moved[table][rows]
        behind = missed > 0
        if not bool(behind.any()):
            return
        rows, missed = rows[behind], missed[behind].double()
        beta1, beta2 = self.betas
        m, v = self.first[table][rows], self.second[table][rows]
        tail = self.tail.to(rows.device)
        ratio, last = beta1 / math.sqrt(beta2), len(tail) - 1
        before = tail[(self.steps - missed.long()).clamp(max=last)]
        reach = before - ratio**missed * tail[min(self.steps, last)]
        self.params[table].index_add_(0, rows, m / (v.sqrt() + self.eps) * reach.float().unsqueeze(1), alpha=-self.lr)
        self.first[table][rows] = m * (beta1**missed).float().unsqueeze(1)
        self.second[table][rows] = v * (beta2**missed).float().unsqueeze(1)
        self.moved[table][rows] = self.steps


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
