"""Reads a log file of any size block by block, draws the negatives that it needs, and sorts all of it on disk.

SQLite sorts with a fixed amount of memory. Beside it only the ids of the items and their categories are in memory.
"""

import sqlite3
from collections.abc import Callable, Iterable
from itertools import groupby

import numpy as np
import polars as pl

from asmg.datasets.events import Ids
from asmg.datasets.generic import LogForm, distinct_categories
from asmg.datasets.log import windows_of
from asmg.datasets.sampling import draw_negatives
from asmg.datasets.scan import Malformed
from asmg.log_format import CutBy, LogFormatError
from service.cli.import_log.row_fields import fields_as_json
from service.cli.import_log.sorted_log import SortedLog
from service.limits import MAX_CATEGORIES

__all__ = ["sort_log"]

BLOCK_BYTES = 1 << 23
"""Bytes of the file that are parsed at once."""

ROWS_PER_INSERT = 1 << 14
"""Rows of a block that are stored in one transaction."""

POSITIVES_PER_DRAW = 1 << 17
"""Positives whose negatives are drawn at once; those of one user are never split."""

FIELDS = "context TEXT, user_fields TEXT, item_fields TEXT"
"""JSON objects. Those of user and item are null where the row says nothing of them, as a negative does."""

UNSORTED = f"grp INTEGER, time INTEGER, row INTEGER, copy INTEGER, user TEXT, item INTEGER, label INTEGER, {FIELDS}"
"""Columns of the rows that are read and drawn. They are sorted by their group (a window of time, or the number in the
period column), then their time, then their row in the file, where the positive (copy 0) comes before its negatives."""

SORTED = f"place INTEGER PRIMARY KEY, time INTEGER, grp INTEGER, user TEXT, item INTEGER, label INTEGER, {FIELDS}"
"""Columns of the sorted log."""

FEATURE_CHANGES = """
    INSERT INTO {kind}_versions
    SELECT place, {kind}, time, features
    FROM (
        SELECT place, {kind}, time, {kind}_fields AS features,
            lag({kind}_fields, 1, '{{}}') OVER (PARTITION BY {kind} ORDER BY place) AS before
        FROM log WHERE {kind}_fields IS NOT NULL
    ) WHERE features <> before ORDER BY place
"""
"""Keeps of each user or item the rows whose features differ from those of its row before."""

Positive = tuple[str, int, int, int, int, str | None]
"""User, item, group, time, row and context of a row."""


def sort_log(
    form: LogForm,
    by: CutBy,
    database: sqlite3.Connection,
    *,
    malformed: Malformed,
    negatives: int,
    seed: int,
    progress: Callable[[float], None],
) -> SortedLog:
    """Read a file and sort it.

    Args:
        form: the file and its columns.
        by: what its periods will be cut by, see `SortedLog.cut`.
        database: an empty one; it grows to about 60 bytes a row plus the ids of the users, twice that while sorting.
        malformed: what to do with a row that cannot be read.
        negatives: drawn for each positive of a log of positives only.
        seed: of the negatives.
        progress: called with the fraction of the file that has been read, 0 to 1; an exception ends the reading.

    Raises:
        LogFormatError: the file is malformed.
    """
    reader = _Reader(form, by, database)
    dropped = reader.read(malformed, progress)
    item_ids = reader.items.names()
    _check_categories(form, item_ids, reader.categories)
    without_negative = 0
    if form.label is None:
        without_negative = _draw_all_negatives(database, len(item_ids), negatives, np.random.default_rng(seed))
    _sort(database, ["read", "drawn"] if form.label is None else ["read"])
    for kind in ("user", "item"):
        database.execute(f"CREATE TABLE {kind}_versions (place INTEGER PRIMARY KEY, id, time, features TEXT)")
        if any(field.of == kind for field in form.fields.values()):
            database.execute(FEATURE_CHANGES.format(kind=kind))
    count = database.execute("SELECT count(*) FROM log").fetchone()[0]
    return SortedLog(database, item_ids, reader.categories, count, without_negative, dropped)


