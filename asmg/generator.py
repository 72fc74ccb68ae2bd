"""The meta generators; first of all the GRU (paper: "GRU Meta Generator – Network Design").

For every scalar parameter θ of the base model a small GRU reads that parameter's history and emits the one to serve:

    z = σ(θ·u_z + h W_z)   r = σ(θ·u_r + h W_r)   g = tanh(θ·u_g + (h∘r) W_g)   h' = (1-z)∘h + z∘g   θ* = w·h' + b (+ θ)

Weights are shared by the rows of an embedding table, one set per embedding dimension; every scalar of the MLP has a set
of its own. With `output="residual"` the input parameter is added and w, b start at zero: an untrained generator is the
identity, and what it learns is a correction of the incremental model. `output="direct"` is the paper's.

All scalars of the MLP run as one group of P positions with a single row; a table is a group of P = dim positions with a
row for each id. A hidden state is [rows, P, d] for each group.

`LinearGenerator` is ASMG-Linear's: a convex combination instead of the GRU, with the same sharing of weights.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from asmg import kernels
from asmg.models import BaseModel, Params, read_rows

__all__ = [
    "DENSE",
    "GRUGenerator",
    "Generator",
    "GeneratorConfig",
    "HiddenState",
    "LinearConfig",
    "LinearGenerator",
    "from_lanes",
    "to_lanes",
]

DENSE = "mlp"
"""Name of the group of all parameters that are not in a table."""

HiddenState = dict[str, Tensor]
"""Group name → [rows, P, d]; rows at or past its end are those of the cold row."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Shape of the generator."""

    hidden: int = 4
    """Hidden size d of every GRU."""
    output: Literal["residual", "direct"] = "residual"
    """Whether the newest input parameter is added to the output."""

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden: expected at least 1; received {self.hidden}")
        if self.output not in ("residual", "direct"):
            raise ValueError(f"output: expected 'residual' or 'direct'; received {self.output!r}")

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """Shape of the linear generator."""

    window: int = 3
    """k, the number of models that it can mix."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window: expected at least 1; received {self.window}")

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return asdict(self)


class Generator(ABC):
    """M_ω: from a sequence of models to the sequence of the models to serve."""

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
        """The state before the first model; one row for each group, all others being the cold row's."""

    @abstractmethod
    def run(
        self, weights: Mapping[str, Tensor], group: str, inputs: Sequence[Tensor], hidden: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run one group along a sequence.

        Args:
            weights: ω.
            group: a table's name or DENSE.
            inputs: for each step [R, P], oldest first.
            hidden: [R, P, d], the state before the first step.

        Returns:
            for each step the output parameters [R, P] and the hidden state after it [R, P, d].
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
        """Of `run` the last output and the hidden state after `state_after` steps (0: the one given).

        `compiled`: by machine code where there is any.
        """
        outputs, states = self.run(weights, group, inputs, hidden)
        return outputs[-1], hidden if state_after == 0 else states[state_after - 1]

    def inputs(self, models: Sequence[Mapping[str, Tensor]], group: str, rows: Tensor | None) -> list[Tensor]:
        """The values that a group reads: for each model [R, P]; `rows` selects within a table."""
        if group == DENSE:
            return [torch.cat([m[name].reshape(1, -1) for name in self.model.dense_shapes], 1) for m in models]
        return [m[group] if rows is None else read_rows(m[group], rows) for m in models]

    def dense(self, flat: Tensor) -> Params:
        """The dense parameters from the output [1, P] of the group DENSE."""
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
        """Θ* = M_ω(models, h), the whole serving model, tables included; chunk by chunk of rows.

        Args:
            weights, models, hidden: ω, the sequence of models, oldest first, and the state before it.
            advance: models, from the oldest on, after which the hidden state is wanted too.
            compiled: by machine code where there is any.
            device: where to compute, the CPU by default; everything comes from there and goes back there.
            chunk: rows at a time.

        Returns:
            the model, and the hidden state after `advance` models for every row of the last of these.
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
        """Raise ValueError, naming the tensor, unless `weights` has this generator's shapes and is finite."""
        expected = self.shapes()
        if set(weights) != set(expected):
            raise ValueError(f"generator: expected {sorted(expected)}; received {sorted(weights)}")
        for name, shape in expected.items():
            if tuple(weights[name].shape) != shape:
                raise ValueError(f"{name}: expected shape {shape}; received {tuple(weights[name].shape)}")
            if not bool(torch.isfinite(weights[name]).all()):
                raise ValueError(f"{name}: expected finite numbers; received NaN or infinity")

    def check_hidden(self, hidden: HiddenState) -> None:
        """Raise ValueError, naming the group, unless this is a finite state of this generator."""
        expected = self.initial_hidden()
        if set(hidden) != set(expected):
            raise ValueError(f"hidden: expected {sorted(expected)}; received {sorted(hidden)}")
        for group, state in hidden.items():
            shape, received = ("rows", *expected[group].shape[1:]), tuple(state.shape)
            if state.dim() != 3 or len(state) < 1 or received[1:] != shape[1:]:
                raise ValueError(f"hidden.{group}: expected shape {shape}; received {received}")
            if not bool(torch.isfinite(state).all()):
                raise ValueError(f"hidden.{group}: expected finite numbers; received NaN or infinity")


class LinearGenerator(Generator):
    """ASMG-Linear (methods.md, section 6): θ*_j = Σ_i softmax(a)_i · θ_i, a convex combination of the sequence.

    A table has one vector of k logits for each embedding dimension, shared by all rows; every scalar of the MLP has its
    own. They begin with zeros: the plain average. A shorter sequence is mixed by its last logits.
    """

    config: LinearConfig

    def __init__(self, config: LinearConfig, model: BaseModel) -> None:
        super().__init__(model)
        self.config = config

    @override
    def initial(self, rng: torch.Generator) -> Params:
        return {name: torch.zeros(shape) for name, shape in self.shapes().items()}

    @override
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {f"{group}.mix": (width, self.config.window) for group, width in self.positions.items()}

    @override
    def initial_hidden(self) -> HiddenState:
        """There is none: width 0."""
        return {group: torch.zeros(1, width, 0) for group, width in self.positions.items()}

    @override
    def run(
        self, weights: Mapping[str, Tensor], group: str, inputs: Sequence[Tensor], hidden: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        values, outputs = torch.stack(list(inputs), 2), []  # [R, P, n]
        for n in range(1, len(inputs) + 1):
            share = torch.softmax(weights[f"{group}.mix"][:, self.config.window - n :], 1)
            outputs.append((values[..., :n] * share).sum(2))
        return outputs, [hidden] * len(inputs)


class GRUGenerator(Generator):
    """The paper's generator."""

    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig, model: BaseModel) -> None:
        super().__init__(model)
        self.config = config

    @override
    def initial(self, rng: torch.Generator) -> Params:
        """Fresh weights ω.

        Glorot-uniform as TensorFlow computes it for stacked tensors, L = √(6 / (P(a+b))) for [P, a, b]; the MLP's
        scalars are initialised tensor by tensor, P being the size of the tensor they come from.
        """
        d = self.config.hidden
        weights: Params = {}
        for group, width in self.positions.items():
            sizes = [math.prod(s) for s in self.model.dense_shapes.values()] if group == DENSE else [width]

            def glorot(a: int, b: int, copies: int, sizes: list[int] = sizes) -> Tensor:
                return torch.cat(
                    [
                        (2 * torch.rand(copies, p, a, b, generator=rng) - 1) * math.sqrt(6 / (p * (a + b)))
                        for p in sizes
                    ],
                    1,
                )

            weights[f"{group}.input"] = glorot(1, d, 3).permute(1, 2, 0, 3).reshape(width, 1, 3 * d)
            weights[f"{group}.gates"] = glorot(d, d, 2).permute(1, 2, 0, 3).reshape(width, d, 2 * d)
            weights[f"{group}.candidate"] = glorot(d, d, 1)[0]
            if self.config.output == "residual":
                weights[f"{group}.output"] = torch.zeros(width, d, 1)
                weights[f"{group}.bias"] = torch.zeros(width, 1, 1)
            else:
                weights[f"{group}.output"] = glorot(d, 1, 1)[0]
                weights[f"{group}.bias"] = glorot(1, 1, 1)[0]
        return weights

    def initial_hidden(self) -> HiddenState:
        """The zero state; one row for each group, all others being the cold row's."""
        return {group: torch.zeros(1, width, self.config.hidden) for group, width in self.positions.items()}

    @override
    def run(
        self, weights: Mapping[str, Tensor], group: str, inputs: Sequence[Tensor], hidden: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        d = self.config.hidden
        kernel, gates = weights[f"{group}.input"], weights[f"{group}.gates"]
        candidate, output, bias = (weights[f"{group}.{name}"] for name in ("candidate", "output", "bias"))
        h = hidden.transpose(0, 1)  # [P, R, d], so that one batched product serves all positions
        outputs, states = [], []
        for value in inputs:
            x = value.t().unsqueeze(2) * kernel  # [P, R, 3d]: z | r | g
            update, reset = torch.sigmoid(torch.baddbmm(x[..., : 2 * d], h, gates)).split(d, 2)
            h = torch.lerp(h, torch.tanh(torch.baddbmm(x[..., 2 * d :], h * reset, candidate)), update)
            y = torch.baddbmm(bias, h, output).squeeze(2).t()
            outputs.append(value + y if self.config.output == "residual" else y)
            states.append(h.transpose(0, 1))
        return outputs, states

    @override
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
        if group == DENSE or not compiled:
            return super().last(weights, group, inputs, hidden, state_after)
        x = torch.stack(list(inputs)).transpose(1, 2).contiguous()  # [T, P, R]
        h0 = hidden.permute(1, 2, 0).unsqueeze(0).contiguous()  # [1, P, d, R]
        z, r, g, h = (h0.new_empty(len(x), *h0.shape[1:]) for _ in range(4))
        y = torch.empty_like(x)
        counts = np.full(len(x), x.shape[2])
        arrays = (t.numpy() for t in (z, r, g, h, y))
        kernels.gru_forward(
            to_lanes(weights, group).numpy(), x.numpy(), h0.numpy(), counts, self.residual, *arrays
        )  # fmt: skip
        state = hidden if state_after == 0 else h[state_after - 1].permute(2, 0, 1)
        return y[-1].t(), state

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.config.output == "residual"

    @override
    def shapes(self) -> dict[str, tuple[int, ...]]:
        d = self.config.hidden
        parts = {"input": (1, 3 * d), "gates": (d, 2 * d), "candidate": (d, d), "output": (d, 1), "bias": (1, 1)}
        return {f"{g}.{part}": (p, *s) for g, p in self.positions.items() for part, s in parts.items()}


def to_lanes(weights: Mapping[str, Tensor], group: str) -> Tensor:
    """The weights of a group as `asmg.kernels` reads them: [C, P] with C = u_z u_r u_g | W_z | W_r | W_g | w | b."""
    gates = weights[f"{group}.gates"]
    positions, d, _ = gates.shape
    parts = [
        weights[f"{group}.input"],
        gates[..., :d],
        gates[..., d:],
        weights[f"{group}.candidate"],
        weights[f"{group}.output"],
        weights[f"{group}.bias"],
    ]
    return torch.cat([p.reshape(positions, -1) for p in parts], 1).t().contiguous()


def from_lanes(lanes: Tensor, group: str, d: int) -> Params:
    """The inverse of `to_lanes`."""
    parts = lanes.t().split([3 * d, d * d, d * d, d * d, d, 1], 1)
    u, wz, wr, wg, w, b = (p.reshape(len(p), *shape) for p, shape in zip(
        parts, ((1, 3 * d), (d, d), (d, d), (d, d), (d, 1), (1, 1)), strict=True))  # fmt: skip
    named = {"input": u, "gates": torch.cat([wz, wr], 2), "candidate": wg, "output": w, "bias": b}
    return {f"{group}.{name}": p.contiguous() for name, p in named.items()}
