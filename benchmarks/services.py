"""A service of a benchmark's own: Postgres and Redis in a temporary folder, and `asmg serve` on them.

Used by every command that measures or tests the real service; `own_stores` first, then `own_service` on them.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from asmg.features import Schema
from benchmarks.servers import HOST, Server, environment_without_settings, free_port
from service.processes.child import CHILD_MODULE, environment_of
from service.processes.installation import installation
from service.processes.stop_request import StopRequest
from service.settings import Settings
from service.storage.postgres.database import Database
from service.use_cases.keys import SCOPES, create_key

T = TypeVar("T")

PROBE_SECONDS = 2.0


@dataclass(frozen=True)
class OwnStores:
    """Running Postgres and Redis with the service's schema."""

    folder: Path
    """Holds everything; may be used for more files."""
    settings: Settings
    """The settings of the service, including the addresses of Postgres and Redis."""
    environment: dict[str, str]
    """Environment variables by which a process of the service gets these settings and no others."""
    key: str
    """An API key of all scopes."""

    @property
    def dsn(self) -> str:
        """Address of Postgres, `postgresql+asyncpg://…`."""
        assert self.settings.postgres_dsn is not None
        return self.settings.postgres_dsn

    @property
    def driver_dsn(self) -> str:
        """Address of Postgres as asyncpg itself takes it, `postgresql://…`."""
        return self.dsn.replace("postgresql+asyncpg://", "postgresql://")

    @property
    def redis_url(self) -> str:
        """Address of Redis."""
        assert self.settings.redis_url is not None
        return self.settings.redis_url

    def run(self, work: Callable[[Database], Awaitable[T]]) -> T:
        """Call `work` with a connection to Postgres, and return its result."""
        return asyncio.run(_with_database(self.dsn, work))

    def processes(self) -> list[psutil.Process]:
        """All processes of Postgres and Redis."""
        data_dir = self.settings.data_dir.resolve()
        return [*server_processes(data_dir / "postgres"), *server_processes(data_dir / "redis")]


@contextmanager
def own_stores(folder: Path, *, schema: Schema | None = None, **settings: Any) -> Iterator[OwnStores]:
    """Run Postgres and Redis within the block.

    Args:
        folder: empty; its path must be short enough for Unix sockets.
        schema: fields that clients may send; None for those of a new service.
        settings: of the service where they differ from its defaults.
    """
    given: dict[str, Any] = {"data_dir": folder / "data", "host": HOST, "port": free_port(), **settings}
    if schema is not None:
        given["features"] = folder / "features.toml"
        given["features"].write_text(schema.to_toml(), encoding="utf-8")
    none: dict[str, Any] = {"postgres_dsn": None, "redis_url": None}  # in place of those in our own environment
    with installation(Settings.model_validate(none | given)) as running:
        names = {f"ASMG_{name.upper()}" for name in (*none, *given)}
        variables = {name: value for name, value in environment_of(running).items() if name in names}
        assert running.postgres_dsn is not None
        key = asyncio.run(_with_database(running.postgres_dsn, _create_key))
        yield OwnStores(folder, running, environment_without_settings() | variables, key)


async def _with_database(dsn: str, work: Callable[[Database], Awaitable[T]]) -> T:
    database = Database(dsn, pool_size=1)
    try:
        return await work(database)
    finally:
        await database.close()


async def _create_key(database: Database) -> str:
    _, key = await create_key(database, "bench", SCOPES)
    return key


@contextmanager
def own_service(
    stores: OwnStores,
    *,
    api_workers: int,
    worker: bool = False,
    version: int | None = None,
    stop: StopRequest | None = None,
    name: str = "asmg serve",
    data_dir: Path | None = None,
) -> Iterator[Server]:
    """Run `asmg serve` within the block, on a free port; ready, with all of its processes.

    Args:
        stores: its Postgres and Redis.
        api_workers: how many api processes.
        worker: whether there is a worker too.
        version: the model version that it has to serve before it counts as ready; None for any.
        stop: ends the waiting.
        name: in messages, and of the file for its output.
        data_dir: the data folder of another host; None for that of the stores.
    """
    port = free_port()
    own = {"ASMG_PORT": str(port), "ASMG_API_WORKERS": str(api_workers)}
    if data_dir is not None:
        own["ASMG_DATA_DIR"] = str(data_dir)
    started = Server(
        name,
        [sys.executable, "-m", "service.cli", "serve", "--worker" if worker else "--no-worker"],
        port,
        environment=stores.environment | own,
        log=stores.folder / f"{name.replace(' ', '-')}.log",
        stop=stop,
    )
    with started as server:
        server.wait_ready(lambda: (served := served_version(port)) is not None and version in (None, served))
        yield server


def served_version(port: int) -> int | None:
    """The model version that the service is ready to answer with; None where it is not ready.

    Raises:
        OSError: nobody listens.
    """
    try:
        # Certificates are not needed, and reading them takes a third of the time between two probes.
        response = httpx.get(f"http://{HOST}:{port}/readyz", timeout=PROBE_SECONDS, trust_env=False, verify=False)
    except httpx.HTTPError as error:
        raise ConnectionError(str(error)) from None
    return int(response.json()["model_version"]) if response.status_code == 200 else None


def processes_of(server: Server, role: str) -> list[psutil.Process]:
    """The processes of a running `asmg serve` that are `api` or `worker`."""
    return [process for process in server.processes() if _role(process) == role]


def _role(process: psutil.Process) -> str | None:
    with suppress(psutil.Error):
        command = process.cmdline()
        if CHILD_MODULE in command:
            return str(command[command.index(CHILD_MODULE) + 1])
    return None


def server_processes(folder: Path) -> list[psutil.Process]:
    """Processes that work in the folder of an embedded server, oldest first: the postmaster before its backends."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return sorted(found, key=lambda process: (process.create_time(), process.pid))
