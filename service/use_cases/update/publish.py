"""Stage `publish`: the new version, its lineage, aliases and audit entry, in one transaction."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from asmg.updaters.with_statistics import PART as STATISTICS
from service.serving.encode import Known
from service.storage.postgres.database import Lock, ReadSession, UnitOfWork
from service.storage.postgres.repositories import (
    AlertKind,
    AliasName,
    EntityKind,
    ModelKind,
    ModelVersion,
    PeriodStatus,
    ShadowPeriod,
)
from service.tasks import meanwhile
from service.use_cases.alerts import close_alert, raise_alert
from service.use_cases.guardrails.canary import note_end, start_canary
from service.use_cases.status import MAX_NUMBER
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
from service.use_cases.update.period_data import NewIds
from service.use_cases.update.prepare import PrepareNote
from service.use_cases.update.resolve import ResolveNote
from service.use_cases.update.score import ScoreNote
from service.use_cases.update.served import served_state
from service.use_cases.update.snapshot import write_snapshot
from service.use_cases.update.train import TrainNote
from service.use_cases.webhooks.announce import Event, announce

__all__ = ["Learned", "PublishNote", "publish"]

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
        new = await _still_new(session, checkpoints.new_ids)
    served: dict[str, Any] = {}
    async with meanwhile(_store_learned(checkpoints, learned)):
        if decision.kind is not ModelKind.PREVIOUS:
            assert learned is not None, "only the model served before can be kept unlearned"
            served = await _write_served(context, checkpoints, resolved, learned, decision.kind, start.head, new)
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
            champion = await _champion(work)
            served = {name: champion.state[name] for name in SERVED if name in champion.state}
            serving_digest = champion.serving_digest
        else:
            serving_digest = served["snapshot"][-1]
            if len(served["snapshot"]) > 1:  # a delta to the head, whose own files may have become one meanwhile
                served["snapshot"] = [*head.snapshot_files, serving_digest]
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
        if context.settings.shadow:
            await _offer(context, work, start, version, learned)
        await work.samples.overtake(version)
        await work.samples.request(version, 1, MAX_NUMBER)
        await _move_aliases(context, work, start.period, version, decision, trained="serving" in served)
        await work.periods.set_status(start.period, PeriodStatus.UPDATED, version=version)
        note = PublishNote(version)
        await work.stages.finish(start.period, "publish", time.perf_counter() - started, note.to_json())
        detail = {"version": version, "period": start.period, "kind": str(decision.kind)}
        await work.audit.add(ACTOR, "publish", detail, reason=decision.reason)
        scores = {} if learned is None else learned.scored.scores
        await announce(work, Event.PUBLISHED, {**detail, "reason": decision.reason, "scores": scores})
        if learned is not None:
            await _tell_of_gate(work, start.period, version, decision)
        await work.commit()
    return note


async def _store_learned(checkpoints: Checkpoints, learned: Learned | None) -> None:
    if learned is not None:
        await checkpoints.store(learned.trained.parts)


async def _still_new(session: ReadSession, new: NewIds | None) -> Mapping[EntityKind, Known]:
    """The ids that the period has added, which a snapshot takes from here; none if one of them may be deleted now."""
    if new is None or await session.deletions.finished() != new.deletions or await session.deletions.pending():
        return {}
    return new.of


async def _write_served(
    context: UpdateContext,
    checkpoints: Checkpoints,
    resolved: ResolveNote,
    learned: Learned,
    kind: ModelKind,
    before: ModelVersion,
    new: Mapping[EntityKind, Known],
) -> dict[str, Any]:
    """Store what the version serves after the version `before`; return what its state says of it."""
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
    served["snapshot"] = await write_snapshot(context, checkpoints.files, served, before, new)
    return served


async def _offer(
    context: UpdateContext, work: UnitOfWork, start: UpdateStart, version: int, learned: Learned | None
) -> None:
    """Let the shadows learn what the version has learned (`service.use_cases.guardrails.shadow`)."""
    found: dict[str, Any] | None = None
    if learned is not None:
        statistics = learned.trained.parts.get(STATISTICS)
        found = {
            "data": learned.prepared.data,
            "allocations": learned.prepared.allocations,
            "statistics": None if statistics is None else layers_of(statistics),
        }
    period = ShadowPeriod(version=version, learned=found, late=start.late)
    await work.shadows.offer(context.settings.shadow, period, start.head)


async def _tell_of_gate(work: UnitOfWork, period: int, version: int, decision: Decision) -> None:
    """Open the alert of a period whose models do not serve, or close it when those of the next period do."""
    if decision.kind is not ModelKind.PREVIOUS:
        reason = f"version {version} serves what was learned from period {period}"
        await close_alert(work, AlertKind.GATE_REFUSED, reason=reason)
        return
    about = decision.to_json()
    numbers = {name: about[name] for name in ("checks", "trial", "strange")}
    detail = {"version": version, "period": period, "reason": decision.reason}
    await announce(work, Event.GATE_REFUSED, {**detail, **numbers})
    message = f"period {period}: its model does not serve: {decision.reason}"
    await raise_alert(work, AlertKind.GATE_REFUSED, message, numbers=numbers, period=period, version=version)


async def _champion(work: UnitOfWork) -> ModelVersion:
    """The version that is served."""
    alias = await work.models.alias(AliasName.CHAMPION)
    assert alias is not None, "version 0 is made before the first update"
    version = await work.models.get(alias.version)
    assert version is not None, "aliases refer to versions"
    return version


async def _move_aliases(
    context: UpdateContext, work: UnitOfWork, period: int, version: int, decision: Decision, *, trained: bool
) -> None:
    """Announce the version to the api processes, and let the next update continue from it.

    Args:
        context: says whether it is to be a canary first.
        work: the transaction that publishes.
        period: that the version has learned.
        version: the new version.
        decision: of the gate.
        trained: whether the version serves parameters that were trained, so that it may be the baseline.
    """
    running, reason = await work.canaries.running(), decision.reason
    if context.settings.canary_share and decision.kind is not ModelKind.PREVIOUS:
        await start_canary(work, version, context.settings, actor=ACTOR, reason=reason)
    elif running is None or decision.kind is not ModelKind.PREVIOUS:
        if running is not None:
            await note_end(
                work, running, promoted=False, actor=ACTOR, reason=f"version {version} begins with all users"
            )
        await work.models.set_alias(AliasName.CHAMPION, version, lead_seconds=None, actor=ACTOR, reason=reason)
    # Else the version would answer as the champion does, and a canary runs that is newer than that: both stay.
    await work.models.set_alias(AliasName.HEAD, version, lead_seconds=0, actor=ACTOR, reason=f"period {period}")
    if trained and await work.models.alias(AliasName.BASELINE) is None:
        await work.models.set_alias(
            AliasName.BASELINE, version, lead_seconds=0, actor=ACTOR, reason="the first trained model"
        )
