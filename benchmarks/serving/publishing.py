"""Publishes stored snapshots from a process of its own, so that it takes no time of the load generator's process."""

import asyncio
import multiprocessing
import shutil
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from benchmarks.services import OwnStores
from benchmarks.serving.model_store import StoredSnapshot
from service.settings import Settings
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import AliasName, ModelKind, ModelVersion
from service.storage.redis.state import Notices, connect

ACTOR = "asmg bench"
SPAWN = multiprocessing.get_context("spawn")


class Publisher:
    """Publishes versions of a service for as long as the `with` block lasts."""

    def __init__(self, stores: OwnStores) -> None:
        self._settings = stores.settings

    def __enter__(self) -> "Publisher":
        """Start the process, and return when it is ready to publish."""
        self._connection, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_publish_all, args=(theirs, self._settings), daemon=True)
        self._process.start()
        theirs.close()
        self.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # Postgres rolls back what it had begun
        self._process.join()
        self._connection.close()

    def publish(self, version: int, snapshot: StoredSnapshot) -> None:
        """Begin to make a snapshot the champion."""
        self._connection.send((version, snapshot))

    def published(self) -> bool:
        """Whether the last publication has ended; true once for each. Never waits.

        Raises:
            RuntimeError: it failed; the reason is on the standard error.
        """
        if not self._connection.poll():
            return False
        self.wait()
        return True

    def wait(self) -> None:
        """Return when the last publication has ended.

        Raises:
            RuntimeError: it failed; the reason is on the standard error.
        """
        try:
            self._connection.recv()
        except EOFError:
            raise RuntimeError("the process that publishes has ended") from None


def publish(stores: OwnStores, version: int, snapshot: StoredSnapshot) -> None:
    """Make a snapshot the champion of a service that does not run yet."""

    async def work(database: Database) -> None:
        await _publish(database, stores.settings, version, snapshot)

    stores.run(work)


def _publish_all(connection: Connection, settings: Settings) -> None:
    """The process: publishes what it is sent, and answers each time when it is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    asyncio.run(_serve(connection, settings))


async def _serve(connection: Connection, settings: Settings) -> None:
    assert settings.postgres_dsn is not None and settings.redis_url is not None
    database, notices = Database(settings.postgres_dsn, pool_size=1), Notices(connect(settings.redis_url))
    await database.ping()
    while True:
        connection.send(None)
        version, snapshot = await asyncio.to_thread(connection.recv)
        await _publish(database, settings, version, snapshot)
        await notices.publish_swap()


async def _publish(database: Database, settings: Settings, version: int, snapshot: StoredSnapshot) -> None:
    if snapshot.file is not None:
        await asyncio.to_thread(_copy, snapshot.file, settings.serving_dir)
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        await work.models.insert(
            ModelVersion(
                version=version,
                period=version,
                kind=ModelKind.GENERATED,
                parent_version=version - 1,
                serving_digest=snapshot.digest,
                state={},
                scores={},
                gate={"decision": "generated"},
                created_by=ACTOR,
            )
        )
        await work.models.set_alias(
            AliasName.CHAMPION,
            version,
            lead_seconds=settings.swap_lead_seconds,
            actor=ACTOR,
            reason="published by the benchmark",
        )
        await work.commit()


def _copy(file: Path, folder: Path) -> None:
    """Leave a copy to the api processes. No hard link: a file with a second name could be changed by that name."""
    place = folder / file.name
    if not place.exists():  # the api processes keep the last few themselves
        folder.mkdir(exist_ok=True)
        unfinished = folder / f".{file.name}"
        shutil.copyfile(file, unfinished)
        unfinished.chmod(0o400)
        unfinished.rename(place)
