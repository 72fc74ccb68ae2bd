"""Roll back: serve another version, older or newer, at once."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from service.errors import ArtifactError, ArtifactUnreadable, ModelNotFound, ModelPruned, NotReady
from service.storage.postgres.database import Database, Lock, ReadSession, UnitOfWork
from service.storage.postgres.repositories import AliasName, digests_in
from service.storage.redis.notices import Notices
from service.tasks import BoundedCalls
from service.use_cases.status import MAX_NUMBER

__all__ = ["RollbackResult", "SequencePolicy", "rollback"]

SequencePolicy = Literal["keep", "excise"]


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
    lead_seconds: float,
    calls: BoundedCalls | None = None,
) -> RollbackResult:
    """Serve `to_version` from `lead_seconds` after now.

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
        lead_seconds: time for every api process to load the version.
        calls: limits how long the caller waits for the transaction that moves the aliases; None: no limit.

    Raises:
        ArtifactUnreadable: the snapshot of the version, or for `excise` a part of its training state, cannot be read.
        ModelNotFound: there is no such version.
        ModelPruned: it is too old: its snapshot, or for `excise` its training state, was removed.
        NotReady: no version is served yet, so there is nothing to roll back from; or Postgres does not answer.
    """
    async with database.read() as session:
        for what, digest in await _needed(session, to_version, sequence):
            await _read_through(session, to_version, what, digest)
    moving = _move(database, to_version, sequence, reason, actor, lead_seconds)
    result = await (moving if calls is None else calls.run(moving))
    await notices.publish_swap()
    return result


async def _needed(session: ReadSession | UnitOfWork, version: int, sequence: SequencePolicy) -> list[tuple[str, str]]:
    """The artifacts that a rollback to the version needs: what each is, and its digest."""
    model = await session.models.get(version) if 0 <= version <= MAX_NUMBER else None
    if model is None:
        raise ModelNotFound(version)
    if model.serving_digest is None:
        raise ModelPruned(version, "serving snapshot")
    needed = [("serving snapshot", digest) for digest in model.snapshot_files]
    if sequence == "excise" and version > 0:
        if "parts" not in model.state:
            raise ModelPruned(version, "training state")
        for name, value in model.state["parts"].items():
            needed += [(f"training state ({name})", digest) for digest in digests_in(value)]
    return needed


async def _read_through(session: ReadSession, version: int, what: str, digest: str) -> None:
    try:
        found = await session.artifacts.stored_digest(digest)
    except ArtifactError as error:
        raise ArtifactUnreadable(version, what, digest, str(error)) from error
    if found != digest:
        raise ArtifactUnreadable(version, what, digest, f"expected bytes with digest {digest}; received {found}")


async def _move(
    database: Database, to_version: int, sequence: SequencePolicy, reason: str, actor: str, lead_seconds: float
) -> RollbackResult:
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        await _needed(work, to_version, sequence)  # none of it was removed meanwhile, and under the lock none can be
        served = await work.models.alias(AliasName.CHAMPION)
        if served is None:
            raise NotReady("no model is served yet")
        champion = await work.models.set_alias(
            AliasName.CHAMPION, to_version, lead_seconds=lead_seconds, actor=actor, reason=reason
        )
        if sequence == "excise":
            await work.models.set_alias(AliasName.HEAD, to_version, lead_seconds=0, actor=actor, reason=reason)
        detail = {"from_version": served.version, "to_version": to_version, "sequence": sequence}
        await work.audit.add(actor, "rollback", detail, reason=reason)
        await work.commit()
    return RollbackResult(from_version=served.version, to_version=to_version, active_from=champion.active_from)
