"""The worker: one leader, elected in Postgres, that updates the model on each closed period, in order."""

import asyncio
import logging
import time

import torch

from service.errors import ConfigurationError, NotReady, ServiceError
from service.heartbeat import Heartbeat
from service.settings import Settings
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.leadership import Leadership
from service.storage.postgres.pooler import require_sessions
from service.storage.redis.connection import connect
from service.storage.redis.histories import HistoryStore
from service.storage.redis.notices import Notices
from service.tasks import end_tasks, start_alone
from service.use_cases.bootstrap import ensure_prior
from service.use_cases.forget import carry_out_pending
from service.use_cases.quarantine import note_failure, note_trouble
from service.use_cases.retention import drop_old_logs, merge_event_ids, prune, sweep
from service.use_cases.update.resolve_labels import resolve_skipped
from service.use_cases.update.training_state import check_configuration, configured_updater
from service.use_cases.update.update_model import PeriodUpdate, Superseded, Workshop

__all__ = ["run"]

logger = logging.getLogger(__name__)

MOST_PAUSE_SECONDS = 30.0
"""Between two attempts while Postgres or the machine is in trouble. The first pause is that of the poll; each next one
is twice as long."""

GOODBYE_SECONDS = 5.0
"""A worker that ends waits so long for Postgres to note that it did not die."""

DELETION_PAUSE_SECONDS = 60.0
"""After a deletion that could not be carried out, none is tried for so long: each attempt reads all logs."""

TELL_SECONDS = 5.0
"""How often the leader tells the api processes when it last got further."""


async def run(settings: Settings) -> None:
    """Lead when nobody else does, and while leading update on every sealed period; until cancelled.

    Raises:
        ConfigurationError: a DSN is missing, the update method or the device is unknown, a pooler is between that keeps
            no sessions, or the method cannot go on from the training state that there is, or that a rollback has
            brought back. No period is touched then.
    """
    if settings.postgres_dsn is None or settings.redis_url is None:
        raise ConfigurationError("expected ASMG_POSTGRES_DSN and ASMG_REDIS_URL; received neither")
    updater = configured_updater(settings)
    torch.set_num_threads(1)  # batches are small: a second thread costs more than it gives, and the api needs the core
    database = Database(settings.postgres_dsn, pool_size=4, connection_seconds=settings.connection_seconds)
    redis = connect(settings.redis_url)
    leadership = Leadership(settings.postgres_dsn)
    histories = HistoryStore(redis, database, length=settings.history_length)
    heartbeat = Heartbeat(settings.worker_dir)
    artifacts, notices = ArtifactStore(database, redis), Notices(redis)
    workshop = Workshop(
        settings, database, artifacts, notices, updater, histories, settings.read_features(), beat=heartbeat.beat
    )
    logger.info("worker started with %s", settings.updater)
    pause, leftovers = _Pause(settings.worker_poll_seconds), _Leftovers(workshop)
    checked = False
    try:
        while True:
            heartbeat.beat()
            try:
                if not checked:
                    await require_sessions(settings.postgres_dsn)
                    checked = True
                await check_configuration(
                    database, artifacts, updater
                )  # also in reserve: it should not come to light when it is needed
                if await leadership.try_acquire():
                    await leadership.hold(_lead(workshop, leftovers, pause, heartbeat))
                pause.reset()
                await asyncio.sleep(settings.worker_poll_seconds)
            except Superseded as superseded:
                logger.info("an update stops: %s", superseded)
            except ConfigurationError:
                raise
            except Exception as error:
                # Nothing that goes wrong here is a period's fault, and the stages say where to go on. Most often it is
                # Postgres or this host's disk; a worker of another host may have better luck.
                await leadership.release()
                seconds = pause.next()
                known = isinstance(error, (ServiceError, OSError))
                logger.warning("worker waits %.1f s: %s", seconds, error, exc_info=None if known else error)
                await asyncio.sleep(seconds)
    finally:
        await _say_goodbye(workshop)
        await leadership.release()
        await redis.aclose()
        await database.close()
        heartbeat.close()


class _Pause:
    """How long to wait for the end of a trouble: longer each time, until something went well."""

    def __init__(self, first: float) -> None:
        self._first = self._seconds = first

    def reset(self) -> None:
        self._seconds = self._first

    def next(self) -> float:
        seconds, self._seconds = self._seconds, max(self._first, min(2 * self._seconds, MOST_PAUSE_SECONDS))
        return seconds


class _Leftovers:
    """Deletions that an api process has begun and not ended."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._not_before = time.monotonic()

    async def carry_out(self) -> None:
        """Go on with them, unless one failed just now; no update waits for one that cannot be carried out."""
        if time.monotonic() < self._not_before:
            return
        w = self._workshop
        _, failed = await carry_out_pending(w.database, w.histories, w.settings.journal, beat=w.beat)
        if failed:
            self._not_before = time.monotonic() + DELETION_PAUSE_SECONDS


async def _lead(workshop: Workshop, leftovers: _Leftovers, pause: _Pause, heartbeat: Heartbeat) -> None:
    """Update on one sealed period after the other, without end."""
    telling = start_alone(_tell(workshop.notices, heartbeat))
    try:
        await ensure_prior(workshop.database, workshop.artifacts, workshop.settings.prior_ctr)
        await sweep(workshop.database)
        while True:
            heartbeat.beat()
            await leftovers.carry_out()
            busy = await _update_next(workshop)
            pause.reset()
            if not busy:
                await asyncio.sleep(workshop.settings.worker_poll_seconds)
    finally:
        await end_tasks(telling)


async def _tell(notices: Notices, heartbeat: Heartbeat) -> None:
    """Have the api processes know when this worker, the leader, last got further."""
    while True:
        await notices.note_leader(time.time() - (time.monotonic() - heartbeat.last))
        await asyncio.sleep(TELL_SECONDS)


async def _update_next(workshop: Workshop) -> bool:
    """Update on the earliest sealed period; False when there is none."""
    async with workshop.database.read() as session:
        period = await session.periods.next_sealed()
    if period is None:
        return False
    await check_configuration(workshop.database, workshop.artifacts, workshop.updater)
    beat, window = workshop.beat, workshop.settings.attribution_window
    await merge_event_ids(workshop.database, beat=beat)
    await resolve_skipped(workshop.database, workshop.histories, window, beat=beat)
    number, ended = period.number, True
    try:
        version = await PeriodUpdate(workshop, number).run()
        logger.info("period %d: version %d is published", number, version)
    except (NotReady, Superseded, ConfigurationError):  # no fault of the period
        raise
    except OSError as error:  # of this machine, which no other period would fare better with
        await note_trouble(workshop.database, number, workshop.worker, error)
        raise
    except Exception as error:
        logger.exception("the update on period %d failed", number)
        attempts = workshop.settings.max_attempts
        ended = await note_failure(workshop.database, number, workshop.worker, error, max_attempts=attempts)
    if ended:
        await prune(workshop.database, number, workshop.settings)
        await drop_old_logs(workshop.database, workshop.settings, beat=beat)
        await sweep(workshop.database)
    return True


async def _say_goodbye(workshop: Workshop) -> None:
    """Note that this worker is at no period any more: it was stopped, and has not died."""
    try:
        async with asyncio.timeout(GOODBYE_SECONDS), workshop.database.unit_of_work() as work:
            await work.periods.let_go(workshop.worker)
            await work.commit()
    except (ServiceError, TimeoutError) as error:
        logger.warning("the period that the worker is at will be counted as one it died at: %s", error)
