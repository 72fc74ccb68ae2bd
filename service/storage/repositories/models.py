"""Model versions, the aliases that name some of them, and the evaluations of every period."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage import tables

__all__ = ["Alias", "AliasName", "Evaluation", "Evaluations", "ModelKind", "ModelVersion", "Models"]


class AliasName(StrEnum):
    """Names that move from version to version."""

    CHAMPION = "champion"
    """What is served."""
    HEAD = "head"
    """The version whose training state the next update continues from."""
    BASELINE = "baseline"
    """The first trained model, never updated."""


class ModelKind(StrEnum):
    """Where the serving model of a version comes from."""

    PRIOR = "prior"
    GENERATED = "generated"
    INCREMENTAL = "incremental"
    PREVIOUS = "previous"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersion:
    """One published model with its lineage; nothing of it changes afterwards, but old ones lose their artifacts."""

    version: int
    period: int
    """The period it learned last; 0 for the prior."""
    kind: ModelKind
    parent_version: int | None
    serving_digest: str | None
    """The serving snapshot; None once it is retired."""
    state: Mapping[str, Any]
    """`parts`, the training state (name → digest), and `serving`, the digest of the parameters served."""
    scores: Mapping[str, Any]
    gate: Mapping[str, Any]
    created_by: str
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """A name of a version, from a moment on."""

    name: AliasName
    version: int
    active_from: datetime
    """On the clock of Postgres; every process switches at this moment."""
    updated_at: datetime
    updated_by: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How one model did on the log of a period that it had not seen."""

    period: int
    model: str
    """`generated`, `incremental`, `previous` or `baseline`."""
    version: int | None
    events: int
    auc: float | None
    """None where all labels of the period are equal."""
    logloss: float
    calibration: float | None
    """Mean prediction over click rate; None where nothing was clicked."""


class Models:
    """Tables `model_versions` and `aliases`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def get(self, version: int) -> ModelVersion | None:
        """One version."""
        return await self._first(select(tables.model_versions).where(tables.model_versions.c.version == version))

    async def by_period(self, period: int) -> ModelVersion | None:
        """The version that a period produced."""
        return await self._first(select(tables.model_versions).where(tables.model_versions.c.period == period))

    async def list(self, limit: int, before: int | None = None) -> Sequence[ModelVersion]:
        """At most `limit` versions, newest first, of those below `before`."""
        query = select(tables.model_versions).order_by(tables.model_versions.c.version.desc()).limit(limit)
        if before is not None:
            query = query.where(tables.model_versions.c.version < before)
        return [_model_version(row) for row in (await self._connection.execute(query)).mappings()]

    async def latest_version(self) -> int | None:
        """The highest version number; None before there is any."""
        version: int | None = await self._connection.scalar(select(func.max(tables.model_versions.c.version)))
        return version

    async def newest_period(self) -> int | None:
        """The latest period that any version has learned; None before there is any."""
        period: int | None = await self._connection.scalar(select(func.max(tables.model_versions.c.period)))
        return period

    async def insert(self, model: ModelVersion) -> None:
        """Add a version; its artifacts must be stored already."""
        await self._connection.execute(insert(tables.model_versions).values(asdict(model)))

    async def retire(self, *, keep_serving: int, keep_states: int) -> Sequence[str]:
        """Let go of the artifacts of all but the newest versions; what an alias points to keeps everything.

        Args:
            keep_serving: newest versions that can still be served.
            keep_states: newest versions that an update can still continue from.

        Returns:
            the digests that these versions no longer name; others may.
        """
        latest = await self.latest_version() or 0
        versions = tables.model_versions
        old = (
            versions.c.version > 0,
            versions.c.version <= latest - min(keep_serving, keep_states),
            versions.c.state != {},
            versions.c.version.not_in(select(tables.aliases.c.version)),
        )
        released: list[str] = []
        for model in (await self._connection.execute(select(versions).where(*old))).mappings().all():
            state, serving = dict(model["state"]), model["serving_digest"]
            if model["version"] <= latest - keep_states:
                released += state.pop("parts", {}).values()
            if model["version"] <= latest - keep_serving:
                released += [digest for digest in (state.pop("serving", None), serving) if digest]
                serving = None
            change = update(versions).where(versions.c.version == model["version"])
            await self._connection.execute(change.values(state=state, serving_digest=serving))
        return released

    async def alias(self, name: AliasName) -> Alias | None:
        """Where a name points, or is about to point."""
        query = select(tables.aliases).where(tables.aliases.c.name == name)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else _alias(row)

    async def set_alias(self, name: AliasName, version: int, *, lead_seconds: float, actor: str, reason: str) -> Alias:
        """Point a name to a version, `lead_seconds` from now on the clock of Postgres."""
        values = {
            "version": version,
            "active_from": func.clock_timestamp() + timedelta(seconds=lead_seconds),
            "updated_at": func.clock_timestamp(),
            "updated_by": actor,
            "reason": reason,
        }
        statement = upsert(tables.aliases).values(name=name, **values)
        statement = statement.on_conflict_do_update(index_elements=["name"], set_=values)
        row = (await self._connection.execute(statement.returning(*tables.aliases.c))).mappings().one()
        return _alias(row)

    async def _first(self, query: Any) -> ModelVersion | None:
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else _model_version(row)


class Evaluations:
    """Table `evaluations`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put(self, evaluations: Sequence[Evaluation]) -> None:
        """Store evaluations; one of the same period and model replaces the last, so that a stage may run again."""
        if not evaluations:
            return
        statement = upsert(tables.evaluations).values([asdict(evaluation) for evaluation in evaluations])
        columns = ("version", "events", "auc", "logloss", "calibration")
        await self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=["period", "model"], set_={name: statement.excluded[name] for name in columns}
            )
        )

    async def clear(self, period: int) -> None:
        """Forget the evaluations on a period."""
        await self._connection.execute(delete(tables.evaluations).where(tables.evaluations.c.period == period))

    async def list(self, first: int, last: int | None = None) -> Sequence[Evaluation]:
        """The evaluations on a period, or on the periods first to last, ordered by period and model."""
        query = (
            select(tables.evaluations)
            .where(tables.evaluations.c.period.between(first, first if last is None else last))
            .order_by(tables.evaluations.c.period, tables.evaluations.c.model)
        )
        return [Evaluation(**row) for row in (await self._connection.execute(query)).mappings()]


def _model_version(row: RowMapping) -> ModelVersion:
    return ModelVersion(**{**row, "kind": ModelKind(row["kind"])})


def _alias(row: RowMapping) -> Alias:
    return Alias(**{**row, "name": AliasName(row["name"])})
