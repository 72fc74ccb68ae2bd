"""What was deleted for good: who may not come back with an old copy of the database."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import uuid4

from sqlalchemy import RowMapping, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables

__all__ = ["Deletable", "Deletion", "Deletions", "id_digest"]

Deletable = Literal["user", "item"]
"""Whose id can be deleted."""

COUNT = text("""
    UPDATE deletions
    SET removed = removed || jsonb_build_object(
        CAST(:name AS text), coalesce((removed ->> CAST(:name AS text))::bigint, 0) + :rows
    )
    WHERE deletion = :deletion
""")

KEY = text("SELECT key FROM deletions ORDER BY requested_at DESC LIMIT 1")
NEW_KEY = text("SELECT replace(CAST(gen_random_uuid() AS text) || CAST(gen_random_uuid() AS text), '-', '')")


def id_digest(key: str, kind: str, id_: str) -> str:
    """HMAC-SHA256 of an id of this kind by a key in hex; in hex."""
    return hmac.digest(bytes.fromhex(key), f"{kind}\0{id_}".encode(), "sha256").hex()


@dataclass(frozen=True, kw_only=True, slots=True)
class Deletion:
    """The wish that nothing be stored of an id, and how far it was carried out."""

    deletion: str
    """Its name, 32 hexadecimal digits."""
    kind: Deletable
    id: str | None = field(repr=False)
    """None as soon as all of it is removed."""
    key: str = field(repr=False)
    """By which the digest was made, in hex."""
    digest: str
    """By which the id can be recognised, `id_digest(key, kind, id)`."""
    requested_at: datetime
    finished_at: datetime | None = None
    removed: Mapping[str, int] = field(default_factory=dict)
    """Rows that were removed, by what they were."""


class Deletions:
    """Table `deletions`. Rows stay for ever: nobody knows how old a backup is that somebody restores."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def begin(self, kind: Deletable, id_: str) -> tuple[Deletion, bool]:
        """The deletion of an id that is under way, or a new one; and whether it is new."""
        key = await self._connection.scalar(KEY) or await self._connection.scalar(NEW_KEY)
        made = Deletion(
            deletion=uuid4().hex,
            kind=kind,
            id=id_,
            key=key,
            digest=id_digest(key, kind, id_),
            requested_at=datetime.now(UTC),
        )
        table = tables.deletions
        values = {"deletion": made.deletion, "kind": kind, "id": id_, "key": key, "digest": made.digest}
        statement = upsert(table).values(values).on_conflict_do_nothing().returning(table)
        row = (await self._connection.execute(statement)).mappings().first()
        if row is not None:
            return _deletion(row), True
        pending = select(table).where(table.c.kind == kind, table.c.id == id_)
        row = (await self._connection.execute(pending)).mappings().first()
        return await self.begin(kind, id_) if row is None else (_deletion(row), False)  # it ended in this moment

    async def put(self, deletions: Sequence[Deletion]) -> None:
        """Add deletions that another copy of the database has."""
        for deletion in deletions:
            values = {
                "deletion": deletion.deletion,
                "kind": deletion.kind,
                "id": deletion.id,
                "key": deletion.key,
                "digest": deletion.digest,
                "requested_at": deletion.requested_at,
                "finished_at": deletion.finished_at,
            }
            await self._connection.execute(insert(tables.deletions).values(values))

    async def get(self, deletion: str) -> Deletion | None:
        """One of them."""
        query = select(tables.deletions).where(tables.deletions.c.deletion == deletion)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else _deletion(row)

    async def list(self) -> Sequence[Deletion]:
        """All of them, oldest first."""
        query = select(tables.deletions).order_by(tables.deletions.c.requested_at, tables.deletions.c.deletion)
        return [_deletion(row) for row in (await self._connection.execute(query)).mappings()]

    async def pending(self, older_than: timedelta = timedelta()) -> Sequence[Deletion]:
        """Those that are not carried out though they were asked for so long ago, oldest first."""
        table = tables.deletions.c
        query = select(tables.deletions).where(
            table.id.is_not(None), table.requested_at <= func.clock_timestamp() - older_than
        )
        return [
            _deletion(row) for row in (await self._connection.execute(query.order_by(table.requested_at))).mappings()
        ]

    async def finished(self, *, with_row: bool = False) -> int:
        """How many were carried out that removed anything: whoever has read ids before knows by it whether one of them
        may be gone.

        Args:
            with_row: count only those that freed a row of the embedding tables.
        """
        removed = tables.deletions.c.removed
        query = select(func.count()).where(
            tables.deletions.c.finished_at.is_not(None), removed.has_key("rows") if with_row else removed != {}
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def count(self, deletion: str, name: str, rows: int) -> None:
        """Note that so many rows more were removed."""
        await self._connection.execute(COUNT, {"deletion": deletion, "name": name, "rows": rows})

    async def finish(self, deletion: str) -> Deletion | None:
        """Note that all of it is removed, and forget the id; None where that was noted before."""
        table = tables.deletions
        statement = (
            update(table)
            .where(table.c.deletion == deletion, table.c.finished_at.is_(None))
            .values(id=None, finished_at=func.clock_timestamp())
            .returning(table)
        )
        row = (await self._connection.execute(statement)).mappings().first()
        return None if row is None else _deletion(row)


def _deletion(row: RowMapping) -> Deletion:
    return Deletion(**row)
