"""A log of any size on its way through an import: on disk, in the order of time, with the negatives that it needs.

`backfill.py` reads a file block by block into a `Spool`, which SQLite sorts with a fixed amount of memory, and takes it
out again period by period. Held in memory are the ids of the items and their categories.
"""

import math
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from asmg.datasets.columns import split_values
from asmg.datasets.events import Ids
from asmg.datasets.generic import LogForm, distinct_categories
from asmg.datasets.log import windows_of
from asmg.datasets.sampling import draw_negatives
from asmg.datasets.scan import Malformed
from asmg.features import Field, Of
from asmg.log_format import CutBy, LogFormatError
from service.errors import ServiceError
from service.limits import MAX_CATEGORIES, MAX_CONTEXT_BYTES
from service.use_cases.fields import written

__all__ = ["Spool", "SpooledEvent", "SpooledFeatures", "temporary_spool"]

BLOCK_BYTES = 1 << 23
"""Bytes of the file that are read at once."""

ROWS_AT_ONCE = 1 << 14
"""Rows that are stored at once."""

CACHE_KIB = 64 * 1024
"""KiB of memory that SQLite keeps pages in."""

DRAWN_AT_ONCE = 1 << 17
"""Positives, all of the same users, whose negatives are drawn at once."""

STEPS = 100_000
"""Of SQLite's machine, a few milliseconds, after which it asks whether to go on."""

# A row is in its group (a window or what the period column says), at its time, in the place that it has in the file,
# and there the positive (copy 0) comes before its negatives. Fields are JSON objects; those of user and item are null
# where the row tells nothing of them, as a negative does.
_FIELDS = "context TEXT, user_fields TEXT, item_fields TEXT"
_COLUMNS = f"grp INTEGER, time INTEGER, row INTEGER, copy INTEGER, user TEXT, item INTEGER, label INTEGER, {_FIELDS}"
_ORDERED = f"place INTEGER PRIMARY KEY, time INTEGER, grp INTEGER, user TEXT, item INTEGER, label INTEGER, {_FIELDS}"

# Of each user or item the rows that tell something else than the one before them.
_VERSIONS = """
    INSERT INTO {kind}_versions
    SELECT place, {kind}, time, told
    FROM (
        SELECT place, {kind}, time, {kind}_fields AS told,
            lag({kind}_fields, 1, '{{}}') OVER (PARTITION BY {kind} ORDER BY place) AS before
        FROM log WHERE {kind}_fields IS NOT NULL
    ) WHERE told <> before ORDER BY place
"""


class SpooledEvent(NamedTuple):
    """An interaction of the log."""

    place: int
    """In the order of the log, from 0."""
    user_id: str
    item_id: str
    label: int
    time_ms: int
    context: str | None = None
    """The values of the fields of the context, a JSON object; None for none."""


class SpooledFeatures(NamedTuple):
    """What a row of the log tells anew of its user or its item."""

    id: str
    time_ms: int
    features: str
    """A JSON object."""


