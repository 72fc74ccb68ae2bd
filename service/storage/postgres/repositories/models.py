"""Model versions, the aliases that name some of them, and the evaluations of every period."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, case, delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables

__all__ = [
    "Alias",
    "AliasName",
    "Evaluation",
    "Evaluations",
    "GateSummary",
    "ModelKind",
    "ModelVersion",
    "Models",
]

# The versions that keep all they have, however old they are, each with every reason for it. A version belongs to the
# sequence that the next update learns from where its incremental model is in the training state of the head.
KEPT = """
    SELECT version, 'prior' AS reason FROM model_versions WHERE version = 0
    UNION ALL
    SELECT version, 'pinned' FROM model_versions WHERE pinned
    UNION ALL
    SELECT version, name FROM aliases
    UNION ALL
    SELECT previous_version, 'previous champion' FROM aliases
    WHERE name = 'champion' AND previous_version IS NOT NULL
    UNION ALL
    SELECT version, 'sequence' FROM model_versions
    WHERE state #>> '{parts,base}' IN (
        SELECT part.value
        FROM aliases JOIN model_versions AS head USING (version), jsonb_each_text(head.state -> 'parts') AS part
        WHERE aliases.name = 'head'
    )
"""

# Of all others the newest ones keep what they can be served from, and fewer of them what an update can go on from.
OLD = text(f"""
    WITH kept AS ({KEPT}), latest AS (SELECT max(version) AS version FROM model_versions)
    SELECT version, serving_digest, state,
           version <= (SELECT version FROM latest) - :keep_serving AS serving_ends,
           version <= (SELECT version FROM latest) - :keep_states AS state_ends
    FROM model_versions
    WHERE version NOT IN (SELECT version FROM kept) AND (serving_digest IS NOT NULL OR state <> '{{}}')
""").columns(state=JSONB)


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
    """One published model with its lineage; nothing of it changes but that it is pinned or loses its artifacts."""

    version: int
    period: int
    """The period it learned last; 0 for the prior."""
    kind: ModelKind
    parent_version: int | None
    serving_digest: str | None
    """The serving snapshot; None once it is retired."""
    state: Mapping[str, Any]
    """`parts`, the training state (name → digest), and `serving`, the digest of the parameters served. Beside each,
    `allocations` and `serving_allocations`: kind → number of the latest allocation of rows whose ids they know; and
    `serving_schema`, the schema of the fields that what is served reads."""
    scores: Mapping[str, Any]
    gate: Mapping[str, Any]
    created_by: str
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    pinned: bool = False
    """Whether an operator wants it to keep its artifacts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """A name of a version, from a moment on."""

    name: AliasName
    version: int
    previous_version: int | None
    """What it named before; None where it has only ever named one."""
    active_from: datetime
    """On the clock of Postgres; every process switches at this moment."""
    updated_at: datetime
    updated_by: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSummary:
    """What the gate has decided so far."""

    decisions: Mapping[str, int]
    """Versions by `generated`, `incremental` and `previous`; of the last those only that had something to learn."""
    in_a_row: int
    """The newest versions in a row that were `previous`."""
    trial: Mapping[str, Any] | None
    """Of the newest version, see `service.use_cases.update.trial.Trial`; None where it had none."""

    def losses(self) -> dict[str, float]:
        """LogLoss on the newest tenth of the period learned last: of the rehearsals by rung, of a `constant` and of
        what was `served`; NaN where there is none.
        """
        losses: dict[str, float | None] = dict.fromkeys(("generated", "incremental", "constant", "served"))
        for rung, against in (self.trial or {}).get("rehearsals", {}).items():
            for name, comparison in against.items():
                losses |= {rung: comparison["logloss"], name: comparison["other"]}
        return {name: math.nan if loss is None else loss for name, loss in losses.items()}


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

    async def gate_summary(self) -> GateSummary:
        """What the gate has decided on all versions that had something to learn."""
        table = tables.model_versions.c
        decided = table.gate["checks"].astext != "{}"  # there is nothing to check where there was nothing to learn
        served = select(func.max(table.version)).where(decided, table.kind != ModelKind.PREVIOUS)
        counts = select(
            table.kind,
            func.count(),
            func.count().filter(table.version > func.coalesce(served.scalar_subquery(), -1)),
        ).where(decided)
        found = {
            kind: (count, later) for kind, count, later in await self._connection.execute(counts.group_by(table.kind))
        }
        newest = select(table.gate["trial"]).where(decided).order_by(table.version.desc()).limit(1)
        rungs = (ModelKind.GENERATED, ModelKind.INCREMENTAL, ModelKind.PREVIOUS)
        return GateSummary(
            decisions={str(kind): found.get(kind, (0, 0))[0] for kind in rungs},
            in_a_row=found.get(ModelKind.PREVIOUS, (0, 0))[1],
            trial=await self._connection.scalar(newest),
        )

    async def insert(self, model: ModelVersion) -> None:
        """Add a version; its artifacts must be stored already."""
        await self._connection.execute(insert(tables.model_versions).values(asdict(model)))

    async def retire(self, *, keep_serving: int, keep_states: int) -> Sequence[str]:
        """Let go of the artifacts of old versions, but for those that are kept for a reason (`kept`).

        Args:
            keep_serving: newest versions that can still be served.
            keep_states: newest versions that an update can still continue from.

        Returns:
            the digests that these versions no longer name; others may.
        """
        released: list[str] = []
        values = {"keep_serving": keep_serving, "keep_states": keep_states}
        for row in (await self._connection.execute(OLD, values)).all():
            state, serving = dict(row.state), row.serving_digest
            if row.state_ends:
                released += state.pop("parts", {}).values()
                state.pop("allocations", None)
            if row.serving_ends:
                gone = (state.pop("serving", None), state.pop("serving_statistics", None), serving)
                released += [digest for digest in gone if digest]
                state.pop("serving_allocations", None)
                serving = None
            if (state, serving) != (row.state, row.serving_digest):
                change = update(tables.model_versions).where(tables.model_versions.c.version == row.version)
                await self._connection.execute(change.values(state=state, serving_digest=serving))
        return released

    async def kept(self) -> Mapping[int, Sequence[str]]:
        """The versions that keep all they have, however old they are, with the reasons for it: `prior`, `pinned`,
        `champion`, `previous champion`, `head`, `baseline`, `sequence`.
        """
        reasons: dict[int, list[str]] = {}
        for row in await self._connection.execute(text(KEPT)):
            reasons.setdefault(row.version, []).append(row.reason)
        return reasons

    async def set_pinned(self, version: int, pinned: bool) -> None:
        """Pin a version or let go of it; it must exist."""
        change = update(tables.model_versions).where(tables.model_versions.c.version == version)
        await self._connection.execute(change.values(pinned=pinned))

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
        now = tables.aliases.c
        previous = case((now.version != version, now.version), else_=now.previous_version)
        statement = upsert(tables.aliases).values(name=name, **values)
        statement = statement.on_conflict_do_update(
            index_elements=["name"], set_={**values, "previous_version": previous}
        )
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
