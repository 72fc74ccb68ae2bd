"""The worker: one leader, elected in Postgres, that updates the model on each closed period, in order.

`asmg worker` and `asmg serve` run it in a process of its own. `torchrun -m service.worker` runs several: rank 0 is the
worker, and the others train with it.
"""

import asyncio
import logging
import runpy
import sys
import time
from contextlib import suppress

import torch

from asmg.ranks import ALONE, RankLost, Ranks
from asmg.team import Team
from service.errors import ConfigurationError, NotReady, ServiceError
from service.heartbeat import Heartbeat
from service.settings import Settings
from service.storage.artifacts.objects import configured_exports, configured_objects
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.leadership import Leadership
from service.storage.postgres.pooler import require_sessions
from service.storage.redis.connection import connect
from service.storage.redis.histories import HistoryStore
from service.storage.redis.notices import Notices
from service.tasks import end_tasks, start_alone
from service.telemetry.tracing import active_tracing
from service.telemetry.worker_metrics import WorkerMetrics
from service.use_cases.audit import trace_of_close
from service.use_cases.bootstrap import ensure_prior
from service.use_cases.export import SCRATCH_FOLDER, Exporter
from service.use_cases.forget import carry_out_pending
from service.use_cases.guardrails.canary import keep_judging
from service.use_cases.guardrails.shadow import Shadows
from service.use_cases.guardrails.watch import watch
from service.use_cases.probes import probe_servers
from service.use_cases.quarantine import note_failure, note_trouble
from service.use_cases.retention import drop_old_logs, forget_notifications, merge_event_ids, prune, sweep
from service.use_cases.update.compaction import Compaction
from service.use_cases.update.configuration import check_configuration, configured_shadows, configured_updater
from service.use_cases.update.context import Superseded, UpdateContext
from service.use_cases.update.pipeline import update_period
from service.use_cases.update.resolve import resolve_skipped
from service.use_cases.webhooks.deliver import keep_delivering

__all__ = ["PendingDeletions", "follow", "run", "update_next"]

logger = logging.getLogger(__name__)

MAX_PAUSE_SECONDS = 30.0
"""Longest pause between two attempts while Postgres or this machine is in trouble. The first pause is
`worker_poll_seconds`; each next one is twice as long."""

RELEASE_SECONDS = 5.0
"""How long a worker that stops waits for Postgres to note that it did not crash."""

DELETION_PAUSE_SECONDS = 60.0
"""Pause after a deletion that could not be carried out: each attempt reads all logs."""

NOTE_LEADER_SECONDS = 5.0
"""How often the leader tells the api processes when its work last got further."""


def follow(settings: Settings, ranks: Ranks) -> None:
    """On a rank other than 0: train with rank 0 until it ends.

    Raises:
        ConfigurationError: the update method or the device is unknown.
        RankLost: another rank died or hangs.
    """
    torch.set_num_threads(1)
    logger.info("rank %d of %d follows", ranks.rank, ranks.size)
    Team(configured_updater(settings, ranks), ranks).follow()


