"""The api processes that run: table `api_processes`. Only the clock of Postgres says who is live."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables

__all__ = ["ApiProcess", "ApiProcesses", "ProcessState"]

REMOVE_ENDED = text("""
    DELETE FROM api_processes WHERE process IN (
        SELECT process FROM api_processes WHERE expires_at <= clock_timestamp() FOR UPDATE SKIP LOCKED
    )
""")

# A process is behind when a move was due before it was last seen, and it served an older one.
LIVE = text("""
    SELECT api_processes.*, coalesce(served_move < due.move, false) AS behind,
           greatest(extract(epoch FROM clock_timestamp() - seen_at), 0)::float8 AS seen_seconds_ago
    FROM api_processes
    LEFT JOIN LATERAL (
        SELECT max(move) AS move FROM takeovers WHERE active_from <= seen_at
    ) AS due ON true
    WHERE expires_at > clock_timestamp()
    ORDER BY host, started_at, process
""")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessState:
    """What an api process tells of itself. Moves are those of the alias `champion`; -1 stands for none."""

    process: str
    """A random id."""
    host: str
    pid: int
    refuses: bool
    """Whether it answers nothing when it may be behind."""
    ready_move: int
    """The newest move whose version it has loaded."""
    ready_version: int
    served_move: int
    served_version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiProcess(ProcessState):
    """An api process that runs."""

    started_at: datetime
    seen_at: datetime
    seen_seconds_ago: float
    expires_at: datetime
    """When it counts as ended, if it is not seen again."""
    behind: bool
    """Whether it served an older version than it should have when it was last seen."""


class ApiProcesses:
    """Table `api_processes`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def note(self, state: ProcessState, *, lease_seconds: float) -> datetime:
        """Note what a process tells, and that it runs for `lease_seconds` more; return the time of Postgres."""
        clock = func.clock_timestamp()
        values = {**asdict(state), "seen_at": clock, "expires_at": clock + timedelta(seconds=lease_seconds)}
        statement = upsert(tables.api_processes).values(values)
        statement = statement.on_conflict_do_update(index_elements=["process"], set_=values)
        now: datetime = (await self._connection.execute(statement.returning(clock))).scalar_one()
        return now

    async def remove_ended(self) -> None:
        """Remove the processes that were not seen for too long."""
        await self._connection.execute(REMOVE_ENDED)

    async def remove(self, process: str) -> None:
        """Remove a process that ends."""
        table = tables.api_processes
        await self._connection.execute(delete(table).where(table.c.process == process))

    async def live(self) -> Sequence[ApiProcess]:
        """The processes that run, by host and start."""
        return [ApiProcess(**row) for row in (await self._connection.execute(LIVE)).mappings()]
