"""What operators see of the api processes of all hosts: `GET /admin/processes` and the metrics."""

from dataclasses import dataclass
from datetime import datetime

from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AliasName

__all__ = ["ProcessDocument", "ProcessList", "list_processes"]


@dataclass(frozen=True, slots=True)
class ProcessDocument:
    """An api process that runs."""

    process: str
    """A random id, made when the process starts."""
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    seen_seconds_ago: float
    ready_version: int
    """The newest version that it has loaded; -1 for none."""
    served_version: int
    """The version that it serves; -1 for none."""
    ready: bool
    """Whether it has loaded the champion."""
    behind: bool
    """Whether it served an older version than it should have when it was last seen."""


@dataclass(frozen=True, slots=True)
class ProcessList:
    """The api processes that run, and what they are to serve."""

    champion: int | None
    """The version that the alias `champion` names; null while there is none."""
    active_from: datetime | None
    """From when on every process serves it; null while it waits until enough of them have loaded it."""
    processes: list[ProcessDocument]


async def list_processes(database: Database) -> ProcessList:
    """The api processes that run, by host and start."""
    async with database.read() as session:
        alias = await session.models.alias(AliasName.CHAMPION)
        live = await session.processes.live()
    return ProcessList(
        None if alias is None else alias.version,
        None if alias is None else alias.active_from,
        [
            ProcessDocument(
                process=process.process,
                host=process.host,
                pid=process.pid,
                started_at=process.started_at,
                seen_at=process.seen_at,
                seen_seconds_ago=process.seen_seconds_ago,
                ready_version=process.ready_version,
                served_version=process.served_version,
                ready=alias is not None and process.ready_move >= alias.move,
                behind=process.behind,
            )
            for process in live
        ],
    )
