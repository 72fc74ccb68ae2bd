"""The base models: Embedding&MLP (the paper's) and matrix factorization (SML-MF's), one functional forward pass each.

A model is a configuration and a dictionary of tensors. The tables are called "user", "item", (with categories)
"category" and (with fields) "field"; the rest is the MLP. Everything that predicts — training, evaluation, generated
parameters, the serving snapshot — goes through `EmbeddingMLP.logits`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from asmg.batch import COLD_ROW, NO_CATEGORY, NO_VALUE, TABLES, InteractionBatch, ItemFeatures, PeriodData
from asmg.field_columns import SUMS, BatchFields
from asmg.layout import DIM, HIDDEN

__all__ = [
    "TABLES",
    "BaseModel",
    "EmbeddingMLP",
    "EmbeddingMLPConfig",
    "MatrixFactorization",
    "MatrixFactorizationConfig",
    "Params",
    "build_model",
    "config_from_json",
    "default_config",
    "field_sums",
    "forget",
    "grow",
    "masked_mean",
    "read_rows",
    "replace_rows",
    "table_sizes",
    "uniform",
]

Params = dict[str, Tensor]
"""Parameter name → tensor."""

DOTS = ("dot.user", "dot.history")
"""Names of the weights of the dot products with an item, [item width] each."""

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
    numeric: int = 0
    """S, the numeric inputs beside the embeddings (`asmg.batch.PeriodData.numeric`)."""
    dot: bool = False
    """Whether weighted dot products of user and item, and of history and item, are added to the MLP's logit."""
    fields: bool = False
    """Whether it reads the fields of the context, the user and the item (`asmg.field_columns`)."""

    def __post_init__(self) -> None:
        if self.dim < 1 or not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"expected positive widths; received dim={self.dim}, hidden={self.hidden}")
        if self.numeric < 0:
            raise ValueError(f"numeric: expected at least 0; received {self.numeric}")

    def to_json(self) -> dict[str, object]:
        """As plain JSON values.

        Without `numeric`, `dot` and `fields` where the model has none: so a configuration equals one that was stored
        before there were these.
        """
        values = asdict(self) | {"hidden": list(self.hidden)}
        return {name: value for name, value in values.items() if value or name not in ("numeric", "dot", "fields")}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "EmbeddingMLPConfig":
        """The inverse of `to_json`."""
        return cls(**{**values, "hidden": tuple(values["hidden"])})  # type: ignore[arg-type] # checked by __post_init__


def default_config(*, categories: bool, numeric: int, fields: bool = False) -> EmbeddingMLPConfig:
    """The shape of the base model that is served and trained where nobody asks for another.

    Args:
        categories: whether the items have categories.
        numeric: S, the number of numeric inputs.
        fields: whether there are fields.
    """
    return EmbeddingMLPConfig(dim=DIM, hidden=HIDDEN, categories=categories, numeric=numeric, dot=True, fields=fields)


