"""Interactions as numbers: what a prepared log is made of, gathered block by block."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from asmg.datasets.columns import Reading
from asmg.datasets.log import IdArray, InteractionLog
from asmg.datasets.scan import BLOCK_BYTES, Layout, Malformed, Scan
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
        )


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
    )


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
        time: Callable[[pl.DataFrame], pl.Series] | None = None,
        split: Callable[[str], tuple[str, ...]] | None = None,
        ids: tuple[Ids, Ids] | None = None,
    ) -> Events:
        """The interactions of a file.

        Args:
            path, layout, readings: of the file.
            columns: which are the user's id, the item's id and the time in milliseconds.
            label: the column of labels; None where every row is a positive.
            category: the column of an item's categories.
            believed: which of its rows that have any says them.
            keep: leaves rows out.
            time: makes the time from more than its column.
            split: from a category's text to the categories; by default the text is one category.
            ids: numbers of users and items that go on from another file's.
        """
        (users, items), categories = ids or (Ids(), Ids()), Ids()
        parts: list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]]
        parts, of_item, last = [], np.zeros(0, np.uint32), None
        scan = self.scan(path, layout, readings)
        for block in scan.blocks():
            when = block[columns[2]] if time is None else time(block)
            moments = when.to_numpy()
            self.out_of_order += int((np.diff(moments) < 0).sum()) + int(last is not None and moments[0] < last)
            last = int(moments[-1])
            block = block.with_columns(when.alias(columns[2]))
            for reason, left_in in keep(block) if keep else ():
                self.drop(reason, int((~left_in).sum()))
                block = block.filter(left_in)
            if not block.height:
                continue
            item = items.encode(block[columns[1]])
            labels = np.ones(block.height, np.uint8) if label is None else block[label].to_numpy()
            parts.append((users.encode(block[columns[0]]), item, labels, block[columns[2]].to_numpy()))
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
        )  # fmt: skip

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
        )  # fmt: skip

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
