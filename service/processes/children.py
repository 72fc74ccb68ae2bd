"""What the commands that run for minutes need: a stop that cleans up, and programs of ours beside them."""

import asyncio
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

from service.errors import ServiceError
from service.tasks import end_tasks, start_for_caller

__all__ = ["INTERRUPTED", "Child", "ChildFailed", "Interrupted", "StopRequest"]

T = TypeVar("T")

INTERRUPTED = 130
"""Exit code of a program that was interrupted, as shells have it."""

GUARD_SECONDS = 0.5
TICK_SECONDS = 0.05
TAIL_LINES = 15


class Interrupted(Exception):
    """The user wants the program to end."""


class ChildFailed(ServiceError):
    """A program that this one needs has ended by itself."""

    title = "Child process failed"
    slug = "child-failed"


class StopRequest:
    """Within the `with` block SIGINT, SIGTERM and SIGHUP are noted and do not end the process; main thread only."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._count = 0
        self._wake: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether one of the signals has come."""
        return self._count > 0

    @property
    def hurried(self) -> bool:
        """Whether a second one has come: nothing should be waited for any more."""
        return self._count > 1

    def check(self) -> None:
        """Return where nothing was requested.

        Raises:
            Interrupted: a signal has come.
        """
        if self.requested:
            raise Interrupted

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """What `main` returns, run in an event loop; a signal cancels it.

        Raises:
            Interrupted: a signal has come.
        """

        async def cancellable() -> T:
            loop, stop = asyncio.get_running_loop(), asyncio.Event()
            self._wake = lambda: loop.call_soon_threadsafe(stop.set)
            try:
                self.check()
                work, stopped = start_for_caller(main()), start_for_caller(stop.wait())
                both: list[asyncio.Future[Any]] = [work, stopped]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                await end_tasks(work, stopped)
                if work.cancelled():
                    self.check()
                return work.result()
            finally:
                self._wake = None

        return asyncio.run(cancellable())

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._wake is not None:
            self._wake()


class Child:
    """A program beside this one, out of reach of Ctrl-C, its output in a file.

    Args:
        name: in messages.
        command: program and arguments.
        environment: all of its variables.
        log: receives what it prints.
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
        """Return where it runs.

        Raises:
            ChildFailed: it has ended; the message holds the end of its output.
        """
        if (code := self._process.poll()) is not None:
            tail = "\n".join(self.output.splitlines()[-TAIL_LINES:])
            raise ChildFailed(f"{self._name} ended with code {code}:\n{tail}")

    async def beside(self, work: Awaitable[T]) -> T:
        """What `work` returns, with the program beside it all the time.

        Raises:
            ChildFailed: the program has ended first.
        """

        async def guard() -> None:
            while True:
                self.check()
                await asyncio.sleep(GUARD_SECONDS)

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
        """End it: it is asked, and killed after `seconds` or as soon as `hurried()`. Return its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline and not hurried():
            time.sleep(TICK_SECONDS)
        if self._process.poll() is None:
            self._process.kill()
        return self._process.wait()
