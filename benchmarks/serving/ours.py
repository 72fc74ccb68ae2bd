"""The real service, installed in a folder: all that the benchmark knows of its storage and of its snapshots.

    python -m benchmarks.serving.ours

publishes: a line `version digest` on the standard input makes that version the champion, and is answered by an empty
line as soon as the api processes were told. A process of its own, so that publishing takes no time of the load
generator's.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TypeVar, overload

import httpx
import numpy as np
import psutil

from asmg.models import Params
from asmg.statistics import Statistics
from benchmarks.serving.fields import ServingFields
from benchmarks.serving.servers import environment_without_settings
from benchmarks.serving.workload import (
    MODEL,
    WITH_FIELDS,
    WITH_STATISTICS,
    ServingSizes,
    ServingWorkload,
    item_id,
    user_id,
)
from service.files import DigestedFile, create, find
from service.serving.encode import Known, encode_model
from service.settings import Settings
from service.storage.artifacts.store import FILE_SUFFIX, ArtifactStore
from service.storage.embedded.servers import EmbeddedServers
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.migrate import migrate
from service.storage.postgres.repositories import AliasName, EventBatch, Interaction, ModelKind, ModelVersion
from service.storage.redis.connection import connect
from service.storage.redis.notices import Notices
from service.use_cases.bootstrap import ensure_prior
from service.use_cases.keys import create_key

__all__ = ["Installation", "Publisher", "Snapshots", "served_version"]

T = TypeVar("T")

DATA = "data"
KEPT = "kept"
"""In that: the files of a worker of this host."""
ACTOR = "asmg bench"
PRIOR_CTR = 0.5
LOG_BATCH = 5_000
FIRST_CLICK = datetime(2026, 1, 1, tzinfo=UTC)
PUBLISH_SECONDS = 30.0
PROBE_SECONDS = 2.0


class _Ids(Sequence[str]):
    """The ids of rows 1 to `count`, each made when it is asked for: as a list, ten million take most of a gigabyte."""

    def __init__(self, name: Callable[[int], str], count: int) -> None:
        self._name, self._rows = name, range(1, count + 1)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return map(self._name, self._rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        rows = self._rows[place]
        return self._name(rows) if isinstance(rows, int) else [*map(self._name, rows)]


class Snapshots:
    """Makes the serving snapshots of models with the same ids.

    Args:
        sizes: of the models.
        folder: for the files.
    """

    def __init__(self, sizes: ServingSizes, folder: Path) -> None:
        self._folder = folder / "made"
        self._users = Known(_Ids(user_id, sizes.users), np.arange(1, sizes.users + 1))
        self._items = Known(_Ids(item_id, sizes.items), np.arange(1, sizes.items + 1))

    def make(
        self, params: Params, statistics: Statistics | None = None, fields: ServingFields | None = None
    ) -> DigestedFile:
        """The snapshot of a model, as a file; of one with statistics and fields, where they are given."""
        model = MODEL if statistics is None else WITH_STATISTICS if fields is None else WITH_FIELDS
        known = None if fields is None else fields.known()
        with create(self._folder, FILE_SUFFIX) as file:
            encode_model(file, model, params, self._users, self._items, None, statistics, known)
        return file


class Installation:
    """Postgres, Redis, schema and an API key, for as long as the `with` block lasts.

    Args:
        folder: empty; everything is in it.
        fields: that clients send; None for those that a service has by itself.
    """

    def __init__(self, folder: Path, fields: ServingFields | None = None) -> None:
        self._folder, self._fields = folder, fields
        self._servers = EmbeddedServers(folder / DATA)
        self.key = ""
        """May predict."""

    def __enter__(self) -> "Installation":
        self._servers.__enter__()
        try:
            if self._fields is not None:
                self._schema_file.write_text(self._fields.schema.to_toml(), encoding="utf-8")
            migrate(self._servers.postgres_dsn)
            _, self.key = self._run(lambda database, _: create_key(database, "bench", ("predict",)))
            # The first api process would do so otherwise, and make version 0 the champion.
            self._run(lambda database, artifacts: ensure_prior(database, artifacts, PRIOR_CTR))
        except BaseException:
            self._servers.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._servers.__exit__(kind, error, trace)

    def store(self, snapshot: DigestedFile, *, here: bool = False) -> str:
        """Keep a snapshot as a worker would; its digest.

        Args:
            snapshot: its file is gone afterwards.
            here: as a worker of this host, which leaves the file to the api processes when it publishes; else they have
                to fetch it.
        """
        path = snapshot.path
        assert path is not None
        digest = self._run(lambda _, artifacts: artifacts.put_file(snapshot, "serving"))
        if here:
            kept = self._folder / DATA / KEPT
            kept.mkdir(exist_ok=True)
            path.rename(kept / path.name)
        else:
            path.unlink()
        return digest

    def publish(self, version: int, digest: str) -> None:
        """Make a stored snapshot the champion."""
        with Publisher(self) as publisher:
            publisher.publish(version, digest)
            deadline = time.monotonic() + PUBLISH_SECONDS
            while not publisher.published():
                if time.monotonic() > deadline:
                    raise RuntimeError(f"version {version} was not published within {PUBLISH_SECONDS:.0f} s")
                time.sleep(0.01)

    def remember(self, workload: ServingWorkload) -> None:
        """Put the clicks of all histories into the log, and features of the users beside it, from where the service
        looks them up.
        """

        async def insert(database: Database, _: ArtifactStore) -> None:
            async with database.read() as session:
                period = (await session.periods.open()).number
            for batch in _batches(workload):
                async with database.unit_of_work() as work:
                    await work.interactions.insert(period, EventBatch.of(batch))
                    await work.commit()
            if self._fields is not None:
                async with database.unit_of_work() as work:
                    await work.features.put("user", self._fields.versions(workload.users.tolist(), FIRST_CLICK))
                    await work.commit()

        self._run(insert)

    def command(self, workers: int, port: int) -> list[str]:
        """Starts the api processes."""
        options = ["--no-worker", "--workers", str(workers), "--port", str(port)]
        return [sys.executable, "-m", "service.cli", "serve", *options]

    def environment(self) -> dict[str, str]:
        """Of the api processes; all but the places is as shipped."""
        return {
            **environment_without_settings(),
            "ASMG_POSTGRES_DSN": self._servers.postgres_dsn,
            "ASMG_REDIS_URL": self._servers.redis_url,
            "ASMG_DATA_DIR": str(self._folder / DATA),
            **({} if self._fields is None else {"ASMG_FEATURES": str(self._schema_file)}),
        }

    @property
    def _schema_file(self) -> Path:
        return self._folder / "features.toml"

    def store_processes(self) -> list[psutil.Process]:
        """Those of Postgres and Redis."""
        found = []
        for file in ("postgres/postmaster.pid", "redis/redis.pid"):
            with suppress(OSError, ValueError, psutil.Error):
                root = psutil.Process(int((self._folder / DATA / file).read_text().partition("\n")[0]))
                found += [root, *root.children(recursive=True)]
        return found

    def _run(self, work: Callable[[Database, ArtifactStore], Awaitable[T]]) -> T:
        async def run() -> T:
            database = Database(self._servers.postgres_dsn, pool_size=1)
            redis = connect(self._servers.redis_url)
            try:
                return await work(database, ArtifactStore(database, redis))
            finally:
                await redis.aclose()
                await database.close()

        return asyncio.run(run())


class Publisher:
    """Publishes from a process of its own, for as long as the `with` block lasts."""

    def __init__(self, installation: Installation) -> None:
        self._environment = installation.environment()

    def __enter__(self) -> "Publisher":
        """Return when it is ready, so that publishing takes no time for starting."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving.ours"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=self._environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        if not self._out.readline():
            raise RuntimeError("the process that publishes has ended")
        os.set_blocking(self._out.fileno(), False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # whatever it had begun, Postgres rolls back
        self._process.wait()
        self._in.close()
        self._out.close()

    def publish(self, version: int, digest: str) -> None:
        """Begin to."""
        self._in.write(f"{version} {digest}\n".encode())

    def published(self) -> bool:
        """Whether what was begun last is done, told once; never waits.

        Raises:
            RuntimeError: it failed; why is on the standard error.
        """
        answer = self._out.read(16)
        if answer == b"":
            raise RuntimeError("the process that publishes has ended")
        return answer is not None


def served_version(port: int) -> int | None:
    """The model version that an api process is ready to serve; None where it is not ready.

    Raises:
        OSError: nobody listens.
    """
    try:
        response = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=PROBE_SECONDS, trust_env=False)
    except httpx.HTTPError as error:
        raise ConnectionError(str(error)) from None
    return int(response.json()["model_version"]) if response.status_code == 200 else None


