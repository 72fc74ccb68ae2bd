"""Who may call the service, and who did what."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import RowMapping, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage import tables

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
    revoked_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """One thing that somebody did."""

    id: int
    at: datetime
    actor: str
    action: str
    detail: Mapping[str, Any]


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

    async def any_ever(self) -> bool:
        """Whether a key was ever created: from then on calls need one, also when all are revoked."""
        return bool(await self._connection.scalar(select(exists(select(tables.api_keys.c.key_id)))))


class Audit:
    """Table `audit`, to which rows are only added."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, actor: str, action: str, detail: Mapping[str, Any]) -> None:
        """Note what somebody did; `detail` is JSON and holds no secret."""
        await self._connection.execute(insert(tables.audit).values(actor=actor, action=action, detail=dict(detail)))

    async def list(self, limit: int, before: int | None = None) -> Sequence[AuditEntry]:
        """At most `limit` entries, newest first, of those with an id below `before`."""
        query = select(tables.audit).order_by(tables.audit.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(tables.audit.c.id < before)
        return [AuditEntry(**row) for row in (await self._connection.execute(query)).mappings()]


def _key(row: RowMapping) -> ApiKey:
    return ApiKey(**{**row, "scopes": tuple(row["scopes"])})
