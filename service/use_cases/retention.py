"""What is let go of after a period: intermediate stages, old training states, old snapshots, old logs."""

import logging
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from service.errors import NotReady
from service.limits import KEPT_FOR_TRAINING
from service.settings import Settings
from service.storage.postgres.database import Database, Lock

__all__ = ["drop_old_logs", "merge_event_ids", "prune", "sweep"]

logger = logging.getLogger(__name__)

LOCK_SECONDS = 0.2
"""How long ingestion may be held up to let go of an old log; after that the next period tries again."""

ORPHAN_AGE = timedelta(hours=1)
"""Artifacts are stored a moment before the row that names them; after this long no such row will come."""

DIGEST = re.compile(r"[0-9a-f]{64}")


async def prune(database: Database, period: int, settings: Settings) -> int:
    """Delete every artifact that only this period's update, or a version too old to keep, had a use for.

    Args:
        database: holds all of it.
        period: whose update has ended; one that is retried is begun anew.
        settings: say how many versions keep their snapshot and their training state.

    Returns:
        the number of artifacts deleted.
    """
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)  # no rollback may choose a version while it loses its artifacts
        digests = {digest for stage in await work.stages.list(period) for digest in _digests(stage.result)}
        await work.stages.forget_results(period)  # of use to an update that goes on; a row of digests a period for ever
        digests.update(await work.models.retire(keep_serving=settings.keep_versions, keep_states=settings.keep_states))
        deleted = await work.artifacts.delete(sorted(digests))
        await work.commit()
    return len(deleted)


async def merge_event_ids(database: Database, *, beat: Callable[[], None] = lambda: None) -> list[int]:
    """Note the ids of closed periods where ingestion looks them up, a transaction each; return the periods' numbers.

    Until then it looks into the logs of those periods as well, so nothing but speed depends on when this happens.

    Args:
        database: the log.
        beat: called after each period.
    """
    async with database.read() as session:
        _, closed = await session.period_logs.unmerged()
    merged = []
    for number in closed:
        try:
            async with database.unit_of_work() as work:
                await work.periods.get_locked(number)  # no deletion removes an event whose id is being noted
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

    Three transactions, so that the one which others wait for does nothing else, and none undoes what another has done:
    what users did last in the log is added to what stays of dropped ones; the log is dropped, or stays until the next
    period where somebody reads it; its event ids are forgotten. A worker that dies in between goes on with the next
    one. Then the versions of features go that only its interactions had a use for.

    A period that is not learned keeps its log.

    Args:
        database: the log.
        settings: say how many logs are kept.
        beat: called after each period.
    """
    dropped = []
    async with database.read() as session:
        newest = (await session.periods.open()).number - 1 - KEPT_FOR_TRAINING - settings.keep_logs
        old = await session.period_logs.with_old_log(newest)
    for number in old:
        try:
            async with database.unit_of_work() as work:
                await work.past.fold(number)
                await work.commit()
            async with database.unit_of_work() as work:
                await work.periods.get_locked(number)  # before the log, as deletions do
                await work.interactions.drop(number, lock_seconds=LOCK_SECONDS)
                await work.commit()
        except NotReady:
            raise
        except Exception as error:  # somebody reads, a backup say
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


async def sweep(database: Database) -> int:
    """Delete what no version names and no update may go on with: left by workers that died, or by updates that began
    again.

    To be called by the leading worker, between updates.

    Returns:
        the number of artifacts deleted.
    """
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        needed = {digest for stage in await work.stages.of_waiting() for digest in _digests(stage.result)}
        deleted = await work.artifacts.delete(sorted(set(await work.artifacts.older_than(ORPHAN_AGE)) - needed))
        await work.commit()
    return len(deleted)


def _digests(value: Any) -> Iterator[str]:
    """All digests in a JSON value, however deep."""
    if isinstance(value, str) and DIGEST.fullmatch(value):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _digests(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _digests(inner)
