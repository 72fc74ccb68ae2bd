"""The interface of the base models, and the part of their forward pass that they share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from asmg.batch import InteractionBatch, ItemFeatures, PeriodData
from asmg.models.configs import ModelConfig
from asmg.models.tables import Params, check_tensors, field_sums, masked_mean

__all__ = ["ROW_STD", "BaseModel", "item_and_category_rows"]

ROW_STD = 0.05
"""Standard deviation of the initial numbers of embedding rows."""


class BaseModel(ABC):
    """A base model: embedding tables, dense parameters and one functional forward pass."""

    config: ModelConfig
    """Its configuration."""
    table_widths: dict[str, int]
    """Table name → width of its rows."""
    dense_shapes: dict[str, tuple[int, ...]]
    """Name → shape of every parameter that is not a table, in a fixed order."""
    reads_history: bool
    """Whether it reads histories."""
    numeric: int
    """S, the number of numeric inputs that it reads."""

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of its embedding tables."""
        return tuple(self.table_widths)

    @abstractmethod
    def initial(self, rng: torch.Generator) -> Params:
        """Fresh parameters; each table has only its cold row and grows from it (`grow`)."""

    @abstractmethod
    def scatter(self, table: str, rows: int, rng: torch.Generator) -> Tensor:
        """Small random numbers [rows, width], added to the cold row to make the rows of the first period."""

    @abstractmethod
    def glorot(self, sizes: Mapping[str, int], rng: torch.Generator) -> Params:
        """Fresh parameters with whole tables, initialised as in the authors' release (methods.md, section 0).

        Args:
            sizes: table name → rows.
            rng: source of the random numbers.
        """

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
        """Logits float32 [B] from the vectors that a batch has read of the tables.

        Args:
            params: the model's parameters, of which only the dense ones are read.
            user: rows of the users [B, width].
            pooled: mean item vectors of the histories [B, item width].
            item: item vectors of the candidates [B, item width].
            numeric: float32 [B, S]; None for a model without numeric inputs.
            fields: [B, 3·dim], see `field_sums`; None for a model without fields.

        Raises:
            ValueError: numeric inputs or fields are given to a model without them, or missing.
        """

    @abstractmethod
    def item_vectors(self, params: Mapping[str, Tensor], features: ItemFeatures | None) -> Tensor:
        """The vector of each item as `head` reads it, [E, item width]."""

    def logits(
        self, params: Mapping[str, Tensor], batch: InteractionBatch, features: ItemFeatures | None = None
    ) -> Tensor:
        """Logit of each interaction's click probability, float32 [B].

        Args:
            params: the model's parameters; tables may be cut down to the rows that the batch reads.
            batch: rows within those tables.
            features: the items' categories, for a model with categories, else None.
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
        """The log without the inputs that this model ignores.

        Raises:
            ValueError: the log lacks an input that the model reads.
        """
        return data if self.reads_history else data.without_history()

    @abstractmethod
    def shifted(self, params: Mapping[str, Tensor], shift: float) -> Params:
        """Parameters with which every logit is higher by `shift`. Unchanged tensors are shared with `params`."""

    def check(self, params: Mapping[str, Tensor]) -> None:
        """Check parameters that come from outside.

        Raises:
            ValueError: other names or shapes than this model's, or a number that is not finite.
        """
        tables: dict[str, tuple[int | None, ...]] = {name: (None, width) for name, width in self.table_widths.items()}
        check_tensors("parameters", params, tables | self.dense_shapes)


def item_and_category_rows(params: Mapping[str, Tensor], features: ItemFeatures | None) -> tuple[Tensor, Tensor]:
    """The items' rows and the means of their categories' rows, each [E, width].

    Raises:
        ValueError: `features` is None.
    """
    if features is None:
        raise ValueError("features: expected ItemFeatures for a model with categories; received None")
    return params["item"][features.row], masked_mean(params["category"], features.categories)
