"""Who may call the service, and who did what."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import RowMapping, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.context import current_request_id
from service.storage.postgres import tables

__all__ = ["ApiKey", "Audit", "AuditEntry", "Keys"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """One API key; the key itself is never stored."""

    key_id: str
    name: str
    secret_hash: str = field(repr=False)
    """SHA-256 of the whole key, in hex."""
    scopes: tuple[str, ...]
    rate_limit: float | None = None
    """Requests a second; 0 for any number, None for `Settings.rate_limit`."""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    expires_at: datetime | None = None
    """From when on it is refused, by the clock of whoever is asked; None for never."""
    revoked_at: datetime | None = None

    @property
    def expired(self) -> bool:
        """Whether its time is over; it never becomes valid again."""
        return self.expires_at is not None and datetime.now(UTC) >= self.expires_at

    @property
    def valid(self) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and not self.expired


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """One thing that somebody did."""

    id: int
    at: datetime
    actor: str
    action: str
    detail: Mapping[str, Any]
    reason: str | None
    """Why, where whoever did it was asked."""
    request_id: str | None
    """Of the call by which it was done; None for what no call did."""


class Keys:
    """Table `api_keys`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert(self, key: ApiKey) -> None:
        """Add a key."""
        await self._connection.execute(insert(tables.api_keys).values({**asdict(key), "scopes": list(key.scopes)}))

    async def list(self) -> Sequence[ApiKey]:
        """All keys, revoked ones too, oldest first."""
        query = select(tables.api_keys).order_by(tables.api_keys.c.created_at, tables.api_keys.c.key_id)
        return [_key(row) for row in (await self._connection.execute(query)).mappings()]

    async def valid(self, limit: int) -> Sequence[ApiKey]:
        """At most `limit` keys that are neither revoked nor expired, the newest."""
        columns = tables.api_keys.c
        query = select(tables.api_keys).where(
            columns.revoked_at.is_(None), or_(columns.expires_at.is_(None), columns.expires_at > func.clock_timestamp())
        )
        query = query.order_by(columns.created_at.desc()).limit(limit)
        return [_key(row) for row in (await self._connection.execute(query)).mappings()]

    async def get(self, key_id: str) -> ApiKey | None:
        """One key, also where it is revoked."""
        query = select(tables.api_keys).where(tables.api_keys.c.key_id == key_id)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else _key(row)

    async def revoke(self, key_id: str) -> bool:
        """Revoke a key for ever; False where there is no such key that is not revoked."""
        statement = (
            update(tables.api_keys)
            .where(tables.api_keys.c.key_id == key_id, tables.api_keys.c.revoked_at.is_(None))
            .values(revoked_at=func.clock_timestamp())
        )
        return (await self._connection.execute(statement)).rowcount == 1

    async def limit(self, key_id: str, rate: float | None) -> bool:
        """Set the rate limit of a key; False where there is no such key that is not revoked."""
        statement = (
            update(tables.api_keys)
            .where(tables.api_keys.c.key_id == key_id, tables.api_keys.c.revoked_at.is_(None))
            .values(rate_limit=rate)
        )
        return (await self._connection.execute(statement)).rowcount == 1

    async def any_ever(self) -> bool:
        """Whether a key was ever created: from then on calls need one, also when all are revoked."""
        return bool(await self._connection.scalar(select(exists(select(tables.api_keys.c.key_id)))))


class Audit:
    """Table `audit`, to which rows are only added."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, actor: str, action: str, detail: Mapping[str, Any], *, reason: str | None = None) -> None:
        """Note what somebody did, and the call that is being answered; `detail` is JSON and holds no secret."""
        values = {"actor": actor, "action": action, "detail": dict(detail), "reason": reason}
        await self._connection.execute(insert(tables.audit).values(**values, request_id=current_request_id.get()))

    async def list(
        self, limit: int, before: int | None = None, *, actor: str | None = None, action: str | None = None
    ) -> Sequence[AuditEntry]:
        """At most `limit` entries, newest first, of those with an id below `before` and this actor and action."""
        columns = tables.audit.c
        query = select(tables.audit).order_by(columns.id.desc()).limit(limit)
        if before is not None:
            query = query.where(columns.id < before)
        if actor is not None:
            query = query.where(columns.actor == actor)
        if action is not None:
            query = query.where(columns.action == action)
        return [AuditEntry(**row) for row in (await self._connection.execute(query)).mappings()]


def _key(row: RowMapping) -> ApiKey:
    return ApiKey(**{**row, "scopes": tuple(row["scopes"])})
