"""A service of the demo's own: `asmg serve` with embedded servers, in the demo's temporary folder."""

import asyncio
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from service.errors import ServiceError
from service.processes.child import environment_of
from service.processes.companion import Companion
from service.processes.installation import installation
from service.processes.stop_request import StopRequest
from service.settings import Settings
from service.storage.embedded.servers import EmbeddedServers
from service.storage.postgres.database import Database
from service.use_cases.keys import SCOPES, create_key

__all__ = ["LocalService", "local_service"]

START_SECONDS = 90.0
"""Seconds within which the service has to listen."""

STOP_SECONDS = 40.0
"""Seconds that the service gets to stop, more than it gives its own children; it is killed then."""

POLL_SECONDS = 0.1
"""Seconds between two looks at the output of the service."""

LISTENING = re.compile(r"^asmg: listening on (http://\S+)$", re.MULTILINE)

ADDRESSES = ("ASMG_POSTGRES_DSN", "ASMG_REDIS_URL")
"""Variables that the service must not inherit: it uses its own servers."""


@dataclass(frozen=True)
class LocalService:
    """A running service."""

    url: str
    """Its address."""
    key: str
    """A key of all scopes."""
    process: Companion
    """The process of `asmg serve`."""


@contextmanager
def local_service(settings: Settings, log: Path, stop: StopRequest) -> Iterator[LocalService]:
    """Run a service for the `with` block.

    Args:
        settings: without addresses of Postgres and Redis.
        log: file that receives the output of the service.
        stop: a signal ends the start; a second one ends the service at once.

    Raises:
        ServiceError: it did not start.
        Interrupted: a signal came during the start.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ADDRESSES}
    environment |= environment_of(settings)
    command = [sys.executable, "-m", "service.cli", "serve"]
    with ExitStack() as stack:
        # The embedded servers run as long as anybody uses them: until the service does, that is this process.
        with installation(settings) as running:
            assert running.postgres_dsn is not None
            # Before the service starts, because from the first key on every call has to show one.
            key = asyncio.run(_create_key(running.postgres_dsn))
            stop.check()
            process = Companion("asmg serve", command, environment=environment, log=log)
            stack.callback(_stop, process, settings, stop)
            url = _wait_until_listening(process, stop)
        yield LocalService(url, key, process)


def _wait_until_listening(process: Companion, stop: StopRequest) -> str:
    """Return the address once the service has printed it."""
    deadline = time.monotonic() + START_SECONDS
    while (match := LISTENING.search(process.output)) is None:
        stop.check()
        process.check()
        if time.monotonic() > deadline:
            raise ServiceError(f"the service was not ready within {START_SECONDS:.0f} s:\n{process.output}")
        time.sleep(POLL_SECONDS)
    return match[1]


def _stop(process: Companion, settings: Settings, stop: StopRequest) -> None:
    if process.stop(seconds=STOP_SECONDS, hurried=lambda: stop.hurried) != 0:
        # It was killed or has failed, and has left Postgres and Redis running: their last user stops them.
        with suppress(ServiceError), EmbeddedServers(settings.data_dir):
            pass


async def _create_key(dsn: str) -> str:
    database = Database(dsn, pool_size=1)
    try:
        _, key = await create_key(database, "demo", SCOPES)
    finally:
        await database.close()
    return key
