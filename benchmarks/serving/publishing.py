"""Publishes stored snapshots as a worker does: in one transaction, with a notice to the api processes."""

import asyncio
import multiprocessing
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.serving.model_store import StoredSnapshot
from service.settings import Settings
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import AliasName, ModelKind, ModelVersion
from service.storage.redis.connection import connect
from service.storage.redis.notices import Notices
from service.use_cases.takeover import release_champion

ACTOR = "asmg bench"


def publishing_process() -> ProcessPoolExecutor:
    """A process for `publish`, so that publishing takes no time of the load generator's process. It is ready."""
    process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interrupts)
    process.submit(int).result()  # what it needs is imported then
    return process


def _ignore_interrupts() -> None:
    """Ctrl-C is for the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def publish(settings: Settings, version: int, snapshot: StoredSnapshot) -> None:
    """Make a snapshot the champion, as the version of this number."""
    _leave_copies(settings, snapshot)
    asyncio.run(_publish(settings, version, snapshot.digests))


def renew(settings: Settings, version: int, snapshot: StoredSnapshot) -> None:
    """Let the champion, of this version, have another snapshot with the same content, as compaction does."""
    _leave_copies(settings, snapshot)
    asyncio.run(_renew(settings, version, snapshot.digests))


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[tuple[Database, Notices]]:
    assert settings.postgres_dsn is not None and settings.redis_url is not None
    database, redis = Database(settings.postgres_dsn, pool_size=1), connect(settings.redis_url)
    try:
        yield database, Notices(redis)
    finally:
        await redis.aclose()
        await database.close()


async def _publish(settings: Settings, version: int, digests: Sequence[str]) -> None:
    made = ModelVersion(
        version=version,
        period=version,
        kind=ModelKind.GENERATED,
        parent_version=version - 1,
        serving_digest=digests[-1],
        state={"snapshot": list(digests)},
        scores={},
        gate={"decision": "generated"},
        created_by=ACTOR,
    )
    async with _connected(settings) as (database, notices):
        async with database.unit_of_work() as work:
            await work.lock_exclusive(Lock.MODELS)
            await work.models.insert(made)
            reason = "published by the benchmark"
            await work.models.set_alias(AliasName.CHAMPION, version, lead_seconds=None, actor=ACTOR, reason=reason)
            await work.commit()
        await notices.publish_swap()
        await release_champion(database, settings)


async def _renew(settings: Settings, version: int, digests: Sequence[str]) -> None:
    async with _connected(settings) as (database, notices):
        async with database.unit_of_work() as work:
            await work.lock_exclusive(Lock.MODELS)
            await work.models.renew_snapshot(version, digests)
            await work.commit()
        await notices.publish_swap()


def _leave_copies(settings: Settings, snapshot: StoredSnapshot) -> None:
    for file in snapshot.files:
        _copy(file, settings.serving_dir)


def _copy(file: Path, folder: Path) -> None:
    """Leave a copy to the api processes. No hard link: a file with a second name could be changed by that name."""
    place = folder / file.name
    if not place.exists():  # the api processes keep the last few themselves
        folder.mkdir(exist_ok=True)
        unfinished = folder / f".{file.name}"
        shutil.copyfile(file, unfinished)
        unfinished.chmod(0o400)
        unfinished.rename(place)
