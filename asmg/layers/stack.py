"""Tables of a training state as a base and layers: reading some of their rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from asmg.batch import COLD_ROW, TABLES
from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.layers.selection import Rows, Selection

__all__ = [
    "RESET",
    "RESTLESS",
    "ROWS",
    "SIZES",
    "Stack",
    "StackTable",
    "find",
    "layer_rows",
    "merged_rows",
    "resets",
    "rows_of_layers",
    "tensors_of_table",
]

ROWS = "rows."
"""Prefix of the tensors of a layer that say which rows it has: int64 [n], ascending."""

RESET = "reset."
"""Prefix of the tensors of a layer that say which rows went to other ids, or to nobody, before its period."""

SIZES = "sizes"
"""Key of a layer's meta data: table name → rows of the whole table."""

RESTLESS = "restless."
"""Prefix of tensors that name rows (`asmg.adam.AdamState.restless`)."""


class Stack:
    """The tables of one part, such as the base model, as of one version.

    A row is read from the newest layer that has it. A row that a newer layer resets, and one that no layer has, is like
    a new row: a copy of the cold row, or at rest in an optimizer.
    """

    def __init__(self, layers: Sequence[Checkpoint]) -> None:
        """Check that the layers fit together.

        Args:
            layers: the base and the layers of the version, oldest first.

        Raises:
            CheckpointError: the layers belong to different parts, or a table's rows are not as many as its tensors'.
        """
        self._layers = list(layers)
        newest = layers[-1]
        self.kind = newest.kind
        self.meta = {name: value for name, value in newest.meta.items() if name != SIZES}
        self.tables = tuple(name for name in TABLES if tensors_of_table(newest, name))
        self.sizes = {name: _size(newest, name) for name in self.tables}
        for layer in layers:
            if layer.kind != self.kind:
                raise CheckpointError(f"layer: expected one of kind {self.kind!r}; received {layer.kind!r}")
            for table in self.tables:
                _check_layer(layer, table)

    def read(self, table: str, rows: Rows, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Copies of some rows.

        Args:
            table: name of a table.
            rows: ascending, each < `sizes[table]`.
            names: of tensors of the table; None for all.

        Returns:
            name of a tensor → its rows [len(rows), …]; numbers of floating point are float32.
        """
        names = tensors_of_table(self._layers[-1], table) if names is None else names
        found = {name: self._new(name, table, len(rows)) for name in names}
        open_ = np.arange(len(rows))  # places that no layer has filled yet
        new = []  # places that are like those of new rows
        for layer in reversed(self._layers):
            if not len(open_):
                break
            at, place = find(layer_rows(layer, table), rows[open_], _length(layer, table))
            for name in names:
                if name in layer.tensors:
                    found[name][open_[at]] = layer.tensors[name][place].to(found[name].dtype)
            open_ = np.delete(open_, at)
            gone = np.isin(rows[open_], resets(layer, table))
            new.append(open_[gone])
            open_ = open_[~gone]
        places = np.concatenate([*new, open_])
        for name in names if len(places) else ():
            found[name][places] = self._cold(name, table)
        return found

    def whole(self, table: str, name: str) -> Tensor | None:
        """A tensor of a table, where the base is the only layer; else None."""
        (base, *others) = self._layers
        return None if others or layer_rows(base, table) is not None else base.tensors[name]

    def excerpt(self, selection: Selection) -> Checkpoint:
        """The part with the selected rows alone, as the update method would have stored it."""
        outline = self.outline(selection)
        tensors = dict(outline.tensors)
        for table, rows in self.wanted(selection).items():
            tensors |= self.read(table, rows)
        return replace(outline, tensors=tensors)

    def outline(self, selection: Selection) -> Checkpoint:
        """The excerpt of these rows, but with empty tables."""
        tensors = {name: t for name, t in self.without_tables.items() if not name.startswith(RESTLESS)}
        for table in self.tables:
            tensors |= self.read(table, np.empty(0, np.int64))
        tensors |= {f"{RESTLESS}{table}": selection.places(table, rows) for table, rows in self.named.items()}
        return Checkpoint(self.kind, self.meta, tensors)

    def wanted(self, selection: Selection) -> dict[str, Rows]:
        """Table name → the selected rows that the table has."""
        return {name: (rows := selection.rows[name])[rows < self.sizes[name]] for name in self.tables}

    @property
    def without_tables(self) -> dict[str, Tensor]:
        """The tensors that have no row for each row of a table."""
        newest = self._layers[-1].tensors
        in_tables = {name for table in self.tables for name in tensors_of_table(self._layers[-1], table)}
        return {name: t for name, t in newest.items() if name not in in_tables and not name.startswith((ROWS, RESET))}

    @property
    def named(self) -> Mapping[str, Tensor]:
        """Table name → rows that the part itself names and that an excerpt needs."""
        named = self._layers[-1].tensors.items()
        return {name.removeprefix(RESTLESS): rows for name, rows in named if name.startswith(RESTLESS)}

    def _new(self, name: str, table: str, count: int) -> Tensor:
        like = next(layer.tensors[name] for layer in reversed(self._layers) if name in layer.tensors)
        dtype = torch.float32 if like.dtype == torch.bfloat16 else like.dtype
        return like.new_empty(count, *like.shape[1:], dtype=dtype)

    def _cold(self, name: str, table: str) -> Tensor:
        """What a row has that was never learned."""
        if self.kind == "adam":
            like = self._new(name, table, 1)[0]
            return torch.full_like(like, self.meta["step"] if name.startswith("moved.") else 0)
        for layer in reversed(self._layers):
            at, place = find(layer_rows(layer, table), np.array([COLD_ROW]), _length(layer, table))
            if len(at) and name in layer.tensors:
                return layer.tensors[name][place[0]]
        raise CheckpointError(f"{name}: expected a layer with the cold row; received none")


class StackTable:
    """One tensor of a stack's table, read by indexing with rows; what a serving snapshot is written from.

    Args:
        stack: the part.
        table: name of the table.
        name: of the tensor.
    """

    def __init__(self, stack: Stack, table: str, name: str | None = None) -> None:
        self._stack, self._table, self._name = stack, table, name or table

    def __len__(self) -> int:
        return self._stack.sizes[self._table]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then the shape of each."""
        return (len(self), *self[torch.zeros(1, dtype=torch.int64)].shape[1:])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Rows in any order, int64 [n] → [n, …]; they may repeat. Rows past the end are the cold row."""
        inside = torch.where(rows < len(self), rows, COLD_ROW).numpy()
        if (whole := self._stack.whole(self._table, self._name)) is not None:
            return whole[torch.from_numpy(inside)]
        distinct, place = np.unique(inside, return_inverse=True)
        return self._stack.read(self._table, distinct)[self._name][torch.from_numpy(place)]


def merged_rows(layers: Sequence[Checkpoint], table: str) -> tuple[Rows, Rows]:
    """What a layer made of these layers has: the rows that none of them resets later, and the rows that it resets.

    Both ascend. A row that no layer has stays one: it is read as the cold row of whatever version reads it.
    """
    alive, gone = np.empty(0, np.int64), np.empty(0, np.int64)
    for layer in reversed(layers):
        rows = layer_rows(layer, table)
        rows = np.arange(_length(layer, table)) if rows is None else rows
        alive = np.union1d(alive, np.setdiff1d(rows, gone))
        gone = np.union1d(gone, resets(layer, table))
    return alive, gone


def rows_of_layers(layers: Sequence[Checkpoint], table: str) -> Rows:
    """The rows that any of these layers has of a table, ascending, with the cold row. None of them is a base."""
    found = [rows for layer in layers if (rows := layer_rows(layer, table)) is not None]
    return np.unique(np.concatenate([np.array([COLD_ROW]), *found]))


def find(known: Rows | None, wanted: Rows, length: int) -> tuple[Rows, Rows]:
    """Which of the wanted rows a layer has.

    Args:
        known: its rows, ascending; None where it has all rows up to `length`.
        wanted: rows, ascending.
        length: number of its rows.

    Returns:
        the indices of the rows in `wanted`, and their places in the layer's tensors.
    """
    if known is None:
        at = np.flatnonzero(wanted < length)
        return at, wanted[at]
    if not len(known):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    at = np.flatnonzero(known[place] == wanted)
    return at, place[at]


def layer_rows(layer: Checkpoint, table: str) -> Rows | None:
    """The rows that a layer has of a table, ascending; None where it has all."""
    rows = layer.tensors.get(f"{ROWS}{table}")
    return None if rows is None else rows.numpy()


def resets(layer: Checkpoint, table: str) -> Rows:
    """The rows of a table that changed hands before the layer's period."""
    rows = layer.tensors.get(f"{RESET}{table}")
    return np.empty(0, np.int64) if rows is None else rows.numpy()


def tensors_of_table(layer: Checkpoint, table: str) -> list[str]:
    """Names of the tensors with a row for each row of the table: its parameters, or its moments in an optimizer."""
    names = (table, f"first.{table}", f"second.{table}", f"moved.{table}")
    return [name for name in names if name in layer.tensors]


def _length(layer: Checkpoint, table: str) -> int:
    names = tensors_of_table(layer, table) or [name for name in ("counts",) if name in layer.tensors]  # of statistics
    return len(layer.tensors[names[0]]) if names else 0


def _size(layer: Checkpoint, table: str) -> int:
    return int(layer.meta.get(SIZES, {}).get(table, _length(layer, table)))


def _check_layer(layer: Checkpoint, table: str) -> None:
    rows, size = layer_rows(layer, table), _size(layer, table)
    for name in tensors_of_table(layer, table):
        count = len(layer.tensors[name])
        if count != (size if rows is None else len(rows)):
            raise CheckpointError(
                f"layer: {name}: expected {size if rows is None else len(rows)} rows; received {count}"
            )
    if rows is not None and len(rows) and not (rows[0] >= 0 and rows[-1] < size):
        raise CheckpointError(f"layer: {table}: expected rows under {size}; received {rows[0]}..{rows[-1]}")
