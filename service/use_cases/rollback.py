"""Roll back: serve another version, older or newer, at once."""

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from service.errors import ArtifactError, ArtifactUnreadable, ModelPruned, NotReady
from service.settings import Settings
from service.storage.artifacts.contents import digest_of_pieces, pieces
from service.storage.artifacts.objects import Objects
from service.storage.postgres.database import Database, Lock, ReadSession, UnitOfWork
from service.storage.postgres.repositories import AliasName, digests_in
from service.storage.redis.notices import Notices
from service.tasks import BoundedCalls
from service.use_cases.chosen_version import with_snapshot
from service.use_cases.guardrails.canary import note_end
from service.use_cases.takeover import release_champion
from service.use_cases.webhooks.announce import Event, announce

__all__ = ["RollbackResult", "SequencePolicy", "rollback"]

SequencePolicy = Literal["keep", "excise"]

POLL_SECONDS = 0.05
"""How often a rollback looks whether its moment is set."""


@dataclass(frozen=True, slots=True)
class RollbackResult:
    """Outcome of a rollback."""

    from_version: int
    to_version: int
    active_from: datetime
    """The moment at which all api processes switch."""


async def rollback(
    database: Database,
    notices: Notices,
    *,
    to_version: int,
    sequence: SequencePolicy,
    reason: str,
    actor: str,
    settings: Settings,
    objects: Objects | None = None,
    calls: BoundedCalls | None = None,
) -> RollbackResult:
    """Make `to_version` the champion, and return when the moment is known from which it is served.

    Its artifacts are read and compared with their digests first, without a lock; that takes a second or more a
    gigabyte. Calling it with a newer version rolls forward again.

    Args:
        database: holds the aliases and the audit.
        notices: tell the api processes.
        to_version: any version that exists.
        sequence: with `keep` the next update continues the newest training state; with `excise` that of `to_version`,
            so that the versions in between are no longer part of the sequence.
        reason: for the audit.
        actor: for the audit.
        settings: say how long to wait for the api processes.
        objects: the object store of the installation; None where it has none.
        calls: limits how long the caller waits for the transaction that moves the aliases; None: no limit.

    Raises:
        ArtifactUnreadable: the snapshot of the version, or for `excise` a part of its training state, cannot be read.
        ModelNotFound: there is no such version.
        ModelPruned: it is too old: its snapshot, or for `excise` its training state, was removed.
        NotReady: no version is served yet, so there is nothing to roll back from; Postgres or the object store does not
            answer; or too few api processes have loaded the version in time: it is the champion then, and takes over
            when they have.
    """
    async with database.read() as session:
        needed = await _needed(session, to_version, sequence)
    for what, digest in needed:
        await _read_through(database, objects, to_version, what, digest)
    moving = _move(database, to_version, sequence, reason, actor)
    from_version, move = await (moving if calls is None else calls.run(moving))
    await notices.publish_swap()
    deadline = time.monotonic() + settings.swap_wait_seconds + settings.api_lease_seconds
    await release_champion(database, settings)  # where no api process runs
    while (active_from := await _moment(database, move)) is None:
        if time.monotonic() > deadline:
            raise NotReady(
                f"version {to_version} is the champion, but too few api processes have loaded it; it takes over when "
                "they have"
            )
        await asyncio.sleep(POLL_SECONDS)
    return RollbackResult(from_version=from_version, to_version=to_version, active_from=active_from)


async def _moment(database: Database, move: int) -> datetime | None:
    """The moment of a move of the champion, or of a later move that has come in between; None where none is set."""
    async with database.read() as session:
        turns = await session.takeovers.turns()
    return next((turn.active_from for turn in turns if turn.move >= move), None)


async def _needed(session: ReadSession | UnitOfWork, version: int, sequence: SequencePolicy) -> list[tuple[str, str]]:
    """The artifacts that a rollback to the version needs: what each is, and its digest."""
    model = await with_snapshot(session, version)
    needed = [("serving snapshot", digest) for digest in model.snapshot_files]
    if sequence == "excise" and version > 0:
        if "parts" not in model.state:
            raise ModelPruned(version, "training state")
        for name, value in model.state["parts"].items():
            needed += [(f"training state ({name})", digest) for digest in digests_in(value)]
    return needed


async def _read_through(database: Database, objects: Objects | None, version: int, what: str, digest: str) -> None:
    try:
        found = await digest_of_pieces(digest, pieces(database, objects, digest))
    except ArtifactError as error:
        raise ArtifactUnreadable(version, what, digest, str(error)) from error
    if found != digest:
        raise ArtifactUnreadable(version, what, digest, f"expected bytes with digest {digest}; received {found}")


async def _move(
    database: Database, to_version: int, sequence: SequencePolicy, reason: str, actor: str
) -> tuple[int, int]:
    """Move the aliases; the version before, and the number of the champion's move."""
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        await _needed(work, to_version, sequence)  # none of it was removed meanwhile, and under the lock none can be
        served = await work.models.alias(AliasName.CHAMPION)
        if served is None:
            raise NotReady("no model is served yet")
        champion = await work.models.set_alias(
            AliasName.CHAMPION, to_version, lead_seconds=None, actor=actor, reason=reason
        )
        if sequence == "excise":
            await work.models.set_alias(AliasName.HEAD, to_version, lead_seconds=0, actor=actor, reason=reason)
        if (running := await work.canaries.running()) is not None:
            promoted = running.version == to_version
            await note_end(work, running, promoted=promoted, actor=actor, reason=f"rollback: {reason}")
        detail = {"from_version": served.version, "to_version": to_version, "sequence": sequence}
        await work.audit.add(actor, "rollback", detail, reason=reason)
        await announce(work, Event.ROLLED_BACK, {**detail, "reason": reason, "actor": actor})
        await work.commit()
    return served.version, champion.move
