"""Deletions: remove everything that is stored about a user or an item.

A deletion is noted first, in Postgres and in the journal, and then carried out in small transactions, so that nobody
waits long for it. (Removing an id from folded histories is one statement under a lock of their table: whoever folds an
old log waits for it, readers and ingestion do not.) Each step finds what is left, so a deletion can be interrupted
anywhere and started again: by the client that asks again, or by the worker. Rows that come in after a step are new, and
about a stranger.

Postgres is cleared first (`removal`), then Redis and the caches, which are filled from it; then the deletion is noted
as finished.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from service.errors import ServiceError
from service.storage.backup.journal import entry_of, write_journal
from service.storage.postgres.database import Database, UnitOfWork
from service.storage.postgres.repositories import Deletable, Deletion
from service.use_cases.removal import finish, remove_rows

__all__ = ["LEFT_ALONE", "Forgets", "carry_out", "carry_out_pending", "request_deletion"]

logger = logging.getLogger(__name__)

LEFT_ALONE = timedelta(seconds=60)
"""How old a deletion must be before the worker carries it out: until then the api process that was asked does."""


class Forgets(Protocol):
    """A cache of the histories and the features of users."""

    async def forget_user(self, user_id: str, /) -> None:
        """Remove what is cached of a user; raises NotReady."""

    async def forget_all(self) -> None:
        """Remove what is cached of all users; raises NotReady."""


async def request_deletion(database: Database, kind: Deletable, id_: str, *, actor: str) -> Deletion:
    """Note that everything about an id is to be removed; return the pending deletion where there is one already.

    Args:
        database: holds what is to be removed.
        kind: `user` or `item`.
        id_: the id; it need not be stored anywhere.
        actor: for the audit, which does not contain the id.
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
    """Carry out a deletion and return it, finished. Several processes may carry out the same one at once.

    Args:
        database: rows about the id are removed from it.
        histories: the cache, likewise.
        journal: file that the deletion is noted in first.
        deletion: what was asked for.
        beat: called after each transaction.

    Raises:
        NotReady: Postgres or Redis does not answer, or the journal cannot be written; the deletion stays pending.
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

    await remove_rows(step, deletion)
    if deletion.kind == "user":
        await histories.forget_user(deletion.id)
    else:
        await histories.forget_all()
    finished = await finish(step, deletion)
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
    """Carry out the deletions that nobody has finished; one that fails is logged and stays pending.

    Args:
        database: rows about the ids are removed from it.
        histories: the cache, likewise.
        journal: file that the deletions are noted in first.
        older_than: deletions younger than this are left alone.
        beat: called after each transaction.

    Returns:
        how many were finished, and how many failed.

    Raises:
        NotReady: Postgres does not answer.
    """
    async with database.read() as session:
        pending = await session.deletions.pending(older_than)
    failed = 0
    for deletion in pending:
        try:
            await carry_out(database, histories, journal, deletion, beat=beat)
        except Exception as error:  # the next ones do not wait for it
            failed += 1
            known = isinstance(error, ServiceError)
            why = error if known else type(error).__name__
            logger.warning(
                "deletion %s is not carried out yet: %s", deletion.deletion, why, exc_info=None if known else error
            )
    return len(pending) - failed, failed
