"""An api process tells in Postgres that it runs and what it has loaded, and so helps versions to take over.

`running_state` runs one `Registration` beside the `ServingModel`. It costs two short transactions every two seconds,
and none of them is in the way of a request.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

from service.errors import ServiceError
from service.serving.clock import ServerClock, elapsed
from service.serving.swap import ServingModel
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import ProcessState
from service.storage.redis.notices import Notices
from service.use_cases.takeover import release_champion

__all__ = ["Registration"]

logger = logging.getLogger(__name__)

BEATS = 5
"""How often a process renews its registration while it lasts."""

REMOVE_SECONDS = 1.0
"""How long a process that ends waits for Postgres to forget it; else its registration expires."""


class Registration:
    """Keeps the process registered, and releases versions that enough processes have loaded.

    Args:
        database: holds the registrations.
        notices: tell the other processes of a release.
        serving: what the process serves.
        clock: of Postgres; it is set with every beat.
        settings: of the installation.
        on_beat: called after each attempt, successful or not.
    """

    def __init__(
        self,
        database: Database,
        notices: Notices,
        serving: ServingModel,
        clock: ServerClock,
        settings: Settings,
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._database, self._notices, self._serving, self._clock = database, notices, serving, clock
        self._settings = settings
        self._on_beat = on_beat
        self._process, self._host = uuid4().hex, socket.gethostname()
        self._wake, self._registered = asyncio.Event(), asyncio.Event()
        self._failing = False
        self._beats = 0

    def wake(self) -> None:
        """Tell at once what is loaded now."""
        self._wake.set()

    async def wait_registered(self) -> None:
        """Return when the process is registered."""
        await self._registered.wait()

    async def run(self) -> None:
        """Register until cancelled. A failure is tried again, and logged when it is the first."""
        pause = self._settings.api_lease_seconds / BEATS
        try:
            while True:
                self._wake.clear()
                try:
                    await self.beat()
                    if self._failing:
                        self._serving.wake()
                    self._failing = False
                except Exception as error:
                    if not self._failing:
                        trace = None if isinstance(error, ServiceError) else error
                        logger.warning("this process is not registered: %s", error, exc_info=trace)
                    self._failing = True
                self._on_beat()
                waiting = self._serving.turns.waiting and not self._failing
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(pause, self._settings.swap_poll_seconds) if waiting else pause):
                        await self._wake.wait()
        finally:
            with suppress(ServiceError, TimeoutError):
                async with asyncio.timeout(REMOVE_SECONDS), self._database.unit_of_work() as work:
                    await work.processes.remove(self._process)
                    await work.commit()

    async def beat(self) -> None:
        """Tell once what is loaded, and release what waits if this process has it.

        Raises:
            NotReady: Postgres does not answer.
        """
        turns = self._serving.turns
        if turns.waiting:  # what a process promises by telling counts from its last look on
            await self._serving.look()
        ready_move, ready_version = turns.promise()
        state = ProcessState(
            process=self._process,
            host=self._host,
            pid=os.getpid(),
            refuses=self._settings.swap_laggards == "refuse",
            ready_move=ready_move,
            ready_version=ready_version,
            served_move=turns.served_move,
            served_version=turns.served_version,
        )
        lease = self._settings.api_lease_seconds
        self._beats += 1
        async with self._database.unit_of_work() as work:
            if self._beats % BEATS == 0:
                await work.processes.remove_ended()
            sent = elapsed()
            now = await work.processes.note(state, lease_seconds=lease)
            self._clock.note(sent=sent, received=elapsed(), server=now.timestamp())
            await work.commit()
        if turns.waiting and await release_champion(self._database, self._settings):
            await self._notices.publish_swap()
            self._serving.wake()
        # Only now that the registration is stored: a release that has not counted it is seen by this look.
        await self._serving.look()
        turns.lease(sent + lease)
        self._registered.set()
