"""Serve another version, at once."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from service.errors import ModelNotFound, ModelPruned, NotReady
from service.storage.database import Database, Lock
from service.storage.redis_state import Notices
from service.storage.repositories import AliasName
from service.use_cases.status import MAX_NUMBER

__all__ = ["RollbackResult", "SequencePolicy", "rollback"]

SequencePolicy = Literal["keep", "excise"]


@dataclass(frozen=True, slots=True)
class RollbackResult:
    """What was served, what is served, and from when."""

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
) -> RollbackResult:
    """Make `to_version` the champion, which it is `lead_seconds` from now; a later version rolls forward again.

    Args:
        database: holds the aliases and the audit.
        notices: tell the api processes.
        to_version: any version that exists.
        sequence: `keep` lets the next update go on from the newest training state; `excise` makes it continue from that
            of `to_version`, so that the versions in between are no longer part of the sequence.
        reason: for the audit.
        actor: for the audit.
        lead_seconds: gives every api process time to load the version.

    Raises:
        ModelNotFound: there is no such version.
        ModelPruned: it is too old: its snapshot, or for `excise` its training state, was let go of.
        NotReady: no version is served yet, so there is nothing to roll back from.
    """
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        model = await work.models.get(to_version) if 0 <= to_version <= MAX_NUMBER else None
        if model is None:
            raise ModelNotFound(to_version)
        if model.serving_digest is None:
            raise ModelPruned(to_version, "serving snapshot")
        if sequence == "excise" and to_version > 0 and "parts" not in model.state:
            raise ModelPruned(to_version, "training state")
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
    await notices.publish_swap()
    return RollbackResult(from_version=served.version, to_version=to_version, active_from=champion.active_from)
