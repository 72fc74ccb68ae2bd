"""Interactions as numbers: what the reader of a public log returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from asmg.datasets.field_columns import FieldColumn
from asmg.features import DEFAULT, Schema

__all__ = ["Events", "Ids", "joined"]


class Ids:
    """Numbers of ids, from 0 in the order of first appearance."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def encode(self, ids: pl.Series) -> npt.NDArray[np.uint32]:
        """The number of each id, uint32 [n]; new ids get the next numbers."""
        distinct = ids.unique(maintain_order=True)
        known = self.numbers
        numbers = pl.Series([known.setdefault(id_, len(known)) for id_ in distinct.to_list()], dtype=pl.UInt32)
        return ids.replace_strict(distinct, numbers, return_dtype=pl.UInt32).to_numpy()

    def names(self) -> list[str]:
        """The ids in the order of their numbers."""
        return list(self.numbers)


@dataclass(frozen=True, kw_only=True, eq=False)
class Events:
    """n interactions in the order of the source, with users and items as numbers."""

    user: npt.NDArray[np.uint32]
    """[n], number of each user."""
    item: npt.NDArray[np.uint32]
    """[n], number of each item."""
    label: npt.NDArray[np.uint8]
    """[n], 0 or 1."""
    timestamps_ms: npt.NDArray[np.int64]
    """[n], milliseconds since 1970."""
    user_ids: list[str]
    """Ids of the users by number."""
    item_ids: list[str]
    """Ids of the items by number."""
    item_categories: list[tuple[str, ...]] | None = None
    """Categories by item number; None if the source has none."""
    positives_only: bool = False
    """Whether the source has only positives."""
    schema: Schema = DEFAULT
    """The fields of the source; hour and weekday only if its times are that precise."""
    fields: Mapping[str, FieldColumn] = field(default_factory=dict)
    """Name of a field → its values, one per row, user or item."""

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> "Events":
        """The events at these rows (mask or indices); numbers and ids stay the same."""
        return replace(
            self,
            user=self.user[rows],
            item=self.item[rows],
            label=self.label[rows],
            timestamps_ms=self.timestamps_ms[rows],
            fields={name: c.take(rows) if c.by == "row" else c for name, c in self.fields.items()},
        )

    def with_fields(self, columns: Mapping[str, FieldColumn], *, timezone: str = "UTC") -> "Events":
        """The events with further fields; `timezone` is the zone of hour and weekday."""
        fields = {**self.fields, **columns}
        schema = Schema(tuple(column.field for column in fields.values()), timezone, self.schema.time)
        return replace(self, schema=schema, fields=fields)

    def with_time(self, *names: str) -> "Events":
        """The events with only these of hour and weekday, for sources with imprecise times."""
        return replace(self, schema=replace(self.schema, time=names))


def joined(parts: Sequence[Events], ids: tuple[Ids, Ids]) -> Events:
    """The concatenated events of several files whose ids were numbered together."""
    return replace(
        parts[-1],
        user=np.concatenate([part.user for part in parts]),
        item=np.concatenate([part.item for part in parts]),
        label=np.concatenate([part.label for part in parts]),
        timestamps_ms=np.concatenate([part.timestamps_ms for part in parts]),
        user_ids=ids[0].names(),
        item_ids=ids[1].names(),
        fields={name: FieldColumn.joined([part.fields[name] for part in parts]) for name in parts[-1].fields},
    )
