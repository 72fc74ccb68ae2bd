"""Interactions as numbers: what a prepared log is made of, gathered block by block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from asmg.datasets.columns import Reading, field_value, identifier, split_values
from asmg.datasets.field_columns import By, FieldColumn
from asmg.datasets.log import IdArray, InteractionLog
from asmg.datasets.scan import BLOCK_BYTES, Layout, Malformed, Scan
from asmg.datasets.table import LIST_SEPARATOR
from asmg.features import DEFAULT, MISSING, Field, Schema, encode
from asmg.log_format import LogFormatError

__all__ = ["Events", "Gathering", "Ids", "Keep", "Progress", "Source", "joined"]

Progress = Callable[[str, float], None]
"""Told what is being done, and the fraction of it that is done."""

Keep = Callable[[pl.DataFrame], list[tuple[str, pl.Series]]] | None
"""Of a block, the reasons for leaving rows out with, for each, which of the rows left it leaves in; None keeps all."""


class Ids:
    """Numbers for ids, from 0 in order of first appearance."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def encode(self, ids: pl.Series) -> npt.NDArray[np.uint32]:
        """The number of each id; new ids get new ones."""
        distinct = ids.unique(maintain_order=True)
        known = self.numbers
        numbers = pl.Series([known.setdefault(id_, len(known)) for id_ in distinct.to_list()], dtype=pl.UInt32)
        return ids.replace_strict(distinct, numbers, return_dtype=pl.UInt32).to_numpy()

    def names(self) -> list[str]:
        """The ids by number."""
        return list(self.numbers)


@dataclass(frozen=True, kw_only=True, eq=False)
class Events:
    """n interactions in the order of the source, as numbers."""

    user: npt.NDArray[np.uint32]
    """[n]"""
    item: npt.NDArray[np.uint32]
    """[n]"""
    label: npt.NDArray[np.uint8]
    """[n] 0 or 1."""
    timestamps_ms: npt.NDArray[np.int64]
    """[n]"""
    user_ids: list[str]
    """By number."""
    item_ids: list[str]
    """By number."""
    item_categories: list[tuple[str, ...]] | None = None
    """By item number; None where the source has none."""
    positives_only: bool = False
    """Whether the source says only what was chosen."""
    schema: Schema = DEFAULT
    """The fields that the source has; those made of the time are of sources that tell it."""
    fields: Mapping[str, FieldColumn] = field(default_factory=dict)
    """The values of each of `schema.fields`: of the n rows, or by user or item number."""

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> "Events":
        """Some of the rows, or all in another order; numbers and ids stay."""
        return replace(
            self,
            user=self.user[rows],
            item=self.item[rows],
            label=self.label[rows],
            timestamps_ms=self.timestamps_ms[rows],
            fields={name: c.take(rows) if c.by == "row" else c for name, c in self.fields.items()},
        )

    def with_fields(self, columns: Mapping[str, FieldColumn], *, timezone: str = "UTC") -> "Events":
        """The same events with the values of further fields; `timezone` is that of hour and weekday."""
        fields = {**self.fields, **columns}
        schema = Schema(tuple(column.field for column in fields.values()), timezone, self.schema.time)
        return replace(self, schema=schema, fields=fields)

    def with_time(self, *names: str) -> "Events":
        """The same events with only these of hour and weekday: the source tells the time no better."""
        return replace(self, schema=replace(self.schema, time=names))


def joined(parts: Sequence[Events], ids: tuple[Ids, Ids]) -> Events:
    """The events of several files that were numbered with the same ids, one file after the other."""
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


class _Values:
    """A column of a field, gathered block by block.

    Args:
        field: whose values they are.
        separator: between the values of a multi field.
    """

    def __init__(self, field: Field, separator: str) -> None:
        self._field, self._separator = field, separator
        self._texts = Ids()
        self._parts: list[npt.NDArray[Any]] = []

    def encode(self, values: pl.Series) -> npt.NDArray[Any]:
        """The values of a block, as `field_value` reads them, as a FieldColumn has them."""
        return values.to_numpy() if self._field.kind == "numeric" else self._texts.encode(values)

    def add(self, values: pl.Series) -> None:
        """The values of the next block."""
        self._parts.append(self.encode(values))

    def column(self, values: npt.NDArray[Any] | None = None, by: By = "row") -> FieldColumn:
        """The column of what was added, or of values that `encode` gave."""
        field, multi = self._field, self._field.kind == "multi"
        texts = self._texts.names()
        distinct = tuple(encode(field, split_values(text, self._separator) if multi else text) for text in texts)
        return FieldColumn(field, np.concatenate(self._parts) if values is None else values, distinct, by)


