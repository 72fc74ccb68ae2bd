"""What is encoded: a model, the ids that it knows, and what it reads of items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from asmg.batch import COLD_ROW, ItemFeatures
from asmg.field_columns import SUMS, FieldColumns
from asmg.models import BaseModel, field_sums
from asmg.statistics import Statistics
from service.serving.fields import FieldReader

__all__ = ["Known", "KnownFields", "TrainedModel", "finite"]

PADDED_TO = 8
"""A row of the item table with statistics is padded to a multiple of 8 numbers, 32 bytes. With vectors of 8 numbers it
is then one cache line."""


@dataclass(frozen=True)
class Known:
    """The ids that have a row of their own in a table."""

    ids: Sequence[str]
    rows: NDArray[Any]
    """int [N], each ≥ 1 and within the table."""


@dataclass(frozen=True)
class KnownFields:
    """The fields that a model reads."""

    values: Known
    """The values that have a row, by `asmg.features.name_of_value`."""
    reader: FieldReader
    """Reads the fields of a request."""
    of_items: FieldColumns
    """The item's columns for every row of the item table, [I, C]; row 0 is an item of which nothing is known."""


@dataclass(frozen=True)
class TrainedModel:
    """A model with its parameters and all that it reads of items."""

    model: BaseModel
    params: Mapping[str, Tensor]
    categories: Tensor | None
    """int [I, C], for a model with categories."""
    statistics: Statistics | None
    """For a model with numeric inputs."""
    fields: KnownFields | None
    """For a model with fields."""

    def features(self, rows: Tensor, own: Tensor) -> ItemFeatures | None:
        """The categories of some items.

        Args:
            rows: of the items in the whole table, [N].
            own: their rows in the item table that the model is called with, [N].
        """
        return None if self.categories is None else ItemFeatures(own, self.categories[rows].long())

    def item_table(self, rows: Tensor) -> Tensor:
        """Rows of the tensor `items.vectors` (`service.serving.snapshot_file`)."""
        own = self.params["item"][rows]
        features = self.features(rows, torch.arange(len(rows)))
        parts = [finite("item", self.model.item_vectors({**self.params, "item": own}, features))]
        if self.fields is not None:
            sums = field_sums(self.params["field"], self.fields.of_items.batch(rows))
            parts.append(finite("field", sums.chunk(len(SUMS), 1)[SUMS.index("item")]))
        if self.statistics is None:
            return torch.cat(parts, 1)
        known = rows.where(rows < len(self.statistics.counts), COLD_ROW)
        degrees = self.statistics.degrees[known] * self.statistics.fading(known)
        table = torch.cat([*parts, self.statistics.of_items(rows), degrees.unsqueeze(1)], 1)
        return functional.pad(table, (0, -table.shape[1] % PADDED_TO))


def finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor, detached. Raises ValueError where a number of it is not finite."""
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: expected finite numbers; received NaN or infinity")
    return tensor.detach()
