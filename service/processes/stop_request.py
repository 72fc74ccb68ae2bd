"""Signals that ask a command to stop: noted, so that the command can clean up first.

For the commands that run for minutes (`asmg serve`, `import`, `demo`, `backup`, `bench` …).
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, TypeVar

from service.tasks import end_tasks, start_for_caller

__all__ = ["INTERRUPTED", "Interrupted", "StopRequest"]

T = TypeVar("T")

INTERRUPTED = 130
"""Exit code of an interrupted program: 128 + SIGINT, as shells report it."""


class Interrupted(Exception):
    """A signal has asked this program to stop."""


class StopRequest:
    """Within the `with` block the signals are counted and do not end the process; main thread only.

    Args:
        signals: which; the default are those of Ctrl-C, `kill` and a terminal that is closed.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) -> None:
        self._signals = signals
        self._count = 0
        self._wake: Callable[[], object] | None = None
        self._handlers_before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._count > 0

    @property
    def hurried(self) -> bool:
        """Whether a second signal has come: the program should not wait for anything any more."""
        return self._count > 1

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.requested:
            raise Interrupted

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """Run `main` in an event loop and return its result; a signal cancels it.

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
        self._handlers_before = {number: signal.signal(number, self._count_signal) for number in self._signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _count_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._wake is not None:
            self._wake()
