"""Periods of the log and the stages of their updates."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, Select, case, delete, exists, func, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import NotReady, PeriodNotFound
from service.storage.postgres import tables

__all__ = ["ENDED", "WAITING", "Period", "PeriodStatus", "Periods", "Stage", "Stages"]


class PeriodStatus(StrEnum):
    """The life of a period: open → sealed → updating → updated, or quarantined; from there sealed again, or skipped."""

    OPEN = "open"
    SEALED = "sealed"
    UPDATING = "updating"
    UPDATED = "updated"
    QUARANTINED = "quarantined"
    """Its update cannot be done, `error` says why; later periods go on without it."""
    SKIPPED = "skipped"
    """An operator has decided that no model is to learn it."""


ENDED = (PeriodStatus.UPDATED, PeriodStatus.QUARANTINED, PeriodStatus.SKIPPED)
"""What the worker has nothing to do with any more."""
WAITING = (PeriodStatus.SEALED, PeriodStatus.UPDATING)
"""What it has yet to do."""
DONE = (PeriodStatus.UPDATED, PeriodStatus.SKIPPED)
"""Nobody needs the log of such a period for an update any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Period:
    """One stretch of the log, and what became of it."""

    number: int
    status: PeriodStatus
    opened_at: datetime
    sealed_at: datetime | None
    finished_at: datetime | None
    events: int | None
    """Interactions, since the period was sealed; counted again when its impressions were resolved."""
    idempotency_key: str | None
    idempotency_fingerprint: str | None
    error: str | None
    attempts: int
    version: int | None
    """The model version that the period produced."""
    log_folded_at: datetime | None
    """When the clicks of its log were added to the histories that stay; the log is dropped after that."""
    log_dropped_at: datetime | None
    worker: str | None
    """The process that is at the update; one that never let go of it has died."""
    crashes: int
    """Workers that died in a row at the update without a stage done."""
    labels: Mapping[str, Any] | None
    """What became of its impressions and clicks; None until they are resolved."""
    ids_merged_at: datetime | None
    """When the ids of its events were noted in `event_ids`."""
    forgotten: int = 0
    """Interactions that deletions have removed since `events` was counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of a period's update."""

    period: int
    stage: str
    status: str
    """`running` or `done`."""
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None
    result: Any
    """What a restarted update needs of a stage that is done; JSON."""


# Attached, for making it `PARTITION OF` would wait for whoever uses the log, and have others wait.
PARTITION = (
    "CREATE TABLE {table}_p{number} (LIKE {table} INCLUDING ALL)",
    "ALTER TABLE {table} ATTACH PARTITION {table}_p{number} FOR VALUES IN ({number})",
)

NOT_MIGRATED = "no period is open: the database has not been migrated"


UNMERGED = """
    SELECT number, status = 'open' AS is_open FROM periods WHERE ids_merged_at IS NULL AND log_dropped_at IS NULL
"""


def open_and_unmerged(rows: Iterable[tuple[int, bool]]) -> tuple[int, list[int]]:
    """What `UNMERGED` returns, as `Periods.unmerged` has it."""
    periods = {number: is_open for number, is_open in rows}
    open_ = next((number for number, is_open in periods.items() if is_open), None)
    if open_ is None:
        raise NotReady(NOT_MIGRATED)
    return open_, sorted(periods.keys() - {open_})


