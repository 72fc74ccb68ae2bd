"""API keys, and the audit of who did what.

`service.use_cases.auth` and `keys` read and write the keys. Every use case that changes something adds to the audit.
"""

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
    """What is stored of an API key. The key itself is not."""

    key_id: str
    """The 12 hexadecimal digits in the middle of the key; no secret."""
    name: str
    secret_hash: str = field(repr=False)
    """SHA-256 of the whole key, in hex."""
    scopes: tuple[str, ...]
    rate_limit: float | None = None
    """Requests a second; 0 for no limit, None for `Settings.rate_limit`."""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    expires_at: datetime | None = None
    """The key is refused from then on, by the clock of the process that checks it; None for never."""
    revoked_at: datetime | None = None

    @property
    def expired(self) -> bool:
        """Whether `expires_at` has passed."""
        return self.expires_at is not None and datetime.now(UTC) >= self.expires_at

    @property
    def valid(self) -> bool:
        """Whether the key is neither revoked nor expired."""
        return self.revoked_at is None and not self.expired


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """One action in the audit."""

    id: int
    at: datetime
    actor: str
    action: str
    detail: Mapping[str, Any]
    reason: str | None
    """Given by the person who did it, for actions that have one."""
    request_id: str | None
    """Id of the HTTP request that did it; None for the command line and the worker."""


class Keys:
    """Table `api_keys`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert(self, key: ApiKey) -> None:
        """Add a key."""
        await self._connection.execute(insert(tables.api_keys).values({**asdict(key), "scopes": list(key.scopes)}))

    async def list(self) -> Sequence[ApiKey]:
        """All keys, oldest first; also revoked and expired ones."""
        query = select(tables.api_keys).order_by(tables.api_keys.c.created_at, tables.api_keys.c.key_id)
        return [_key(row) for row in (await self._connection.execute(query)).mappings()]

    async def valid(self, limit: int) -> Sequence[ApiKey]:
        """The newest keys that are neither revoked nor expired, at most `limit`."""
        columns = tables.api_keys.c
        query = select(tables.api_keys).where(
            columns.revoked_at.is_(None), or_(columns.expires_at.is_(None), columns.expires_at > func.clock_timestamp())
        )
        query = query.order_by(columns.created_at.desc()).limit(limit)
        return [_key(row) for row in (await self._connection.execute(query)).mappings()]

    async def get(self, key_id: str) -> ApiKey | None:
        """The key with this id, even a revoked or expired one; None if there is none."""
        query = select(tables.api_keys).where(tables.api_keys.c.key_id == key_id)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else _key(row)

    async def revoke(self, key_id: str) -> bool:
        """Revoke a key for ever; False if there is no such key, or it is revoked already."""
        statement = (
            update(tables.api_keys)
            .where(tables.api_keys.c.key_id == key_id, tables.api_keys.c.revoked_at.is_(None))
            .values(revoked_at=func.clock_timestamp())
        )
        return (await self._connection.execute(statement)).rowcount == 1

    async def limit(self, key_id: str, rate: float | None) -> bool:
        """Set the rate limit of a key, in requests a second; False if there is no such key, or it is revoked."""
        statement = (
            update(tables.api_keys)
            .where(tables.api_keys.c.key_id == key_id, tables.api_keys.c.revoked_at.is_(None))
            .values(rate_limit=rate)
        )
        return (await self._connection.execute(statement)).rowcount == 1

    async def any_ever(self) -> bool:
        """Whether a key was ever created. From then on every call needs one, even when all keys are revoked."""
        return bool(await self._connection.scalar(select(exists(select(tables.api_keys.c.key_id)))))


class Audit:
    """Table `audit`. Rows are only ever added."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, actor: str, action: str, detail: Mapping[str, Any], *, reason: str | None = None) -> None:
        """Add an action, with the id of the current request.

        Args:
            actor: who did it: the name and id of an API key, or the user of a shell.
            action: the name of the use case.
            detail: its arguments, as JSON. No secrets.
            reason: why, if given.
        """
        values = {"actor": actor, "action": action, "detail": dict(detail), "reason": reason}
        await self._connection.execute(insert(tables.audit).values(**values, request_id=current_request_id.get()))

    async def list(
        self, limit: int, before: int | None = None, *, actor: str | None = None, action: str | None = None
    ) -> Sequence[AuditEntry]:
        """At most `limit` actions, newest first.

        Args:
            limit: how many.
            before: only those with an id below this.
            actor: only those of this actor.
            action: only those with this name.
        """
        columns = tables.audit.c
        query = select(tables.audit).order_by(columns.id.desc()).limit(limit)
        if before is not None:
            query = query.where(columns.id < before)
        if actor is not None:
            query = query.where(columns.actor == actor)
        if action is not None:
            query = query.where(columns.action == action)
        return [AuditEntry(**row) for row in (await self._connection.execute(query)).mappings()]

    async def trace_of_close(self, period: int) -> str | None:
        """The `traceparent` in the entry that says who closed the period; None where it has none."""
        columns = tables.audit.c
        query = select(columns.detail["traceparent"].astext).where(
            columns.action == "close_period", columns.detail["period"].astext == str(period)
        )
        found: str | None = await self._connection.scalar(query.order_by(columns.id.desc()).limit(1))
        return found


def _key(row: RowMapping) -> ApiKey:
    return ApiKey(**{**row, "scopes": tuple(row["scopes"])})
