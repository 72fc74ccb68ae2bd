"""The interface of the generators, and generation of whole models."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asmg.generator.configs import GeneratorConfig, LinearConfig
from asmg.models import BaseModel, Params, check_tensors, read_rows

__all__ = ["DENSE", "Generator", "HiddenState"]

DENSE = "mlp"
"""Name of the group of all parameters that are not tables."""

HiddenState = dict[str, Tensor]
"""Group name → [rows, P, d]; rows past its end have the state of the cold row."""


class Generator(ABC):
    """M_ω: from a sequence of base models to the sequence of models to serve."""

    config: GeneratorConfig | LinearConfig

    def __init__(self, model: BaseModel) -> None:
        self.model = model
        self.positions = dict(model.table_widths)
        """Group name → P."""
        if dense := sum(math.prod(shape) for shape in model.dense_shapes.values()):
            self.positions[DENSE] = dense

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, tables first."""
        return tuple(self.positions)

    @abstractmethod
    def initial(self, rng: torch.Generator) -> Params:
        """Fresh weights ω."""

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every weight."""

    @abstractmethod
    def initial_hidden(self) -> HiddenState:
        """The state before the first model, with the cold row of each group."""

    @abstractmethod
    def run(
        self, weights: Mapping[str, Tensor], group: str, inputs: Sequence[Tensor], hidden: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run one group along a sequence of models.

        Args:
            weights: ω.
            group: a table's name or DENSE.
            inputs: for each model its parameters [R, P], oldest first.
            hidden: [R, P, d], the state before the first model.

        Returns:
            for each model the output parameters [R, P] and the hidden state after it [R, P, d].
        """

    def last(
        self,
        weights: Mapping[str, Tensor],
        group: str,
        inputs: Sequence[Tensor],
        hidden: Tensor,
        state_after: int,
        *,
        compiled: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The last output of `run`, and the hidden state after `state_after` models (0: the given one).

        Args:
            weights, group, inputs, hidden: see `run`.
            state_after: number of models, from the oldest.
            compiled: whether machine code may be used.
        """
        outputs, states = self.run(weights, group, inputs, hidden)
        return outputs[-1], hidden if state_after == 0 else states[state_after - 1]

    def inputs(self, models: Sequence[Mapping[str, Tensor]], group: str, rows: Tensor | None) -> list[Tensor]:
        """The parameters of a group: for each model [R, P]; `rows` (int64 [R]) selects rows of a table."""
        if group == DENSE:
            return [torch.cat([m[name].reshape(1, -1) for name in self.model.dense_shapes], 1) for m in models]
        return [m[group] if rows is None else read_rows(m[group], rows) for m in models]

    def dense(self, flat: Tensor) -> Params:
        """The dense parameters by name, from the output [1, P] of the group DENSE."""
        shapes = self.model.dense_shapes
        parts = flat.reshape(-1).split([math.prod(shape) for shape in shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    @torch.no_grad()
    def generate(
        self,
        weights: Mapping[str, Tensor],
        models: Sequence[Mapping[str, Tensor]],
        hidden: Mapping[str, Tensor],
        *,
        advance: int = 0,
        compiled: bool = True,
        device: torch.device | None = None,
        chunk: int = 8_192,
    ) -> tuple[Params, HiddenState]:
        """Generate a whole model Θ* = M_ω(models, h), a chunk of rows at a time.

        Args:
            weights: ω.
            models: the sequence of base models, oldest first, on the CPU.
            hidden: the state before it.
            advance: number of models, from the oldest, after which the hidden state is returned.
            compiled: whether machine code may be used.
            device: where to compute, by default the CPU.
            chunk: rows of a table that are generated together; it limits memory, not the result.

        Returns:
            the model, and the hidden state after `advance` models, both on the CPU.
        """
        device = device or torch.device("cpu")
        compiled = compiled and device.type == "cpu"
        weights = {name: w.to(device) for name, w in weights.items()}
        generated: Params = {}
        advanced: HiddenState = {}

        def run(group: str, rows: Tensor | None, start: Tensor) -> tuple[Tensor, Tensor]:
            inputs = [x.to(device) for x in self.inputs(models, group, rows)]
            output, state = self.last(weights, group, inputs, start.to(device), advance, compiled=compiled)
            return output.cpu(), state.cpu()

        for group in self.positions:
            if group == DENSE:
                output, state = run(group, None, hidden[group])
                generated |= {name: t.clone() for name, t in self.dense(output).items()}
                advanced[group] = state.contiguous()
                continue
            count = len(models[-1][group])
            kept = len(hidden[group]) if advance == 0 else max(len(hidden[group]), len(models[advance - 1][group]))
            table = models[-1][group].new_empty(count, self.positions[group])
            states = hidden[group].new_empty(kept, *hidden[group].shape[1:])
            for rows in torch.arange(count).split(chunk):
                lo, hi = int(rows[0]), int(rows[-1]) + 1
                table[lo:hi], state = run(group, rows, read_rows(hidden[group], rows))
                if lo < kept:
                    states[lo : min(hi, kept)] = state[: kept - lo]
            generated[group], advanced[group] = table, states
        return generated, advanced

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Check weights that come from outside.

        Raises:
            ValueError: other names or shapes than this generator's, or a number that is not finite.
        """
        check_tensors("generator", weights, self.shapes())

    def check_hidden(self, hidden: HiddenState) -> None:
        """Check a hidden state that comes from outside.

        Raises:
            ValueError: other groups or widths than this generator's, or a number that is not finite.
        """
        expected = self.initial_hidden()
        if set(hidden) != set(expected):
            raise ValueError(f"hidden: expected {sorted(expected)}; received {sorted(hidden)}")
        for group, state in hidden.items():
            shape, received = ("rows", *expected[group].shape[1:]), tuple(state.shape)
            if state.dim() != 3 or len(state) < 1 or received[1:] != shape[1:]:
                raise ValueError(f"hidden.{group}: expected shape {shape}; received {received}")
            if not bool(torch.isfinite(state).all()):
                raise ValueError(f"hidden.{group}: expected finite numbers; received NaN or infinity")
