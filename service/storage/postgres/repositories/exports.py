"""The logs of periods that do not change any more, page by page, and which of them are exported."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    REAL,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Integer,
    SmallInteger,
    Table,
    Text,
    and_,
    cast,
    func,
    or_,
    select,
    update,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from service.storage.postgres import tables
from service.storage.postgres.repositories.periods import PeriodStatus

__all__ = ["EXPORTED", "ExportPage", "Exports", "columns_of"]

NO_SUCH_TABLE = "42P01"
"""SQLSTATE."""


class _Exported(NamedTuple):
    table: Table
    order: tuple[str, ...]
    """Columns by which its rows are ordered."""
    rows: int
    """Rows of a page."""


# An impression has up to 1,000 items with contexts, so its pages are shorter.
EXPORTED = {
    "interactions": _Exported(tables.interactions, ("occurred_at", "event_id"), 20_000),
    "impressions": _Exported(tables.impressions, ("shown_at", "request_id"), 1_000),
}
"""What can be exported, by name."""

OWN = ("content", "received_at")
"""Columns that only the service needs."""

KINDS: tuple[tuple[type[TypeEngine[Any]], str], ...] = (
    (SmallInteger, "int8"),
    (Integer, "int32"),
    (REAL, "float32"),
    (Boolean, "boolean"),
    (DateTime, "timestamp"),
    (Text, "text"),
    (JSONB, "text"),
)
"""What the values of a column's type are in an export."""

ExportPage = Sequence[Sequence[Any]]
"""Values of some rows, column by column."""

DONE = or_(
    tables.periods.c.status == PeriodStatus.UPDATED,
    and_(tables.periods.c.status == PeriodStatus.SKIPPED, tables.periods.c.labels.is_not(None)),
)
"""Periods whose log changes no more, but for deletions."""

PENDING = and_(DONE, tables.periods.c.log_dropped_at.is_(None), tables.periods.c.exported_at.is_(None))
"""Those that are to be exported and are not."""


def columns_of(name: str) -> dict[str, str]:
    """The columns of an export: name → `int8`, `int32`, `float32`, `boolean`, `timestamp`, `text`, or `list:` and one
    of these.
    """
    return {column.name: _kind(column.type) for column in _columns(name)}


class Exports:
    """The logs of closed periods, and `exported_at` of table `periods`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def numbers(self, first: int = 1, last: int | None = None) -> Sequence[int]:
        """The periods from `first` to `last` whose log does not change any more and is not dropped, ascending."""
        periods = tables.periods.c
        query = select(periods.number).where(DONE, periods.log_dropped_at.is_(None), periods.number >= first)
        if last is not None:
            query = query.where(periods.number <= last)
        return list((await self._connection.execute(query.order_by(periods.number))).scalars())

    async def next_pending(self) -> int | None:
        """The first period that is to be exported and is not."""
        number: int | None = await self._connection.scalar(select(func.min(tables.periods.c.number)).where(PENDING))
        return number

    async def waiting(self) -> tuple[int, float]:
        """How many periods are to be exported and are not, and for how many seconds the first has waited."""
        wait = func.extract("epoch", func.clock_timestamp() - func.min(tables.periods.c.finished_at))
        count, seconds = (await self._connection.execute(select(func.count(), wait).where(PENDING))).one()
        return count, float(seconds or 0)

    async def note(self, number: int) -> None:
        """Note that a period is exported."""
        periods = tables.periods
        now = func.clock_timestamp()
        await self._connection.execute(update(periods).where(periods.c.number == number).values(exported_at=now))

    async def hold(self, number: int) -> bool:
        """Keep the log of a period from being dropped until the transaction ends; False where it is dropped.

        It has to be the first statement of the transaction, so that all that is read later is of after it.
        """
        partitions = ", ".join(f"{each.table.name}_p{int(number)}" for each in EXPORTED.values())
        try:
            await self._connection.execute(sql(f"LOCK TABLE {partitions} IN ACCESS SHARE MODE"))
        except ProgrammingError as error:
            if getattr(error.orig, "sqlstate", None) != NO_SUCH_TABLE:
                raise
            return False
        return True

    async def pages(self, name: str, period: int) -> AsyncIterator[ExportPage]:
        """The rows of a period, ordered by time and id, a page at a time, as `columns_of` says."""
        exported = EXPORTED[name]
        columns = [_as_exported(each) for each in _columns(name)]
        order = [exported.table.c[column] for column in exported.order]
        query = select(*columns).where(exported.table.c.period == period).order_by(*order)
        async with self._connection.stream(query) as found:
            async for page in found.partitions(exported.rows):
                yield list(zip(*page, strict=True))


def _columns(name: str) -> list[Column[Any]]:
    return [column for column in EXPORTED[name].table.columns if column.name not in OWN]


def _as_exported(column: Column[Any]) -> ColumnElement[Any]:
    if isinstance(column.type, JSONB):
        return cast(column, Text)
    return func.coalesce(column, 1) if column is tables.interactions.c.weight else column


def _kind(kind: TypeEngine[Any]) -> str:
    if isinstance(kind, ARRAY):
        return f"list:{_kind(kind.item_type)}"
    return next(name for known, name in KINDS if isinstance(kind, known))
