"""What endpoints are told, and whether they have heard it: table `webhook_deliveries`.

Rows are added in the transaction of what they tell of. A worker *claims* a delivery before it sends it: the claim
counts the attempt and says when the next one is due, so a worker that dies in between leaves a row that is sent again.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, bindparam, func, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Integer, Interval

from service.storage.postgres import tables

__all__ = ["Deliveries", "Delivery", "DeliveryStatus"]

# The lock keeps an endpoint from being removed meanwhile, which would make the transaction fail.
ADD = text("""
    INSERT INTO webhook_deliveries (webhook, message, event, data, occurred_at, queued_at, due_at)
    SELECT number, :message, :event, :data, now, now, now FROM webhooks, clock_timestamp() AS now
    WHERE off_at IS NULL AND (events IS NULL OR :event = ANY (events))
    ORDER BY number
    FOR KEY SHARE OF webhooks
""")

# One delivery of each endpoint, the one that has been due for longest.
CLAIM = text("""
    UPDATE webhook_deliveries
    SET attempts = attempts + 1, attempted_at = clock_timestamp(), due_at = clock_timestamp() + :lease
    WHERE number IN (
        SELECT due.number FROM webhooks, LATERAL (
            SELECT number FROM webhook_deliveries
            WHERE webhook = webhooks.number AND status = 'waiting' AND due_at <= clock_timestamp()
            ORDER BY due_at, number LIMIT 1 FOR UPDATE SKIP LOCKED
        ) AS due
        WHERE off_at IS NULL AND webhooks.number <> ALL (:busy)
        LIMIT :most
    )
    RETURNING *
""")

FAIL = text("""
    UPDATE webhook_deliveries
    SET answer = :answer, error = :error,
        status = CASE WHEN ended THEN 'failed' ELSE 'waiting' END,
        due_at = CASE WHEN ended THEN null ELSE least(clock_timestamp() + :pause, queued_at + :give_up) END
    FROM (
        SELECT number AS tried_number, clock_timestamp() >= queued_at + :give_up AS ended
        FROM webhook_deliveries WHERE number = :number AND status = 'waiting' FOR UPDATE
    ) AS tried
    WHERE number = tried_number
    RETURNING status = 'failed'
""")

FORGET = text("""
    DELETE FROM webhook_deliveries WHERE status <> 'waiting' AND (
        coalesce(attempted_at, occurred_at) < clock_timestamp() - :age
        OR number <= (SELECT number FROM webhook_deliveries WHERE status <> 'waiting'
                      ORDER BY number DESC OFFSET :most LIMIT 1)
    )
