"""The update of one period: resolve → prepare → score → train → gate → publish. The worker calls it for each period.

Each stage is a function of the notes of the stages before it. Its own note is stored in Postgres when it is done, and
when the rows of the period's new ids are, which `prepare` leaves to be written while the next stages run; the artifacts
that the note names are written before, to files of the worker's host; the last stage stores those that the version
names. A worker that starts again continues after the last note whose artifacts it can read. Every stage is
deterministic (its randomness follows from the seed, the period and its name), so the outcome is the same version, once.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from service.storage.artifacts.state_files import StateFiles
from service.storage.postgres.database import Lock
from service.storage.postgres.repositories import ModelKind, Stage, digests_in
from service.use_cases.guardrails.shadow import keep_for_shadows
from service.use_cases.quarantine import MOST_CRASHES, CrashLoop
from service.use_cases.takeover import release_champion
from service.use_cases.update.checkpoints import Checkpoints
from service.use_cases.update.context import (
    Superseded,
    UpdateContext,
    UpdateStart,
    head_version,
    hold_period,
    origin_of,
)
from service.use_cases.update.gate import Decision, gate
from service.use_cases.update.prepare import PrepareNote, prepare
from service.use_cases.update.publish import Learned, PublishNote, publish
from service.use_cases.update.resolve import ResolveNote, resolve
from service.use_cases.update.score import ScoreNote, score
from service.use_cases.update.stage import Notes, run_stage
from service.use_cases.update.train import TrainNote, train

__all__ = ["update_period"]

INDEPENDENT_OF_HEAD = ("resolve",)
"""Stages whose results stay valid when the update starts again from another training state."""

NOTHING_TO_LEARN = "the log is empty, what was shown waits for its clicks; the model served before stays"

NOTHING_LEFT = "all that was in the log has been deleted; the model served before stays"


async def update_period(context: UpdateContext, period: int) -> int:
    """Run every stage that is not done yet and return the version; of an updated period, the one it has.

    Args:
        context: dependencies.
        period: number of a sealed period.

    Raises:
        Superseded: the period waits for no update any more, another worker has taken it over, or the training state to
            continue from has changed; see which period is the next.
        CrashLoop: too many workers have died during this update.
        DivergedError: training failed; nothing was published.
        ConfigurationError: the update method cannot continue the training state of the head.
    """
    published_before = await _take_over(context, period)
    if published_before is not None:
        return published_before
    start = await _find_start(context, period)
    checkpoints = Checkpoints(context, start)
    async with checkpoints.files as files, Notes(context, start, files) as notes:
        run = partial(run_stage, context, start, notes)
        resolved = await run("resolve", ResolveNote, partial(resolve, context, start))
        learned, decision = None, await _nothing_to_learn(context, start, resolved)
        if decision is None:
            prepared = await run("prepare", PrepareNote, partial(prepare, context, checkpoints, start, notes))
            scored = await run("score", ScoreNote, partial(score, context, checkpoints, start, prepared))
            trained: TrainNote | None = None
            for name in context.updater.stages:
                training = partial(train, context, checkpoints, start, prepared.data, name, trained)
                trained = await run(name, TrainNote, training)
            assert trained is not None, "every method has a training stage"
            learned = Learned(prepared, scored, trained)
            decide = partial(gate, context, checkpoints, start, prepared, scored, trained)
            decision = await run("gate", Decision, decide)
    publishing = partial(publish, context, checkpoints, start, resolved, learned, decision)
    published = await run("publish", PublishNote, publishing, stores_note=True)
    await context.notices.publish_swap()
    await release_champion(context.database, context.settings)  # where no api process runs
    kept = await keep_for_shadows(context, files, None if learned is None else learned.prepared.data)
    await asyncio.to_thread(files.remove_others, kept)
    return published.version


async def _take_over(context: UpdateContext, number: int) -> int | None:
    """Note that this worker updates the period; return the version instead where the period has one already."""
    async with context.database.unit_of_work() as work:
        # A worker that does not know that it lost its leadership may be publishing this very period: wait for its end.
        await work.lock_exclusive(Lock.MODELS)
        period = await work.periods.get(number)
        if period is not None and period.version is not None:
            return period.version
        period = await work.periods.take(number, context.worker)
        if period is None:
            raise Superseded(f"period {number} does not wait for its update")
        stages = await work.stages.list(number)
        await work.commit()
    if period.crashes >= MOST_CRASHES:
        running = [stage.stage for stage in stages if stage.status == "running"]
        raise CrashLoop(period.crashes, running[-1] if running else None)
    return None


async def _find_start(context: UpdateContext, period: int) -> UpdateStart:
    """Find out where to continue; forget the stages that were computed from another training state."""
    async with context.database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        await hold_period(work, context, period)
        head = await head_version(work)
        newest = await work.models.newest_period()
        late = newest is not None and newest > period
        done = {stage.stage: stage for stage in await work.stages.list(period) if stage.status == "done"}
        valid = "prepare" in done and done["prepare"].result.get("origin") == origin_of(context, head)
        kept = await _readable(context, done) if valid else INDEPENDENT_OF_HEAD
        if not valid or done.keys() - set(kept):
            await work.stages.clear(period, keep=kept)  # or a later attempt would find them done
        if "prepare" not in kept and not late:  # a late period keeps the scores from the time when it was the newest
            await work.evaluations.clear(period)
            await work.breakdowns.clear(period)
        await work.commit()
    return UpdateStart(period=period, head=head, late=late, done={name: s for name, s in done.items() if name in kept})


async def _readable(context: UpdateContext, done: Mapping[str, Stage]) -> Sequence[str]:
    """Those of the finished stages that this host can continue from.

    Artifacts are on the host of the worker that made them, until `publish` stores those that the version names.
    """
    files = StateFiles(context.artifacts, context.settings.state_dir)

    async def can_read(stage: str) -> bool:
        return all([await files.has(digest) for digest in digests_in(done[stage].result)])

    if not await can_read("prepare"):
        return INDEPENDENT_OF_HEAD
    trained = [name for name in context.updater.stages if name in done]
    if not trained or await can_read(trained[-1]):
        return tuple(done)
    return (*INDEPENDENT_OF_HEAD, "prepare", "score")


async def _nothing_to_learn(context: UpdateContext, start: UpdateStart, resolved: ResolveNote) -> Decision | None:
    """The decision to keep the served model where the log is empty; None where there is something to learn."""
    if not resolved.events:
        return Decision(ModelKind.PREVIOUS, NOTHING_TO_LEARN, {})
    if "prepare" not in start.done:
        async with context.database.read() as session:
            if not await session.interactions.count(start.period):  # deleted since they were counted
                return Decision(ModelKind.PREVIOUS, NOTHING_LEFT, {})
    return None
