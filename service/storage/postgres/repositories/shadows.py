"""Update methods that run beside the served one, and what they have to learn: tables `shadows` and `shadow_periods`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables
from service.storage.postgres.repositories.artifacts import digests_in
from service.storage.postgres.repositories.models import ModelVersion

__all__ = ["MOST_WAITING", "Shadow", "ShadowPeriod", "Shadows"]

MOST_WAITING = 32
"""Versions whose periods wait for shadows, at most. A shadow that is further behind starts again from the head: each
period that waits keeps the artifact of its interactions."""

SEQUENCE = """
    WITH RECURSIVE sequence AS (
        SELECT version, parent_version FROM model_versions WHERE version = :head
        UNION ALL
        SELECT earlier.version, earlier.parent_version FROM model_versions AS earlier
        JOIN sequence ON earlier.version = sequence.parent_version WHERE earlier.version > :version
    )
"""
"""The versions from `:head` back to the one after `:version`."""

NEXT = text(f"{SEQUENCE} SELECT version FROM sequence WHERE parent_version = :version")
BEHIND = text(f"{SEQUENCE} SELECT CASE WHEN bool_or(parent_version = :version) THEN count(*) END FROM sequence")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shadow:
    """An update method that runs beside the served one."""

    method: str
    version: int
    """The version that has learned the same periods."""
    state: Mapping[str, Any]
    """`parts` and `allocations`, as in the state of a version; of its own, or of the version that it starts from.
    `signature` of the method that has made them, where it is its own. Empty where nothing was learned yet."""
    attempts: int
    """How often workers have begun the next period, since the last one that was learned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowPeriod:
    """What a version has learned, for the shadows that have not come to it yet."""

    version: int
    learned: Mapping[str, Any] | None
    """`data`: digest of the prepared period. `allocations`: kind → number of the latest allocation of rows that it
    knows. `statistics`: digests of the statistics after it, null where the model reads none. None where there was
    nothing to learn."""
    late: bool
    """Whether a later period was learned before this one."""


class Shadows:
    """Tables `shadows` and `shadow_periods`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def offer(self, methods: Sequence[str], period: ShadowPeriod, parent: ModelVersion) -> None:
        """Let the shadows learn what a new version has learned. Of the periods that wait, the newest are kept.

        Args:
            methods: of the shadows. Those that are new start from the parent of the version.
            period: what the version has learned.
            parent: the version before.
        """
        for method in methods:
            new = upsert(tables.shadows).values(method=method, version=parent.version, state=_state_of(parent))
            await self._connection.execute(new.on_conflict_do_nothing())
        values = {"version": period.version, "learned": period.learned, "late": period.late}
        await self._connection.execute(upsert(tables.shadow_periods).values(values))
        old = tables.shadow_periods.c.version <= period.version - MOST_WAITING
        await self._connection.execute(delete(tables.shadow_periods).where(old))

    async def list(self) -> Sequence[Shadow]:
        """All shadows, by method."""
        columns = tables.shadows.c
        query = select(columns.method, columns.version, columns.state, columns.attempts).order_by(columns.method)
        return [Shadow(**row) for row in (await self._connection.execute(query)).mappings()]

    async def next(self, shadow: Shadow, head: int) -> ShadowPeriod | None:
        """What a shadow has to learn next on its way to the version `head`.

        Returns:
            None where it is not on the way, or that was not kept.
        """
        found = await self._connection.scalar(NEXT, {"version": shadow.version, "head": head})
        query = select(tables.shadow_periods).where(tables.shadow_periods.c.version == found)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else ShadowPeriod(**row)

    async def behind(self, shadow: Shadow, head: int) -> int | None:
        """How many periods a shadow has to learn until it has learned those of the version `head`.

        Returns:
            None where it is not on the way, so that it starts again.
        """
        if shadow.version == head:
            return 0
        found: int | None = await self._connection.scalar(BEHIND, {"version": shadow.version, "head": head})
        return found

    async def attempt(self, shadow: Shadow, attempts: int) -> None:
        """Note how often the next period was begun."""
        change = update(tables.shadows).where(tables.shadows.c.method == shadow.method)
        await self._connection.execute(change.values(attempts=attempts))

    async def advance(self, shadow: Shadow, version: int, state: Mapping[str, Any]) -> bool:
        """Note that a shadow has learned what a version has learned; False where it is not as it was read any more.

        Args:
            shadow: as it was read.
            version: the version.
            state: of the shadow now.
        """
        table = tables.shadows
        change = update(table).where(table.c.method == shadow.method, table.c.version == shadow.version)
        values = {"version": version, "state": state, "attempts": 0, "updated_at": func.clock_timestamp()}
        return (await self._connection.execute(change.values(values).returning(table.c.method))).first() is not None

    async def restart(self, shadow: Shadow, head: ModelVersion) -> bool:
        """Let a shadow start again from the training state of the head; as `advance`."""
        return await self.advance(shadow, head.version, _state_of(head))

    async def release(self) -> Sequence[str]:
        """Let go of the periods to which all shadows have come; return the digests of their artifacts."""
        last = select(func.min(tables.shadows.c.version)).scalar_subquery()
        gone = delete(tables.shadow_periods).where(tables.shadow_periods.c.version <= last)
        learned = await self._connection.execute(gone.returning(tables.shadow_periods.c.learned))
        return list(digests_in(learned.scalars().all()))

    async def remove_others(self, methods: Sequence[str]) -> Sequence[str]:
        """Remove the shadows of other methods than these; return the digests that they named."""
        table = tables.shadows
        released: list[str] = []
        gone = delete(table).where(table.c.method.not_in(methods)).returning(table.c.state)
        released += digests_in((await self._connection.execute(gone)).scalars().all())
        if not methods:
            waiting = delete(tables.shadow_periods).returning(tables.shadow_periods.c.learned)
            released += digests_in((await self._connection.execute(waiting)).scalars().all())
        return released

    async def digests(self) -> set[str]:
        """The digests of all artifacts that shadows name, or have still to read."""
        found: set[str] = set()
        for column in (tables.shadows.c.state, tables.shadow_periods.c.learned):
            found.update(digests_in((await self._connection.execute(select(column))).scalars().all()))
        return found


def _state_of(version: ModelVersion) -> dict[str, Any]:
    """The state of a shadow that starts from a version."""
    return {name: version.state[name] for name in ("parts", "allocations") if name in version.state}