@dataclass(frozen=True, kw_only=True)
class MatrixFactorizationConfig:
    """Shape of a biased matrix factorization."""

    dim: int = 8
    """Length of the vectors; the bias comes on top."""
    categories: bool = False
    """Whether the mean of its categories' rows is added to an item's row."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim: expected at least 1; received {self.dim}")

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "MatrixFactorizationConfig":
        """The inverse of `to_json`."""
        return cls(**values)  # type: ignore[arg-type] # checked by __post_init__


def masked_mean(table: Tensor, rows: Tensor, fill: int = NO_CATEGORY) -> Tensor:
    """Mean of `table[rows]` over the entries that are not `fill`: [R, C] → [R, dim]; no entry gives zeros."""
    present = (rows != fill).unsqueeze(-1)
    total = (table[rows.clamp(min=0)] * present).sum(1)
    return total / present.sum(1).clamp(min=1)


def field_sums(table: Tensor, fields: BatchFields) -> Tensor:
    """What a batch reads of the field table, [B, 3·dim]: the weighted sums of context, user and item (`SUMS`)."""
    weights = fields.weights.masked_fill(fields.rows == NO_VALUE, 0.0)
    read = table[fields.rows.clamp(min=0)] * weights.unsqueeze(-1)
    sums = read.new_zeros(len(read), len(SUMS), read.shape[2])
    return sums.index_add(1, fields.sums, read).flatten(1)


class BaseModel(ABC):
    """A base model: embedding tables, dense parameters, and one functional forward pass."""

    config: "EmbeddingMLPConfig | MatrixFactorizationConfig"
    """Its shape."""
    table_widths: dict[str, int]
    """Table name → width of its rows."""
    dense_shapes: dict[str, tuple[int, ...]]
    """Name → shape of every parameter that is not a table, in a fixed order."""
    reads_history: bool
    """Whether histories have a say."""
    numeric: int
    """S, the numeric inputs that it reads."""

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of this model's embedding tables."""
        return tuple(self.table_widths)

    @abstractmethod
    def initial(self, rng: torch.Generator) -> Params:
        """Fresh parameters; each table holds its cold row alone and grows from it (`grow`)."""

    @abstractmethod
    def scatter(self, table: str, rows: int, rng: torch.Generator) -> Tensor:
        """Small random numbers [rows, width], by which the very first rows of a table differ from its cold row."""

    @abstractmethod
    def glorot(self, sizes: Mapping[str, int], rng: torch.Generator) -> Params:
        """Fresh parameters with whole tables, as the authors' release initialises them (methods.md, section 0)."""

    @abstractmethod
    def head(
        self,
        params: Mapping[str, Tensor],
        user: Tensor,
        pooled: Tensor,
        item: Tensor,
        numeric: Tensor | None = None,
        fields: Tensor | None = None,
    ) -> Tensor:
        """Logits [B].

        Args:
            params: this model's parameters, of which only the dense ones are read.
            user: user rows [B, width].
            pooled: the means of the histories [B, item width].
            item: the candidates [B, item width].
            numeric: float32 [B, S]; None for a model without numeric inputs.
            fields: [B, 3·dim] of `field_sums`; None for a model without fields.
        """

    @abstractmethod
    def item_vectors(self, params: Mapping[str, Tensor], features: ItemFeatures | None) -> Tensor:
        """What each item is to `head`, [E, item width]."""

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
        pooled = items[:0]
        if self.reads_history:
            pooled = functional.embedding_bag(
                batch.history, items, batch.offsets, mode="mean", include_last_offset=True
            )  # fmt: skip
        sums = None if batch.fields is None or "field" not in params else field_sums(params["field"], batch.fields)
        return self.head(params, params["user"][batch.user], pooled, items[batch.item], batch.numeric, sums)

    def reads(self, data: PeriodData) -> PeriodData:
        """The log without what this model does not look at.

        Raises:
            ValueError: it lacks what the model needs.
        """
        return data if self.reads_history else data.without_history()

    @abstractmethod
    def shifted(self, params: Mapping[str, Tensor], shift: float) -> Params:
        """Parameters with which every logit is higher by `shift`; tensors that are the same are shared."""

    def check(self, params: Mapping[str, Tensor]) -> None:
        """Raise ValueError, naming the tensor, unless `params` has this model's names and shapes and is finite."""
        expected: dict[str, tuple[int | None, ...]] = {name: (None, width) for name, width in self.table_widths.items()}
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


class EmbeddingMLP(BaseModel):
    """user | mean of history | item | fields | numeric → MLP with ReLU → logit of the click probability.

    With `fields` its input has the sums of what the context, the user and the item have of the field table. With `dot`
    there is added Σ_k a_k·user[k mod dim]·item[k] + Σ_k b_k·history[k]·item[k]: an MLP of few hidden units multiplies
    two of its inputs badly. The weights a ("dot.user") and b ("dot.history") are as long as an item.
    """

    config: EmbeddingMLPConfig
    reads_history = True

    def __init__(self, config: EmbeddingMLPConfig) -> None:
        self.config = config
        self.numeric = config.numeric
        self.item_width = config.dim * (2 if config.categories else 1)
        """Of an item's vector."""
        self.ids_width = config.dim + 2 * self.item_width
        """Of user, history and item: the MLP's inputs before those of the fields."""
        inputs = self.ids_width + (len(SUMS) * config.dim if config.fields else 0) + config.numeric
        self.widths = (inputs, *config.hidden, 1)
        """Of the MLP's input and of its layers."""
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

        MLP weights are Glorot-uniform and the cold rows small. Hidden biases are slightly positive: rows that are all
        alike give a ReLU one sign for every interaction, and one that begins closed for all would stay so. The dot
        products begin unweighted.
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
        """The same model without fields; None where it has none."""
        return EmbeddingMLP(replace(self.config, fields=False)) if self.config.fields else None

    def widened(self, values: Mapping[str, Tensor]) -> Params:
        """Parameters of `without_fields` (or moments) in this model's shapes, without the table of the fields.

        The MLP weighs them with zeros: whatever that table holds, the model says what it said before.
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
        """Each item's embedding, and beside it the mean one of its categories."""
        if not self.config.categories:
            return params["item"]
        return torch.cat(_item_and_categories(params, features), 1)

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
        """See BaseModel; it is the last layer's bias that rises."""
        return {**params, self._last_bias: params[self._last_bias] + shift}


