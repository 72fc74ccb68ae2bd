"""What is wrong now, and what was: table `alerts`. `service.use_cases.alerts` opens and closes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables

__all__ = ["Alert", "AlertKind", "Alerts", "Severity"]


class AlertKind(StrEnum):
    """What can be wrong."""

    GATE_REFUSED = "gate_refused"
    """The gate lets no model serve that was learned from the newest period."""
    QUARANTINED = "quarantined"
    """A period could not be learned; the subject is its number."""
    DRIFT_NEW_USERS = "drift_new_users"
    """Far more interactions than usual are with users that no model knows."""
    DRIFT_NEW_ITEMS = "drift_new_items"
    """Far more interactions than usual are with items that no model knows."""
    DRIFT_CLICKS = "drift_clicks"
    """The click rate is far from what is usual."""
    DRIFT_SCORES = "drift_scores"
    """The served scores are distributed otherwise than before."""
    QUALITY = "quality"
    """The served model predicts much less well than it used to, compared with a constant."""
    LIVE_LOSS = "live_loss"
    """The served model predicts worse than a constant."""
    FORGETTING = "forgetting"
    """A new version ranks earlier periods much worse than when they had just been learned."""
    CANARY = "canary"
    """A new version was shown to be worse on its share of the users, and is out of service again."""
    WEBHOOK = "webhook"
    """A webhook is switched off, or its receiver has accepted nothing for too long; the subject is its number."""


class Severity(StrEnum):
    """How bad it is."""

    WARNING = "warning"
    """Somebody should look at it within the day."""
    CRITICAL = "critical"
    """What is served is bad, or will be; somebody should look at it now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """Something that is wrong, or was."""

    number: int
    kind: str
    """One of `AlertKind`, or of another release."""
    subject: str
    """What it is about, of a kind that can be wrong with several things at a time; else empty."""
    severity: Severity
    period: int | None
    version: int | None
    message: str
    """One sentence with the numbers."""
    numbers: Mapping[str, Any]
    """The numbers of the message, as JSON."""
    opened_at: datetime
    raised_at: datetime
    """When it was last found to be wrong."""
    times: int
    """How often it was."""
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    closed_at: datetime | None
    """Null while it is open."""
    closed_by: str | None
    closed_reason: str | None


class Alerts:
    """Table `alerts`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def open(self, kind: str, subject: str) -> Alert | None:
        """The open alert of this kind and subject, locked until the transaction ends."""
        columns = tables.alerts.c
        query = select(tables.alerts).where(
            columns.kind == kind, columns.subject == subject, columns.closed_at.is_(None)
        )
        return await self._one(query.with_for_update())

    async def get_locked(self, number: int) -> Alert | None:
        """An alert, locked until the transaction ends."""
        return await self._one(select(tables.alerts).where(tables.alerts.c.number == number).with_for_update())

    async def put(
        self,
        kind: str,
        subject: str,
        severity: Severity,
        message: str,
        numbers: Mapping[str, Any],
        *,
        period: int | None,
        version: int | None,
    ) -> Alert:
        """Open an alert, or update the one of this kind and subject that is open; `times` is 1 where it is new."""
        news = {
            "severity": severity,
            "period": period,
            "version": version,
            "message": message,
            "numbers": dict(numbers),
            "raised_at": func.clock_timestamp(),
        }
        columns = tables.alerts.c
        again = {**news, "times": columns.times + 1}
        is_it = (columns.kind == kind, columns.subject == subject, columns.closed_at.is_(None))
        # The insertion alone would do, but it takes a number even where a row is there.
        updated = update(tables.alerts).where(*is_it).values(**again).returning(tables.alerts)
        row = (await self._connection.execute(updated)).mappings().first()
        if row is None:
            inserted = upsert(tables.alerts).values(
                kind=kind, subject=subject, opened_at=func.clock_timestamp(), **news
            )
            inserted = inserted.on_conflict_do_update(
                index_elements=["kind", "subject"], index_where=columns.closed_at.is_(None), set_=again
            )
            row = (await self._connection.execute(inserted.returning(tables.alerts))).mappings().one()
        return _alert(row)

    async def close(self, number: int, actor: str, reason: str) -> Alert:
        """Close an open alert."""
        return await self._set(number, closed_at=func.clock_timestamp(), closed_by=actor, closed_reason=reason)

    async def acknowledge(self, number: int, actor: str) -> Alert:
        """Note who has seen an alert last."""
        return await self._set(number, acknowledged_at=func.clock_timestamp(), acknowledged_by=actor)

    async def list(self, limit: int, before: int | None = None, *, is_open: bool | None = None) -> Sequence[Alert]:
        """At most `limit` alerts, newest first.

        Args:
            limit: how many.
            before: only those with a lower number.
            is_open: only open ones, or only closed ones; None for both.
        """
        columns = tables.alerts.c
        query = select(tables.alerts).order_by(columns.number.desc()).limit(limit)
        if before is not None:
            query = query.where(columns.number < before)
        if is_open is not None:
            query = query.where(columns.closed_at.is_(None) if is_open else columns.closed_at.is_not(None))
        return [_alert(row) for row in (await self._connection.execute(query)).mappings()]

    async def open_counts(self) -> Mapping[str, int]:
        """Number of open alerts by kind, of those kinds that have one."""
        columns = tables.alerts.c
        query = select(columns.kind, func.count()).where(columns.closed_at.is_(None)).group_by(columns.kind)
        return {kind: count for kind, count in await self._connection.execute(query)}

    async def forget(self, age: timedelta) -> None:
        """Delete those that were closed longer ago than `age`."""
        closed_at = tables.alerts.c.closed_at
        await self._connection.execute(delete(tables.alerts).where(closed_at < func.clock_timestamp() - age))

    async def _set(self, number: int, **values: Any) -> Alert:
        statement = update(tables.alerts).where(tables.alerts.c.number == number).values(**values)
        return _alert((await self._connection.execute(statement.returning(tables.alerts))).mappings().one())

    async def _one(self, query: Any) -> Alert | None:
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else _alert(row)


def _alert(row: RowMapping) -> Alert:
    return Alert(**{**row, "severity": Severity(row["severity"])})
