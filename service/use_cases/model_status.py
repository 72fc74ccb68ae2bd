"""What operators see of the model versions: lineage, scores, the gate's decision. The API, the command line and the
dashboard show these documents as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.errors import ModelNotFound
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AliasName, GateSummary, ModelKind, ModelVersion
from service.use_cases.status import MAX_NUMBER, before_number

__all__ = ["ModelDetail", "ModelDocument", "ModelPage", "gate_summary", "get_model", "list_models"]


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
    """Why it keeps its artifacts at any age: `prior`, `pinned`, `champion`, `previous champion`, `head`,
    `baseline`, `sequence`; empty where age alone decides."""


@dataclass(frozen=True, slots=True)
class ModelDetail(ModelDocument):
    """A model version with its training state."""

    state: Mapping[str, Any]
    """Name → digest of an artifact, or a value."""


@dataclass(frozen=True, slots=True)
class ModelPage:
    """Model versions, newest first."""

    models: list[ModelDocument]
    next: int | None
    """`before` of the next page; null on the last."""


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
        return ModelDetail(**_model_fields(model, await session.models.kept()), state=model.state)


async def list_models(database: Database, *, limit: int, before: int | None) -> ModelPage:
    """At most `limit` versions, newest first, of those below `before`."""
    async with database.read() as session:
        models = await session.models.list(limit + 1, before_number(before))
        kept = await session.models.kept()
    page = [ModelDocument(**_model_fields(model, kept)) for model in models[:limit]]
    return ModelPage(page, next=page[-1].version if len(models) > limit else None)


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