class Periods:
    """Table `periods`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def open(self) -> Period:
        """The one open period.

        Raises:
            NotReady: there is none, so the schema was never migrated.
        """
        period = await self._first(select(tables.periods).where(tables.periods.c.status == PeriodStatus.OPEN))
        if period is None:
            raise NotReady(NOT_MIGRATED)
        return period

    async def unmerged(self) -> tuple[int, list[int]]:
        """The open period, and the closed ones whose log has to be asked which ids are taken.

        Raises:
            NotReady: there is no open period, so the schema was never migrated.
        """
        return open_and_unmerged(await self._connection.execute(text(UNMERGED)))

    async def get(self, number: int) -> Period | None:
        """The period with this number."""
        return await self._first(_by_number(number))

    async def get_locked(self, number: int) -> Period:
        """The period with this number, which nobody else changes before the transaction ends.

        Raises:
            PeriodNotFound: there is no such period.
        """
        return await self._changed(number, _by_number(number).with_for_update())

    async def with_other_ids(self, number: int) -> Sequence[int]:
        """The other periods whose log may have ids that `event_ids` has not, or has for this period."""
        columns = tables.periods.c
        query = select(columns.number).where(
            columns.number != number,
            columns.log_dropped_at.is_(None),
            or_(columns.number > number, columns.ids_merged_at.is_(None)),
        )
        return list((await self._connection.execute(query.order_by(columns.number))).scalars())

    async def next_unresolved(self, number: int) -> int:
        """The first period after this one whose impressions and clicks are not resolved; the open one at the latest."""
        query = select(func.min(tables.periods.c.number)).where(
            tables.periods.c.number > number,
            tables.periods.c.labels.is_(None),
            tables.periods.c.status.in_([PeriodStatus.OPEN, *WAITING]),
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def skipped_unresolved(self) -> Sequence[int]:
        """The periods that are skipped and whose impressions and clicks are not resolved, ascending."""
        query = select(tables.periods.c.number).where(
            tables.periods.c.status == PeriodStatus.SKIPPED,
            tables.periods.c.labels.is_(None),
            tables.periods.c.log_dropped_at.is_(None),
        )
        return list((await self._connection.execute(query.order_by(tables.periods.c.number))).scalars())

    async def list(
        self, limit: int, before: int | None = None, statuses: Sequence[PeriodStatus] | None = None
    ) -> Sequence[Period]:
        """At most `limit` periods, newest first, of those with a number below `before` and one of the statuses."""
        query = select(tables.periods).order_by(tables.periods.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(tables.periods.c.number < before)
        if statuses is not None:
            query = query.where(tables.periods.c.status.in_(statuses))
        return [_period(row) for row in (await self._connection.execute(query)).mappings()]

    async def next_sealed(self) -> Period | None:
        """The earliest period that waits for its update, or whose update was begun and not ended."""
        waiting = tables.periods.c.status.in_(WAITING)
        return await self._first(select(tables.periods).where(waiting).order_by(tables.periods.c.number).limit(1))

    async def with_old_log(self, newest: int) -> Sequence[int]:
        """Numbers up to `newest`, ascending, of the periods that are done with and have a log yet."""
        query = select(tables.periods.c.number).where(
            tables.periods.c.number <= newest,
            tables.periods.c.log_dropped_at.is_(None),
            tables.periods.c.status.in_(DONE),
        )
        return list((await self._connection.execute(query.order_by(tables.periods.c.number))).scalars())

    async def log_folded_after(self, number: int) -> bool:
        """Whether the log of a later period than this one is dropped, or about to be."""
        later = (tables.periods.c.number > number, tables.periods.c.log_folded_at.is_not(None))
        return bool(await self._connection.scalar(select(exists(select(tables.periods.c.number).where(*later)))))

    async def by_idempotency_key(self, key: str) -> Period | None:
        """The period that was sealed by the request with this key."""
        return await self._first(select(tables.periods).where(tables.periods.c.idempotency_key == key))

    async def seal(self, number: int, events: int, key: str | None = None, fingerprint: str | None = None) -> Period:
        """End an open period; `key` and `fingerprint` identify the request that did.

        Raises:
            PeriodNotFound: there is no open period with this number.
        """
        statement = (
            update(tables.periods)
            .where(tables.periods.c.number == number, tables.periods.c.status == PeriodStatus.OPEN)
            .values(
                status=PeriodStatus.SEALED,
                sealed_at=func.clock_timestamp(),
                events=events,
                idempotency_key=key,
                idempotency_fingerprint=fingerprint,
            )
            .returning(*tables.periods.c)
        )
        return await self._changed(number, statement)

    async def create(self, number: int) -> Period:
        """Open a period, and the partitions of its log; the one before must be sealed."""
        for table in tables.LOG:
            for part in PARTITION:
                await self._connection.execute(text(part.format(table=table.name, number=int(number))))
        statement = insert(tables.periods).values(number=number, status=PeriodStatus.OPEN).returning(*tables.periods.c)
        return await self._changed(number, statement)

    async def set_labels(self, number: int, labels: Mapping[str, Any], events: int) -> Period:
        """Note what became of a period's impressions and clicks, and how many interactions it has now.

        Raises:
            PeriodNotFound: there is no such period.
        """
        statement = update(tables.periods).where(tables.periods.c.number == number)
        statement = statement.values(labels=labels, events=events, forgotten=0)
        return await self._changed(number, statement.returning(*tables.periods.c))

    async def note_forgotten(self, number: int, events: int) -> None:
        """Note that so many interactions of a period were removed by a deletion, where they are counted already."""
        counted = (tables.periods.c.number == number) & tables.periods.c.events.is_not(None)
        forgotten = tables.periods.c.forgotten + events
        await self._connection.execute(update(tables.periods).where(counted).values(forgotten=forgotten))

    async def next_log(self, number: int) -> Period | None:
        """The first period after this one that has a log."""
        later = (tables.periods.c.number > number, tables.periods.c.log_dropped_at.is_(None))
        return await self._first(select(tables.periods).where(*later).order_by(tables.periods.c.number).limit(1))

    async def label_totals(self, names: Sequence[str]) -> dict[str, int]:
        """The sums over all periods of these numbers in `labels`."""
        totals = [func.coalesce(func.sum(tables.periods.c.labels[name].as_integer()), 0).label(name) for name in names]
        return {
            name: int(total)
            for name, total in (await self._connection.execute(select(*totals))).mappings().one().items()
        }

    async def counts(self) -> dict[str, int]:
        """How many periods have each status."""
        query = select(tables.periods.c.status, func.count()).group_by(tables.periods.c.status)
        found = {status: count for status, count in await self._connection.execute(query)}
        return {str(status): found.get(status, 0) for status in PeriodStatus}

    async def take(self, number: int, worker: str) -> Period | None:
        """Let a worker begin or go on with the update of a period; None where that does not wait for one.

        Another worker that was at it, and never let go, has died or will not be believed any more: it is counted.
        """
        periods = tables.periods.c
        died = case((periods.worker != worker, 1), else_=0)  # of null, nobody
        statement = (
            update(tables.periods)
            .where(periods.number == number, periods.status.in_(WAITING))
            .values(status=PeriodStatus.UPDATING, error=None, worker=worker, crashes=periods.crashes + died)
        )
        return await self._first(statement.returning(*periods))

    async def hold(
        self, number: int, worker: str, *, crashes: int | None = None, error: str | None = None
    ) -> Period | None:
        """The period, if this worker is at its update, which nobody can change until the transaction ends; else None.

        Whatever a worker notes of an update is noted under this: one that was frozen or cut off while others went on is
        told so. `crashes` and `error` replace the last ones where they are given.
        """
        values: dict[str, Any] = {"worker": worker}
        if crashes is not None:
            values["crashes"] = crashes
        if error is not None:
            values["error"] = error
        periods = tables.periods.c
        statement = update(tables.periods).where(periods.number == number, periods.worker == worker).values(values)
        return await self._first(statement.returning(*periods))

    async def let_go(self, worker: str) -> None:
        """Note that a worker is at no update any more; it may be that it was at none."""
        statement = update(tables.periods).where(tables.periods.c.worker == worker)
        await self._connection.execute(statement.values(worker=None))

    async def set_status(
        self,
        number: int,
        status: PeriodStatus,
        *,
        error: str | None = None,
        attempts: int | None = None,
        version: int | None = None,
    ) -> Period:
        """Move a period on; whoever was at its update is not any more.

        `error` replaces the last one; `attempts` and `version` stay where they are None.

        Raises:
            PeriodNotFound: there is no such period.
        """
        values: dict[str, Any] = {"status": status, "error": error, "worker": None, "crashes": 0}
        values["finished_at"] = func.clock_timestamp() if status in ENDED else None
        if attempts is not None:
            values["attempts"] = attempts
        if version is not None:
            values["version"] = version
        statement = update(tables.periods).where(tables.periods.c.number == number).values(values)
        return await self._changed(number, statement.returning(*tables.periods.c))

    async def _first(self, query: Any) -> Period | None:
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else _period(row)

    async def _changed(self, number: int, statement: Any) -> Period:
        period = await self._first(statement)
        if period is None:
            raise PeriodNotFound(number)
        return period


class Stages:
    """Table `period_stages`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def list(self, first: int, last: int | None = None) -> Sequence[Stage]:
        """The stages of a period, or of the periods first to last, in the order in which they were started."""
        query = (
            select(tables.period_stages)
            .where(tables.period_stages.c.period.between(first, first if last is None else last))
            .order_by(tables.period_stages.c.started_at, tables.period_stages.c.stage)
        )
        return [Stage(**row) for row in (await self._connection.execute(query)).mappings()]

    async def of_waiting(self) -> Sequence[Stage]:
        """The stages of all periods that wait for their update, or whose update was begun and not ended."""
        waiting = tables.periods.c.status.in_(WAITING)
        query = select(tables.period_stages).join(tables.periods).where(waiting)
        return [Stage(**row) for row in (await self._connection.execute(query)).mappings()]

    async def get(self, period: int, stage: str) -> Stage | None:
        """One stage, if it was ever started."""
        query = select(tables.period_stages).where(
            tables.period_stages.c.period == period, tables.period_stages.c.stage == stage
        )
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else Stage(**row)

    async def start(self, period: int, stage: str) -> None:
        """Note that a stage runs, from the beginning if it was started before."""
        values: dict[str, Any] = {"status": "running", "started_at": func.clock_timestamp()}
        again: Mapping[str, Any] = {**values, "finished_at": None, "seconds": None, "result": None}
        statement = upsert(tables.period_stages).values(period=period, stage=stage, **values)
        await self._connection.execute(
            statement.on_conflict_do_update(index_elements=["period", "stage"], set_=dict(again))
        )

    async def finish(self, period: int, stage: str, seconds: float, result: Any = None) -> None:
        """Note that a started stage is done, how long it took and what it made (JSON)."""
        statement = (
            update(tables.period_stages)
            .where(tables.period_stages.c.period == period, tables.period_stages.c.stage == stage)
            .values(status="done", finished_at=func.clock_timestamp(), seconds=seconds, result=result)
            .returning(tables.period_stages.c.stage)
        )
        (await self._connection.execute(statement)).one()

    async def forget_results(self, period: int) -> None:
        """Forget what the stages of a period made; that they ran, and how long, stays."""
        stages = tables.period_stages
        await self._connection.execute(update(stages).where(stages.c.period == period).values(result=None))

    async def clear(self, period: int, *, keep: Sequence[str] = ()) -> None:
        """Forget the stages of a period but for those to keep, as if its update had come no further."""
        stages = tables.period_stages
        await self._connection.execute(delete(stages).where(stages.c.period == period, stages.c.stage.not_in(keep)))


def _by_number(number: int) -> Select[Any]:
    return select(tables.periods).where(tables.periods.c.number == number)


def _period(row: RowMapping) -> Period:
    return Period(**{**row, "status": PeriodStatus(row["status"])})
