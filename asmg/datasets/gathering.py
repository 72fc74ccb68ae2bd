"""Gathering the interactions of public logs from their files, block by block. Used by the readers of the sources."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from asmg.datasets.columns import Reading, identifier, split_values
from asmg.datasets.events import Events, Ids
from asmg.datasets.field_columns import By, FieldColumn
from asmg.datasets.field_values import field_value
from asmg.datasets.log import IdArray, InteractionLog
from asmg.datasets.scan import BLOCK_BYTES, Layout, Malformed, Scan
from asmg.datasets.table import LIST_SEPARATOR
from asmg.features import MISSING, Field, encode
from asmg.log_format import LogFormatError

__all__ = ["Gathering", "Keep", "Progress", "Source"]

Progress = Callable[[str, float], None]
"""Called with a description of the current work and the fraction of it that is done."""

Keep = Callable[[pl.DataFrame], list[tuple[str, pl.Series]]] | None
"""Filters a block: a list of reasons for leaving rows out, each with a mask of the remaining rows to keep. None keeps
all."""


class _Values:
    """The values of a field, gathered block by block.

    Args:
        field: the field.
        separator: separates the values of a multi field.
    """

    def __init__(self, field: Field, separator: str) -> None:
        self._field, self._separator = field, separator
        self._texts = Ids()
        self._parts: list[npt.NDArray[Any]] = []

    def encode(self, values: pl.Series) -> npt.NDArray[Any]:
        """The values of a block, read by `field_value`, in the form of a FieldColumn."""
        return values.to_numpy() if self._field.kind == "numeric" else self._texts.encode(values)

    def add(self, values: pl.Series) -> None:
        """Add the values of the next block."""
        self._parts.append(self.encode(values))

    def column(self, values: npt.NDArray[Any] | None = None, by: By = "row") -> FieldColumn:
        """The column of all added values, or of `values` from `encode`."""
        field, multi = self._field, self._field.kind == "multi"
        texts = self._texts.names()
        distinct = tuple(encode(field, split_values(text, self._separator) if multi else text) for text in texts)
        return FieldColumn(field, np.concatenate(self._parts) if values is None else values, distinct, by)


@dataclass
class Gathering:
    """The reading of one public log: its place, its strictness, and counts of what was read."""

    raw: Path
    """The file, or the folder that holds it."""
    malformed: Malformed = "error"
    """Whether a bad row is an error or is dropped."""
    block_bytes: int = BLOCK_BYTES
    """Bytes of a block; the result does not depend on it."""
    progress: Progress | None = None
    """Called with the progress."""
    files: list[Path] = field(default_factory=list)
    """Files that were read."""
    rows_read: int = 0
    """Number of rows of the log, dropped ones included."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason → number of dropped rows."""
    out_of_order: int = 0
    """Number of rows whose time is before that of the previous row."""

    def find(self, *names: str) -> Path:
        """The first of these files that exists, plain or with ".gz": `raw` itself, in `raw`, or in one of its folders.

        Raises:
            LogFormatError: none exists.
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
        """The folders that may hold files: `raw` and the folders in it.

        Raises:
            LogFormatError: `raw` is no folder.
        """
        if not self.raw.is_dir():
            received = "one file" if self.raw.is_file() else "nothing there"
            raise LogFormatError(self.raw, "a folder that holds the files", received)
        return [self.raw, *sorted(place for place in self.raw.iterdir() if place.is_dir())]

    def glob(self, pattern: str) -> list[Path]:
        """The matching files, sorted by name, of the first folder that has any: `raw` or a folder in it."""
        if self.raw.is_file():
            return []
        return next((found for place in self.folders() if (found := self.files_in(place, pattern))), [])

    @staticmethod
    def files_in(place: Path, pattern: str) -> list[Path]:
        """The matching files of a folder, plain or with ".gz" (the plain one of both), sorted by name."""
        found = {path.stem: path for path in place.glob(f"{pattern}.gz")} | {p.name: p for p in place.glob(pattern)}
        return [found[name] for name in sorted(found)]

    def read(self, path: Path) -> Path:
        """Record that a file is read, and return it."""
        self.files.append(path)
        return path

    def drop(self, reason: str, count: int) -> None:
        """Count dropped rows."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def scan(self, path: Path, layout: Layout, readings: dict[str, Reading]) -> Scan:
        """A pass over a file with these settings."""
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
            path, layout, readings: the file, its layout, and how its columns are read.
            columns: names of the columns with the user's id, the item's id and the time in milliseconds.
            label: the column of labels; None if every row is a positive.
            category: the column of an item's categories.
            believed: which of an item's rows with categories decides them.
            keep: filters the rows.
            derive: called first, makes a block with these columns and those of `fields`.
            split: splits a category text into categories; by default the text is one category.
            ids: numbers of users and items, to continue those of another file.
            fields: column → field, with one value per row; the columns need not be among `readings`.
            separator: separates the values of a multi field.

        Raises:
            LogFormatError: a row is bad and `malformed` is "error", or no row is kept.
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
                grown[item[named]] = numbers[named]  # numpy keeps the last of several writes to an item
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
        """Read fields of users or items from files beside the log, by the names of the fields.

        An id without a row has missing values; of several rows the first counts.

        Args:
            paths, layout: the files and their layout.
            key: the column of ids.
            fields: column → field.
            ids: the log's ids by number.
            by: whether the ids are users or items.
            separator: separates the values of a multi field.
        """
        values = {column: _Values(field, separator) for column, field in fields.items()}
        columns = {column: FieldColumn.missing(field, len(ids)).values for column, field in fields.items()}
        for column, found in values.items():
            if fields[column].kind != "numeric":
                found.encode(pl.Series([MISSING], dtype=pl.String))  # the initial value of all
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
        """The blocks of a file beside the log; its dropped rows are counted separately."""
        scan = self.scan(self.read(path), layout, readings)
        yield from scan.blocks()
        for reason, count in scan.dropped.items():
            self.drop(f"{reason}, in {path.name}", count)

    def gather_log(self, log: InteractionLog) -> Events:
        """The interactions of a small log in memory."""
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
        """The events where `left_in` is true; the others are counted as dropped."""
        self.drop(reason, int((~left_in).sum()))
        return events.take(left_in)


_UNKNOWN = np.uint32(2**32 - 1)
"""Marks an item whose categories are not known yet."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A public log and its rule."""

    read: Callable[[Gathering], Events]
    """Reads the log and drops the rows that its rule excludes."""
    rule: tuple[str, ...]
    """Short sentences: which rows are kept, and which are positives."""
    unique: bool = False
    """Whether a row that repeats an earlier one is dropped."""
    whole_sessions: bool = False
    """Whether a negative may be an item that the user has later at the same time: sessions are known click by click."""
