"""What has been done with the logs of periods: whose ids are merged, which are resolved, folded or dropped.

Columns of table `periods`; the logs themselves are in `interactions`, `impressions` and `clicks`.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import exists, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import NotReady
from service.storage.postgres import tables
from service.storage.postgres.repositories.periods import NOT_MIGRATED, WAITING, PeriodStatus

__all__ = ["UNMERGED", "PeriodLogs", "open_and_unmerged"]

DONE = (PeriodStatus.UPDATED, PeriodStatus.SKIPPED)
"""Statuses of periods whose log no update needs any more."""

UNMERGED = """
    SELECT number, status = 'open' AS is_open FROM periods WHERE ids_merged_at IS NULL AND log_dropped_at IS NULL
"""


def open_and_unmerged(rows: Iterable[tuple[int, bool]]) -> tuple[int, list[int]]:
    """The open period and the closed ones, of the rows that `UNMERGED` returns.

    Raises:
        NotReady: there is no open period, so the schema was never migrated.
    """
    periods = {number: is_open for number, is_open in rows}
    open_ = next((number for number, is_open in periods.items() if is_open), None)
    if open_ is None:
        raise NotReady(NOT_MIGRATED)
    return open_, sorted(periods.keys() - {open_})


class PeriodLogs:
    """What table `periods` says of logs."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def unmerged(self) -> tuple[int, list[int]]:
        """The open period, and the closed ones whose event ids are not in `event_ids` yet: ingestion reads their logs.

        Raises:
            NotReady: there is no open period, so the schema was never migrated.
        """
        return open_and_unmerged(await self._connection.execute(text(UNMERGED)))

    async def with_other_ids(self, number: int) -> Sequence[int]:
        """The other periods whose log may contain event ids that `event_ids` lacks, or lists under this period."""
        columns = tables.periods.c
        query = select(columns.number).where(
            columns.number != number,
            columns.log_dropped_at.is_(None),
            or_(columns.number > number, columns.ids_merged_at.is_(None)),
        )
        return list((await self._connection.execute(query.order_by(columns.number))).scalars())

    async def next_unresolved(self, number: int) -> int:
        """The first period after this one whose impressions and clicks are not resolved; at the latest the open one."""
        query = select(func.min(tables.periods.c.number)).where(
            tables.periods.c.number > number,
            tables.periods.c.labels.is_(None),
            tables.periods.c.status.in_([PeriodStatus.OPEN, *WAITING]),
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def skipped_unresolved(self) -> Sequence[int]:
        """The skipped periods whose impressions and clicks are not resolved, ascending."""
        query = select(tables.periods.c.number).where(
            tables.periods.c.status == PeriodStatus.SKIPPED,
            tables.periods.c.labels.is_(None),
            tables.periods.c.log_dropped_at.is_(None),
        )
        return list((await self._connection.execute(query.order_by(tables.periods.c.number))).scalars())

    async def with_old_log(self, newest: int, *, exported: bool = False) -> Sequence[int]:
        """The periods up to `newest` that no update needs any more and whose log is not dropped, ascending; with
        `exported` only those whose log is exported.
        """
        query = select(tables.periods.c.number).where(
            tables.periods.c.number <= newest,
            tables.periods.c.log_dropped_at.is_(None),
            tables.periods.c.status.in_(DONE),
        )
        if exported:
            query = query.where(tables.periods.c.exported_at.is_not(None))
        return list((await self._connection.execute(query.order_by(tables.periods.c.number))).scalars())

    async def log_folded_after(self, number: int) -> bool:
        """Whether the log of a later period than this one is dropped, or about to be."""
        later = (tables.periods.c.number > number, tables.periods.c.log_folded_at.is_not(None))
        return bool(await self._connection.scalar(select(exists(select(tables.periods.c.number).where(*later)))))

    async def next_log(self, number: int) -> int | None:
        """The first period after this one whose log is not dropped."""
        later = (tables.periods.c.number > number, tables.periods.c.log_dropped_at.is_(None))
        following: int | None = await self._connection.scalar(select(func.min(tables.periods.c.number)).where(*later))
        return following

    async def note_forgotten(self, number: int, events: int) -> None:
        """Note that a deletion removed this many interactions of a period that had been counted already."""
        counted = (tables.periods.c.number == number) & tables.periods.c.events.is_not(None)
        forgotten = tables.periods.c.forgotten + events
        await self._connection.execute(update(tables.periods).where(counted).values(forgotten=forgotten))

    async def label_totals(self, names: Sequence[str]) -> dict[str, int]:
        """Sums over all periods, by name, of these numbers in `labels`."""
        totals = [func.coalesce(func.sum(tables.periods.c.labels[name].as_integer()), 0).label(name) for name in names]
        return {
            name: int(total)
            for name, total in (await self._connection.execute(select(*totals))).mappings().one().items()
        }
