"""A program that runs beside a command: the worker of `asmg import`, the service of `asmg demo` and `asmg bench`.

Unlike the children of `service.processes.supervisor` it is not started again: when it ends, the command fails.
"""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from service.errors import ServiceError
from service.tasks import end_tasks, start_for_caller

__all__ = ["Companion", "CompanionFailed"]

T = TypeVar("T")

CHECK_SECONDS = 0.5
"""Seconds between two looks whether the program still runs, beside other work."""
POLL_SECONDS = 0.05
"""Seconds between two looks at a program that is stopping."""
TAIL_LINES = 15
"""Last lines of the program's output that the message of `CompanionFailed` shows."""


class CompanionFailed(ServiceError):
    """A program that this one needs has ended by itself."""

    title = "Child process failed"
    slug = "child-failed"


class Companion:
    """A program that runs beside this one, in a session of its own (Ctrl-C does not reach it), with output to a file.

    Args:
        name: of the program in messages.
        command: program and arguments.
        environment: all of its variables.
        log: file that receives its output.
    """

    def __init__(self, name: str, command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        self._name, self._log = name, log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    def check(self) -> None:
        """Return if it is running.

        Raises:
            CompanionFailed: it has ended; the message holds the end of its output.
        """
        if (code := self._process.poll()) is not None:
            tail = "\n".join(self.output.splitlines()[-TAIL_LINES:])
            raise CompanionFailed(f"{self._name} ended with code {code}:\n{tail}")

    async def beside(self, work: Awaitable[T]) -> T:
        """Run `work` while the program runs, and return its result.

        Raises:
            CompanionFailed: the program has ended first; `work` is cancelled.
        """

        async def guard() -> None:
            while True:
                self.check()
                await asyncio.sleep(CHECK_SECONDS)

        task, watch = start_for_caller(work), start_for_caller(guard())
        both: list[asyncio.Future[Any]] = [task, watch]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                watch.result()
        finally:
            await end_tasks(task, watch)
        return task.result()

    def stop(self, *, seconds: float, hurried: Callable[[], bool] = lambda: False) -> int:
        """Send SIGTERM and wait for the program to end.

        Args:
            seconds: after which it is killed.
            hurried: asked while waiting; once it returns true the program is killed at once.

        Returns:
            its exit code.
        """
        if self._process.poll() is None:
            self._process.terminate()
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline and not hurried():
            time.sleep(POLL_SECONDS)
        if self._process.poll() is None:
            self._process.kill()
        return self._process.wait()
