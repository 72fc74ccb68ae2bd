"""Keeps child processes running: starts them, starts again those that ended, and stops them in order.

`service.processes.serve` uses it for the api processes and the worker of `asmg serve`.
"""

import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.multiprocess import mark_process_dead

from service.telemetry.settings import MULTIPROCESS_VARIABLE

__all__ = ["Supervisor"]

logger = logging.getLogger(__name__)

STOP_SECONDS = 30.0
"""Seconds between SIGTERM and SIGKILL for all children together; more than the 20 s that an api process grants its
requests."""

POLL_SECONDS = 0.1
"""Seconds between two looks at a child that is stopping."""

FIRST_DELAY_SECONDS = 0.5
"""Delay before a child is started again after its first failure; each further failure doubles it."""
MAX_DELAY_SECONDS = 30.0
"""Longest delay before a child is started again."""
STEADY_SECONDS = 30.0
"""A child that ran this long was started well: its next delay is the first one again."""


@dataclass(slots=True)
class _Child:
    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    restart_at: float = 0.0


class Supervisor:
    """Starts child processes and starts again those that end, until it is told to stop them.

    Each child is a session of its own, so that Ctrl-C in the terminal reaches the parent alone.

    Args:
        commands: name → program and arguments, in the order in which the children are started and asked to stop.
        environment: variables of the children, in addition to those of this process.
        pass_fds: file descriptors that the children inherit.
    """

    def __init__(
        self, commands: Mapping[str, Sequence[str]], *, environment: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        self._children = [_Child(name, command) for name, command in commands.items()]
        self._environment = {**os.environ, **environment}
        self._pass_fds = tuple(pass_fds)

    def start_missing(self) -> None:
        """Start the children that are not running and whose delay is over; call it every fraction of a second."""
        now = time.monotonic()
        for child in self._children:
            if child.process is not None and (code := child.process.poll()) is not None:
                self._schedule_restart(child, child.process.pid, code, now)
            if child.process is None and now >= child.restart_at:
                child.process = subprocess.Popen(
                    child.command,
                    stdin=subprocess.DEVNULL,
                    env=self._environment,
                    pass_fds=self._pass_fds,
                    start_new_session=True,
                )
                child.started_at = now
                logger.info("%s runs as process %d", child.name, child.process.pid)

    def stop(self, *, hurried: Callable[[], bool] = lambda: False) -> None:
        """Send SIGTERM to all children and wait until they have ended.

        Args:
            hurried: asked while waiting; the children that still run are killed once it returns true, and after
                `STOP_SECONDS` in any case.
        """
        running = [(child.name, child.process) for child in self._children if child.process is not None]
        for _, process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for name, process in running:
            while process.poll() is None and time.monotonic() < deadline and not hurried():
                time.sleep(POLL_SECONDS)
            if process.poll() is None:
                logger.warning("%s did not end; it is killed", name)
                process.kill()
                process.wait()
        for child in self._children:
            child.process = None

    def _schedule_restart(self, child: _Child, pid: int, code: int, now: float) -> None:
        if folder := self._environment.get(MULTIPROCESS_VARIABLE):
            mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]  # prometheus_client has types in part
        if now - child.started_at > STEADY_SECONDS:
            child.failures = 0
        delay = min(FIRST_DELAY_SECONDS * 2**child.failures, MAX_DELAY_SECONDS)
        logger.error("%s ended with code %d; it is started again in %.1f s", child.name, code, delay)
        child.process = None
        child.failures += 1
        child.restart_at = now + delay
