"""What is encoded: a model, the ids that it knows, and what it reads of items.

Tables may be larger than memory: they are read some rows at a time (`Table`, `ItemCounts`, `ItemFields`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from asmg.field_columns import FieldColumns
from asmg.models import BaseModel
from asmg.statistics import Neighbours, StatisticsConfig
from service.serving.fields import FieldReader
from service.serving.id_hashes import NOBODY, Hashes, hash_ids

__all__ = ["ItemCounts", "ItemFields", "Known", "KnownFields", "Table", "TrainedModel"]

HASHED_TOGETHER = 2**20
"""Ids that are joined to one text to be hashed; a text of all ids of a large table would take gigabytes."""


class Table(Protocol):
    """Rows that may be anywhere; a tensor is one."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Some rows, int64 [n] each at most once: [n, …]."""


class ItemCounts(Protocol):
    """Statistics, of which some rows are read at a time; `asmg.statistics.Statistics` are such. An item past the end
    of a table was never counted.
    """

    @property
    def config(self) -> StatisticsConfig:
        """Decays."""

    @property
    def periods(self) -> int:
        """Number of closed periods counted."""

    @property
    def moments(self) -> Tensor:
        """As of `Statistics`."""

    @property
    def counts(self) -> Table:
        """float32 [I, 4]."""

    @property
    def counted(self) -> Table:
        """int32 [I]."""

    @property
    def degrees(self) -> Table:
        """float32 [I]."""

    @property
    def paired(self) -> Table:
        """int32 [I]."""

    def neighbours_of(self, items: Tensor) -> Neighbours:
        """The neighbours of some items, int64 [n], each within the tables."""


class ItemFields(Protocol):
    """The item's columns of the fields; `asmg.field_columns.FieldColumns` are such."""

    def at(self, items: Tensor) -> FieldColumns:
        """Those of some items, int64 [n]. Values are named by their global rows (`TrainedModel.global_rows`)."""


@dataclass(frozen=True)
class Known:
    """The ids that have a row of their own in a table, in any order."""

    hashes: Hashes
    """uint64 [N], distinct (`service.serving.id_hashes`)."""
    rows: NDArray[np.int64]
    """int64 [N], each ≥ 1 and within the table."""

    @classmethod
    def of(cls, ids: Sequence[str], rows: NDArray[Any]) -> "Known":
        """The ids as text, none with a NUL character. Of several with the same hash the first is kept."""
        parts = [hash_ids(ids[start : start + HASHED_TOGETHER]) for start in range(0, len(ids), HASHED_TOGETHER)]
        return cls(np.concatenate([np.empty(0, np.uint64), *parts]), np.asarray(rows, np.int64))

    @classmethod
    def nothing(cls) -> "Known":
        """No ids."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.int64))

    def sorted(self) -> "Known":
        """In the order of the hashes. Of several ids with the same hash the first is kept, and none with `NOBODY`."""
        hashes, first = np.unique(self.hashes, return_index=True)
        kept = len(hashes) - bool(len(hashes) and hashes[-1] == NOBODY)
        return Known(hashes[:kept], np.asarray(self.rows, np.int64)[first[:kept]])


@dataclass(frozen=True)
class KnownFields:
    """The fields that a model reads."""

    values: Known
    """The values that have a row, by the hash of `asmg.features.name_of_value`."""
    reader: FieldReader
    """Reads the fields of a request."""
    of_items: ItemFields
    """For every row of the item table; row 0 is an item of which nothing is known."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with its parameters, the ids that it knows and all that it reads of items.

    For a base these are whole tables, and the row numbers are global. For a delta they are small tables with the
    changed rows, numbered anew: row 0 is the cold row, and `global_rows` says which the others are. The categories and
    values of row 0 of the items have rows in any case; check questions can be about other items that have them.
    """

    model: BaseModel
    params: Mapping[str, Table]
    """Tables, and the dense parameters as tensors."""
    users: Known
    items: Known
    categories: Table | None = None
    """int [I, C], for a model with categories: the global rows of each item's categories, `NO_CATEGORY` for none."""
    statistics: ItemCounts | None = None
    """Only a model with numeric inputs reads them."""
    fields: KnownFields | None = None
    """For a model with fields."""
    global_rows: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """Name of a table → the global row of each of its rows, int64 [rows], distinct; first 0. "item" also has the
    neighbours. A table that is not named has the global numbers itself."""

    def dense(self, name: str) -> Tensor:
        """A dense parameter."""
        return cast(Tensor, self.params[name])

    def identities(self, table: str, rows: NDArray[Any]) -> NDArray[np.uint32]:
        """The global numbers of rows of a table."""
        given = self.global_rows.get(table)
        return (rows if given is None else given[rows]).astype(np.uint32)

    def local_rows(self, table: str, identities: NDArray[np.int64]) -> NDArray[np.int64]:
        """The inverse of `identities`; −1 for a row that the table does not have."""
        given = self.global_rows.get(table)
        if given is None:
            return np.where(identities < len(self.params[table]), identities, -1)
        order = np.argsort(given)
        place = np.minimum(np.searchsorted(given[order], identities), len(given) - 1)
        return np.where(given[order[place]] == identities, order[place], -1)
