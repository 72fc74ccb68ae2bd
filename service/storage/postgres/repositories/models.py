"""Model versions and the aliases that name some of them: tables `model_versions` and `aliases`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, case, cast, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables
from service.storage.postgres.repositories.artifacts import digests_in

__all__ = [
    "Alias",
    "AliasName",
    "ModelKind",
    "ModelVersion",
    "Models",
]

# Versions that keep all their artifacts at any age, each with every reason for it. A version belongs to the sequence
# that the next update learns from if its incremental model is in the training state of the head. Models are compared by
# their newest layer: those below may have been merged since.
KEPT = """
    SELECT version, 'prior' AS reason FROM model_versions WHERE version = 0
    UNION ALL
    SELECT version, 'pinned' FROM model_versions WHERE pinned
    UNION ALL
    (SELECT version, name FROM aliases ORDER BY name)
    UNION ALL
    SELECT canary_version, 'canary' FROM aliases WHERE canary_version IS NOT NULL
    UNION ALL
    SELECT served, 'served' FROM takeovers CROSS JOIN LATERAL unnest(ARRAY[version, canary_version]) AS served
    WHERE move >= (SELECT max(move) FROM takeovers WHERE active_from <= clock_timestamp())
        AND served NOT IN (
            SELECT unnest(ARRAY[version, coalesce(canary_version, version)]) FROM aliases WHERE name = 'champion'
        )
    UNION ALL
    SELECT previous_version, 'previous champion' FROM aliases
    WHERE name = 'champion' AND previous_version IS NOT NULL
    UNION ALL
    SELECT version, 'sequence' FROM model_versions
    WHERE coalesce(state #>> '{parts,base,-1}', state #>> '{parts,base}') IN (
        SELECT coalesce(part.value ->> -1, part.value #>> '{}')
        FROM aliases JOIN model_versions AS head USING (version), jsonb_each(head.state -> 'parts') AS part
        WHERE aliases.name = 'head'
    )
"""

# Of all others the newest keep their serving snapshot, and fewer of them their training state.
OLD = text(f"""
    WITH kept AS ({KEPT}), latest AS (SELECT max(version) AS version FROM model_versions)
    SELECT version, serving_digest, state,
           version <= (SELECT version FROM latest) - :keep_serving AS serving_ends,
           version <= (SELECT version FROM latest) - :keep_states AS state_ends
    FROM model_versions
    WHERE version NOT IN (SELECT version FROM kept) AND (serving_digest IS NOT NULL OR state <> '{{}}')
""").columns(state=JSONB)


class AliasName(StrEnum):
    """Names that point to a version and can be moved to another."""

    CHAMPION = "champion"
    """The version that is served."""
    HEAD = "head"
    """The version whose training state the next update continues."""
    BASELINE = "baseline"
    """The first trained model, which is never updated."""


class ModelKind(StrEnum):
    """Where the model that a version serves comes from."""

    PRIOR = "prior"
    GENERATED = "generated"
    INCREMENTAL = "incremental"
    PREVIOUS = "previous"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersion:
    """A published model with its lineage.

    Only three things change: `pinned`; the files of its snapshot, which may be written anew with the same content; and
    artifacts are removed when it is old.
    """

    version: int
    period: int
    """The period that it learned last; 0 for the prior."""
    kind: ModelKind
    parent_version: int | None
    serving_digest: str | None
    """Digest of the newest file of the serving snapshot; None once it is removed."""
    state: Mapping[str, Any]
    """`parts`: the training state (name → digest, or the digests of a base and its layers). `serving`: the parameters
    that it serves, as layers of such parts. `allocations`,
    `serving_allocations`: for each of these, kind → number of the latest allocation of rows that it knows.
    `serving_schema`: schema of the fields that the served model reads. `snapshot`: digests of the files of its serving
    snapshot, the base first, the deltas oldest first; where it is missing the snapshot is one file. `replaced`: the
    files that it had before it was written as one."""
    scores: Mapping[str, Any]
    gate: Mapping[str, Any]
    created_by: str
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    pinned: bool = False
    """Whether an operator wants it to keep its artifacts."""

    @property
    def snapshot_files(self) -> tuple[str, ...]:
        """Digests of the files of its serving snapshot, the base first, the deltas oldest first; none once they are
        removed.
        """
        if self.serving_digest is None:
            return ()
        return tuple(self.state.get("snapshot", (self.serving_digest,)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """A name that points to a version, from a moment on."""

    name: AliasName
    version: int
    previous_version: int | None
    """The version before; None where there was none."""
    active_from: datetime | None
    """When every process switches to it, on the clock of Postgres; None while the api processes are loading it."""
    move: int
    """How often the name was moved."""
    announced_at: datetime | None
    """Since when a champion waits for the api processes, or last waited."""
    updated_at: datetime
    updated_by: str
    reason: str
    canary_version: int | None = None
    """The version that answers a share of the users beside the champion; None where it answers all."""


class Models:
    """Tables `model_versions` and `aliases`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def get(self, version: int) -> ModelVersion | None:
        """The version with this number."""
        return await self._first(select(tables.model_versions).where(tables.model_versions.c.version == version))

    async def by_period(self, period: int) -> ModelVersion | None:
        """The version that the update of a period published."""
        return await self._first(select(tables.model_versions).where(tables.model_versions.c.period == period))

    async def list(self, limit: int, before: int | None = None) -> Sequence[ModelVersion]:
        """At most `limit` versions, newest first, of those below `before`."""
        query = select(tables.model_versions).order_by(tables.model_versions.c.version.desc()).limit(limit)
        if before is not None:
            query = query.where(tables.model_versions.c.version < before)
        return [_model_version(row) for row in (await self._connection.execute(query)).mappings()]

    async def latest_version(self) -> int | None:
        """The highest version number; None while there is none."""
        version: int | None = await self._connection.scalar(select(func.max(tables.model_versions.c.version)))
        return version

    async def newest_period(self) -> int | None:
        """The latest period that any version has learned; None while there is no version."""
        period: int | None = await self._connection.scalar(select(func.max(tables.model_versions.c.period)))
        return period

    async def learned_by(self, first: int) -> Mapping[int, int]:
        """Period, from `first` on → the newest version that it has produced."""
        table = tables.model_versions.c
        query = select(table.period, func.max(table.version)).where(table.period >= first).group_by(table.period)
        return {period: version for period, version in await self._connection.execute(query)}

    async def served_for(self, version: int) -> float:
        """Seconds since the model that this version serves was made, on the clock of Postgres.

        A version of the kind `previous` serves what an earlier one did, which has the same `serving` in its state.
        """
        table, own = tables.model_versions.alias(), tables.model_versions
        serving = select(own.c.state["serving"]).where(own.c.version == version).scalar_subquery()
        same = (table.c.version == version) | (
            (table.c.kind != ModelKind.PREVIOUS) & (table.c.state["serving"] == serving)
        )
        made = select(func.min(table.c.created_at)).where(table.c.version <= version, same).scalar_subquery()
        return float(
            (await self._connection.execute(select(func.extract("epoch", func.clock_timestamp() - made)))).scalar_one()
        )

    async def insert(self, model: ModelVersion) -> None:
        """Add a version; its artifacts must be stored already."""
        await self._connection.execute(insert(tables.model_versions).values(asdict(model)))

    async def retire(self, *, keep_serving: int, keep_states: int) -> Sequence[str]:
        """Take the artifacts of old versions out of their rows, except where there is a reason to keep them (`kept`).

        Args:
            keep_serving: number of the newest versions that keep their serving snapshot.
            keep_states: number of the newest versions that keep their training state.

        Returns:
            the digests that were taken out; other versions may still name them.
        """
        released: list[str] = []
        values = {"keep_serving": keep_serving, "keep_states": keep_states}
        for row in (await self._connection.execute(OLD, values)).all():
            state, serving = dict(row.state), row.serving_digest
            released += digests_in(state.pop("compacted", None))
            if row.state_ends:
                released += digests_in(state.pop("parts", {}))
                state.pop("allocations", None)
            if row.serving_ends:
                gone = [state.pop(name, None) for name in ("serving", "serving_statistics", "snapshot", "replaced")]
                released += digests_in([*gone, serving])
                state.pop("serving_allocations", None)
                serving = None
            if (state, serving) != (row.state, row.serving_digest):
                change = update(tables.model_versions).where(tables.model_versions.c.version == row.version)
                await self._connection.execute(change.values(state=state, serving_digest=serving))
        return released

    async def note_compaction(self, version: int, compacted: Sequence[Mapping[str, Any]]) -> None:
        """Note files that may take the place of layers in the state of a version (`compacted`)."""
        noted = func.jsonb_build_object("compacted", cast(list(compacted), JSONB))
        change = update(tables.model_versions).where(tables.model_versions.c.version == version)
        await self._connection.execute(change.values(state=tables.model_versions.c.state.op("||")(noted)))

    async def renew_snapshot(self, version: int, files: Sequence[str]) -> None:
        """Let the snapshot of a version be other files with the same content.

        The version goes on naming the files before, which processes may be reading, until its snapshot is removed.

        Args:
            version: whose snapshot it is.
            files: digests, the base first, the deltas oldest first.
        """
        before = tables.model_versions.c.state["snapshot"]
        renewed = func.jsonb_build_object("snapshot", cast(list(files), JSONB), "replaced", before)
        change = update(tables.model_versions).where(tables.model_versions.c.version == version)
        state = tables.model_versions.c.state.op("||")(renewed)
        await self._connection.execute(change.values(state=state, serving_digest=files[-1]))

    async def kept(self) -> Mapping[int, Sequence[str]]:
        """The versions that keep all their artifacts at any age, with the reasons: `prior`, `pinned`,
        `champion`, `canary`, `previous champion`, `head`, `baseline`, `sequence`.
        """
        reasons: dict[int, list[str]] = {}
        for row in await self._connection.execute(text(KEPT)):
            reasons.setdefault(row.version, []).append(row.reason)
        return reasons

    async def set_pinned(self, version: int, pinned: bool) -> None:
        """Pin or unpin a version, which must exist."""
        change = update(tables.model_versions).where(tables.model_versions.c.version == version)
        await self._connection.execute(change.values(pinned=pinned))

    async def alias(self, name: AliasName) -> Alias | None:
        """The version that a name points to, perhaps only from a coming moment on."""
        query = select(tables.aliases).where(tables.aliases.c.name == name)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else _alias(row)

    async def set_alias(
        self,
        name: AliasName,
        version: int,
        *,
        lead_seconds: float | None,
        actor: str,
        reason: str,
        canary: int | None = None,
    ) -> Alias:
        """Point a name to a version.

        Args:
            name: to move.
            version: that it names from now on.
            lead_seconds: between now, on the clock of Postgres, and the moment from which every process serves the
                version. None announces a champion: its moment is set by `Takeovers.release`.
            actor: who moves it.
            reason: why.
            canary: the version that answers a share of the users beside a champion; None for no user.
        """
        now, clock = tables.aliases.c, func.clock_timestamp()
        values = {
            "version": version,
            "active_from": None if lead_seconds is None else clock + timedelta(seconds=lead_seconds),
            "announced_at": clock,
            "updated_at": clock,
            "updated_by": actor,
            "reason": reason,
            "canary_version": canary,
        }
        # A champion that replaces one which is still waited for has waited as long.
        changes = {
            "previous_version": case((now.version != version, now.version), else_=now.previous_version),
            "move": now.move + 1,
            "announced_at": case((now.active_from.is_(None), now.announced_at), else_=clock),
        }
        statement = upsert(tables.aliases).values(name=name, **values)
        statement = statement.on_conflict_do_update(index_elements=["name"], set_={**values, **changes})
        row = (await self._connection.execute(statement.returning(*tables.aliases.c))).mappings().one()
        if name is AliasName.CHAMPION and lead_seconds is not None:
            taking_over = {column: row[column] for column in ("move", "version", "active_from", "canary_version")}
            await self._connection.execute(insert(tables.takeovers).values(taking_over))
        return _alias(row)

    async def _first(self, query: Any) -> ModelVersion | None:
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else _model_version(row)


def _model_version(row: RowMapping) -> ModelVersion:
    return ModelVersion(**{**row, "kind": ModelKind(row["kind"])})


def _alias(row: RowMapping) -> Alias:
    return Alias(**{**row, "name": AliasName(row["name"])})
