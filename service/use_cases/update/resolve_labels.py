"""Delayed labels become interactions: the first stage of a period's update."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta

from service.errors import NotReady
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import Happened, Period
from service.use_cases.ingest import KeepsPasts
from service.use_cases.update.negatives import sample_negatives

__all__ = ["resolve_labels", "resolve_skipped"]

logger = logging.getLogger(__name__)


async def resolve_labels(
    database: Database,
    histories: KeepsPasts,
    number: int,
    window: timedelta,
    *,
    negatives_per_positive: int = 0,
    seed: int = 0,
    evict_after: int | None = None,
) -> Period:
    """Join the impressions and clicks of a sealed period, all or nothing and once; return the period.

    It is done where the period has `labels`, in the transaction that notes them, whoever is killed and however often
    this is called.

    Args:
        database: the log.
        histories: are told of clicks that they have missed.
        number: of a sealed period.
        window: from an impression to the last click on it that counts.
        negatives_per_positive: sampled, where the log then has only positives.
        seed: of the installation, for these.
        evict_after: periods after which an item that was not seen is not drawn for them any more.

    Raises:
        PeriodNotFound: there is no such period.
    """
    async with database.unit_of_work() as work:
        period = await work.periods.get_locked(number)
        assert period.sealed_at is not None, "an open period is not resolved"
        if period.labels is None and await work.labels.reserve(number, period.sealed_at, window):
            await work.commit()
            # Ingestion that did not see the reserved ids has ended when this lock is to be had.
            await work.lock_exclusive(Lock.LOG)
    async with database.unit_of_work() as work:
        period = await work.periods.get_locked(number)
        assert period.sealed_at is not None
        if period.labels is None:
            following = await work.periods.next_unresolved(number)
            elsewhere = await work.periods.with_other_ids(number)
            resolved = await work.labels.resolve(number, following, elsewhere, period.sealed_at, window)
            labels = {**asdict(resolved), "window_seconds": window.total_seconds()}
            if negatives_per_positive:
                sampling = await sample_negatives(
                    work, number, per_positive=negatives_per_positive, seed=seed, evict_after=evict_after
                )
                labels["sampling"] = None if sampling is None else asdict(sampling)
            period = await work.periods.set_labels(number, labels, await work.interactions.count(number))
            await work.commit()
    async with database.read() as session:
        missing = await session.labels.positives_missing_from_histories(number)
    await histories.append(Happened.of(missing))
    async with database.unit_of_work() as work:
        await work.labels.forget_notes(number)
        await work.commit()
    return period


async def resolve_skipped(
    database: Database, histories: KeepsPasts, window: timedelta, *, beat: Callable[[], None] = lambda: None
) -> None:
    """The same for each period that is skipped and came to no update: what waits in it moves on, and its clicks stay in
    the histories of users.

    It may be just what was wrong with such a period: then it stays as it is, and holds up no other.

    Args:
        database, histories, window: as `resolve_labels` has them.
        beat: called after each period.
    """
    async with database.read() as session:
        skipped = await session.periods.skipped_unresolved()
    for number in skipped:
        try:
            await resolve_labels(database, histories, number, window)
        except (NotReady, OSError):
            raise
        except Exception:
            logger.exception("the impressions and clicks of skipped period %d are not resolved", number)
        beat()
