"""How the installation is: model in service, open period, updates, api processes, worker.

`GET /admin/overview` shows it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from service.errors import NotReady
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AliasName, ModelKind
from service.storage.redis.notices import Notices
from service.use_cases.model_status import CanaryDocument, canary_document, gate_summary
from service.use_cases.processes import list_processes
from service.use_cases.status import PeriodDocument, list_periods, period_counts

__all__ = ["ModelInService", "Overview", "ProcessCounts", "WorkerState", "get_overview"]


@dataclass(frozen=True, slots=True)
class ModelInService:
    """The champion."""

    version: int
    kind: ModelKind
    period: int
    """The period that it learned last; 0 for the prior."""
    created_at: datetime
    active_from: datetime | None
    """From when on every api process serves it; null while they load it."""
    previous_version: int | None
    """The version that was served before."""
    pinned: bool
    head: int | None
    """The version that the next update continues from; another one after a rollback."""


@dataclass(frozen=True, slots=True)
class ProcessCounts:
    """Api processes of all hosts."""

    live: int
    ready: int
    """Those that have loaded the champion."""
    behind: int
    """Those that serve an older version than they should."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """The leading worker."""

    seconds_ago: float | None
    """Seconds since it last got any further; null where nothing is known of one."""
    stalled: bool
    """Whether that is longer than `ASMG_WORKER_STALL_SECONDS`, or nothing is known."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of the installation at a moment."""

    at: datetime
    model: ModelInService
    canary: CanaryDocument | None
    """The version that answers a share of the users, or is about to; null where none does."""
    open_period: PeriodDocument
    newest: PeriodDocument | None
    """The newest closed period, whose update may be under way; null before the first close."""
    periods: Mapping[str, int]
    """Number of periods by status."""
    gate_decisions: Mapping[str, int]
    """Versions by what the gate let serve."""
    refused_in_a_row: int
    """Newest versions in a row that do not serve what they have learned."""
    processes: ProcessCounts
    worker: WorkerState


async def get_overview(database: Database, notices: Notices, *, stall_seconds: float) -> Overview:
    """The state now.

    Args:
        database: holds versions, periods and processes.
        notices: know the leading worker.
        stall_seconds: without progress for longer, the worker counts as stalled.

    Raises:
        NotReady: no model is served yet, or Postgres does not answer.
    """
    async with database.read() as session:
        champion, head = [await session.models.alias(name) for name in (AliasName.CHAMPION, AliasName.HEAD)]
        model = None if champion is None else await session.models.get(champion.version)
        canary = await session.canaries.running()
    if champion is None or model is None:
        raise NotReady("no model is served yet")
    newest = (await list_periods(database, notices, limit=2, before=None)).periods
    gate = await gate_summary(database)
    listed = await list_processes(database)
    leader_at = await notices.leader_at()
    seconds_ago = None if leader_at is None else max(0.0, time.time() - leader_at)
    return Overview(
        at=datetime.now(UTC),
        model=ModelInService(
            version=model.version,
            kind=model.kind,
            period=model.period,
            created_at=model.created_at,
            active_from=champion.active_from,
            previous_version=champion.previous_version,
            pinned=model.pinned,
            head=None if head is None else head.version,
        ),
        canary=None if canary is None else canary_document(canary),
        open_period=newest[0],
        newest=newest[1] if len(newest) > 1 else None,
        periods=await period_counts(database),
        gate_decisions=gate.decisions,
        refused_in_a_row=gate.in_a_row,
        processes=ProcessCounts(
            live=len(listed.processes),
            ready=sum(process.ready for process in listed.processes),
            behind=sum(process.behind for process in listed.processes),
        ),
        worker=WorkerState(seconds_ago, stalled=seconds_ago is None or seconds_ago > stall_seconds),
    )
