"""Remove what is not needed after an update: results of stages, old training states and snapshots, old logs.

The worker calls these functions between updates.
"""

import logging
from collections.abc import Callable
from datetime import timedelta

from service.errors import NotReady
from service.limits import KEPT_BREAKDOWNS, KEPT_FOR_TRAINING, MAX_DELIVERIES
from service.settings import Settings
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import digests_in

__all__ = ["drop_old_logs", "forget_notifications", "merge_event_ids", "prune", "sweep"]

logger = logging.getLogger(__name__)

LOCK_SECONDS = 0.2
"""Longest wait, in seconds, for the lock that dropping a log needs: ingestion waits behind it. Where it is not granted,
the log is dropped after the next period."""

ORPHAN_AGE = timedelta(hours=1)
"""Age from which on an artifact that no row names is removed: rows are written moments after their artifacts."""


async def prune(database: Database, period: int, settings: Settings, artifacts: ArtifactStore | None = None) -> int:
    """Delete every artifact that only this period's update, or a version too old to keep it, has used.

    Args:
        database: holds the artifacts and what names them.
        period: number of a period whose update has ended; if it is retried it starts from the beginning.
        settings: number of versions that keep their snapshot, and their training state.
        artifacts: deletes the objects of these artifacts; None leaves that to a sweep.

    Returns:
        the number of artifacts deleted.
    """
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)  # no rollback may choose a version whose artifacts are being removed
        digests = {digest for stage in await work.stages.list(period) for digest in digests_in(stage.result)}
        await work.stages.forget_results(period)  # only an update that continues reads them
        digests.update(await work.models.retire(keep_serving=settings.keep_versions, keep_states=settings.keep_states))
        digests.update(await work.samples.release(settings.sample_periods))
        await work.breakdowns.release(KEPT_BREAKDOWNS)
        deleted = await work.artifacts.delete(sorted(digests))
        await work.commit()
    if artifacts is not None:
        await artifacts.remove_objects([key for key in deleted.values() if key is not None])
    return len(deleted)


async def merge_event_ids(
    database: Database, *, before: int | None = None, beat: Callable[[], None] = lambda: None
) -> list[int]:
    """Add the event ids of closed periods to the table in which ingestion looks them up; return the periods' numbers.

    Until then ingestion reads the logs of these periods too, so only its speed depends on when this happens. Each
    period is a transaction of its own.

    Args:
        database: holds the logs.
        before: only those of earlier periods than this one; None for all.
        beat: called after each period.
    """
    async with database.read() as session:
        _, closed = await session.period_logs.unmerged()
    merged = []
    for number in closed:
        if before is not None and number >= before:
            break
        try:
            async with database.unit_of_work() as work:
                await work.periods.get_locked(number)  # no deletion may remove an event whose id is being added
                await work.interactions.merge_ids(number)
                await work.commit()
        except (NotReady, OSError):
            raise
        except Exception:  # no update waits for it
            logger.exception("the event ids of period %d are not merged yet", number)
        else:
            merged.append(number)
        beat()
    return merged


async def drop_old_logs(
    database: Database, settings: Settings, *, beat: Callable[[], None] = lambda: None
) -> list[int]:
    """Drop the logs that nothing needs any more; return the numbers of their periods.

    It takes three transactions, so that the one that others wait for does nothing else, and a failure undoes no other.
    First, what users did last in the log is folded into the histories that outlive it. Then the log is dropped; where
    somebody is reading it, it stays until the next period. Last, its event ids are removed. A worker that dies in
    between continues with the next transaction. Then versions of features that only its interactions used are removed.

    A period whose update is still to be done, or in quarantine, keeps its log; where the worker exports, one that is
    not exported does too.

    Args:
        database: holds the logs.
        settings: number of logs that are kept besides those that training needs, and whether the worker exports.
        beat: called after each period.
    """
    dropped = []
    async with database.read() as session:
        newest = (await session.periods.open()).number - 1 - KEPT_FOR_TRAINING - settings.keep_logs
        old = await session.period_logs.with_old_log(newest, exported=settings.export_url is not None)
    for number in old:
        try:
            async with database.unit_of_work() as work:
                await work.past.fold(number)
                await work.commit()
            async with database.unit_of_work() as work:
                await work.periods.get_locked(number)  # locked before the log, in the order in which deletions lock
                await work.interactions.drop(number, lock_seconds=LOCK_SECONDS)
                await work.commit()
        except NotReady:
            raise
        except Exception as error:  # somebody is reading it, for example a backup
            logger.warning("the log of period %d is not dropped yet: %s", number, type(error).__name__)
            break
        dropped.append(number)
        beat()
    async with database.unit_of_work() as work:
        await work.interactions.forget_dropped_ids()
        await work.commit()
    if dropped:
        async with database.unit_of_work() as work:
            await work.features.forget_old()
            await work.commit()
        beat()
    return dropped


async def sweep(database: Database, artifacts: ArtifactStore | None = None) -> int:
    """Delete artifacts that no version names and no update can continue from, and objects that no artifact names.

    They are left by workers that died, and by updates that started again. Only the leading worker may call it, between
    updates.

    Args:
        database: holds the artifacts and what names them.
        artifacts: deletes the objects; None where there is no object store.

    Returns:
        the number of artifacts deleted.
    """
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        needed = {digest for stage in await work.stages.of_waiting() for digest in digests_in(stage.result)}
        deleted = await work.artifacts.delete(sorted(set(await work.artifacts.older_than(ORPHAN_AGE)) - needed))
        await work.commit()
    if artifacts is not None:
        await artifacts.remove_objects([key for key in deleted.values() if key is not None])
        await artifacts.sweep_objects()
    return len(deleted)


async def forget_notifications(database: Database, settings: Settings) -> None:
    """Delete alerts that were closed long ago, and old deliveries of webhooks that wait for nothing."""
    async with database.unit_of_work() as work:
        await work.alerts.forget(timedelta(days=settings.keep_alerts_days))
        await work.deliveries.forget(timedelta(days=settings.keep_deliveries_days), MAX_DELIVERIES)
        await work.commit()
