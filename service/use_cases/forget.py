"""Deletions: nothing that is stored about a user, or an item, stays.

A deletion is noted first, in Postgres and in the journal, and then carried out in small transactions, so that nobody
waits for it long. (Folded histories are one statement under a lock of their table: whoever folds an old log waits for
it, readers and ingestion do not.) Each step finds what is left, so it can be ended anywhere and begun again: by the
client that asks again, or by the worker. What comes in after a step is new, about a stranger.

The order matters. The row of the embedding tables goes first, so that no item is drawn as a negative any more; then
the logs, period by period, for impressions move on to later ones; then what logs were folded into; then Redis, which is
filled from these; and at the end the row again, in the transaction that notes that all is done. An update that read the
log before cannot give it another after that (`prepare_period` looks).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from service.errors import ServiceError
from service.storage.backup.journal import Entry, entry_of, write_journal
from service.storage.postgres.database import Database, Lock, UnitOfWork
from service.storage.postgres.repositories import (
    FOUND_AT_ONCE,
    LOG_ROWS,
    Deletable,
    Deletion,
    EntityKind,
    PeriodStatus,
    id_digest,
)

__all__ = ["LEFT_ALONE", "Forgets", "carry_out", "carry_out_pending", "replay", "replay_all", "request_deletion"]

logger = logging.getLogger(__name__)

ROWS_OF_A_STEP = 5000
"""Removed in one transaction: whoever closes the period, or publishes, waits for so many."""

LEFT_ALONE = timedelta(seconds=60)
"""The worker leaves a deletion so long to the api process that was asked for it."""

ACTOR = "service"

Step = Callable[[], AbstractAsyncContextManager[UnitOfWork]]
"""Gives a transaction that is committed at the end."""


class Forgets(Protocol):
    """What remembers the histories and the features of users."""

    async def forget_user(self, user_id: str, /) -> None:
        """Forget what is known of a user; raises NotReady."""

    async def forget_all(self) -> None:
        """Forget what is known of all users; raises NotReady."""


async def request_deletion(database: Database, kind: Deletable, id_: str, *, actor: str) -> Deletion:
    """Note that all about an id is to be removed; the one that is under way, where it was noted before.

    Args:
        database: holds what is to be removed.
        kind: of the id.
        id_: nothing has to be stored about it.
        actor: for the audit, which does not get to know the id.
    """
    async with database.unit_of_work() as work:
        deletion, new = await work.deletions.begin(kind, id_)
        if new:
            await work.audit.add(actor, f"delete_{kind}", {"deletion": deletion.deletion})
        await work.commit()
    return deletion


async def carry_out(
    database: Database,
    histories: Forgets,
    journal: Path,
    deletion: Deletion,
    *,
    beat: Callable[[], None] = lambda: None,
) -> Deletion:
    """Remove all that there is; return the deletion, finished. Whoever else is at it does no harm.

    Args:
        database, histories: hold what is to be removed.
        journal: is told of it first.
        deletion: what was asked for.
        beat: called after each transaction.

    Raises:
        NotReady: Postgres or Redis does not answer, or the journal cannot be written; it can be gone on with.
    """
    if deletion.id is None:
        return deletion
    await write_journal(journal, [entry_of(deletion)])

    @asynccontextmanager
    async def step() -> AsyncIterator[UnitOfWork]:
        async with database.unit_of_work() as work:
            yield work
            await work.commit()
        beat()

    await _remove(step, deletion)
    if deletion.kind == "user":
        await histories.forget_user(deletion.id)
    else:
        await histories.forget_all()
    finished = await _finish(step, deletion)
    logger.info("deletion %s: removed %s", deletion.deletion, dict(finished.removed))
    return finished


async def carry_out_pending(
    database: Database,
    histories: Forgets,
    journal: Path,
    *,
    older_than: timedelta = LEFT_ALONE,
    beat: Callable[[], None] = lambda: None,
) -> tuple[int, int]:
    """Go on with what nobody has finished; return how many are finished now, and how many could not be (it is logged).

    Args:
        database, histories, journal, beat: as `carry_out` has them.
        older_than: those that were asked for later are left alone.

    Raises:
        NotReady: Postgres does not answer.
    """
    async with database.read() as session:
        pending = await session.deletions.pending(older_than)
    failed = 0
    for deletion in pending:
        try:
            await carry_out(database, histories, journal, deletion, beat=beat)
        except Exception as error:  # those behind it do not wait for it
            failed += 1
            known = isinstance(error, ServiceError)
            why = error if known else type(error).__name__
            logger.warning(
                "deletion %s is not carried out yet: %s", deletion.deletion, why, exc_info=None if known else error
            )
    return len(pending) - failed, failed


async def replay_all(work: UnitOfWork, entries: Sequence[Entry]) -> int:
    """Carry out, in one transaction that nobody else works beside, what a journal has and this database does not.

    Returns:
        how many ids were found, of which nothing is left.
    """

    @asynccontextmanager
    async def step() -> AsyncIterator[UnitOfWork]:
        yield work

    await _noted(work, entries)
    found = await work.deletions.pending()  # what was under way when the copy was made among them
    for deletion in found:
        await _remove(step, deletion)
        await _finish(step, deletion)
    return len(found)


async def replay(database: Database, histories: Forgets, journal: Path, entries: Sequence[Entry], *, actor: str) -> int:
    """The same for a database that is in use, in small transactions.

    Raises:
        NotReady: as `carry_out` does; what was found is noted then, and the worker goes on with it.
    """
    async with database.unit_of_work() as work:
        found = await _noted(work, entries)
        await work.audit.add(actor, "replay_deletions", {"read": len(entries), "found": len(found)})
        await work.commit()
    for deletion in found:
        await carry_out(database, histories, journal, deletion)
    return len(found)


async def _noted(work: UnitOfWork, entries: Sequence[Entry]) -> list[Deletion]:
    """Note the deletions that the database does not know, and return those whose id it has, to be carried out."""
    known = {deletion.deletion for deletion in await work.deletions.list()}
    wanted = [entry for entry in entries if entry.deletion not in known]
    found: list[Deletion] = []
    now = datetime.now(UTC)
    for kind in ("user", "item"):
        digests = {entry.digest for entry in wanted if entry.kind == kind}
        ids: dict[str, str] = {}
        if digests:
            keys = sorted({entry.key for entry in wanted if entry.kind == kind})
            async for page in work.traces.ids(kind):
                ids |= await asyncio.to_thread(_recognised, kind, keys, page, digests)
        taken: set[str] = {str(deletion.id) for deletion in await work.deletions.pending() if deletion.kind == kind}
        for entry in (entry for entry in wanted if entry.kind == kind):
            deletion = Deletion(
                deletion=entry.deletion,
                kind=kind,
                id=ids.get(entry.digest),
                key=entry.key,
                digest=entry.digest,
                requested_at=entry.requested_at,
            )
            if deletion.id is None or deletion.id in taken:  # one of several deletions of an id does for all
                await work.deletions.put([replace(deletion, id=None, finished_at=now)])
            else:
                taken.add(deletion.id)
                await work.deletions.put([deletion])
                found.append(deletion)
    return found


def _recognised(kind: str, keys: Sequence[str], ids: Sequence[str], digests: set[str]) -> dict[str, str]:
    """Digest → id, of the ids that have one of these digests by one of the keys."""
    made = ((id_digest(key, kind, id_), id_) for key in keys for id_ in ids)
    return {digest: id_ for digest, id_ in made if digest in digests}


async def _remove(step: Step, deletion: Deletion) -> None:
    """All that Postgres has, but for the note itself."""
    kind, id_ = deletion.kind, deletion.id
    assert id_ is not None
    async with step() as work:
        await work.entities.lock(EntityKind(kind))
        await _count(work, deletion, await work.traces.release(kind, id_))
    period = 0
    while True:
        async with step() as work:
            following = await work.periods.next_log(period)
        if following is None:
            break
        period = following.number
        for rows in LOG_ROWS[kind]:
            await _remove_from_log(step, deletion, rows, period)
    async with step() as work:
        await _count(work, deletion, await work.traces.remove_histories(kind, id_))


async def _remove_from_log(step: Step, deletion: Deletion, rows: str, period: int) -> None:
    kind, id_ = deletion.kind, deletion.id
    assert id_ is not None
    while True:
        async with step() as work:
            is_open = await _is_open(work, period)
            if not is_open:  # wait for whoever resolves it just now, who may have drawn the item before its row went
                await work.periods.get_locked(period)
        async with step() as work:
            keys = await work.traces.find(kind, id_, rows, period)
        if not keys:
            return
        for start in range(0, len(keys), ROWS_OF_A_STEP):
            async with step() as work:
                if not await _hold(work, period):
                    return
                is_open = is_open and await _is_open(work, period)  # who has closed it may have resolved it too
                part = keys[start : start + ROWS_OF_A_STEP]
                removed = await work.traces.remove(kind, id_, rows, period, part)
                await _uncount(work, period, removed.get("interactions", 0))
                await _count(work, deletion, removed)
        if is_open and len(keys) < FOUND_AT_ONCE:
            return  # what is there by now came later, and may never end


async def _uncount(work: UnitOfWork, period: int, interactions: int) -> None:
    """Take interactions off the number that is known of the period's log, which `_hold` keeps as it is."""
    if await _is_open(work, period):
        if interactions:
            await work.interactions.note_count(period, -interactions)
    else:
        await work.periods.note_forgotten(period, interactions)