async def run(settings: Settings, ranks: Ranks = ALONE, metrics: WorkerMetrics | None = None) -> None:
    """Lead when nobody else does, and while leading update on every sealed period; until cancelled.

    Args:
        settings: of the installation.
        ranks: the processes that train together; this is rank 0.
        metrics: where it counts; None where nobody looks.

    Raises:
        ConfigurationError: a DSN is missing, the update method or the device is unknown, a method cannot be a shadow,
            the object store cannot be used, a pooler between here and Postgres does not keep sessions, or the method
            cannot continue the training state that there is, or that a rollback has brought back. No period is touched
            then.
        RankLost: another rank died or hangs. The period has lost no attempt, and the ranks have to be started again.
    """
    if settings.postgres_dsn is None or settings.redis_url is None:
        raise ConfigurationError("expected ASMG_POSTGRES_DSN and ASMG_REDIS_URL; received neither")
    updater, objects = configured_updater(settings, ranks), configured_objects(settings)
    methods = configured_shadows(settings, updater)
    torch.set_num_threads(1)  # batches are small: a second thread costs more than it gives, and the api needs the core
    exports = configured_exports(settings)
    database = Database(settings.postgres_dsn, pool_size=5, connection_seconds=settings.connection_seconds)
    redis = connect(settings.redis_url)
    leadership = Leadership(settings.postgres_dsn)
    heartbeat, metrics = Heartbeat(settings.worker_dir), metrics or WorkerMetrics()
    backoff = _Backoff(settings.worker_poll_seconds)
    context = UpdateContext(
        settings=settings,
        database=database,
        artifacts=ArtifactStore(database, redis, objects, to_postgres=settings.artifacts_to_postgres),
        notices=Notices(redis),
        updater=updater,
        histories=HistoryStore(redis, database, length=settings.history_length),
        schema=settings.read_features(),
        beat=heartbeat.beat,
        noted=backoff.reset,
        metrics=metrics,
        ranks=ranks,
    )
    metrics.follow_progress(lambda: heartbeat.last)
    probing = start_alone(probe_servers(database, redis, metrics.servers), name="probe the servers")
    logger.info("worker started with %s", settings.updater)
    exporter = None
    if exports is not None:
        scratch = settings.data_dir / SCRATCH_FOLDER
        exporter = Exporter(database, exports, scratch, failed=metrics.note_export_failure)
    deletions, shadows = PendingDeletions(context), Shadows(context, methods)
    sessions_checked = False
    try:
        while True:
            heartbeat.beat()
            try:
                if not sessions_checked:
                    await require_sessions(settings.postgres_dsn)
                    sessions_checked = True
                # A worker in reserve checks too: a mistake should not come to light when the worker is needed.
                await check_configuration(database, context.artifacts, updater)
                if await leadership.try_acquire():
                    await leadership.hold(_lead(context, deletions, backoff, heartbeat, exporter, shadows))
                backoff.reset()
                await asyncio.sleep(settings.worker_poll_seconds)
            except Superseded as superseded:
                logger.info("an update stops: %s", superseded)
            except (ConfigurationError, RankLost):
                raise
            except Exception as error:
                # No error that gets here is a period's fault, and the stored stages say where to continue. Most often
                # it is Postgres or this host's disk; a worker of another host may have better luck.
                await leadership.release()
                seconds = backoff.next()
                known = isinstance(error, (ServiceError, OSError))
                logger.warning("worker waits %.1f s: %s", seconds, error, exc_info=None if known else error)
                await asyncio.sleep(seconds)
    finally:
        await _release_period(context)
        await _end_ranks(context)
        await end_tasks(probing)
        await leadership.release()
        await redis.aclose()
        await database.close()
        heartbeat.close()


async def _lead(
    context: UpdateContext,
    deletions: "PendingDeletions",
    backoff: "_Backoff",
    heartbeat: Heartbeat,
    exporter: Exporter | None,
    shadows: Shadows,
) -> None:
    """Update on one sealed period after the other, without end."""
    sealed = asyncio.Event()
    beside = [
        start_alone(_hear_of_sealed(context.notices, sealed), name="hear of closed periods"),
        start_alone(_keep_telling(context.notices, heartbeat)),
        start_alone(keep_delivering(context.database, context.settings)),
        start_alone(keep_judging(context.database, context.notices, context.settings)),
    ]
    if exporter is not None:
        exporter.wake()
        beside.append(start_alone(exporter.run()))
    compaction = Compaction(context)
    context.metrics.note_leading(True)
    try:
        await ensure_prior(context.database, context.artifacts, context.settings.prior_ctr)
        await sweep(context.database, context.artifacts)
        await shadows.remove_others()
        while True:
            heartbeat.beat()
            sealed.clear()
            await deletions.carry_out()
            updated = await update_next(context)
            backoff.reset()
            watched = await watch(context)
            if updated:
                compaction.start()
                if exporter is not None:
                    exporter.wake()
            elif not watched and not await shadows.learn_next():
                with suppress(TimeoutError):
                    async with asyncio.timeout(context.settings.worker_poll_seconds):
                        await sealed.wait()
    finally:
        context.metrics.note_leading(False)
        await compaction.stop()
        await end_tasks(*beside)


async def _hear_of_sealed(notices: Notices, sealed: asyncio.Event) -> None:
    """Set the event whenever a period was closed."""
    async for _ in notices.sealed_notices():
        sealed.set()


