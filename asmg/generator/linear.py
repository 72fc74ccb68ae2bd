"""ASMG-Linear's generator (methods.md, section 6)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from asmg.generator.base import Generator, HiddenState
from asmg.generator.configs import LinearConfig
from asmg.models import BaseModel, Params

__all__ = ["LinearGenerator"]


class LinearGenerator(Generator):
    """θ*_j = Σ_i softmax(a)_i · θ_i, a convex combination of the last k models.

    Each position has k logits a, initially zero: the plain average. A shorter sequence uses the last logits.
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
        """States of width 0: this generator has none."""
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
