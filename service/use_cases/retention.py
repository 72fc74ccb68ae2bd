"""What is let go of after a period: intermediate stages, old training states, old snapshots."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from service.settings import Settings
from service.storage.database import Database, Lock

__all__ = ["prune", "sweep"]

ORPHAN_AGE = timedelta(hours=1)
"""Artifacts are stored a moment before the row that names them; after this long no such row will come."""

DIGEST = re.compile(r"[0-9a-f]{64}")


async def prune(database: Database, period: int, settings: Settings) -> int:
    """Delete every artifact that only this period's update, or a version too old to keep, had a use for.

    Args:
        database: holds all of it.
        period: whose update is finished.
        settings: say how many versions keep their snapshot and their training state.

    Returns:
        the number of artifacts deleted.
    """
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)  # no rollback may choose a version while it loses its artifacts
        digests = {digest for stage in await work.stages.list(period) for digest in _digests(stage.result)}
        digests.update(await work.models.retire(keep_serving=settings.keep_versions, keep_states=settings.keep_states))
        deleted = await work.artifacts.delete(sorted(digests))
        await work.commit()
    return len(deleted)


async def sweep(database: Database) -> int:
    """Delete what no version and no update under way names: left by workers that died, or by periods in quarantine.

    To be called by the leading worker before it begins to work.

    Returns:
        the number of artifacts deleted.
    """
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        waiting = await work.periods.next_sealed()
        stages = [] if waiting is None else await work.stages.list(waiting.number)
        needed = {digest for stage in stages for digest in _digests(stage.result)}
        deleted = await work.artifacts.delete(sorted(set(await work.artifacts.older_than(ORPHAN_AGE)) - needed))
        await work.commit()
    return len(deleted)


def _digests(value: Any) -> Iterator[str]:
    """All digests in a JSON value, however deep."""
    if isinstance(value, str) and DIGEST.fullmatch(value):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _digests(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _digests(inner)
