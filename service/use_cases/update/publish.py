"""Stage `publish`: the new version, its lineage, aliases and audit entry, in one transaction."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from asmg.checkpoint import load_data
from asmg.layers import Selection
from asmg.models import table_sizes
from asmg.numbers import NumberMoments
from asmg.updaters.with_statistics import PART as STATISTICS
from service.files import DigestedFile, create, keep_newest
from service.serving.encode import Known, ServedModel, encode_base
from service.storage.artifacts.store import FILE_SUFFIX
from service.storage.postgres.database import Lock, UnitOfWork
from service.storage.postgres.repositories import AliasName, EntityKind, ModelKind, ModelVersion, PeriodStatus
from service.use_cases.update.checkpoints import Checkpoints, layers_of
from service.use_cases.update.compaction import COMPACTED, with_compaction
from service.use_cases.update.context import (
    ACTOR,
    Progress,
    Superseded,
    UpdateContext,
    UpdateStart,
    head_version,
    hold_period,
)
from service.use_cases.update.gate import Decision
from service.use_cases.update.negatives import logit_correction
from service.use_cases.update.period_fields import NamedRows, fields_of_snapshot
from service.use_cases.update.prepare import PrepareNote
from service.use_cases.update.resolve import ResolveNote
from service.use_cases.update.score import ScoreNote
from service.use_cases.update.served import read_served, served_state
from service.use_cases.update.train import TrainNote

__all__ = ["Learned", "PublishNote", "publish", "write_snapshot"]

logger = logging.getLogger(__name__)

SERVED = ("snapshot", "serving", "serving_allocations", "serving_schema", "serving_statistics", "logit_correction")
"""Keys of a version's state that describe what it serves: the files of its snapshot, the parameters, which ids these
know, the schema of the fields, the statistics that go with them, and what is added to their logits. A version of kind
`previous` copies them from the champion."""


LEARNED = ("parts", "allocations", "catalogue")
"""Keys of a version's state that describe what the sequence has learned up to it."""