@dataclass
class Spool:
    """The interactions of a log.

    Args:
        folder: an empty one; holds about 60 bytes a row and the ids of the users, twice while the log is sorted.
        check: called now and then; what it raises ends a statement with `sqlite3.OperationalError`.
    """

    folder: Path
    check: Callable[[], None] = lambda: None
    without_negative: int = 0
    """Positives that got no negative, because their user has every item."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason → rows of the file that were left out."""

    def __post_init__(self) -> None:
        self._database = sqlite3.connect(self.folder / "log.sqlite", isolation_level=None, check_same_thread=False)
        self._database.set_progress_handler(self.check, STEPS)
        # What is in it is worth nothing once this process has ended.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KIB}", "temp_store=FILE"):
            self._database.execute(f"PRAGMA {pragma}")
        self._items = Ids()
        self._item_ids: list[str] = []
        self._categories: dict[int, str] = {}
        self._count = 0

    def __len__(self) -> int:
        """Interactions, negatives among them."""
        return self._count

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def fill(
        self,
        form: LogForm,
        by: CutBy,
        *,
        malformed: Malformed,
        negatives: int,
        seed: int,
        progress: Callable[[float], None],
    ) -> None:
        """Read a file and sort it.

        Args:
            form: says the file and its columns.
            by: what its periods will be; see `pieces`.
            malformed: what becomes of a row that cannot be read.
            negatives: of each positive of a log of positives only.
            seed: of the negatives.
            progress: told the fraction of the file that has been read; what it raises ends the reading.

        Raises:
            LogFormatError: the file is not as it should be.
        """
        self._database.execute(f"CREATE TABLE read ({_COLUMNS})")
        self._read(form, by, malformed, progress)
        self._item_ids = self._items.names()
        self._check_categories(form)
        tables = ["read"]
        if form.label is None:
            self._database.execute(f"CREATE TABLE drawn ({_COLUMNS})")
            self._draw(negatives, np.random.default_rng(seed))
            tables.append("drawn")
        self._database.execute(f"CREATE TABLE log ({_ORDERED})")
        union = " UNION ALL ".join(f"SELECT * FROM {table}" for table in tables)
        self._database.execute(
            "INSERT INTO log (time, grp, user, item, label, context, user_fields, item_fields) "
            "SELECT time, grp, user, item, label, context, user_fields, item_fields "
            f"FROM ({union}) ORDER BY grp, time, row, copy"
        )
        for table in tables:
            self._database.execute(f"DROP TABLE {table}")
        for kind in ("user", "item"):
            self._database.execute(f"CREATE TABLE {kind}_versions (place INTEGER PRIMARY KEY, id, time, told TEXT)")
            if any(field.of == kind for field in form.fields.values()):
                self._database.execute(_VERSIONS.format(kind=kind))
        self._count = self._database.execute("SELECT count(*) FROM log").fetchone()[0]

    def _read(self, form: LogForm, by: CutBy, malformed: Malformed, progress: Callable[[float], None]) -> None:
        scan = form.scan(malformed, BLOCK_BYTES)
        scan.progress = progress
        row = 0
        for block in scan.blocks():
            for part in block.iter_slices(ROWS_AT_ONCE):
                self._store(part, row, form, by)
                row += part.height
        self.dropped = scan.dropped
        if not row:
            reasons = "; ".join(f"{reason}: {count:,}" for reason, count in scan.dropped.items())
            raise LogFormatError(form.path, "at least one row that can be read", f"none ({reasons})")

    def _store(self, rows: pl.DataFrame, first: int, form: LogForm, by: CutBy) -> None:
        items = self._items.encode(rows[form.item]).tolist()
        labels = [1] * rows.height if form.label is None else rows[form.label].cast(pl.Int64).to_list()
        values = zip(
            _groups(rows, form, by),
            rows[form.time].to_list(),
            range(first, first + rows.height),
            [0] * rows.height,
            rows[form.user].to_list(),
            items,
            labels,
            *(_written(rows, form, of) for of in _OF),
            strict=True,
        )
        self._insert("read", values)
        if form.categories is not None:
            # Of several rows of an item the last that names any is believed.
            self._categories.update(pair for pair in zip(items, rows[form.categories], strict=True) if pair[1])

    def _insert(self, table: str, rows: Iterable[tuple[object, ...]]) -> None:
        self._database.execute("BEGIN")
        self._database.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self._database.execute("COMMIT")

    def _check_categories(self, form: LogForm) -> None:
        for item, text in self._categories.items():
            if (count := len(distinct_categories(text))) > MAX_CATEGORIES:
                raise LogFormatError(
                    form.path,
                    f"at most {MAX_CATEGORIES} categories of an item",
                    f"{count} of item {self._item_ids[item]!r}",
                    column=form.categories,
                )

    def _draw(self, negatives: int, rng: np.random.Generator) -> None:
        """Draw the negatives of all positives, of some users at a time: a user's know nothing of another's."""
        ordered = self._database.cursor()
        ordered.execute("SELECT user, item, grp, time, row, context FROM read ORDER BY user, row")
        chunk: list[_Positive] = []
        for _, rows in groupby(ordered, key=lambda row: row[0]):
            chunk += rows
            if len(chunk) >= DRAWN_AT_ONCE:
                self._draw_some(chunk, negatives, rng)
                chunk = []
        if chunk:
            self._draw_some(chunk, negatives, rng)

    def _draw_some(self, positives: "list[_Positive]", negatives: int, rng: np.random.Generator) -> None:
        users = Ids().encode(pl.Series([row[0] for row in positives], dtype=pl.String)).astype(np.int64)
        has_negative, drawn = draw_negatives(
            users,
            np.array([row[1] for row in positives], np.int64),
            np.arange(len(positives)),
            len(self._item_ids),
            per_positive=negatives,
            whole_log=True,
            rng=rng,
        )
        self.without_negative += int((~has_negative).sum())
        chosen = [row for row, has in zip(positives, has_negative.tolist(), strict=True) if has]
        items = iter(drawn.tolist())
        rows = (
            (group, time, row, copy, user, next(items), 0, context, None, None)
            for user, _, group, time, row, context in chosen
            for copy in range(1, negatives + 1)
        )
        self._insert("drawn", rows)

    def pieces(self, by: CutBy, size: int) -> list[range]:
        """The places of the interactions of each period, as `asmg.datasets.cut` cuts a log in memory."""
        if by == "count":
            return [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]
        if by == "periods":
            count = min(size, len(self))
            each, more = divmod(len(self), count)
            starts = [piece * each + min(piece, more) for piece in range(count + 1)]
        else:
            counted = self._database.execute(
                "SELECT count(*) FROM log GROUP BY (grp - (SELECT min(grp) FROM log)) / ? ORDER BY min(place)", (size,)
            )
            starts = [0, *np.cumsum([count for (count,) in counted]).tolist()]
        return [range(start, end) for start, end in pairwise(starts)]

    def events(self, places: range) -> Iterator[SpooledEvent]:
        """The interactions of some places, in order."""
        found = self._database.execute(
            "SELECT place, user, item, label, time, context FROM log WHERE place BETWEEN ? AND ? ORDER BY place",
            (places.start + 1, places.stop),  # SQLite counts from 1
        )
        for place, user, item, label, time, context in found:
            yield SpooledEvent(place - 1, user, self._item_ids[item], label, time, context)

    def features(self, of: Literal["user", "item"], places: range) -> Iterator[SpooledFeatures]:
        """What the interactions of some places tell anew of their users, or of their items."""
        found = self._database.execute(
            f"SELECT id, time, told FROM {of}_versions WHERE place BETWEEN ? AND ? ORDER BY place",
            (places.start + 1, places.stop),
        )
        for id_, time, told in found:
            yield SpooledFeatures(id_ if of == "user" else self._item_ids[id_], time, told)

    def new_categories(self, pieces: list[range]) -> Iterator[dict[str, tuple[str, ...]]]:
        """For each piece the items that appear for the first time and have categories, in order of appearance."""
        first = self._database.execute("SELECT min(place) - 1, item FROM log GROUP BY item ORDER BY 1")
        found = iter([pair for pair in first if pair[1] in self._categories])
        waiting = next(found, None)
        for places in pieces:
            new = {}
            while waiting is not None and waiting[0] < places.stop:
                new[self._item_ids[waiting[1]]] = distinct_categories(self._categories[waiting[1]])
                waiting = next(found, None)
            yield new


