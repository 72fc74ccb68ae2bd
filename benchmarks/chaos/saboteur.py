"""Kills and pauses processes of a run at random, and empties Redis; touches only processes that the run has started."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from redis import Redis
from redis.exceptions import RedisError

from benchmarks.chaos.verdict import Record
from benchmarks.servers import Server
from benchmarks.services import processes_of, server_processes
from service.storage.embedded.servers import EmbeddedServers

LONGEST_DOWN_SECONDS = 5.0
"""How long a killed server may stay down."""
LONGEST_PAUSE_SECONDS = 3.0
INTERVAL_SECONDS = (1.5, 6.0)
"""Shortest and longest time from one hit to the next."""
TWICE = 0.2
"""Share of the hits that hit two victims at once."""
VICTIMS = ("api", "worker", "postgres", "redis")


def restart(data_dir: Path) -> None:
    """Start those servers of a folder that do not run; the service that uses the folder keeps them running."""
    with EmbeddedServers(data_dir):
        pass


class Saboteur:
    """Hits a random victim every few seconds.

    Args:
        data_dir: folder of the embedded servers.
        services: the running `asmg serve` of each host.
        record: receives what was done.
        seed: of the victims, the ways and the times.
    """

    def __init__(self, data_dir: Path, services: Sequence[Server], record: Record, *, seed: int) -> None:
        self._data_dir, self._services, self._record = data_dir.resolve(), services, record
        self._random = random.Random(seed)
        self._stopped: list[psutil.Process] = []
        self._restarting = asyncio.Lock()

    async def run(self) -> None:
        """Go on until cancelled; then everything that was paused runs again."""
        try:
            while True:
                await asyncio.sleep(self._random.uniform(*INTERVAL_SECONDS))
                count = 2 if self._random.random() < TWICE else 1
                await asyncio.gather(*(self._hit(victim) for victim in self._random.sample(VICTIMS, count)))
        finally:
            self._resume(self._stopped)

    async def _hit(self, victim: str) -> None:
        ways: dict[str, tuple[Callable[[str], Awaitable[None]], ...]] = {
            "redis": (self._kill, self._pause, self._flush),
        }
        way = self._random.choice(ways.get(victim, (self._kill, self._pause)))
        started = time.monotonic()
        await way(victim)
        self._record.sabotage.append(
            {"victim": victim, "way": way.__name__.strip("_"), "seconds": round(time.monotonic() - started, 3)}
        )

    async def _kill(self, victim: str) -> None:
        down = self._random.choice((0.0, self._random.uniform(0, LONGEST_DOWN_SECONDS)))
        for process in self._processes(victim)[:1]:  # the postmaster; its backends notice
            with suppress(psutil.Error):
                process.kill()
        if victim in ("postgres", "redis"):
            await asyncio.sleep(down)
            async with self._restarting:
                await asyncio.to_thread(restart, self._data_dir)

    async def _pause(self, victim: str) -> None:
        processes = self._processes(victim)
        seconds = self._random.uniform(0.2, LONGEST_PAUSE_SECONDS)
        async with self._restarting:  # a restart of the other server asks this one, and would wait for it
            self._stopped += processes
            try:
                for process in processes:
                    with suppress(psutil.Error):
                        process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(seconds)
            finally:
                self._resume(processes)

    async def _flush(self, _victim: str) -> None:
        def flush() -> None:
            with (
                suppress(RedisError),
                Redis(unix_socket_path=EmbeddedServers(self._data_dir).redis_url[7:], socket_timeout=2) as redis,
            ):
                redis.flushall()

        await asyncio.to_thread(flush)

    def _resume(self, processes: list[psutil.Process]) -> None:
        for process in list(processes):
            with suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)

    def _processes(self, victim: str) -> list[psutil.Process]:
        """All processes of a server, the oldest first; of the service's processes a random one."""
        if victim in ("postgres", "redis"):
            return server_processes(self._data_dir / victim)
        found = [process for service in self._services for process in processes_of(service, victim)]
        return [self._random.choice(found)] if found else []
