"""The stages of the updates of periods: table `period_stages`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables
from service.storage.postgres.repositories.periods import WAITING

__all__ = ["Stage", "Stages"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage of a period's update."""

    period: int
    stage: str
    status: str
    """`running` or `done`."""
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None
    result: Any
    """The note of a stage that is done (JSON), from which a restarted update continues."""


class Stages:
    """Table `period_stages`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def list(self, first: int, last: int | None = None) -> Sequence[Stage]:
        """The stages of the periods `first` to `last` (default: `first` alone), in the order in which they started."""
        query = (
            select(tables.period_stages)
            .where(tables.period_stages.c.period.between(first, first if last is None else last))
            .order_by(tables.period_stages.c.started_at, tables.period_stages.c.stage)
        )
        return [Stage(**row) for row in (await self._connection.execute(query)).mappings()]

    async def of_waiting(self) -> Sequence[Stage]:
        """The stages of all periods whose update is to be done or under way."""
        waiting = tables.periods.c.status.in_(WAITING)
        query = select(tables.period_stages).join(tables.periods).where(waiting)
        return [Stage(**row) for row in (await self._connection.execute(query)).mappings()]

    async def get(self, period: int, stage: str) -> Stage | None:
        """One stage; None if it was never started."""
        query = select(tables.period_stages).where(
            tables.period_stages.c.period == period, tables.period_stages.c.stage == stage
        )
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else Stage(**row)

    async def newest_seconds(self) -> Mapping[str, float]:
        """By stage: how many seconds it took in the update of the newest period whose update has published."""
        columns = tables.period_stages.c
        published = select(func.max(columns.period)).where(columns.stage == "publish", columns.status == "done")
        query = select(columns.stage, columns.seconds).where(columns.period == published.scalar_subquery())
        return {
            row.stage: row.seconds for row in await self._connection.execute(query.where(columns.seconds.is_not(None)))
        }

    async def start(self, period: int, stage: str) -> None:
        """Note that a stage has started; what is stored of an earlier start is overwritten."""
        values: dict[str, Any] = {"status": "running", "started_at": func.clock_timestamp()}
        again: Mapping[str, Any] = {**values, "finished_at": None, "seconds": None, "result": None}
        statement = upsert(tables.period_stages).values(period=period, stage=stage, **values)
        await self._connection.execute(
            statement.on_conflict_do_update(index_elements=["period", "stage"], set_=dict(again))
        )

    async def finish(self, period: int, stage: str, seconds: float, result: Any = None) -> None:
        """Note that a started stage is done, how many seconds it took, and its result (JSON)."""
        statement = (
            update(tables.period_stages)
            .where(tables.period_stages.c.period == period, tables.period_stages.c.stage == stage)
            .values(status="done", finished_at=func.clock_timestamp(), seconds=seconds, result=result)
            .returning(tables.period_stages.c.stage)
        )
        (await self._connection.execute(statement)).one()

    async def forget_results(self, period: int) -> None:
        """Remove the results of a period's stages; when and how long they ran stays."""
        stages = tables.period_stages
        await self._connection.execute(update(stages).where(stages.c.period == period).values(result=None))

    async def clear(self, period: int, *, keep: Sequence[str] = ()) -> None:
        """Remove the stages of a period except those to keep, as if its update had come no further."""
        stages = tables.period_stages
        await self._connection.execute(delete(stages).where(stages.c.period == period, stages.c.stage.not_in(keep)))
