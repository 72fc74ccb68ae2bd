"""Pin a model version, so that it keeps its artifacts however old it gets."""

from service.errors import ModelNotFound, ModelPruned
from service.storage.postgres.database import Database, Lock
from service.use_cases.status import MAX_NUMBER

__all__ = ["set_pinned"]


async def set_pinned(database: Database, version: int, *, pinned: bool, reason: str, actor: str) -> bool:
    """Pin or unpin a version; the artifacts of an unpinned one that is too old are removed after the next update.

    Args:
        database: holds the versions and the audit.
        version: any version; to be pinned it must still have its serving snapshot. It keeps of its training state what
            it still has.
        pinned: True to pin, False to unpin.
        reason: for the audit.
        actor: for the audit.

    Returns:
        whether that was a change; only then is it in the audit.

    Raises:
        ModelNotFound: there is no such version.
        ModelPruned: its serving snapshot was removed, so there is nothing to pin.
    """
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)  # retention must not remove its artifacts meanwhile
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
