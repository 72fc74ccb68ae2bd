"""When an announced version takes over: as soon as enough api processes have loaded it."""

from service.settings import Settings
from service.storage.postgres.database import Database

__all__ = ["release_champion"]


async def release_champion(database: Database, settings: Settings) -> bool:
    """Set the moment from which an announced champion is served, if enough of the api processes that run have it.

    Whoever has announced one calls it, for the case that no api process runs; and each api process, when it has loaded
    one and again while it waits.

    Returns:
        whether it did; the api processes should be told then.

    Raises:
        NotReady: Postgres does not answer.
    """
    async with database.unit_of_work() as work:
        await work.lock_takeover()
        moment = await work.takeovers.release(
            lead_seconds=settings.swap_lead_seconds,
            wait_seconds=settings.swap_wait_seconds,
            quorum=settings.swap_quorum,
        )
        await work.commit()
    return moment is not None