async def _keep_telling(notices: Notices, heartbeat: Heartbeat) -> None:
    """Tell the api processes again and again when this worker, the leader, last got further."""
    while True:
        await notices.note_leader(time.time() - (time.monotonic() - heartbeat.last))
        await asyncio.sleep(NOTE_LEADER_SECONDS)


async def update_next(context: UpdateContext) -> bool:
    """Update on the earliest sealed period; False where there is none.

    Raises:
        NotReady: Postgres, Redis or the object store does not answer.
        Superseded: another worker, or an operator, has the period now.
        ConfigurationError: the update method cannot continue the training state.
        OSError: this machine is in trouble, a full disk for example.
    """
    async with context.database.read() as session:
        period = await session.periods.next_sealed()
    if period is None:
        return False
    database, settings, number = context.database, context.settings, period.number
    await check_configuration(database, context.artifacts, context.updater)
    await merge_event_ids(database, before=number, beat=context.beat)
    await resolve_skipped(database, context.histories, settings.attribution_window, beat=context.beat)
    try:
        version = await _traced_update(context, number)
        logger.info("period %d: version %d is published", number, version)
        context.metrics.note_period("updated")
        ended = True
    except (NotReady, Superseded, ConfigurationError):  # not the period's fault
        raise
    except OSError as error:  # this machine's fault; the next period would fail as well
        await note_trouble(database, number, context.worker, error)
        raise
    except Exception as error:
        logger.exception("the update on period %d failed", number)
        context.metrics.note_period("failed")
        ended = await note_failure(database, number, context.worker, error, max_attempts=settings.max_attempts)
    if ended:
        await merge_event_ids(database, beat=context.beat)  # not before: who waits for the version does not wait for it
        await prune(database, number, settings, context.artifacts)
        await drop_old_logs(database, settings, beat=context.beat)
        await sweep(database, context.artifacts)
        await forget_notifications(database, settings)
    return True


async def _traced_update(context: UpdateContext, number: int) -> int:
    """Update in a trace of its own, linked to the call that closed the period."""
    if (tracing := active_tracing()) is None:
        return await update_period(context, number)
    closed_by = await trace_of_close(context.database, number)
    linked = () if closed_by is None else (closed_by,)
    with tracing.root_span("update period", {"asmg.period": number}, linked) as span:
        version = await update_period(context, number)
        span.set_attribute("asmg.model_version", version)
        return version


async def _release_period(context: UpdateContext) -> None:
    """Note that this worker has stopped and updates no period any more, so that it is not taken for crashed."""
    try:
        async with asyncio.timeout(RELEASE_SECONDS), context.database.unit_of_work() as work:
            await work.periods.release(context.worker)
            await work.commit()
    except (ServiceError, TimeoutError) as error:
        logger.warning("not noted that this worker has stopped; its period will count it as crashed: %s", error)


async def _end_ranks(context: UpdateContext) -> None:
    """Let the other ranks end in order; those that cannot hear it end when this process is gone."""
    if context.ranks.size > 1:
        try:
            await asyncio.to_thread(context.team.end)
        except RankLost as lost:
            logger.warning("%s", lost)


class PendingDeletions:
    """Deletions that an api process has begun and not finished.

    Args:
        context: names the stores to delete from.
    """

    def __init__(self, context: UpdateContext) -> None:
        self._context = context
        self._not_before = time.monotonic()

    async def carry_out(self) -> None:
        """Continue them, unless one has failed just now; no update waits for one that cannot be carried out."""
        if time.monotonic() < self._not_before:
            return
        c = self._context
        _, failed = await carry_out_pending(c.database, c.histories, c.settings.journal, beat=c.beat)
        if failed:
            self._not_before = time.monotonic() + DELETION_PAUSE_SECONDS


class _Backoff:
    """How long to wait while something is in trouble: twice as long each time, until something goes well."""

    def __init__(self, first: float) -> None:
        self._first = self._seconds = first

    def reset(self) -> None:
        self._seconds = self._first

    def next(self) -> float:
        seconds, self._seconds = self._seconds, max(self._first, min(2 * self._seconds, MAX_PAUSE_SECONDS))
        return seconds


if __name__ == "__main__":  # `python -m service.worker` is `asmg worker`: torchrun starts modules
    sys.argv.insert(1, "worker")
    runpy.run_module("service.cli", run_name="__main__")
