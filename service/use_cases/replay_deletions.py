"""Carry out the deletions of a journal again, on a database that was restored from an older backup.

The journal does not contain ids but digests of them, so the ids that the database has are compared by digest.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from service.storage.backup.journal import Entry
from service.storage.postgres.database import Database, UnitOfWork
from service.storage.postgres.repositories import Deletion, id_digest
from service.use_cases.forget import Forgets, carry_out
from service.use_cases.removal import finish, remove_rows

__all__ = ["replay", "replay_all"]


async def replay_all(work: UnitOfWork, entries: Sequence[Entry]) -> int:
    """Carry out the deletions that the database does not know, in one transaction; nobody else may use the database.

    Args:
        work: the transaction, of which the caller makes the commit.
        entries: the journal's.

    Returns:
        number of the ids that were found and removed.
    """

    @asynccontextmanager
    async def step() -> AsyncIterator[UnitOfWork]:
        yield work

    await _note(work, entries)
    pending = await work.deletions.pending()  # also those that were pending when the backup was made
    for deletion in pending:
        await remove_rows(step, deletion)
        await finish(step, deletion)
    return len(pending)


async def replay(database: Database, histories: Forgets, journal: Path, entries: Sequence[Entry], *, actor: str) -> int:
    """Carry out the deletions that the database does not know while it is in use, in small transactions.

    Args:
        database: rows about the ids are removed from it.
        histories: the cache, likewise.
        journal: file that the deletions are noted in.
        entries: of a journal, this one or another.
        actor: for the audit.

    Returns:
        number of the ids that were found and removed.

    Raises:
        NotReady: as `carry_out`; the deletions are noted by then, and the worker carries them out.
    """
    async with database.unit_of_work() as work:
        found = await _note(work, entries)
        await work.audit.add(actor, "replay_deletions", {"read": len(entries), "found": len(found)})
        await work.commit()
    for deletion in found:
        await carry_out(database, histories, journal, deletion)
    return len(found)


async def _note(work: UnitOfWork, entries: Sequence[Entry]) -> list[Deletion]:
    """Note the deletions that the database does not know; return those whose id it has, which are pending now."""
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
                ids |= await asyncio.to_thread(_ids_by_digest, kind, keys, page, digests)
        pending: set[str] = {str(deletion.id) for deletion in await work.deletions.pending() if deletion.kind == kind}
        for entry in (entry for entry in wanted if entry.kind == kind):
            deletion = Deletion(
                deletion=entry.deletion,
                kind=kind,
                id=ids.get(entry.digest),
                key=entry.key,
                digest=entry.digest,
                requested_at=entry.requested_at,
            )
            if deletion.id is None or deletion.id in pending:  # one of several deletions of an id is enough
                await work.deletions.put([replace(deletion, id=None, finished_at=now)])
            else:
                pending.add(deletion.id)
                await work.deletions.put([deletion])
                found.append(deletion)
    return found


def _ids_by_digest(kind: str, keys: Sequence[str], ids: Sequence[str], digests: set[str]) -> dict[str, str]:
    """Digest → id, for the ids that have one of these digests under one of the keys."""
    made = ((id_digest(key, kind, id_), id_) for key in keys for id_ in ids)
    return {digest: id_ for digest, id_ in made if digest in digests}
