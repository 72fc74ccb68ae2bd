"""What operators look at: the periods with their updates and scores, and the model versions with their lineage.

The documents are the API's as they stand; they live here because the command line and the dashboard show them too.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from service.errors import ModelNotFound, PeriodNotFound
from service.storage.postgres.database import Database, ReadSession
from service.storage.postgres.repositories import (
    AliasName,
    GateSummary,
    ModelKind,
    ModelVersion,
    Period,
    PeriodStatus,
    Resolved,
)
from service.storage.redis.notices import Notices

__all__ = [
    "MAX_NUMBER",
    "ModelDetail",
    "ModelDocument",
    "ModelPage",
    "PeriodDocument",
    "PeriodPage",
    "ScoreDocument",
    "StageDocument",
    "gate_summary",
    "get_model",
    "get_period",
    "label_totals",
    "list_models",
    "list_periods",
    "period_counts",
]

MAX_NUMBER = 2**31 - 1
"""The highest period or version number that Postgres can hold; there is none above it."""

PROGRESS_TIMEOUT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class StageDocument:
    """One step of a period's update."""

    stage: str
    status: str
    """`running` or `done`."""
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class ScoreDocument:
    """How a model did on the log of the period, before anything learned from it."""

    version: int | None
    events: int
    auc: float | None
    logloss: float
    calibration: float | None
    """Mean prediction over click rate."""


@dataclass(frozen=True, slots=True)
class PeriodDocument:
    """One period and all that is known of its update."""

    period: int
    status: PeriodStatus
    stage: str | None
    """The stage that runs now."""
    progress: float | None
    """Of the update, 0 to 1, where it is known."""
    opened_at: datetime
    sealed_at: datetime | None
    finished_at: datetime | None
    events: int
    """Interactions; of the open period those so far, without its impressions."""
    attempts: int
    """Updates of it that have failed."""
    crashes: int
    """Workers that died at it in a row without a stage done."""
    error: str | None
    """Why it is quarantined or skipped, what its last attempt ended with, or what the worker waits for."""
    version: int | None
    """The model version that the update published."""
    stages: list[StageDocument]
    scores: dict[str, ScoreDocument]
    """By model: `generated`, `incremental`, `previous`, `baseline`."""
    labels: Mapping[str, Any] | None
    """What became of its impressions and clicks; null until the update has begun."""


@dataclass(frozen=True, slots=True)
class PeriodPage:
    """Periods, newest first."""

    periods: list[PeriodDocument]
    next: int | None
    """`before` of the next page; null on the last."""


@dataclass(frozen=True, slots=True)
class ModelDocument:
    """One model version: where it comes from, how it scored, why it was let through."""

    version: int
    period: int
    kind: ModelKind
    parent_version: int | None
    champion: bool
    """Whether it is served (or about to be)."""
    head: bool
    """Whether the next update continues from it."""
    scores: Mapping[str, Any]
    gate: Mapping[str, Any]
    """The decision, its reason, and the numbers behind it."""
    created_at: datetime
    created_by: str
    digest: str | None
    """SHA-256 of the serving artifact; null once it is too old to be kept."""
    pinned: bool
    """Whether an operator wants it to keep its artifacts."""
    kept: Sequence[str]
    """Why it keeps its artifacts however old it is: `prior`, `pinned`, `champion`, `previous champion`, `head`,
    `baseline`, `sequence`; empty where age alone decides."""


@dataclass(frozen=True, slots=True)
class ModelDetail(ModelDocument):
    """A model version with its training state."""

    state: Mapping[str, Any]
    """Names to artifact digests or values."""


@dataclass(frozen=True, slots=True)
class ModelPage:
    """Model versions, newest first."""

    models: list[ModelDocument]
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
        periods = await session.periods.list(limit + 1, _cursor(before))
        page = await _period_documents(session, notices, periods[:limit])
    return PeriodPage(page, next=page[-1].period if len(periods) > limit else None)


async def period_counts(database: Database) -> Mapping[str, int]:
    """How many periods have each status."""
    async with database.read() as session:
        return await session.periods.counts()


async def label_totals(database: Database) -> Mapping[str, int]:
    """What became of all impressions and clicks so far, by name of `Resolved`."""
    async with database.read() as session:
        return await session.periods.label_totals([field.name for field in fields(Resolved)])


async def gate_summary(database: Database) -> GateSummary:
    """What the gate has decided so far."""
    async with database.read() as session:
        return await session.models.gate_summary()


async def get_model(database: Database, version: int) -> ModelDetail:
    """One model version.

    Raises:
        ModelNotFound: there is none with this number.
    """
    async with database.read() as session:
        model = await session.models.get(version) if 0 <= version <= MAX_NUMBER else None
        if model is None:
            raise ModelNotFound(version)
        return ModelDetail(**_model_fields(model, await session.models.kept()), state=model.state)


async def list_models(database: Database, *, limit: int, before: int | None) -> ModelPage:
    """At most `limit` versions, newest first, of those below `before`."""
    async with database.read() as session:
        models = await session.models.list(limit + 1, _cursor(before))
        kept = await session.models.kept()
    page = [ModelDocument(**_model_fields(model, kept)) for model in models[:limit]]
    return ModelPage(page, next=page[-1].version if len(models) > limit else None)


def _cursor(before: int | None) -> int | None:
    return None if before is None or before > MAX_NUMBER else before


async def _period_documents(session: ReadSession, notices: Notices, periods: Sequence[Period]) -> list[PeriodDocument]:
    """The documents of neighbouring periods, newest first, with a number of queries that does not depend on theirs."""
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
        running = (stage.stage for stage in stages[number] if updating and stage.status == "running")
        documents.append(
            PeriodDocument(
                period=number,
                status=period.status,
                stage=next(running, None),
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
    # A number for a progress bar: not worth to wait for a Redis that hangs.
    with suppress(TimeoutError):
        async with asyncio.timeout(PROGRESS_TIMEOUT_SECONDS):
            last = await notices.progress(number)
            return None if last is None else last.get("progress")
    return None


def _model_fields(model: ModelVersion, kept: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    reasons = kept.get(model.version, ())
    return {
        "version": model.version,
        "period": model.period,
        "kind": model.kind,
        "parent_version": model.parent_version,
        "champion": AliasName.CHAMPION in reasons,
        "head": AliasName.HEAD in reasons,
        "scores": model.scores,
        "gate": model.gate,
        "created_at": model.created_at,
        "created_by": model.created_by,
        "digest": model.serving_digest,
        "pinned": model.pinned,
        "kept": reasons,
    }