@dataclass
class Gathering:
    """What a source is read with: where from, how strictly, and what has been counted."""

    raw: Path
    """The file, or the folder that holds it."""
    malformed: Malformed = "error"
    """What becomes of a bad row."""
    block_bytes: int = BLOCK_BYTES
    """Size of the blocks that files are read in."""
    progress: Progress | None = None
    """Told of progress."""
    files: list[Path] = field(default_factory=list)
    """What has been read."""
    rows_read: int = 0
    """Rows of the log, those that were left out among them."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason → rows left out."""
    out_of_order: int = 0
    """Rows whose time is before that of the row before."""

    def find(self, *names: str) -> Path:
        """The first of these files that is there, plain or with ".gz": `raw` itself, in it, or in a folder in it.

        Raises:
            LogFormatError: there is none.
        """
        if self.raw.is_file():
            path = self.raw
        else:
            wanted = [wanted for name in names for wanted in (name, f"{name}.gz")]
            found = [place / name for name in wanted for place in self.folders() if (place / name).is_file()]
            if not found:
                raise LogFormatError(self.raw, f"a file {' or '.join(names)} (or .gz) in it", "none")
            path = found[0]
        return self.read(path)

    def folders(self) -> list[Path]:
        """Where files may be: `raw`, and the folders in it.

        Raises:
            LogFormatError: it is no folder.
        """
        if not self.raw.is_dir():
            received = "one file" if self.raw.is_file() else "nothing there"
            raise LogFormatError(self.raw, "a folder that holds the files", received)
        return [self.raw, *sorted(place for place in self.raw.iterdir() if place.is_dir())]

    def glob(self, pattern: str) -> list[Path]:
        """The files whose names match, by name, of the first folder that has any: `raw`, or one in it."""
        if self.raw.is_file():
            return []
        return next((found for place in self.folders() if (found := self.files_in(place, pattern))), [])

    @staticmethod
    def files_in(place: Path, pattern: str) -> list[Path]:
        """The files in a folder whose names match, plain or with ".gz" (of both the plain one), by name."""
        found = {path.stem: path for path in place.glob(f"{pattern}.gz")} | {p.name: p for p in place.glob(pattern)}
        return [found[name] for name in sorted(found)]

    def read(self, path: Path) -> Path:
        """Note that a file is read."""
        self.files.append(path)
        return path

    def drop(self, reason: str, count: int) -> None:
        """Count rows that are left out."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def scan(self, path: Path, layout: Layout, readings: dict[str, Reading]) -> Scan:
        """A pass over a file of the log, in the way that was asked for."""
        told = self.progress

        def show(fraction: float) -> None:
            if told:
                told(f"reading {path.name}", fraction)

        return Scan(path, layout, readings, self.malformed, self.block_bytes, show if told else None)

    def gather(
        self,
        path: Path,
        layout: Layout,
        readings: dict[str, Reading],
        columns: tuple[str, str, str],
        *,
        label: str | None = None,
        category: str | None = None,
        believed: Literal["first", "last"] = "first",
        keep: Keep = None,
        derive: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
        split: Callable[[str], tuple[str, ...]] | None = None,
        ids: tuple[Ids, Ids] | None = None,
        fields: Mapping[str, Field] | None = None,
        separator: str = LIST_SEPARATOR,
    ) -> Events:
        """The interactions of a file.

        Args:
            path, layout, readings: of the file.
            columns: which are the user's id, the item's id and the time in milliseconds.
            label: the column of labels; None where every row is a positive.
            category: the column of an item's categories.
            believed: which of its rows that have any says them.
            keep: leaves rows out.
            derive: makes of a block, before all else, one that has these columns and those of `fields`.
            split: from a category's text to the categories; by default the text is one category.
            ids: numbers of users and items that go on from another file's.
            fields: columns that hold fields, which need not be among `readings`; each row has its own values.
            separator: between the values of a multi field.
        """
        (users, items), categories = ids or (Ids(), Ids()), Ids()
        parts: list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]]
        parts, of_item, last = [], np.zeros(0, np.uint32), None
        fields = fields or {}
        values = {column: _Values(field, separator) for column, field in fields.items()}
        of_fields = {column: field_value(field, separator) for column, field in fields.items()}
        scan = self.scan(path, layout, {**readings, **of_fields})
        for block in scan.blocks():
            block = block if derive is None else derive(block)
            moments = block[columns[2]].to_numpy()
            self.out_of_order += int((np.diff(moments) < 0).sum()) + int(last is not None and moments[0] < last)
            last = int(moments[-1])
            for reason, left_in in keep(block) if keep else ():
                self.drop(reason, int((~left_in).sum()))
                block = block.filter(left_in)
            if not block.height:
                continue
            item = items.encode(block[columns[1]])
            labels = np.ones(block.height, np.uint8) if label is None else block[label].to_numpy()
            parts.append((users.encode(block[columns[0]]), item, labels, block[columns[2]].to_numpy()))
            for column, found in values.items():
                found.add(block[column])
            if category is not None:
                numbers = categories.encode(block[category])
                grown = np.full(len(items), _UNKNOWN, np.uint32)
                grown[: len(of_item)] = of_item
                named = np.flatnonzero((block[category] != "").to_numpy())
                if believed == "first":
                    named = named[grown[item[named]] == _UNKNOWN][::-1]
                grown[item[named]] = numbers[named]  # of rows of the same item the last written stays
                of_item = grown
        for reason, count in scan.dropped.items():
            self.drop(reason, count)
        self.rows_read += scan.rows
        if not parts:
            reasons = "; ".join(f"{reason}: {count}" for reason, count in self.dropped.items())
            raise LogFormatError(path, "at least one row that the rule keeps", f"none ({reasons})")
        user, item, labels, moments = (np.concatenate(part) for part in zip(*parts, strict=True))
        of_items = None
        if category is not None:
            names = [(name,) if split is None else split(name) for name in categories.names()]
            of_items = [() if n == _UNKNOWN else names[n] for n in of_item.tolist()]
        return Events(
            user=user, item=item, label=labels, timestamps_ms=moments, user_ids=users.names(),
            item_ids=items.names(), item_categories=of_items, positives_only=label is None,
        ).with_fields({fields[column].name: found.column() for column, found in values.items()})  # fmt: skip

    def attributes(
        self,
        paths: Sequence[Path],
        layout: Layout,
        key: str,
        fields: Mapping[str, Field],
        ids: Sequence[str],
        *,
        by: By,
        separator: str = LIST_SEPARATOR,
    ) -> dict[str, FieldColumn]:
        """What files beside the log say of its users or items, by the names of the fields.

        Of an id that is in no row all is missing; of one in several rows the first counts.

        Args:
            paths, layout: of the files.
            key: the column of ids.
            fields: column → field.
            ids: those of the log, by number.
            by: whether they are users or items.
            separator: between the values of a multi field.
        """
        values = {column: _Values(field, separator) for column, field in fields.items()}
        columns = {column: FieldColumn.missing(field, len(ids)).values for column, field in fields.items()}
        for column, found in values.items():
            if fields[column].kind != "numeric":
                found.encode(pl.Series([MISSING], dtype=pl.String))  # the value that all begin with
        numbers = pl.DataFrame({key: pl.Series(ids, dtype=pl.String), "": np.arange(len(ids))})
        told = np.zeros(len(ids), np.bool_)
        readings = {key: identifier(), **{column: field_value(field, separator) for column, field in fields.items()}}
        for path in paths:
            for block in self.beside(path, layout, readings):
                known = block.join(numbers, on=key, how="inner", maintain_order="left").unique(
                    key, keep="first", maintain_order=True
                )
                known = known.filter(~told[known[""].to_numpy()])
                places = known[""].to_numpy()
                told[places] = True
                for column, found in values.items():
                    columns[column][places] = found.encode(known[column])
        return {field.name: values[column].column(columns[column], by) for column, field in fields.items()}

    def beside(self, path: Path, layout: Layout, readings: dict[str, Reading]) -> Iterator[pl.DataFrame]:
        """The blocks of a file beside the log."""
        scan = self.scan(self.read(path), layout, readings)
        yield from scan.blocks()
        for reason, count in scan.dropped.items():
            self.drop(f"{reason}, in {path.name}", count)

    def gather_log(self, log: InteractionLog) -> Events:
        """The interactions of a small log that was read as a whole."""
        users, items = Ids(), Ids()

        def encode(ids: IdArray, known: Ids) -> npt.NDArray[np.uint32]:
            return known.encode(pl.Series(ids.tolist(), dtype=pl.String))

        self.rows_read += len(log)
        self.out_of_order += int((np.diff(log.timestamps_ms) < 0).sum())
        user, item = encode(log.user_ids, users), encode(log.item_ids, items)
        return Events(
            user=user, item=item, label=log.labels, timestamps_ms=log.timestamps_ms, user_ids=users.names(),
            item_ids=items.names(), positives_only=log.positives_only,
            item_categories=[log.categories.get(i, ()) for i in items.names()] if log.categories else None,
        ).with_fields(log.fields)  # fmt: skip

    def leave_out(self, events: Events, left_in: npt.NDArray[np.bool_], reason: str) -> Events:
        """The events that are left in; the others are counted."""
        self.drop(reason, int((~left_in).sum()))
        return events.take(left_in)


_UNKNOWN = np.uint32(2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A public log."""

    read: Callable[[Gathering], Events]
    """Reads it, and leaves out what its rule leaves out."""
    rule: tuple[str, ...]
    """What is kept and what is a positive, in short sentences."""
    unique: bool = False
    """Whether a row that repeats an earlier one says nothing new."""
    whole_sessions: bool = False
    """Whether a negative may be an item that comes later at the same time: a session is known click by click."""