def _batches(workload: ServingWorkload) -> Iterator[list[Interaction]]:
    """The clicks of all histories, newest first in each."""
    batch: list[Interaction] = []
    for user, history in zip(workload.users.tolist(), workload.histories.tolist(), strict=True):
        for i, item in enumerate(history):
            at = FIRST_CLICK + timedelta(hours=len(history) - i)
            batch.append(Interaction(f"{user}-{i}", user_id(user), item_id(item), 1, at))
        if len(batch) >= LOG_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _publish_lines() -> None:
    """See the module."""
    settings = Settings()
    assert settings.postgres_dsn is not None and settings.redis_url is not None
    database, redis = Database(settings.postgres_dsn, pool_size=1), connect(settings.redis_url)
    notices = Notices(redis)
    await database.ping()
    print(flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        version, digest = line.split()
        if kept := find(settings.data_dir / KEPT, digest, FILE_SUFFIX):
            # Of a file with another name beside it nobody would be sure that it stays as it is.
            await asyncio.to_thread(_copy, kept, settings.serving_dir)
        await _publish(database, int(version), digest, settings.swap_lead_seconds)
        await notices.publish_swap()
        print(flush=True)


def _copy(kept: Path, folder: Path) -> None:
    place = folder / kept.name
    if not place.exists():  # the api processes keep the last few themselves
        folder.mkdir(exist_ok=True)
        unfinished = folder / f".{kept.name}"
        shutil.copyfile(kept, unfinished)
        unfinished.chmod(0o400)
        unfinished.rename(place)


async def _publish(database: Database, version: int, digest: str, lead_seconds: float) -> None:
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        await work.models.insert(
            ModelVersion(
                version=version,
                period=version,
                kind=ModelKind.GENERATED,
                parent_version=version - 1,
                serving_digest=digest,
                state={},
                scores={},
                gate={"decision": "generated"},
                created_by=ACTOR,
            )
        )
        await work.models.set_alias(
            AliasName.CHAMPION, version, lead_seconds=lead_seconds, actor=ACTOR, reason="published by the benchmark"
        )
        await work.commit()


if __name__ == "__main__":
    asyncio.run(_publish_lines())