class _Reader:
    """Reads the rows of the file into the table `read`, with items as numbers."""

    def __init__(self, form: LogForm, by: CutBy, database: sqlite3.Connection) -> None:
        self._form, self._by, self._database = form, by, database
        self.items = Ids()
        self.categories: dict[int, str] = {}
        """Number of an item → its categories, of the last of its rows that has any."""

    def read(self, malformed: Malformed, progress: Callable[[float], None]) -> dict[str, int]:
        """Read the file; return how many rows were left out, by reason."""
        self._database.execute(f"CREATE TABLE read ({UNSORTED})")
        scan = self._form.scan(malformed, BLOCK_BYTES)
        scan.progress = progress
        count = 0
        for block in scan.blocks():
            for rows in block.iter_slices(ROWS_PER_INSERT):
                self._store(rows, count)
                count += rows.height
        if not count:
            reasons = "; ".join(f"{reason}: {rows:,}" for reason, rows in scan.dropped.items())
            raise LogFormatError(self._form.path, "at least one row that can be read", f"none ({reasons})")
        return scan.dropped

    def _store(self, rows: pl.DataFrame, first: int) -> None:
        """Store some rows; the first one is row `first` of the file."""
        form = self._form
        items = self.items.encode(rows[form.item]).tolist()
        labels = [1] * rows.height if form.label is None else rows[form.label].cast(pl.Int64).to_list()
        values = zip(
            _groups(rows, form, self._by),
            rows[form.time].to_list(),
            range(first, first + rows.height),
            [0] * rows.height,
            rows[form.user].to_list(),
            items,
            labels,
            fields_as_json(rows, form, "context"),
            fields_as_json(rows, form, "user"),
            fields_as_json(rows, form, "item"),
            strict=True,
        )
        _insert(self._database, "read", values)
        if form.categories is not None:
            self.categories.update(pair for pair in zip(items, rows[form.categories], strict=True) if pair[1])


def _groups(rows: pl.DataFrame, form: LogForm, by: CutBy) -> list[int]:
    """What the rows are sorted by before their time."""
    if by == "column":
        assert form.period is not None, "a log that is cut by a column has a period column"
        numbers: list[int] = rows[form.period].to_list()
        return numbers
    if by in ("hour", "day", "week"):
        windows: list[int] = windows_of(rows[form.time].to_numpy(), by).tolist()
        return windows
    return [0] * rows.height


def _check_categories(form: LogForm, item_ids: list[str], categories: dict[int, str]) -> None:
    for item, text in categories.items():
        if (count := len(distinct_categories(text))) > MAX_CATEGORIES:
            raise LogFormatError(
                form.path,
                f"at most {MAX_CATEGORIES} categories of an item",
                f"{count} of item {item_ids[item]!r}",
                column=form.categories,
            )


def _draw_all_negatives(database: sqlite3.Connection, items: int, negatives: int, rng: np.random.Generator) -> int:
    """Draw the negatives of all positives into the table `drawn`; return how many positives got none.

    The negatives of a user depend on nothing but the user's own rows, so a few users at a time are drawn for.
    """
    database.execute(f"CREATE TABLE drawn ({UNSORTED})")
    ordered = database.cursor()
    ordered.execute("SELECT user, item, grp, time, row, context FROM read ORDER BY user, row")
    without_negative = 0
    chunk: list[Positive] = []
    for _, rows in groupby(ordered, key=lambda row: row[0]):
        chunk += rows
        if len(chunk) >= POSITIVES_PER_DRAW:
            without_negative += _draw_negatives(database, chunk, items, negatives, rng)
            chunk = []
    if chunk:
        without_negative += _draw_negatives(database, chunk, items, negatives, rng)
    return without_negative


def _draw_negatives(
    database: sqlite3.Connection, positives: list[Positive], items: int, negatives: int, rng: np.random.Generator
) -> int:
    users = Ids().encode(pl.Series([row[0] for row in positives], dtype=pl.String)).astype(np.int64)
    has_negative, drawn = draw_negatives(
        users,
        np.array([row[1] for row in positives], np.int64),
        np.arange(len(positives)),
        items,
        per_positive=negatives,
        whole_log=True,
        rng=rng,
    )
    chosen = [row for row, has in zip(positives, has_negative.tolist(), strict=True) if has]
    item = iter(drawn.tolist())
    rows = (
        (group, time, row, copy, user, next(item), 0, context, None, None)
        for user, _, group, time, row, context in chosen
        for copy in range(1, negatives + 1)
    )
    _insert(database, "drawn", rows)
    return len(positives) - len(chosen)


def _sort(database: sqlite3.Connection, tables: list[str]) -> None:
    """Sort the rows of some tables into the table `log`, and drop the tables."""
    database.execute(f"CREATE TABLE log ({SORTED})")
    union = " UNION ALL ".join(f"SELECT * FROM {table}" for table in tables)
    database.execute(
        "INSERT INTO log (time, grp, user, item, label, context, user_fields, item_fields) "
        "SELECT time, grp, user, item, label, context, user_fields, item_fields "
        f"FROM ({union}) ORDER BY grp, time, row, copy"
    )
    for table in tables:
        database.execute(f"DROP TABLE {table}")


def _insert(database: sqlite3.Connection, table: str, rows: Iterable[tuple[object, ...]]) -> None:
    database.execute("BEGIN")
    database.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    database.execute("COMMIT")
