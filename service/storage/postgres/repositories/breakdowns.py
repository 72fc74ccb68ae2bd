"""Scores of all models on a period by parts of its log: table `breakdowns`."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables

__all__ = ["Breakdowns"]


class Breakdowns:
    """Table `breakdowns`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put(self, period: int, parts: Mapping[str, Any]) -> None:
        """Store the breakdown of a period (JSON) in place of the one that it had."""
        statement = upsert(tables.breakdowns).values(period=period, parts=parts)
        await self._connection.execute(
            statement.on_conflict_do_update(index_elements=["period"], set_={"parts": statement.excluded.parts})
        )

    async def clear(self, period: int) -> None:
        """Remove the breakdown of a period."""
        await self._connection.execute(delete(tables.breakdowns).where(tables.breakdowns.c.period == period))

    async def get(self, period: int) -> Mapping[str, Any] | None:
        """The breakdown of a period; None where there is none."""
        query = select(tables.breakdowns.c.parts).where(tables.breakdowns.c.period == period)
        found: Mapping[str, Any] | None = await self._connection.scalar(query)
        return found

    async def of_version(self, version: int) -> Sequence[int]:
        """The periods with a breakdown on which a version was scored, ascending."""
        table, scored = tables.breakdowns.c, tables.evaluations.c
        query = select(table.period).where(
            select(scored.period).where(scored.period == table.period, scored.version == version).exists()
        )
        return (await self._connection.execute(query.order_by(table.period))).scalars().all()

    async def release(self, keep: int) -> None:
        """Remove all but the breakdowns of the newest `keep` periods that have one."""
        table = tables.breakdowns.c
        newest = select(table.period).order_by(table.period.desc()).limit(keep).subquery()
        oldest = select(func.min(newest.c.period)).scalar_subquery()
        await self._connection.execute(delete(tables.breakdowns).where(table.period < oldest))
