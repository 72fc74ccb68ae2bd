"""Shadows: update methods that run beside the served one, are scored on each period, and never served.

A version that is published offers its prepared period to them (`service.use_cases.update.publish`). While no period
waits for its update, the worker lets one shadow after the other score the next period that it has not learned, and then
learn it with the method's own stages. Scores and training state are stored in one transaction, so a worker that dies in
between repeats both.

A shadow begins with the training state that the served method had before the first period that it is offered: as
another method does that takes over from it, it goes on from the base model with its optimizer, and starts everything
else afresh. It learns the periods that lead to the head, in their order. Where it cannot, it starts again from the
head: when versions were excised, a period was not offered, its training failed, or somebody in a period was deleted
before it learned that. The statistics that it reads are those of the served method, which has learned the same periods.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from asmg import metrics
from asmg.batch import PeriodData
from asmg.progressive import stage_rng
from asmg.ranks import ALONE
from asmg.training import predict_logits
from asmg.updaters.base import Updater
from asmg.updaters.with_statistics import COUNT
from asmg.updaters.with_statistics import PART as STATISTICS
from service.errors import NotReady
from service.storage.artifacts.state_files import StateFiles
from service.storage.postgres.database import Lock
from service.storage.postgres.repositories import Evaluation, ModelVersion, Shadow, ShadowPeriod, digests_in
from service.tasks import end_tasks, start_alone
from service.use_cases.quarantine import MOST_CRASHES
from service.use_cases.update.checkpoints import Checkpoints, rows_of_nobody
from service.use_cases.update.compaction import merge_layers, with_compaction
from service.use_cases.update.context import ACTOR, UpdateContext, UpdateStart, head_version

__all__ = ["Shadows", "keep_for_shadows"]

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 60.0
"""Pause after a server or this machine failed a shadow: the next update may come to the same, and is to come first."""


class _CannotLearn(Exception):
    """A shadow cannot learn its next period, and starts again."""


class _Watched:
    """Told of progress by the thread that trains; ends that thread once it is stopped."""

    def __init__(self, context: UpdateContext) -> None:
        self._beat = context.beat
        self.stopped = False

    def __call__(self, _fraction: float = 1.0) -> None:
        if self.stopped:
            raise asyncio.CancelledError  # ends the thread, which the next update would share the processor with
        self._beat()


class Shadows:
    """Lets the shadows learn, one period of one shadow at a time.

    Args:
        context: of the updates of the served method.
        methods: name → update method, see `service.use_cases.update.configuration.configured_shadows`.
    """

    def __init__(self, context: UpdateContext, methods: Mapping[str, Updater[Any]]) -> None:
        self._context, self._methods = context, methods
        self._not_before = time.monotonic()

    async def remove_others(self) -> None:
        """Remove the shadows that the settings do not name any more."""
        async with self._context.database.unit_of_work() as work:
            await work.lock_exclusive(Lock.MODELS)
            released = await work.shadows.remove_others(list(self._methods))
            deleted = await work.artifacts.delete(sorted(set(released)))
            await work.commit()
        await self._context.artifacts.remove_objects([key for key in deleted.values() if key is not None])

    async def learn_next(self) -> bool:
        """Let one shadow score and learn one period. It breaks off when a period is sealed, and begins again later.

        No failure is raised: servers that fail a shadow are tried again after a while, and whatever else fails it lets
        it start again.

        Returns:
            whether there was something to do.
        """
        if not self._methods or time.monotonic() < self._not_before:
            return False
        watched = _Watched(self._context)
        learning = start_alone(self._learn_next(watched), name="shadow")
        try:
            while not learning.done():
                await asyncio.wait({learning}, timeout=self._context.settings.worker_poll_seconds)
                if not learning.done() and await self._is_update_due():
                    break
            if learning.done():
                return learning.result()
        except Exception as error:
            known = isinstance(error, (NotReady, OSError))
            logger.warning("shadows wait %.0f s: %s", PAUSE_SECONDS, error, exc_info=None if known else error)
            self._not_before = time.monotonic() + PAUSE_SECONDS
            return False
        finally:
            watched.stopped = True
            await end_tasks(learning)
        return True

    async def _is_update_due(self) -> bool:
        async with self._context.database.read() as session:
            return await session.periods.next_sealed() is not None

    async def _learn_next(self, watched: _Watched) -> bool:
        found = await self._begin()
        if found is None:
            return False
        shadow, offered, version = found
        started, method = time.perf_counter(), shadow.method
        evaluations: list[Evaluation] = []
        try:
            state, written = await self._learned(shadow, offered, version, evaluations, watched)
        except (asyncio.CancelledError, NotReady, OSError):
            logger.info("shadow %s breaks off before it has learned period %d", method, version.period)
            async with self._context.database.unit_of_work() as work:
                await work.shadows.attempt(shadow, shadow.attempts)
                await work.commit()
            raise
        except Exception as error:
            known = isinstance(error, (_CannotLearn, ArithmeticError))
            logger.warning(
                "shadow %s cannot learn period %d: %s", method, version.period, error, exc_info=None if known else error
            )
            reason = str(error) if isinstance(error, _CannotLearn) else f"{type(error).__name__}: {error}"
            await self._restart(shadow, reason, evaluations)
        else:
            if await self._store(shadow, offered.version, state, evaluations, written):
                seconds = time.perf_counter() - started
                self._context.metrics.note_shadow(method, seconds)
                logger.info("shadow %s has learned period %d in %.2f s", method, version.period, seconds)
        return True

    async def _begin(self) -> tuple[Shadow, ShadowPeriod, ModelVersion] | None:
        """The next shadow that is behind the head, and what it learns next; None where none is, or it starts again."""
        async with self._context.database.unit_of_work() as work:
            head = await head_version(work)
            known = [each for each in await work.shadows.list() if each.method in self._methods]
            shadow = min(
                (each for each in known if each.version != head.version), key=lambda s: s.version, default=None
            )
            if shadow is None:
                return None
            offered = await work.shadows.next(shadow, head.version)
            version = None if offered is None else await work.models.get(offered.version)
            if shadow.attempts < MOST_CRASHES and version is not None:
                await work.shadows.attempt(shadow, shadow.attempts + 1)
                await work.commit()
        if offered is None or version is None:
            await self._restart(shadow, f"it is not on the way to version {head.version}")
        elif shadow.attempts >= MOST_CRASHES:
            await self._restart(
                shadow, f"{shadow.attempts} workers in a row ended while it learned period {version.period}"
            )
        else:
            return shadow, offered, version
        return None

    async def _learned(
        self,
        shadow: Shadow,
        offered: ShadowPeriod,
        version: ModelVersion,
        evaluations: list[Evaluation],
        watched: _Watched,
    ) -> tuple[dict[str, Any], set[str]]:
        """Score a period, then learn it.

        Args:
            shadow: learns it.
            offered: the period, as the version has learned it.
            version: that version.
            evaluations: gets the scores, unless the shadow has learned nothing before, or a later period.
            watched: told of progress.

        Returns:
            the state of the shadow afterwards, and the digests that were written for it, some of which it may not need.

        Raises:
            _CannotLearn: the state is that of other settings, or somebody in the period was deleted.
            DivergedError: the training failed.
        """
        updater, learned = self._methods[shadow.method], offered.learned
        if learned is None:
            return dict(shadow.state), set()
        signature = updater.signature()
        if shadow.state.get("signature", signature) != signature:
            raise _CannotLearn("its settings have changed")
        async with self._context.database.read() as session:
            parent = await session.models.get(shadow.version)
        assert parent is not None, "shadows refer to versions"
        context = replace(self._context, updater=updater, ranks=ALONE)
        continued = replace(parent, state=shadow.state)
        start = UpdateStart(period=version.period, head=continued, late=offered.late, done={})
        checkpoints = Checkpoints(context, start)
        data = await checkpoints.read_data(learned["data"])
        await _check_nobody_is_gone(context, checkpoints, data, learned["allocations"])
        state = await checkpoints.read_state(None)
        models = updater.serving_models(state)
        if models and not offered.late:
            logits = await asyncio.to_thread(predict_logits, updater.model, next(iter(models.values())), data)
            evaluations.append(await asyncio.to_thread(_evaluation, shadow.method, version.period, logits, data))
        for stage in updater.stages:
            watched()
            if stage != COUNT:
                rng = stage_rng(context.settings.seed, version.period, stage)
                state = await asyncio.to_thread(updater.run_stage, stage, state, data, rng=rng, progress=watched)
        async with checkpoints.files:
            parts = dict(await checkpoints.write_state(state))
            await checkpoints.store(parts)
        counted = {STATISTICS: learned["statistics"]} if STATISTICS in parts else {}
        merged = await merge_layers(checkpoints.files, {n: v for n, v in parts.items() if n != STATISTICS}, watched)
        known = {"allocations": learned["allocations"], "signature": signature}
        return {"parts": with_compaction(parts, merged) | counted, **known}, set(digests_in(parts))

    async def _store(
        self,
        shadow: Shadow,
        version: int,
        state: Mapping[str, Any],
        evaluations: Sequence[Evaluation],
        written: set[str],
    ) -> bool:
        """Store what a shadow has become, and its scores; False where another worker has done so."""
        async with self._context.database.unit_of_work() as work:
            await work.lock_exclusive(Lock.MODELS)
            if not await work.shadows.advance(shadow, version, state):
                return False
            await work.evaluations.put(evaluations)
            released = {*digests_in(shadow.state), *await work.shadows.release()} | written
            deleted = await work.artifacts.delete(sorted(released))
            await work.commit()
        await self._context.artifacts.remove_objects([key for key in deleted.values() if key is not None])
        return True

    async def _restart(self, shadow: Shadow, reason: str, evaluations: Sequence[Evaluation] = ()) -> None:
        """Let a shadow go on from the training state of the head, when the next period is learned."""
        async with self._context.database.unit_of_work() as work:
            await work.lock_exclusive(Lock.MODELS)
            head = await head_version(work)
            if not await work.shadows.restart(shadow, head):
                return
            await work.evaluations.put(evaluations)
            detail = {"method": shadow.method, "version": head.version}
            await work.audit.add(ACTOR, "restart_shadow", detail, reason=reason)
            released = {*digests_in(shadow.state), *await work.shadows.release()}
            deleted = await work.artifacts.delete(sorted(released))
            await work.commit()
        self._context.metrics.note_shadow_restart(shadow.method)
        logger.warning("shadow %s starts again from version %d: %s", shadow.method, head.version, reason)
        await self._context.artifacts.remove_objects([key for key in deleted.values() if key is not None])


async def _check_nobody_is_gone(
    context: UpdateContext, checkpoints: Checkpoints, data: PeriodData, allocations: Mapping[str, int]
) -> None:
    """Raise `_CannotLearn` where a user or item of the period has lost its row since, as deleted ones do.

    Args:
        context: holds the rows.
        checkpoints: has selected the rows of the period.
        data: the period, in rows of the excerpt.
        allocations: kind → number of the latest allocation of rows that the period knows.
    """
    gone, rows = await rows_of_nobody(context, allocations), checkpoints.selection.rows
    for table, columns in (("user", [data.user]), ("item", [data.item, data.history])):
        if any(np.isin(rows[table][column.unique().numpy()], gone[table]).any() for column in columns):
            raise _CannotLearn("somebody in the period was deleted")


def _evaluation(method: str, period: int, logits: Tensor, data: PeriodData) -> Evaluation:
    found = metrics.scores(logits, data.label)
    return Evaluation(
        period=period,
        model=f"shadow:{method}",
        version=None,
        events=found.events,
        auc=found.auc,
        logloss=found.logloss,
        calibration=found.calibration,
    )


async def keep_for_shadows(context: UpdateContext, files: StateFiles, data: str | None) -> set[str]:
    """The digests whose files on this host the shadows have still to read. What fails costs the shadows a period.

    Args:
        context: dependencies.
        files: of an update that has published its version.
        data: digest of the period that it has learned; None where there was nothing to learn. A period that no training
            state names is on this host alone so far, and is stored.
    """
    if not context.settings.shadow:
        return set()
    try:
        if data is not None and not await context.artifacts.is_stored(data):
            await files.store(data)
        async with context.database.read() as session:
            return await session.shadows.digests()
    except Exception as error:
        logger.warning("shadows may miss a period: %s", error)
        return set()
