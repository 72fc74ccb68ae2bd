"""What operators see of the model versions: lineage, scores, the gate's decision. The API, the command line and the
dashboard show these documents as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from service.errors import ModelNotFound
from service.guardrail_settings import GuardrailSettings
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AliasName, Canary, CanaryState, GateSummary, ModelKind, ModelVersion
from service.use_cases.status import MAX_NUMBER, before_number

__all__ = [
    "CanaryDocument",
    "CanaryPage",
    "ModelDetail",
    "ModelDocument",
    "ModelPage",
    "canary_counts",
    "canary_document",
    "gate_summary",
    "get_model",
    "list_canaries",
    "list_models",
]


@dataclass(frozen=True, slots=True)
class ModelDocument:
    """A model version: where it comes from, how it scored, why the gate let it through."""

    version: int
    period: int
    kind: ModelKind
    parent_version: int | None
    champion: bool
    """Whether it is served, or will be when the swap lead is over."""
    head: bool
    """Whether the next update continues its training state."""
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
    """Why it keeps its artifacts at any age: `prior`, `pinned`, `champion`, `canary`, `previous champion`, `head`,
    `baseline`, `sequence`; empty where age alone decides."""


@dataclass(frozen=True, slots=True)
class CanaryDocument:
    """A version that answers a share of the users first, or did."""

    version: int
    champion_version: int
    """The version that answers, or answered, the others."""
    share: float
    """Of the users."""
    state: CanaryState
    announced_at: datetime
    since: datetime | None
    """From when on it answers; null while the api processes are loading it, and when it has ended."""
    until: datetime | None
    """When it is decided at the latest; null where `since` is."""
    ended_at: datetime | None
    ended_by: str | None
    reason: str | None
    """Of its end."""
    numbers: Mapping[str, Any] | None
    """By which it was decided; while it runs, what the worker knows so far."""


@dataclass(frozen=True, slots=True)
class CanaryPage:
    """The canary that runs, and what became of those before it, newest first."""

    at: datetime
    """Now."""
    share: float
    """`ASMG_CANARY_SHARE`: of the users, whom the next version answers first; 0: it answers all of them at once."""
    minutes: float
    """`ASMG_CANARY_MINUTES`."""
    running: CanaryDocument | None
    """Null where none runs."""
    ended: Sequence[CanaryDocument]
    next: int | None
    """`before` of the next page; null on the last."""


@dataclass(frozen=True, slots=True)
class ModelDetail(ModelDocument):
    """A model version with its training state."""

    state: Mapping[str, Any]
    """Name → digest of an artifact, or a value."""
    canary: CanaryDocument | None
    """How it fared as a canary; null where it was none."""


@dataclass(frozen=True, slots=True)
class ModelPage:
    """Model versions, newest first."""

    models: list[ModelDocument]
    next: int | None
    """`before` of the next page; null on the last."""
    canary: CanaryDocument | None
    """The version that answers a share of the users now, or is about to; null where none does."""


async def gate_summary(database: Database) -> GateSummary:
    """How often the gate has decided what, and its newest trial."""
    async with database.read() as session:
        return await session.evaluations.gate_summary()


async def get_model(database: Database, version: int) -> ModelDetail:
    """One model version.

    Raises:
        ModelNotFound: there is none with this number.
    """
    async with database.read() as session:
        model = await session.models.get(version) if 0 <= version <= MAX_NUMBER else None
        if model is None:
            raise ModelNotFound(version)
        canary = await session.canaries.get(version)
        return ModelDetail(
            **_model_fields(model, await session.models.kept()),
            state=model.state,
            canary=None if canary is None else canary_document(canary),
        )


async def list_models(database: Database, *, limit: int, before: int | None) -> ModelPage:
    """At most `limit` versions, newest first, of those below `before`."""
    async with database.read() as session:
        models = await session.models.list(limit + 1, before_number(before))
        kept = await session.models.kept()
        canary = await session.canaries.running()
    page = [ModelDocument(**_model_fields(model, kept)) for model in models[:limit]]
    return ModelPage(
        page,
        next=page[-1].version if len(models) > limit else None,
        canary=None if canary is None else canary_document(canary),
    )


async def list_canaries(
    database: Database, settings: GuardrailSettings, *, limit: int, before: int | None = None
) -> CanaryPage:
    """The canary that runs, and at most `limit` of those that have ended, newest first, of those below `before`."""
    async with database.read() as session:
        running = await session.canaries.running()
        ended = await session.canaries.ended(limit + 1, before_number(before))
    return CanaryPage(
        at=datetime.now(UTC),
        share=settings.canary_share,
        minutes=settings.canary_minutes,
        running=None if running is None else canary_document(running),
        ended=[canary_document(canary) for canary in ended[:limit]],
        next=ended[limit - 1].version if len(ended) > limit else None,
    )


async def canary_counts(database: Database) -> tuple[float, Mapping[str, int]]:
    """The share of the users whom a canary answers now, 0 where none does; the number of canaries by state."""
    async with database.read() as session:
        running = await session.canaries.running()
        counts = await session.canaries.counts()
    share = 0.0 if running is None or (running.elapsed_seconds or 0) <= 0 else running.share
    return share, {**{str(state): 0 for state in CanaryState}, **counts}


def canary_document(canary: Canary) -> CanaryDocument:
    """What operators see of a canary."""
    since = canary.since
    return CanaryDocument(
        version=canary.version,
        champion_version=canary.champion_version,
        share=canary.share,
        state=canary.state,
        announced_at=canary.announced_at,
        since=since,
        until=None if since is None else since + timedelta(minutes=canary.minutes),
        ended_at=canary.ended_at,
        ended_by=canary.ended_by,
        reason=canary.reason,
        numbers=canary.numbers,
    )


def _model_fields(model: ModelVersion, kept: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    """The fields of `ModelDocument`; `kept` has the reasons why versions keep their artifacts."""
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
