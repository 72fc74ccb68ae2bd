"""Biased matrix factorization, the base model of SML-MF (methods.md, section 9)."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from asmg.batch import TABLES, ItemFeatures, PeriodData
from asmg.models.base import ROW_STD, BaseModel, item_and_category_rows
from asmg.models.configs import MatrixFactorizationConfig
from asmg.models.tables import Params, uniform

__all__ = ["MatrixFactorization"]


class MatrixFactorization(BaseModel):
    """The logit ⟨u, v⟩ + b_u + b_v. A row holds a vector and, as its last number, a bias.

    With categories the mean of the categories' rows is added to an item's row.
    """

    config: MatrixFactorizationConfig
    reads_history = False
    numeric = 0

    def __init__(self, config: MatrixFactorizationConfig) -> None:
        self.config = config
        self.table_widths = dict.fromkeys(TABLES[:3] if config.categories else TABLES[:2], config.dim + 1)
        self.dense_shapes = {}

    @override
    def initial(self, rng: torch.Generator) -> Params:
        return {name: self.scatter(name, 1, rng) for name in self.tables}

    @override
    def scatter(self, table: str, rows: int, rng: torch.Generator) -> Tensor:
        """See BaseModel; biases start at zero."""
        return self._without_bias(ROW_STD * torch.randn(rows, self.table_widths[table], generator=rng))

    @override
    def glorot(self, sizes: Mapping[str, int], rng: torch.Generator) -> Params:
        return {
            name: self._without_bias(uniform((sizes[name], width), sizes[name] + width - 1, rng))
            for name, width in self.table_widths.items()
        }

    @override
    def item_vectors(self, params: Mapping[str, Tensor], features: ItemFeatures | None) -> Tensor:
        if not self.config.categories:
            return params["item"]
        own, categories = item_and_category_rows(params, features)
        return own + categories

    @override
    def reads(self, data: PeriodData) -> PeriodData:
        return replace(super().reads(data), numeric=None, nobody=None, fields=None)

    @override
    def head(
        self,
        params: Mapping[str, Tensor],
        user: Tensor,
        pooled: Tensor,
        item: Tensor,
        numeric: Tensor | None = None,
        fields: Tensor | None = None,
    ) -> Tensor:
        dim = self.config.dim
        return (user[:, :dim] * item[:, :dim]).sum(1) + user[:, dim] + item[:, dim]

    @override
    def shifted(self, params: Mapping[str, Tensor], shift: float) -> Params:
        """See BaseModel; the bias of every user row is raised, that of the cold row too."""
        users = params["user"].clone()
        users[:, self.config.dim] += shift
        return {**params, "user": users}

    def _without_bias(self, rows: Tensor) -> Tensor:
        rows[:, self.config.dim] = 0
        return rows