async def _hold(work: UnitOfWork, number: int) -> bool:
    """Keep others from moving, merging, counting or folding a log until the transaction ends; False where it is gone.

    An open one is counted by whoever closes it, which the lock of the log holds up; its row would do as well, but the
    close waits for that with all of ingestion behind it.
    """
    if await _is_open(work, number):
        await work.lock_shared(Lock.LOG)
        if await _is_open(work, number):
            return True
        await work.commit()  # it was closed just now; nobody waits for its row with the lock of the log
    return (await work.periods.get_locked(number)).log_dropped_at is None


async def _is_open(work: UnitOfWork, number: int) -> bool:
    period = await work.periods.get(number)
    return period is not None and period.status is PeriodStatus.OPEN


async def _finish(step: Step, deletion: Deletion) -> Deletion:
    """Free the row, which an update may have given again meanwhile, and note that nothing is left."""
    kind, id_ = deletion.kind, deletion.id
    assert id_ is not None
    async with step() as work:
        await work.lock_exclusive(Lock.MODELS)  # no version is published whose snapshot was written before this
        await work.entities.lock(EntityKind(kind))
        await _count(work, deletion, await work.traces.release(kind, id_))
        finished = await work.deletions.finish(deletion.deletion)
        if finished is None:
            finished = await work.deletions.get(deletion.deletion)
        else:
            detail = {"deletion": deletion.deletion, "removed": dict(finished.removed)}
            await work.audit.add(ACTOR, f"deleted_{kind}", detail)
    if finished is None:
        raise ServiceError(f"deletion {deletion.deletion} is not stored any more")
    return finished


async def _count(work: UnitOfWork, deletion: Deletion, removed: Mapping[str, int]) -> None:
    for name, rows in removed.items():
        if rows:
            await work.deletions.count(deletion.deletion, name, rows)