""")


class DeliveryStatus(StrEnum):
    """Whether an endpoint has heard of something."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"
    """Given up; it can be sent again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """What an endpoint is told."""

    number: int
    """Ascending with what happened, with gaps."""
    webhook: int
    """Number of the endpoint."""
    message: str
    """Id of what is told, the same at every attempt and for all endpoints."""
    event: str
    data: Mapping[str, Any]
    occurred_at: datetime
    status: DeliveryStatus
    attempts: int
    queued_at: datetime
    """Since when it is to be sent."""
    due_at: datetime | None
    """When the next attempt is due; null if there is none."""
    attempted_at: datetime | None
    answer: int | None
    """Status of the last HTTP response."""
    error: str | None
    """Why the last attempt failed."""


class Deliveries:
    """Table `webhook_deliveries`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, message: str, event: str, data: Mapping[str, Any]) -> None:
        """Tell every endpoint that is on and wants to hear of the event."""
        add = ADD.bindparams(bindparam("data", dict(data), JSONB))
        await self._connection.execute(add, {"message": message, "event": event})

    async def claim(self, *, lease: timedelta, most: int, busy: Collection[int]) -> Sequence[Delivery]:
        """Count an attempt of some deliveries that are due, at most one of each endpoint, and return them.

        Args:
            lease: after which they are due again, unless their outcome is noted before.
            most: how many.
            busy: numbers of endpoints to which one is being sent now.
        """
        claim = CLAIM.bindparams(bindparam("lease", lease, Interval), bindparam("busy", list(busy), ARRAY(Integer)))
        return [_delivery(row) for row in (await self._connection.execute(claim, {"most": most})).mappings()]

    async def succeed(self, number: int, answer: int) -> None:
        """Note that the endpoint has accepted it."""
        columns = tables.webhook_deliveries.c
        await self._connection.execute(
            update(tables.webhook_deliveries)
            .where(columns.number == number)
            .values(status=DeliveryStatus.DELIVERED, due_at=None, answer=answer, error=None)
        )

    async def fail(self, number: int, answer: int | None, error: str, *, pause: timedelta, give_up: timedelta) -> bool:
        """Note that an attempt failed; return whether it was the last one.

        Args:
            number: of the delivery.
            answer: status of the response, if there was one.
            error: what went wrong.
            pause: after which the next attempt is due, though not later than the last moment.
            give_up: from the moment since when it is to be sent to the last moment.
        """
        fail = FAIL.bindparams(bindparam("pause", pause, Interval), bindparam("give_up", give_up, Interval))
        values = {"number": number, "answer": answer, "error": error}
        return bool(await self._connection.scalar(fail, values))

    async def give_up(self, webhook: int, error: str) -> int:
        """Send nothing more of what waits for an endpoint; return how many deliveries that are."""
        columns = tables.webhook_deliveries.c
        statement = (
            update(tables.webhook_deliveries)
            .where(columns.webhook == webhook, columns.status == DeliveryStatus.WAITING)
            .values(status=DeliveryStatus.FAILED, due_at=None, error=error)
        )
        return int((await self._connection.execute(statement)).rowcount)

    async def get(self, number: int) -> Delivery | None:
        """The delivery with this number."""
        query = select(tables.webhook_deliveries).where(tables.webhook_deliveries.c.number == number)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else _delivery(row)

    async def send_again(self, number: int) -> Delivery | None:
        """Have a delivery sent again, now and with all attempts; None: no such delivery."""
        now = func.clock_timestamp()
        statement = (
            update(tables.webhook_deliveries)
            .where(tables.webhook_deliveries.c.number == number)
            .values(status=DeliveryStatus.WAITING, attempts=0, queued_at=now, due_at=now)
            .returning(tables.webhook_deliveries)
        )
        row = (await self._connection.execute(statement)).mappings().first()
        return None if row is None else _delivery(row)

    async def list(
        self, limit: int, before: int | None = None, *, webhook: int | None = None, status: str | None = None
    ) -> Sequence[Delivery]:
        """At most `limit` deliveries, newest first.

        Args:
            limit: how many.
            before: only those with a lower number.
            webhook: only those to this endpoint.
            status: only those with this status.
        """
        columns = tables.webhook_deliveries.c
        query = select(tables.webhook_deliveries).order_by(columns.number.desc()).limit(limit)
        if before is not None:
            query = query.where(columns.number < before)
        if webhook is not None:
            query = query.where(columns.webhook == webhook)
        if status is not None:
            query = query.where(columns.status == status)
        return [_delivery(row) for row in (await self._connection.execute(query)).mappings()]

    async def counts(self) -> Mapping[str, int]:
        """Number of deliveries by status, of those that are kept."""
        columns = tables.webhook_deliveries.c
        query = select(columns.status, func.count()).group_by(columns.status)
        found: dict[str, int] = {status: count for status, count in await self._connection.execute(query)}
        return {str(status): found.get(status, 0) for status in DeliveryStatus}

    async def forget(self, age: timedelta, most: int) -> None:
        """Delete deliveries that wait for nothing: those of longer ago than `age`, and all but the newest `most`."""
        await self._connection.execute(FORGET.bindparams(bindparam("age", age, Interval)), {"most": most})


def _delivery(row: RowMapping) -> Delivery:
    return Delivery(**{**row, "status": DeliveryStatus(row["status"])})
