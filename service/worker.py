"""The worker: one leader, elected in Postgres, that updates the model on each closed period, in order."""

import asyncio
import logging

import torch

from asmg.models import EmbeddingMLPConfig
from asmg.training import Execution
from asmg.updaters import build_updater
from service.errors import ConfigurationError, NotReady, ServiceError
from service.settings import Settings
from service.storage.artifacts import ArtifactStore
from service.storage.database import Database, Leadership, Lock
from service.storage.redis_state import HistoryStore, Notices, connect
from service.storage.repositories import Period, PeriodStatus
from service.use_cases.bootstrap import ensure_prior
from service.use_cases.retention import drop_old_logs, merge_event_ids, prune, sweep
from service.use_cases.update_model import HeadMoved, PeriodUpdate, Workshop

__all__ = ["run"]

logger = logging.getLogger(__name__)


async def run(settings: Settings) -> None:
    """Lead when nobody else does, and while leading update on every sealed period; until cancelled.

    Raises:
        ConfigurationError: a DSN is missing, or the update method or the device is unknown.
    """
    if settings.postgres_dsn is None or settings.redis_url is None:
        raise ConfigurationError("expected ASMG_POSTGRES_DSN and ASMG_REDIS_URL; received neither")
    try:
        # Always with categories: items without any cost nothing, and a catalogue may come at any time.
        execution = Execution(device=settings.device)
        updater = build_updater(settings.updater, EmbeddingMLPConfig(categories=True), execution=execution)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    torch.set_num_threads(1)  # batches are small: a second thread costs more than it gives, and the api needs the core
    database, redis = Database(settings.postgres_dsn, pool_size=4), connect(settings.redis_url)
    leadership = Leadership(settings.postgres_dsn)
    histories = HistoryStore(redis, database, length=settings.history_length)
    workshop = Workshop(settings, database, ArtifactStore(database, redis), Notices(redis), updater, histories)
    logger.info("worker started with %s", settings.updater)
    swept = False
    try:
        while True:
            try:
                if await leadership.try_acquire():
                    if not swept:
                        await sweep(database)
                        swept = True
                    if await _update_next(workshop):
                        continue
            except ServiceError as error:  # Postgres is away: wait and go on where the stages say
                logger.warning("worker waits: %s", error)
            await asyncio.sleep(settings.worker_poll_seconds)
    finally:
        await leadership.release()
        await redis.aclose()
        await database.close()


async def _update_next(workshop: Workshop) -> bool:
    """Update on the earliest sealed period; False when there is none."""
    await ensure_prior(workshop.database, workshop.artifacts, workshop.settings.prior_ctr)
    async with workshop.database.read() as session:
        period = await session.periods.next_sealed()
    if period is None:
        return False
    await merge_event_ids(workshop.database)
    try:
        version = await PeriodUpdate(workshop, period.number).run()
    except HeadMoved as moved:
        logger.info("period %d starts again: %s", period.number, moved)
    except NotReady:
        raise  # the storage's trouble, not the period's
    except Exception as error:
        logger.exception("the update on period %d failed", period.number)
        await _note_failure(workshop, period, error)
    else:
        logger.info("period %d: version %d is published", period.number, version)
        await prune(workshop.database, period.number, workshop.settings)
        await drop_old_logs(workshop.database, workshop.settings)
    return True


async def _note_failure(workshop: Workshop, period: Period, error: Exception) -> None:
    """Count the attempt; after the last one the period is given up and the next one has its turn."""
    attempts = period.attempts + 1
    final = attempts >= workshop.settings.max_attempts
    status = PeriodStatus.FAILED if final else PeriodStatus.SEALED
    message = f"{type(error).__name__}: {error}"[:1000]
    async with workshop.database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        now = await work.periods.get(period.number)
        if now is not None and now.version is not None:
            return  # this worker had lost its leadership unaware, and its successor has published the period
        await work.periods.set_status(period.number, status, error=message, attempts=attempts)
        if final:
            await work.audit.add("worker", "give_up", {"period": period.number, "error": message})
        await work.commit()
