"""The GRU meta generator (paper: "GRU Meta Generator – Network Design").

For every scalar parameter θ of the base model a small GRU reads that parameter's history and emits the one to serve:

    z = σ(θ·u_z + h W_z)   r = σ(θ·u_r + h W_r)   g = tanh(θ·u_g + (h∘r) W_g)   h' = (1-z)∘h + z∘g   θ* = w·h' + b (+ θ)

Weights are shared by the rows of an embedding table, one set per embedding dimension; every scalar of the MLP has a set
of its own. With `output="residual"` the input parameter is added and w, b start at zero: an untrained generator is the
identity, and what it learns is a correction of the incremental model. `output="direct"` is the paper's.

All scalars of the MLP run as one group of P positions with a single row; a table is a group of P = dim positions with a
row for each id. A hidden state is [rows, P, d] for each group.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from asmg.batch import COLD_ROW
from asmg.models import TABLES, EmbeddingMLP, Params

__all__ = ["DENSE", "GRUGenerator", "GeneratorConfig", "HiddenState", "read_rows"]

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


def read_rows(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]`, with the cold row where a row is past the table's end (an id younger than the table)."""
    return table[torch.where(rows < len(table), rows, COLD_ROW)]


class GRUGenerator:
    """M_ω: from a sequence of models to the sequence of the models to serve."""

    def __init__(self, config: GeneratorConfig, model: EmbeddingMLP) -> None:
        self.config, self.model = config, model
        dense = sum(math.prod(shape) for shape in model.dense_shapes.values())
        self.positions = dict.fromkeys(model.tables, model.config.dim) | {DENSE: dense}
        """Group name → P."""

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

    def inputs(self, models: Sequence[Mapping[str, Tensor]], group: str, rows: Tensor | None) -> list[Tensor]:
        """The values that the GRU of a group reads: for each model [R, P]; `rows` selects within a table."""
        if group == DENSE:
            return [torch.cat([m[name].reshape(1, -1) for name in self.model.dense_shapes], 1) for m in models]
        return [m[group] if rows is None else read_rows(m[group], rows) for m in models]

    def run(
        self, weights: Mapping[str, Tensor], group: str, inputs: Sequence[Tensor], hidden: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run the GRU of one group along a sequence.

        Args:
            weights: ω.
            group: a table's name or DENSE.
            inputs: for each step [R, P], oldest first.
            hidden: [R, P, d], the state before the first step.

        Returns:
            for each step the output parameters [R, P] and the hidden state after it [R, P, d].
        """
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

    def dense(self, flat: Tensor) -> Params:
        """The MLP's parameters from the output [1, P] of the group DENSE."""
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
        chunk: int = 32_768,
    ) -> Params:
        """Θ* = M_ω(models, h): the whole serving model, tables included, chunk by chunk of rows."""
        generated: Params = {}
        for group in self.positions:
            if group == DENSE:
                outputs, _ = self.run(weights, group, self.inputs(models, group, None), hidden[group])
                generated |= {name: t.clone() for name, t in self.dense(outputs[-1]).items()}
                continue
            parts = []
            for rows in torch.arange(len(models[-1][group])).split(chunk):
                start = read_rows(hidden[group], rows)
                outputs, _ = self.run(weights, group, self.inputs(models, group, rows), start)
                parts.append(outputs[-1])
            generated[group] = torch.cat(parts).contiguous()
        return generated

    @torch.no_grad()
    def advance(
        self,
        weights: Mapping[str, Tensor],
        model: Mapping[str, Tensor],
        hidden: Mapping[str, Tensor],
        *,
        chunk: int = 32_768,
    ) -> HiddenState:
        """The hidden state after one more model, for every row that this model has."""
        advanced: HiddenState = {}
        for group in self.positions:
            if group == DENSE:
                _, states = self.run(weights, group, self.inputs([model], group, None), hidden[group])
                advanced[group] = states[-1].contiguous()
                continue
            parts = []
            for rows in torch.arange(len(model[group])).split(chunk):
                _, states = self.run(weights, group, self.inputs([model], group, rows), read_rows(hidden[group], rows))
                parts.append(states[-1])
            advanced[group] = torch.cat(parts).contiguous()
        return advanced

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Raise ValueError, naming the tensor, unless `weights` has this generator's shapes and is finite."""
        d = self.config.hidden
        shapes = {"input": (1, 3 * d), "gates": (d, 2 * d), "candidate": (d, d), "output": (d, 1), "bias": (1, 1)}
        expected = {f"{g}.{part}": (p, *s) for g, p in self.positions.items() for part, s in shapes.items()}
        if set(weights) != set(expected):
            raise ValueError(f"generator: expected {sorted(expected)}; received {sorted(weights)}")
        for name, shape in expected.items():
            if tuple(weights[name].shape) != shape:
                raise ValueError(f"{name}: expected shape {shape}; received {tuple(weights[name].shape)}")
            if not bool(torch.isfinite(weights[name]).all()):
                raise ValueError(f"{name}: expected finite numbers; received NaN or infinity")

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, tables first."""
        return (*(table for table in TABLES if table in self.positions), DENSE)
