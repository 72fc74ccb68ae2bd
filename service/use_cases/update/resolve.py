"""Stage `resolve`: impressions and clicks of the period become interactions; a log of clicks alone gets negatives."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Self

from service.errors import NotReady
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import Happened, Period
from service.use_cases.ingest import KeepsPasts
from service.use_cases.update.context import Progress, UpdateContext, UpdateStart
from service.use_cases.update.negatives import Sampling, sample_negatives

__all__ = ["ResolveNote", "resolve", "resolve_labels", "resolve_skipped"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolveNote:
    """Result of the stage `resolve`."""

    events: int
    """Interactions of the period."""
    sampling: Sampling | None
    """How negatives were sampled; None where the log was not one of clicks alone."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"events": self.events, "sampling": None if self.sampling is None else asdict(self.sampling)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], /) -> Self:
        """The inverse of `to_json`."""
        sampling = values["sampling"]
        return cls(values["events"], None if sampling is None else Sampling(**sampling))


async def resolve(context: UpdateContext, start: UpdateStart, _progress: Progress) -> ResolveNote:
    """Make interactions of the period's impressions and clicks; see `resolve_labels`."""
    settings = context.settings
    period = await resolve_labels(
        context.database,
        context.histories,
        start.period,
        settings.attribution_window,
        negatives_per_positive=settings.negatives_per_positive,
        seed=settings.seed,
        evict_after=settings.evict_after_periods,
    )
    assert period.events is not None and period.labels is not None
    return ResolveNote.from_json({"events": period.events, "sampling": period.labels.get("sampling")})


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

    The period's `labels` are set in the same transaction and mark it as done, whoever is killed and however often this
    is called.

    Args:
        database: holds the log.
        histories: told of the clicks that they have missed.
        number: of a sealed period.
        window: longest time from an impression to a click on it that counts.
        negatives_per_positive: negatives sampled for each positive where the log has only positives; 0 samples none.
        seed: seed of the installation, for sampling.
        evict_after: number of periods after which an item that was not seen is not sampled any more; None: never.

    Raises:
        PeriodNotFound: there is no such period.
    """
    async with database.unit_of_work() as work:
        period = await work.periods.get_locked(number)
        assert period.sealed_at is not None, "an open period is not resolved"
        if period.labels is None and await work.labels.reserve(number, period.sealed_at, window):
            await work.commit()
            # Ingestion that did not see the reserved ids has ended once this lock is granted.
            await work.lock_exclusive(Lock.LOG)
    async with database.unit_of_work() as work:
        period = await work.periods.get_locked(number)
        assert period.sealed_at is not None
        if period.labels is None:
            following = await work.period_logs.next_unresolved(number)
            elsewhere = await work.period_logs.with_other_ids(number)
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
    """Resolve each period that was skipped before its update had resolved it.

    So its impressions and clicks that are not due yet move on to the next period, and its clicks stay in the histories
    of users. A period that cannot be resolved (that may be why it was skipped) is logged, left as it is, and holds up
    no other.

    Args:
        database: holds the logs.
        histories: told of the clicks that they have missed.
        window: longest time from an impression to a click on it that counts.
        beat: called after each period.
    """
    async with database.read() as session:
        skipped = await session.period_logs.skipped_unresolved()
    for number in skipped:
        try:
            await resolve_labels(database, histories, number, window)
        except (NotReady, OSError):
            raise
        except Exception:
            logger.exception("the impressions and clicks of skipped period %d are not resolved", number)
        beat()
