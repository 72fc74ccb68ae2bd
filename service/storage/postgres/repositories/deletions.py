"""Deletions of users and items: table `deletions`. They are kept, so that a restored backup can be cleared again."""

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
"""What can be deleted, by its id."""

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
    """HMAC-SHA256, in hex, of an id of this kind, with a key in hex."""
    return hmac.digest(bytes.fromhex(key), f"{kind}\0{id_}".encode(), "sha256").hex()


@dataclass(frozen=True, kw_only=True, slots=True)
class Deletion:
    """A request that nothing be stored about an id, and how far it has been carried out."""

    deletion: str
    """Identifier of the deletion, 32 hexadecimal digits."""
    kind: Deletable
    id: str | None = field(repr=False)
    """The id to be deleted; None once everything about it is removed."""
    key: str = field(repr=False)
    """Key of the digest, in hex."""
    digest: str
    """`id_digest(key, kind, id)`, by which the id is recognised in another copy of the database."""
    requested_at: datetime
    finished_at: datetime | None = None
    removed: Mapping[str, int] = field(default_factory=dict)
    """Number of removed rows, by what they were."""


class Deletions:
    """Table `deletions`. Rows stay for ever, because a restored backup may be of any age."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def begin(self, kind: Deletable, id_: str) -> tuple[Deletion, bool]:
        """The pending deletion of an id, or a new one; and whether it is new."""
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
        return await self.begin(kind, id_) if row is None else (_deletion(row), False)  # it was finished just now

    async def put(self, deletions: Sequence[Deletion]) -> None:
        """Store deletions that another copy of the database has."""
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
        """The deletion with this identifier."""
        query = select(tables.deletions).where(tables.deletions.c.deletion == deletion)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else _deletion(row)

    async def list(self) -> Sequence[Deletion]:
        """All deletions, oldest first."""
        query = select(tables.deletions).order_by(tables.deletions.c.requested_at, tables.deletions.c.deletion)
        return [_deletion(row) for row in (await self._connection.execute(query)).mappings()]

    async def pending(self, older_than: timedelta = timedelta()) -> Sequence[Deletion]:
        """Unfinished deletions that were requested at least `older_than` ago, oldest first."""
        table = tables.deletions.c
        query = select(tables.deletions).where(
            table.id.is_not(None), table.requested_at <= func.clock_timestamp() - older_than
        )
        return [
            _deletion(row) for row in (await self._connection.execute(query.order_by(table.requested_at))).mappings()
        ]

    async def finished(self, *, with_row: bool = False) -> int:
        """Number of finished deletions that removed anything. If it grows, ids that were read before may be gone.

        Args:
            with_row: count only deletions that freed a row of the embedding tables.
        """
        removed = tables.deletions.c.removed
        query = select(func.count()).where(
            tables.deletions.c.finished_at.is_not(None), removed.has_key("rows") if with_row else removed != {}
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def count(self, deletion: str, name: str, rows: int) -> None:
        """Add to the number of removed rows.

        Args:
            deletion: its identifier.
            name: what the rows were.
            rows: how many.
        """
        await self._connection.execute(COUNT, {"deletion": deletion, "name": name, "rows": rows})

    async def finish(self, deletion: str) -> Deletion | None:
        """Note that everything is removed, and erase the id; None where that was noted before."""
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
