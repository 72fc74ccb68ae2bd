"""Embedding&MLP, the paper's base model (paper: "Base Model")."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from asmg.batch import TABLES, ItemFeatures, PeriodData
from asmg.field_columns import SUMS
from asmg.models.base import ROW_STD, BaseModel, item_and_category_rows
from asmg.models.configs import EmbeddingMLPConfig
from asmg.models.tables import Params, uniform

__all__ = ["EmbeddingMLP"]

DOTS = ("dot.user", "dot.history")
"""Names of the weights of the dot products, each [item width]."""

HIDDEN_BIAS = 0.1
"""Initial bias of the hidden layers."""


class EmbeddingMLP(BaseModel):
    """user | mean of history | item | fields | numeric → MLP with ReLU → logit of the click probability.

    With `fields` the input includes the weighted sums of field rows of the context, the user and the item. With `dot`
    the logit is Σ_k a_k·user[k mod dim]·item[k] + Σ_k b_k·history[k]·item[k] higher, because an MLP of few hidden units
    approximates products of its inputs badly. The weights a ("dot.user") and b ("dot.history") are as long as an item's
    vector.
    """

    config: EmbeddingMLPConfig
    reads_history = True

    def __init__(self, config: EmbeddingMLPConfig) -> None:
        self.config = config
        self.numeric = config.numeric
        self.item_width = config.dim * (2 if config.categories else 1)
        """Length of an item's vector."""
        self.ids_width = config.dim + 2 * self.item_width
        """Length of user, history and item together: the MLP's inputs before those of the fields."""
        inputs = self.ids_width + (len(SUMS) * config.dim if config.fields else 0) + config.numeric
        self.widths = (inputs, *config.hidden, 1)
        """Widths of the MLP's input and of each layer."""
        has = {"user": True, "item": True, "category": config.categories, "field": config.fields}
        self.table_widths = {name: config.dim for name in TABLES if has[name]}
        self.dense_shapes = {}
        for i, (fan_in, fan_out) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            self.dense_shapes[f"mlp.{i}.weight"] = (fan_out, fan_in)
            self.dense_shapes[f"mlp.{i}.bias"] = (fan_out,)
        self._last_bias = f"mlp.{len(config.hidden)}.bias"
        if config.dot:
            self.dense_shapes |= dict.fromkeys(DOTS, (self.item_width,))

    @override
    def initial(self, rng: torch.Generator) -> Params:
        """Fresh parameters; see BaseModel.

        MLP weights are Glorot-uniform and the cold rows small. Hidden biases are slightly positive: while all rows are
        alike, a ReLU has the same sign for every interaction, and one that starts at zero for all would never learn.
        The weights of the dot products start at 1.
        """
        params = {name: self.scatter(name, 1, rng) for name in self.tables}
        for name, shape in self.dense_shapes.items():
            if name in DOTS:
                params[name] = torch.ones(shape)
            elif len(shape) == 1:
                params[name] = torch.full(shape, 0.0 if name == self._last_bias else HIDDEN_BIAS)
            else:
                params[name] = uniform(shape, sum(shape), rng)
        return params

    def without_fields(self) -> "EmbeddingMLP | None":
        """The same model without fields; None if it has none."""
        return EmbeddingMLP(replace(self.config, fields=False)) if self.config.fields else None

    def widened(self, values: Mapping[str, Tensor]) -> Params:
        """Parameters (or moments) of the model `without_fields` in this model's shapes, without the field table.

        The MLP's weights for the fields are zero, so the predictions stay the same, whatever the field table holds.
        """
        first = values["mlp.0.weight"]
        ids, numeric = first.split([self.ids_width, self.numeric], 1)
        fields = first.new_zeros(len(first), len(SUMS) * self.config.dim)
        return {**values, "mlp.0.weight": torch.cat([ids, fields, numeric], 1)}

    @override
    def scatter(self, table: str, rows: int, rng: torch.Generator) -> Tensor:
        return ROW_STD * torch.randn(rows, self.table_widths[table], generator=rng)

    @override
    def glorot(self, sizes: Mapping[str, int], rng: torch.Generator) -> Params:
        params = {name: uniform((sizes[name], w), sizes[name] + w, rng) for name, w in self.table_widths.items()}
        for name, shape in self.dense_shapes.items():
            if name in DOTS:
                params[name] = torch.ones(shape)
            else:
                params[name] = uniform(shape, sum(shape) if len(shape) > 1 else 2 * shape[0], rng)
        return params

    @override
    def item_vectors(self, params: Mapping[str, Tensor], features: ItemFeatures | None) -> Tensor:
        """Each item's embedding, followed by the mean embedding of its categories."""
        if not self.config.categories:
            return params["item"]
        return torch.cat(item_and_category_rows(params, features), 1)

    @override
    def reads(self, data: PeriodData) -> PeriodData:
        _check_numeric(self.numeric, data.numeric)
        return data if self.config.fields or data.fields is None else replace(data, fields=None)

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
        _check_numeric(self.numeric, numeric)
        if (fields is not None) != self.config.fields:
            expected, received = ("none", "some") if fields is not None else ("those of a model with fields", "none")
            raise ValueError(f"fields: expected {expected}; received {received}")
        x = torch.cat([user, pooled, item, *(part for part in (fields, numeric) if part is not None)], 1)
        last = len(self.widths) - 2
        for i in range(last + 1):
            x = functional.linear(x, params[f"mlp.{i}.weight"], params[f"mlp.{i}.bias"])
            if i < last:
                x = functional.relu(x)
        logits = x.squeeze(1)
        if self.config.dot:
            times = item.shape[1] // user.shape[1]
            products = params["dot.user"] * user.repeat(1, times) + params["dot.history"] * pooled
            logits = logits + (products * item).sum(1)
        return logits

    @override
    def shifted(self, params: Mapping[str, Tensor], shift: float) -> Params:
        """See BaseModel; the last layer's bias is raised."""
        return {**params, self._last_bias: params[self._last_bias] + shift}


def _check_numeric(width: int, numeric: Tensor | None) -> None:
    received = 0 if numeric is None else numeric.shape[1]
    if received != width:
        raise ValueError(f"numeric: expected {_inputs(width)}; received {_inputs(received)}")


def _inputs(count: int) -> str:
    return f"{count} inputs an interaction" if count else "none"
