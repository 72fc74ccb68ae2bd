"""The endpoints that are told of events: table `webhooks`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables

__all__ = ["Webhook", "Webhooks"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """An endpoint that is told of events."""

    number: int
    url: str
    events: tuple[str, ...] | None
    """Those that it is told of; null for all."""
    secret: str = field(repr=False)
    """Signs what it is told."""
    old_secret: str | None = field(repr=False)
    """Signs too, until `old_secret_until`."""
    old_secret_until: datetime | None
    created_at: datetime
    created_by: str
    off_at: datetime | None
    """Null while it is on."""
    off_reason: str | None


class Webhooks:
    """Table `webhooks`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert(self, url: str, events: Sequence[str] | None, secret: str, actor: str) -> Webhook:
        """Add an endpoint that is on."""
        values = {"url": url, "events": None if events is None else list(events), "secret": secret}
        statement = insert(tables.webhooks).values(**values, created_by=actor).returning(tables.webhooks)
        return _webhook((await self._connection.execute(statement)).mappings().one())

    async def list(self) -> Sequence[Webhook]:
        """All endpoints, oldest first."""
        query = select(tables.webhooks).order_by(tables.webhooks.c.number)
        return [_webhook(row) for row in (await self._connection.execute(query)).mappings()]

    async def get(self, number: int) -> Webhook | None:
        """The endpoint with this number."""
        query = select(tables.webhooks).where(tables.webhooks.c.number == number)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else _webhook(row)

    async def get_locked(self, number: int) -> Webhook | None:
        """The endpoint with this number, locked until the transaction ends. Its deliveries are locked after it."""
        query = select(tables.webhooks).where(tables.webhooks.c.number == number).with_for_update(key_share=True)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else _webhook(row)

    async def rotate(self, number: int, secret: str, overlap: timedelta) -> Webhook | None:
        """Sign with a new secret from now on, and for a while with the one before as well; None: no such endpoint."""
        columns = tables.webhooks.c
        until = func.clock_timestamp() + overlap
        return await self._set(number, secret=secret, old_secret=columns.secret, old_secret_until=until)

    async def switch(self, number: int, off_reason: str | None) -> Webhook | None:
        """Switch an endpoint off for a reason, or on where there is none; None: no such endpoint."""
        off_at = None if off_reason is None else func.clock_timestamp()
        return await self._set(number, off_at=off_at, off_reason=off_reason)

    async def delete(self, number: int) -> Webhook | None:
        """Remove an endpoint with its deliveries; None: no such endpoint."""
        statement = delete(tables.webhooks).where(tables.webhooks.c.number == number).returning(tables.webhooks)
        row = (await self._connection.execute(statement)).mappings().first()
        return None if row is None else _webhook(row)

    async def _set(self, number: int, **values: Any) -> Webhook | None:
        statement = update(tables.webhooks).where(tables.webhooks.c.number == number).values(**values)
        row = (await self._connection.execute(statement.returning(tables.webhooks))).mappings().first()
        return None if row is None else _webhook(row)


def _webhook(row: RowMapping) -> Webhook:
    return Webhook(**{**row, "events": None if row["events"] is None else tuple(row["events"])})