@contextmanager
def temporary_spool(check: Callable[[], None]) -> Iterator[Spool]:
    """A spool in the temporary folder, which is made where `TMPDIR` names one that is not there.

    Args:
        check: called now and then, also while SQLite sorts; what it raises ends the block.

    Raises:
        ServiceError: the folder cannot be written to, or its disk is full.
    """
    place = os.environ.get("TMPDIR") or tempfile.gettempdir()
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="asmg-import-", dir=place)
    except OSError as error:
        raise _unusable(place, error.strerror) from None
    with folder:
        try:
            with closing(Spool(Path(folder.name), check)) as spool:
                yield spool
        except sqlite3.OperationalError as error:
            check()
            raise _unusable(place, error) from error


def _unusable(place: str, reason: object) -> ServiceError:
    return ServiceError(
        f"the temporary folder {place} does not hold the log while it is sorted: {reason}; "
        "TMPDIR may name another, on a disk with three times the room of the log"
    )


_OF: tuple[Of, ...] = ("context", "user", "item")
_Positive = tuple[str, int, int, int, int, str | None]
"""User, item, group, time, row and context."""


def _written(rows: pl.DataFrame, form: LogForm, of: Of) -> list[str | None]:
    """The values of the fields of the context, the users or the items as JSON objects; null where the log has none.

    Where it has, of a context that says nothing null, too, and of a user or an item {}.
    """
    fields = [(column, field) for column, field in form.fields.items() if field.of == of]
    if not fields:
        return [None] * rows.height
    nothing = None if of == "context" else "{}"
    names = [field.name for _, field in fields]
    columns = [[_sent(field, value) for value in rows[column].to_list()] for column, field in fields]
    found = [written(dict(zip(names, values, strict=True))) or nothing for values in zip(*columns, strict=True)]
    for text in found:
        if text is not None and (size := len(text.encode())) > MAX_CONTEXT_BYTES:
            raise LogFormatError(form.path, f"at most {MAX_CONTEXT_BYTES} bytes of the fields of the {of}", f"{size}")
    return found


def _sent(field: Field, value: Any) -> Any:
    """What a client would send for a value of the file; None where it is missing."""
    if field.kind == "numeric":
        return None if math.isnan(value) else value
    return split_values(value) if field.kind == "multi" else value


def _groups(block: pl.DataFrame, form: LogForm, by: CutBy) -> list[int]:
    """What the rows are sorted by before their time."""
    if by == "column":
        assert form.period is not None, "who cuts by a column names it"
        numbers: list[int] = block[form.period].to_list()
        return numbers
    if by in ("hour", "day", "week"):
        windows: list[int] = windows_of(block[form.time].to_numpy(), by).tolist()
        return windows
    return [0] * block.height