class MatrixFactorization(BaseModel):
    """Biased matrix factorization, the base model of SML-MF: ⟨u, v⟩ + b_u + b_v; a row is its vector and its bias.

    With categories an item's row is the sum of its own and the mean of its categories' rows.
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
        """See BaseModel; biases begin with zero."""
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
        own, categories = _item_and_categories(params, features)
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
        """See BaseModel; it is every user's bias that rises, that of the cold row too."""
        users = params["user"].clone()
        users[:, self.config.dim] += shift
        return {**params, "user": users}

    def _without_bias(self, rows: Tensor) -> Tensor:
        rows[:, self.config.dim] = 0
        return rows


def build_model(config: EmbeddingMLPConfig | MatrixFactorizationConfig) -> EmbeddingMLP | MatrixFactorization:
    """The base model of a configuration."""
    return EmbeddingMLP(config) if isinstance(config, EmbeddingMLPConfig) else MatrixFactorization(config)


def config_from_json(values: Mapping[str, object]) -> EmbeddingMLPConfig | MatrixFactorizationConfig:
    """The inverse of both configurations' `to_json`."""
    kind = MatrixFactorizationConfig if "hidden" not in values else EmbeddingMLPConfig
    return kind.from_json(values)


def _check_numeric(width: int, numeric: Tensor | None) -> None:
    received = 0 if numeric is None else numeric.shape[1]
    if received != width:
        raise ValueError(f"numeric: expected {_inputs(width)}; received {_inputs(received)}")


def _inputs(count: int) -> str:
    return f"{count} inputs an interaction" if count else "none"


def _item_and_categories(params: Mapping[str, Tensor], features: ItemFeatures | None) -> tuple[Tensor, Tensor]:
    """Rows of the items and means of their categories' rows, [E, width] each."""
    if features is None:
        raise ValueError("features: expected ItemFeatures for a model with categories; received None")
    return params["item"][features.row], masked_mean(params["category"], features.categories)


def uniform(shape: tuple[int, ...], fans: float, rng: torch.Generator) -> Tensor:
    """Glorot-uniform numbers: U(-L, L) with L = √(6 / (fan_in + fan_out))."""
    return (2 * torch.rand(shape, generator=rng) - 1) * math.sqrt(6 / fans)


def read_rows(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]`, with the cold row where a row is past the table's end (an id younger than the table)."""
    return table[torch.where(rows < len(table), rows, COLD_ROW)]


def table_sizes(params: Mapping[str, Tensor]) -> dict[str, int]:
    """Rows of each embedding table in `params`."""
    return {name: params[name].shape[0] for name in TABLES if name in params}


def grow(table: Tensor, rows: int) -> Tensor:
    """The table with `rows` rows: a new row starts as the cold row. Never shrinks; always a new tensor."""
    missing = rows - table.shape[0]
    return torch.cat([table, table[COLD_ROW].expand(missing, -1)]) if missing > 0 else table.clone()


def forget(params: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Params:
    """The parameters as if nobody had ever had these rows: each is its table's cold row.

    Args:
        params: tables, and what else there is, which stays as it is.
        rows: table name → int64 [n]; rows past a table's end are the cold row anyway.
    """
    return {n: replace_rows(p, rows[n], p[COLD_ROW]) if n in rows else p for n, p in params.items()}


def replace_rows(table: Tensor, rows: Tensor, value: Tensor) -> Tensor:
    """The table with `value` in those of the rows that it has: a new one, or, where it has none of them, itself."""
    inside = rows[rows < len(table)]
    return table.index_copy(0, inside, value.expand(len(inside), *table.shape[1:])) if len(inside) else table
