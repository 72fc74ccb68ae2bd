"""Remove the rows of Postgres that are about one user or item, in small transactions. `forget` calls it.

The order matters. The row of the embedding table goes first, so that the item is not sampled as a negative any more;
then the logs, period by period, because impressions move on to later periods; then what dropped logs were folded into.
`finish` frees the embedding row once more at the end, in the transaction that notes the deletion as finished. An update
that has read the log before cannot give the id another row after that (`prepare` checks).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from service.errors import ServiceError
from service.storage.postgres.database import Lock, UnitOfWork
from service.storage.postgres.repositories import FOUND_AT_ONCE, LOG_ROWS, Deletion, EntityKind, PeriodStatus

__all__ = ["Step", "finish", "remove_rows"]

ROWS_PER_STEP = 5000
"""Rows removed in one transaction: whoever closes the period, or publishes a model, waits for so many."""

ACTOR = "service"
"""Who finishes deletions, in the audit."""

Step = Callable[[], AbstractAsyncContextManager[UnitOfWork]]
"""Begins a transaction, which is committed when the block ends."""


async def remove_rows(step: Step, deletion: Deletion) -> None:
    """Remove all rows about the deletion's id, except the deletion itself."""
    kind, id_ = deletion.kind, deletion.id
    assert id_ is not None
    async with step() as work:
        await work.entities.lock(EntityKind(kind))
        await _count(work, deletion, await work.removals.release(kind, id_))
    period = 0
    while True:
        async with step() as work:
            following = await work.period_logs.next_log(period)
        if following is None:
            break
        period = following
        for rows in LOG_ROWS[kind]:
            await _remove_from_log(step, deletion, rows, period)
    async with step() as work:
        await _count(work, deletion, await work.removals.remove_histories(kind, id_))


async def finish(step: Step, deletion: Deletion) -> Deletion:
    """Free the embedding row again, which an update may have given meanwhile, and note that nothing is left."""
    kind, id_ = deletion.kind, deletion.id
    assert id_ is not None
    async with step() as work:
        await work.lock_exclusive(Lock.MODELS)  # no version is published whose snapshot was written before this
        await work.entities.lock(EntityKind(kind))
        await _count(work, deletion, await work.removals.release(kind, id_))
        finished = await work.deletions.finish(deletion.deletion)
        if finished is None:
            finished = await work.deletions.get(deletion.deletion)
        else:
            detail = {"deletion": deletion.deletion, "removed": dict(finished.removed)}
            await work.audit.add(ACTOR, f"deleted_{kind}", detail)
    if finished is None:
        raise ServiceError(f"deletion {deletion.deletion} is not stored any more")
    return finished


async def _remove_from_log(step: Step, deletion: Deletion, rows: str, period: int) -> None:
    """Remove rows of one kind (of `LOG_ROWS`) from the log of a period."""
    kind, id_ = deletion.kind, deletion.id
    assert id_ is not None
    while True:
        async with step() as work:
            is_open = await _is_open(work, period)
            if not is_open:
                # Wait for an update that resolves the period: it may have sampled the item before its row was freed.
                await work.periods.get_locked(period)
        async with step() as work:
            keys = await work.removals.find(kind, id_, rows, period)
        if not keys:
            return
        for start in range(0, len(keys), ROWS_PER_STEP):
            async with step() as work:
                if not await _hold_log(work, period):
                    return
                is_open = is_open and await _is_open(work, period)  # a period closed meanwhile may be resolved too
                removed = await work.removals.remove(kind, id_, rows, period, keys[start : start + ROWS_PER_STEP])
                await _subtract(work, period, removed.get("interactions", 0))
                await _count(work, deletion, removed)
        if is_open and len(keys) < FOUND_AT_ONCE:
            return  # rows that are there now came later, and more may come without end


async def _hold_log(work: UnitOfWork, number: int) -> bool:
    """Keep others from moving, merging, counting or folding a log until the transaction ends; False if it was dropped.

    An open log is held by the lock of the log, which its close waits for. Its row in `periods` would do as well, but a
    close that waits for that row has all of ingestion waiting behind it.
    """
    if await _is_open(work, number):
        await work.lock_shared(Lock.LOG)
        if await _is_open(work, number):
            return True
        await work.commit()  # it was closed just now: do not wait for its row while holding the lock of the log
    return (await work.periods.get_locked(number)).log_dropped_at is None


async def _subtract(work: UnitOfWork, period: int, interactions: int) -> None:
    """Subtract removed interactions from the period's count, which nobody changes meanwhile (`_hold_log`)."""
    if await _is_open(work, period):
        if interactions:
            await work.interactions.note_count(period, -interactions)
    else:
        await work.period_logs.note_forgotten(period, interactions)


async def _is_open(work: UnitOfWork, number: int) -> bool:
    period = await work.periods.get(number)
    return period is not None and period.status is PeriodStatus.OPEN


async def _count(work: UnitOfWork, deletion: Deletion, removed: Mapping[str, int]) -> None:
    """Add the numbers of removed rows to those that the deletion reports."""
    for name, rows in removed.items():
        if rows:
            await work.deletions.count(deletion.deletion, name, rows)
