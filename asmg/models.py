"""The base model: Embedding&MLP (the paper's base model), one functional forward pass.

A model is a configuration and a dictionary of tensors. The tables are called "user", "item" and (with categories)
"category"; the rest is the MLP. Everything that predicts — training, evaluation, generated parameters, the serving
snapshot — goes through `EmbeddingMLP.logits`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from asmg.batch import COLD_ROW, NO_CATEGORY, InteractionBatch, ItemFeatures

__all__ = ["TABLES", "EmbeddingMLP", "EmbeddingMLPConfig", "Params", "grow", "masked_mean", "scatter", "table_sizes"]

Params = dict[str, Tensor]
"""Parameter name → tensor."""

TABLES = ("user", "item", "category")
"""Names of the embedding tables, [rows, dim] each; every other parameter is dense."""


ROW_STD = 0.05
"""Standard deviation of the numbers that embedding rows begin with."""

HIDDEN_BIAS = 0.1
"""What the biases of the hidden layers begin with."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingMLPConfig:
    """Shape of the base model."""

    dim: int = 8
    """Width of every embedding."""
    hidden: tuple[int, ...] = (12, 6)
    """Widths of the MLP's hidden layers."""
    categories: bool = False
    """Whether an item is its own embedding beside the mean of its categories' embeddings."""

    def __post_init__(self) -> None:
        if self.dim < 1 or not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"expected positive widths; received dim={self.dim}, hidden={self.hidden}")

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return asdict(self) | {"hidden": list(self.hidden)}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "EmbeddingMLPConfig":
        """The inverse of `to_json`."""
        return cls(**{**values, "hidden": tuple(values["hidden"])})  # type: ignore[arg-type] # checked by __post_init__


def masked_mean(table: Tensor, rows: Tensor, fill: int = NO_CATEGORY) -> Tensor:
    """Mean of `table[rows]` over the entries that are not `fill`: [R, C] → [R, dim]; no entry gives zeros."""
    present = (rows != fill).unsqueeze(-1)
    total = (table[rows.clamp(min=0)] * present).sum(1)
    return total / present.sum(1).clamp(min=1)


class EmbeddingMLP:
    """user | mean of history | item → MLP with ReLU → logit of the click probability."""

    def __init__(self, config: EmbeddingMLPConfig) -> None:
        self.config = config
        item_width = config.dim * (2 if config.categories else 1)
        self.widths = (config.dim + 2 * item_width, *config.hidden, 1)

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of this model's embedding tables."""
        return TABLES if self.config.categories else TABLES[:2]

    @property
    def dense_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every parameter that is not a table, in a fixed order."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            shapes[f"mlp.{i}.weight"] = (fan_out, fan_in)
            shapes[f"mlp.{i}.bias"] = (fan_out,)
        return shapes

    def initial(self, rng: torch.Generator) -> Params:
        """Fresh parameters; each table holds its cold row alone and grows from it (`grow`).

        MLP weights are Glorot-uniform and the cold rows small. Hidden biases are slightly positive: rows that are all
        alike give a ReLU one sign for every interaction, and one that begins closed for all would stay so.
        """
        params = {name: scatter(1, self.config.dim, rng) for name in self.tables}
        last = list(self.dense_shapes)[-1]
        for name, shape in self.dense_shapes.items():
            if len(shape) == 1:
                params[name] = torch.full(shape, 0.0 if name == last else HIDDEN_BIAS)
            else:
                limit = math.sqrt(6 / (shape[0] + shape[1]))
                params[name] = (2 * torch.rand(shape, generator=rng) - 1) * limit
        return params

    def check(self, params: Mapping[str, Tensor]) -> None:
        """Raise ValueError, naming the tensor, unless `params` has this model's names and shapes and is finite."""
        expected: dict[str, tuple[int | None, ...]] = {name: (None, self.config.dim) for name in self.tables}
        expected |= self.dense_shapes
        if set(params) != set(expected):
            raise ValueError(f"parameters: expected {sorted(expected)}; received {sorted(params)}")
        for name, shape in expected.items():
            tensor = params[name]
            if len(tensor.shape) != len(shape) or any(
                s is not None and s != t for s, t in zip(shape, tensor.shape, strict=True)
            ):
                raise ValueError(f"{name}: expected shape {shape}; received {tuple(tensor.shape)}")
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name}: expected finite numbers; received NaN or infinity")

    def logits(
        self, params: Mapping[str, Tensor], batch: InteractionBatch, features: ItemFeatures | None = None
    ) -> Tensor:
        """Logit of each interaction's click probability, float32 [B].

        Args:
            params: this model's parameters; tables may hold just the rows of a localised batch.
            batch: rows within those tables.
            features: the items' categories; expected exactly for a model with categories.
        """
        items = self.item_vectors(params, features)
        pooled = functional.embedding_bag(batch.history, items, batch.offsets, mode="mean", include_last_offset=True)
        return self.head(params, params["user"][batch.user], pooled, items[batch.item])

    def item_vectors(self, params: Mapping[str, Tensor], features: ItemFeatures | None) -> Tensor:
        """What each item is to the MLP, [E, width]: its embedding, and beside it the mean one of its categories."""
        if not self.config.categories:
            return params["item"]
        if features is None:
            raise ValueError("features: expected ItemFeatures for a model with categories; received None")
        return torch.cat([params["item"][features.row], masked_mean(params["category"], features.categories)], 1)

    def head(self, params: Mapping[str, Tensor], user: Tensor, pooled: Tensor, item: Tensor) -> Tensor:
        """The MLP on user [B, dim] | pooled history [B, width] | candidate [B, width] → logits [B]."""
        x = torch.cat([user, pooled, item], 1)
        last = len(self.widths) - 2
        for i in range(last + 1):
            x = functional.linear(x, params[f"mlp.{i}.weight"], params[f"mlp.{i}.bias"])
            if i < last:
                x = functional.relu(x)
        return x.squeeze(1)


def scatter(rows: int, dim: int, rng: torch.Generator) -> Tensor:
    """Small random numbers [rows, dim], by which the very first rows of a table differ before anything is learned."""
    return ROW_STD * torch.randn(rows, dim, generator=rng)


def table_sizes(params: Mapping[str, Tensor]) -> dict[str, int]:
    """Rows of each embedding table in `params`."""
    return {name: params[name].shape[0] for name in TABLES if name in params}


def grow(table: Tensor, rows: int) -> Tensor:
    """The table with `rows` rows: a new row starts as the cold row. Never shrinks; always a new tensor."""
    missing = rows - table.shape[0]
    return torch.cat([table, table[COLD_ROW].expand(missing, -1)]) if missing > 0 else table.clone()
