"""Periods of the log: table `periods`. What has been done with their logs is in `period_logs`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, Select, case, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import NotReady, PeriodNotFound
from service.storage.postgres import tables

__all__ = ["ENDED", "WAITING", "Period", "PeriodStatus", "Periods"]


class PeriodStatus(StrEnum):
    """A period goes open → sealed → updating → updated or quarantined; from there sealed again or skipped."""

    OPEN = "open"
    SEALED = "sealed"
    UPDATING = "updating"
    UPDATED = "updated"
    QUARANTINED = "quarantined"
    """Its update failed too often, `error` says why; later periods are updated without it."""
    SKIPPED = "skipped"
    """An operator has decided that no model is to learn it."""


ENDED = (PeriodStatus.UPDATED, PeriodStatus.QUARANTINED, PeriodStatus.SKIPPED)
"""Statuses of periods that the worker is finished with."""
WAITING = (PeriodStatus.SEALED, PeriodStatus.UPDATING)
"""Statuses of periods whose update is to be done or under way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Period:
    """A period of the log and the state of its update."""

    number: int
    status: PeriodStatus
    opened_at: datetime
    sealed_at: datetime | None
    finished_at: datetime | None
    events: int | None
    """Number of interactions; None while the period is open. Counted when it is sealed, and again when resolved."""
    idempotency_key: str | None
    idempotency_fingerprint: str | None
    error: str | None
    attempts: int
    version: int | None
    """The model version that the period produced."""
    log_folded_at: datetime | None
    """When its log was added to the histories that outlive it; after that it is dropped."""
    log_dropped_at: datetime | None
    worker: str | None
    """Worker that runs this update; a stale name means that it crashed."""
    crashes: int
    """Workers that crashed in a row during the update, without finishing a stage."""
    labels: Mapping[str, Any] | None
    """How many of its impressions and clicks became what; None until they are resolved."""
    ids_merged_at: datetime | None
    """When its event ids were added to `event_ids`."""
    forgotten: int = 0
    """Number of interactions that deletions have removed since `events` was counted."""
    exported_at: datetime | None = None
    """When the worker exported its log last."""


# ATTACH takes a weaker lock than PARTITION OF, which would wait for everybody who uses the log and block others.
PARTITION = (
    "CREATE TABLE {table}_p{number} (LIKE {table} INCLUDING ALL)",
    "ALTER TABLE {table} ATTACH PARTITION {table}_p{number} FOR VALUES IN ({number})",
)

NOT_MIGRATED = "no period is open: the database has not been migrated"


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

    async def get(self, number: int) -> Period | None:
        """The period with this number."""
        return await self._first(_by_number(number))

    async def get_locked(self, number: int) -> Period:
        """The period with this number, locked against changes by others until the transaction ends.

        Raises:
            PeriodNotFound: there is no such period.
        """
        return await self._changed(number, _by_number(number).with_for_update())

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
        """The earliest period whose update is to be done or under way."""
        waiting = tables.periods.c.status.in_(WAITING)
        return await self._first(select(tables.periods).where(waiting).order_by(tables.periods.c.number).limit(1))

    async def by_idempotency_key(self, key: str) -> Period | None:
        """The period that was sealed by the request with this key."""
        return await self._first(select(tables.periods).where(tables.periods.c.idempotency_key == key))

    async def seal(self, number: int, events: int, key: str | None = None, fingerprint: str | None = None) -> Period:
        """Seal the open period; `key` and `fingerprint` identify the request.

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
        """Open a period and create the partitions of its log; the period before must be sealed."""
        for table in tables.LOG:
            for part in PARTITION:
                await self._connection.execute(text(part.format(table=table.name, number=int(number))))
        statement = insert(tables.periods).values(number=number, status=PeriodStatus.OPEN).returning(*tables.periods.c)
        return await self._changed(number, statement)

    async def set_labels(self, number: int, labels: Mapping[str, Any], events: int) -> Period:
        """Store what became of a period's impressions and clicks, and its number of interactions.

        Raises:
            PeriodNotFound: there is no such period.
        """
        statement = update(tables.periods).where(tables.periods.c.number == number)
        statement = statement.values(labels=labels, events=events, forgotten=0)
        return await self._changed(number, statement.returning(*tables.periods.c))

    async def counts(self) -> dict[str, int]:
        """How many periods have each status."""
        query = select(tables.periods.c.status, func.count()).group_by(tables.periods.c.status)
        found = {status: count for status, count in await self._connection.execute(query)}
        return {str(status): found.get(status, 0) for status in PeriodStatus}

    async def take(self, number: int, worker: str) -> Period | None:
        """Make a worker the one that updates the period; None where the period waits for no update.

        Another worker that is still named there has crashed, or is treated as if it had: it is counted in `crashes`.
        """
        periods = tables.periods.c
        died = case((periods.worker != worker, 1), else_=0)  # null: nobody was named
        statement = (
            update(tables.periods)
            .where(periods.number == number, periods.status.in_(WAITING))
            .values(status=PeriodStatus.UPDATING, error=None, worker=worker, crashes=periods.crashes + died)
        )
        return await self._first(statement.returning(*periods))

    async def hold(
        self, number: int, worker: str, *, crashes: int | None = None, error: str | None = None
    ) -> Period | None:
        """Lock the period until the transaction ends, if this worker updates it; None if it does not any more.

        A worker calls this in every transaction in which it writes something of an update, so a worker that was frozen
        or cut off while another took over writes nothing. `crashes` and `error` replace the stored ones where given.
        """
        values: dict[str, Any] = {"worker": worker}
        if crashes is not None:
            values["crashes"] = crashes
        if error is not None:
            values["error"] = error
        periods = tables.periods.c
        statement = update(tables.periods).where(periods.number == number, periods.worker == worker).values(values)
        return await self._first(statement.returning(*periods))

    async def release(self, worker: str) -> None:
        """Note that a worker updates no period any more; nothing happens where it did not."""
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
        """Change the status of a period; no worker updates it any more.

        `error` replaces the stored one; `attempts` and `version` stay as they are where None is given.

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


def _by_number(number: int) -> Select[Any]:
    return select(tables.periods).where(tables.periods.c.number == number)


def _period(row: RowMapping) -> Period:
    return Period(**{**row, "status": PeriodStatus(row["status"])})
