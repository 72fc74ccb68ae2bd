"""The GRU generator (paper: "GRU Meta Generator – Network Design").

For every scalar parameter θ of the base model a small GRU reads the history of that parameter and returns the value to
serve:

    z = σ(θ·u_z + h W_z)   r = σ(θ·u_r + h W_r)   g = tanh(θ·u_g + (h∘r) W_g)   h' = (1-z)∘h + z∘g   θ* = w·h' + b (+ θ)

With `output="residual"` the input parameter θ is added and w, b start at zero: an untrained generator is the identity,
and it learns a correction of the incremental model. `output="direct"` is the paper's.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from asmg import kernels
from asmg.generator.base import DENSE, Generator, HiddenState
from asmg.generator.configs import GeneratorConfig
from asmg.models import BaseModel, Params

__all__ = ["GRUGenerator", "from_lanes", "to_lanes"]


class GRUGenerator(Generator):
    """The paper's generator."""

    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig, model: BaseModel) -> None:
        super().__init__(model)
        self.config = config

    @override
    def initial(self, rng: torch.Generator) -> Params:
        """Fresh weights ω.

        Glorot-uniform as TensorFlow computes it for stacked tensors: L = √(6 / (P(a+b))) for [P, a, b]. The weights for
        the MLP's scalars are initialised tensor by tensor, P being the size of the tensor.
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
        """The zero state with the cold row of each group."""
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
        """Whether the input parameter is added to the output."""
        return self.config.output == "residual"

    @override
    def shapes(self) -> dict[str, tuple[int, ...]]:
        d = self.config.hidden
        parts = {"input": (1, 3 * d), "gates": (d, 2 * d), "candidate": (d, d), "output": (d, 1), "bias": (1, 1)}
        return {f"{g}.{part}": (p, *s) for g, p in self.positions.items() for part, s in parts.items()}


def to_lanes(weights: Mapping[str, Tensor], group: str) -> Tensor:
    """The weights of a group as `asmg.kernels` reads them: [C, P], C holding u_z u_r u_g | W_z | W_r | W_g | w | b."""
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
    """The inverse of `to_lanes`, for a group of hidden size `d`."""
    parts = lanes.t().split([3 * d, d * d, d * d, d * d, d, 1], 1)
    u, wz, wr, wg, w, b = (p.reshape(len(p), *shape) for p, shape in zip(
        parts, ((1, 3 * d), (d, d), (d, d), (d, d), (d, 1), (1, 1)), strict=True))  # fmt: skip
    named = {"input": u, "gates": torch.cat([wz, wr], 2), "candidate": wg, "output": w, "bias": b}
    return {f"{group}.{name}": p.contiguous() for name, p in named.items()}