@dataclass(frozen=True)
class PublishNote:
    """Result of the stage `publish`."""

    version: int
    """The version that the period has produced."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"version": self.version}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], /) -> Self:
        """The inverse of `to_json`."""
        return cls(int(values["version"]))


@dataclass(frozen=True)
class Learned:
    """Notes of the stages that learned the period."""

    prepared: PrepareNote
    scored: ScoreNote
    trained: TrainNote


async def publish(
    context: UpdateContext,
    checkpoints: Checkpoints,
    start: UpdateStart,
    resolved: ResolveNote,
    learned: Learned | None,
    decision: Decision,
    _progress: Progress,
) -> PublishNote:
    """Publish a version: everything that readers will see, in one transaction. The artifacts are written before it.

    Args:
        context: dependencies.
        checkpoints: of this update.
        start: the version to be published is a child of its head, if that is still the head.
        resolved: says how negatives were sampled.
        learned: what the period has taught; None where there was nothing to learn: the training state stays.
        decision: which model the version serves.

    Raises:
        Superseded: the head has changed, another worker has the period, or an id was deleted that the snapshot may
            contain.
    """
    started = time.perf_counter()
    async with context.database.read() as session:
        deletions = await session.deletions.finished(with_row=True)
    serving_digest: str | None = None
    served: dict[str, Any] = {}
    if decision.kind is not ModelKind.PREVIOUS:
        assert learned is not None, "only the model served before can be kept unlearned"
        serving_digest, served = await _write_served(context, checkpoints, resolved, learned, decision.kind)
    if learned is None:
        state = {name: start.head.state[name] for name in LEARNED if name in start.head.state}
    else:
        state = {
            "parts": learned.trained.parts,
            "allocations": learned.prepared.allocations,
            "catalogue": learned.prepared.catalogue,
        }
    async with context.database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        await hold_period(work, context, start.period)
        head = await head_version(work)
        if head.version != start.head.version:
            raise Superseded(f"head is not version {start.head.version} any more")
        if await work.deletions.finished(with_row=True) != deletions:
            logger.warning("period %d: its snapshot may know somebody who was deleted meanwhile", start.period)
            raise Superseded("somebody was deleted whom the snapshot may know; it is written again")
        if decision.kind is ModelKind.PREVIOUS:
            serving_digest, served = await _served_now(work)
        version = (await work.models.latest_version() or 0) + 1
        await work.models.insert(
            ModelVersion(
                version=version,
                period=start.period,
                kind=decision.kind,
                parent_version=start.head.version,
                serving_digest=serving_digest,
                state=with_compaction({**state, **served}, head.state.get(COMPACTED, ())),
                scores={} if learned is None else learned.scored.scores,
                gate=decision.to_json(),
                created_by=ACTOR,
            )
        )
        await _move_aliases(context, work, start.period, version, decision.reason, trained="serving" in served)
        await work.periods.set_status(start.period, PeriodStatus.UPDATED, version=version)
        note = PublishNote(version)
        await work.stages.finish(start.period, "publish", time.perf_counter() - started, note.to_json())
        detail = {"version": version, "period": start.period, "kind": str(decision.kind)}
        await work.audit.add(ACTOR, "publish", detail, reason=decision.reason)
        await work.commit()
    return note


async def _write_served(
    context: UpdateContext, checkpoints: Checkpoints, resolved: ResolveNote, learned: Learned, kind: ModelKind
) -> tuple[str, dict[str, Any]]:
    """Store what the version serves; return the digest of its snapshot, and what its state says of it."""
    updater = context.updater
    await checkpoints.read_data(learned.prepared.data)
    state = await checkpoints.read_state(learned.trained.parts)
    served: dict[str, Any] = {
        "serving": served_state(learned.trained.parts, updater.served_parts(state)[kind]),
        "serving_allocations": learned.prepared.allocations,
    }
    if "field" in updater.model.tables:
        served["serving_schema"] = context.schema.to_json()
    if STATISTICS in learned.trained.parts:
        served["serving_statistics"] = layers_of(learned.trained.parts[STATISTICS])
    sampling, prior_ctr = resolved.sampling, context.settings.prior_ctr
    if sampling is not None and sampling.negatives and prior_ctr is not None:
        # Only in what is served: training continues from the parameters that were trained.
        served["logit_correction"] = logit_correction(sampling, prior_ctr)
    return await write_snapshot(context, checkpoints, learned, served), served


async def write_snapshot(
    context: UpdateContext, checkpoints: Checkpoints, learned: Learned, served: Mapping[str, Any]
) -> str:
    """Write the serving snapshot to a file for the processes of this host and to Postgres; return its digest."""
    stacks = await read_served(context, checkpoints.files, served)
    data = load_data(await checkpoints.files.open(learned.prepared.data))
    selection = await asyncio.to_thread(Selection.everything, [data], data.sizes)
    params = await asyncio.to_thread(stacks.excerpt, selection)
    params = context.updater.model.shifted(params, served.get("logit_correction", 0.0))
    statistics = None if stacks.statistics is None else (await asyncio.to_thread(stacks.statistics_of, selection))[0]
    categories = selection.item_categories
    schema, model, allocations = context.schema, context.updater.model, learned.prepared.allocations
    async with context.database.read() as session:
        known = {
            kind: await session.entities.rows(kind, allocations.get(kind, 0))
            for kind in (EntityKind.USER, EntityKind.ITEM, EntityKind.FIELD)
        }
        features = await session.features.latest("item", None if schema.of("item") else ())
    sizes = table_sizes(params)
    numbers = NumberMoments.initial() if statistics is None else statistics.numbers

    def within(kind: EntityKind) -> NamedRows:
        ids, rows = known[kind]
        inside = int((rows < sizes[kind]).sum())  # rows ascend; the others belong to later periods
        return NamedRows(ids[:inside], rows[:inside])

    def write() -> DigestedFile:
        users, items = within(EntityKind.USER), within(EntityKind.ITEM)
        fields = None
        if EntityKind.FIELD in sizes:
            fields = fields_of_snapshot(schema, within(EntityKind.FIELD), items, features, sizes["item"], numbers)
        trained = ServedModel(
            model=model,
            params=params,
            users=Known.of(*users),
            items=Known.of(*items),
            categories=categories,
            statistics=statistics,
            fields=fields,
        )
        with create(context.settings.serving_dir, FILE_SUFFIX) as file:
            encode_base(file, trained)
        keep_newest(context.settings.serving_dir, FILE_SUFFIX, [file.digest])
        return file

    return await context.artifacts.put_file(await asyncio.to_thread(write), "serving")


async def _served_now(work: UnitOfWork) -> tuple[str | None, dict[str, Any]]:
    """Digest of the champion's snapshot, and what its state says of it; the prior's says nothing."""
    alias = await work.models.alias(AliasName.CHAMPION)
    assert alias is not None, "version 0 is made before the first update"
    version = await work.models.get(alias.version)
    assert version is not None, "aliases refer to versions"
    return version.serving_digest, {name: version.state[name] for name in SERVED if name in version.state}


async def _move_aliases(
    context: UpdateContext, work: UnitOfWork, period: int, version: int, reason: str, *, trained: bool
) -> None:
    """Serve the version after the swap lead, and let the next update continue from it.

    Args:
        context: its settings name the lead.
        work: the transaction that publishes.
        period: that the version has learned.
        version: the new version.
        reason: of the gate, for the audit.
        trained: whether the version serves parameters that were trained, so that it may be the baseline.
    """
    lead = context.settings.swap_lead_seconds
    await work.models.set_alias(AliasName.CHAMPION, version, lead_seconds=lead, actor=ACTOR, reason=reason)
    await work.models.set_alias(AliasName.HEAD, version, lead_seconds=0, actor=ACTOR, reason=f"period {period}")
    if trained and await work.models.alias(AliasName.BASELINE) is None:
        await work.models.set_alias(
            AliasName.BASELINE, version, lead_seconds=0, actor=ACTOR, reason="the first trained model"
        )
