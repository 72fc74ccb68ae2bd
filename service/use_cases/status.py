"""What operators see of the periods: their updates and scores. The API, the command line and the dashboard show these
documents as they are.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from service.errors import PeriodNotFound
from service.storage.postgres.database import Database, ReadSession
from service.storage.postgres.repositories import (
    Period,
    PeriodStatus,
    Resolved,
)
from service.storage.redis.notices import Notices

__all__ = [
    "MAX_NUMBER",
    "PeriodDocument",
    "PeriodPage",
    "ScoreDocument",
    "StageDocument",
    "before_number",
    "get_period",
    "label_totals",
    "list_periods",
    "period_counts",
]

MAX_NUMBER = 2**31 - 1
"""Highest number of a period or version: what an `integer` of Postgres can hold."""

PROGRESS_TIMEOUT_SECONDS = 0.5
"""How long to wait for Redis, in seconds, for the progress of an update; a hanging Redis costs only the number."""


@dataclass(frozen=True, slots=True)
class StageDocument:
    """One stage of a period's update."""

    stage: str
    status: str
    """`running` or `done`."""
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class ScoreDocument:
    """Scores of a model on the period's log, before any model learned it."""

    version: int | None
    events: int
    auc: float | None
    logloss: float
    calibration: float | None
    """Mean prediction over click rate."""


@dataclass(frozen=True, slots=True)
class PeriodDocument:
    """A period and its update."""

    period: int
    status: PeriodStatus
    stage: str | None
    """The stage that is running, of several the last one that began; null where none is."""
    progress: float | None
    """How much of the update is done, 0 to 1; null where it is not known."""
    opened_at: datetime
    sealed_at: datetime | None
    finished_at: datetime | None
    events: int
    """Number of interactions; for the open period those so far, without its impressions."""
    attempts: int
    """Number of failed attempts to update on it."""
    crashes: int
    """Number of workers that died in a row during its update, without finishing a stage."""
    error: str | None
    """Why it is quarantined or skipped, how its last attempt failed, or what the worker waits for."""
    version: int | None
    """The model version that the update published."""
    stages: list[StageDocument]
    scores: dict[str, ScoreDocument]
    """By model: `generated`, `incremental`, `previous`, `baseline`; `shadow:iu` of a method that runs beside."""
    labels: Mapping[str, Any] | None
    """What became of its impressions and clicks; null until the update has begun."""


@dataclass(frozen=True, slots=True)
class PeriodPage:
    """Periods, newest first."""

    periods: list[PeriodDocument]
    next: int | None
    """`before` of the next page; null on the last."""


async def get_period(database: Database, notices: Notices, number: int) -> PeriodDocument:
    """One period.

    Raises:
        PeriodNotFound: there is none with this number.
    """
    async with database.read() as session:
        period = await session.periods.get(number) if 0 < number <= MAX_NUMBER else None
        if period is None:
            raise PeriodNotFound(number)
        return (await _period_documents(session, notices, [period]))[0]


async def list_periods(database: Database, notices: Notices, *, limit: int, before: int | None) -> PeriodPage:
    """At most `limit` periods, newest first, of those with a number below `before`."""
    async with database.read() as session:
        periods = await session.periods.list(limit + 1, before_number(before))
        page = await _period_documents(session, notices, periods[:limit])
    return PeriodPage(page, next=page[-1].period if len(periods) > limit else None)


async def period_counts(database: Database) -> Mapping[str, int]:
    """How many periods have each status."""
    async with database.read() as session:
        return await session.periods.counts()


async def label_totals(database: Database) -> Mapping[str, int]:
    """What became of all impressions and clicks so far, by name of `Resolved`."""
    async with database.read() as session:
        return await session.period_logs.label_totals([field.name for field in fields(Resolved)])


def before_number(before: int | None) -> int | None:
    """The cursor of a page; None, which starts at the newest, where it is above every number."""
    return None if before is None or before > MAX_NUMBER else before


async def _period_documents(session: ReadSession, notices: Notices, periods: Sequence[Period]) -> list[PeriodDocument]:
    """The documents of neighbouring periods, newest first; the number of queries does not grow with them."""
    if not periods:
        return []
    first, last = periods[-1].number, periods[0].number
    stages, evaluations = defaultdict(list), defaultdict(list)
    for stage in await session.stages.list(first, last):
        stages[stage.period].append(stage)
    for evaluation in await session.evaluations.list(first, last):
        evaluations[evaluation.period].append(evaluation)
    documents = []
    for period in periods:
        number, updating = period.number, period.status is PeriodStatus.UPDATING
        # Before the last one may be others, whose notes wait for what is being written.
        running = [stage.stage for stage in stages[number] if updating and stage.status == "running"]
        documents.append(
            PeriodDocument(
                period=number,
                status=period.status,
                stage=running[-1] if running else None,
                progress=await _progress(notices, number) if updating else None,
                opened_at=period.opened_at,
                sealed_at=period.sealed_at,
                finished_at=period.finished_at,
                events=await session.interactions.counted(number) if period.events is None else period.events,
                attempts=period.attempts,
                crashes=period.crashes,
                error=period.error,
                version=period.version,
                stages=[
                    StageDocument(s.stage, s.status, s.started_at, s.finished_at, s.seconds) for s in stages[number]
                ],
                scores={
                    e.model: ScoreDocument(e.version, e.events, e.auc, e.logloss, e.calibration)
                    for e in evaluations[number]
                },
                labels=period.labels,
            )
        )
    return documents


async def _progress(notices: Notices, number: int) -> float | None:
    # A progress bar is not worth waiting for a Redis that hangs.
    with suppress(TimeoutError):
        async with asyncio.timeout(PROGRESS_TIMEOUT_SECONDS):
            last = await notices.progress(number)
            return None if last is None else last.get("progress")
    return None
