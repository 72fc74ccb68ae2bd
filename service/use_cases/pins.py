"""Pin a model version, so that it keeps its artifacts however old it gets."""

from service.errors import ModelNotFound, ModelPruned
from service.storage.postgres.database import Database, Lock
from service.use_cases.status import MAX_NUMBER

__all__ = ["set_pinned"]


async def set_pinned(database: Database, version: int, *, pinned: bool, reason: str, actor: str) -> bool:
    """Pin a version, or let go of it; what has become too old meanwhile goes after the next update.

    Args:
        database: holds the versions and the audit.
        version: any that exists; to be pinned it must have its serving snapshot. Of its training state it keeps what it
            still has.
        pinned: what it is to be.
        reason: for the audit.
        actor: for the audit.

    Returns:
        whether that was news; only then it is in the audit.

    Raises:
        ModelNotFound: there is no such version.
        ModelPruned: its serving snapshot was let go of, so that there is nothing to pin.
    """
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)  # it must not lose its artifacts meanwhile
        model = await work.models.get(version) if 0 <= version <= MAX_NUMBER else None
        if model is None:
            raise ModelNotFound(version)
        if pinned and model.serving_digest is None:
            raise ModelPruned(version, "serving snapshot")
        if model.pinned == pinned:
            return False
        await work.models.set_pinned(version, pinned)
        await work.audit.add(actor, "pin" if pinned else "unpin", {"version": version}, reason=reason)
        await work.commit()
    return True
