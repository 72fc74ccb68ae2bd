"""A whole service of a benchmark's own: Postgres, Redis, api processes and a worker, in a temporary folder."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.serving.servers import Server, ServerFailed, environment_without_settings, free_port
from service.processes.children import StopRequest
from service.processes.supervisor import environment_of, installation
from service.settings import Settings
from service.storage.postgres.database import Database
from service.use_cases.keys import SCOPES, create_key

__all__ = ["OwnService", "own_service", "role_of", "server_processes"]

START_SECONDS = 90.0
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class OwnService:
    """A running `asmg serve --worker` and its servers."""

    server: Server
    settings: Settings
    """With the addresses of the servers."""
    key: str
    """Of all scopes."""

    @property
    def dsn(self) -> str:
        """Of Postgres."""
        assert self.settings.postgres_dsn is not None
        return self.settings.postgres_dsn

    @property
    def url(self) -> str:
        """Of the api."""
        return f"http://{self.server.target.host}:{self.server.target.port}"

    @property
    def headers(self) -> dict[str, str]:
        """With the key."""
        return {"Authorization": f"Bearer {self.key}"}

    async def ready(self, http: httpx.AsyncClient) -> None:
        """Return when it answers.

        Raises:
            ServerFailed: it did not in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                if (await http.get("/readyz")).status_code == 200:
                    return
            await asyncio.sleep(POLL_SECONDS)
        raise ServerFailed(f"the service was not ready within {START_SECONDS:.0f} s:\n{self.server.tail()}")


@contextmanager
def own_service(name: str, stop: StopRequest, **settings: Any) -> Iterator[OwnService]:
    """Start it with these settings; all processes and the folder are gone when the block has ended."""
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix=f"asmg-{name}-", ignore_cleanup_errors=True))
        )
        own = {"data_dir": folder / "data", "postgres_dsn": None, "redis_url": None, "host": "127.0.0.1"}
        given = Settings.model_validate({**own, "port": free_port(), **settings})
        running = stack.enter_context(installation(given))
        assert running.postgres_dsn is not None
        key = asyncio.run(_create_key(running.postgres_dsn, name))
        server = stack.enter_context(
            Server(
                "asmg serve",
                [sys.executable, "-m", "service.cli", "serve", "--worker"],
                running.port,
                environment=environment_without_settings() | environment_of(running),
                log=folder / "serve.log",
                check=stop.check,
                hurried=lambda: stop.hurried,
            )
        )
        yield OwnService(server, running, key)


async def _create_key(dsn: str, name: str) -> str:
    database = Database(dsn, pool_size=1)
    try:
        _, key = await create_key(database, name, SCOPES)
        return key
    finally:
        await database.close()


def role_of(process: psutil.Process) -> str | None:
    """`api` or `worker`; None for any other process."""
    with suppress(psutil.Error):
        command = process.cmdline()
        if "service.processes.supervisor" in command:
            return str(command[command.index("service.processes.supervisor") + 1])
    return None


def server_processes(folder: Path) -> list[psutil.Process]:
    """Processes in the folder of a server, the oldest first: the postmaster before its backends."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return sorted(found, key=lambda process: (process.create_time(), process.pid))
