"""Calls a function of an event loop at exact moments of `time.perf_counter`; used by the open loop of the generator.

An event loop's own timers have a resolution of a millisecond, which is more than a fast server takes for an answer.
Linux has timers that are files (timerfd) and wake the loop as sockets do; elsewhere the loop's own timers are used.
"""

import asyncio
import ctypes
import os
import platform
import time
from collections.abc import Callable
from typing import Protocol

CLOCK_MONOTONIC = 1  # the clock of `time.perf_counter` on Linux
ABSOLUTE_TIME = 1


class Alarm(Protocol):
    """Calls one function at a moment that can be set again and again."""

    def set(self, moment: float) -> None:
        """Call at `moment`, in place of any moment set before."""

    def close(self) -> None:
        """Never call again."""


def make_alarm(call: Callable[[], None]) -> Alarm:
    """The most exact alarm there is for the running event loop."""
    if platform.system() == "Linux":
        return _TimerFile(call)
    return LoopTimer(call)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class _TimerFile:
    """Linux's timerfd: a file that becomes readable at the moment. Setting it anew makes it unreadable again."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._call = call
        self._spec = _Itimerspec()
        self._reference = ctypes.byref(self._spec)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._file, self._fire)

    def set(self, moment: float) -> None:
        nanoseconds = max(1, int(moment * 1e9))  # a moment of zero would be none
        self._spec.value.seconds, self._spec.value.nanoseconds = divmod(nanoseconds, 1_000_000_000)
        self._libc.timerfd_settime(self._file, ABSOLUTE_TIME, self._reference, None)

    def close(self) -> None:
        self._loop.remove_reader(self._file)
        os.close(self._file)

    def _fire(self) -> None:
        try:
            os.read(self._file, 8)  # unreadable until it is set again
        except BlockingIOError:  # it was set to a later moment meanwhile
            return
        self._call()


class LoopTimer:
    """The event loop's own timer."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None

    def set(self, moment: float) -> None:
        """Call at `moment`, in place of any moment set before."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_later(max(0.0, moment - time.perf_counter()), self._call)

    def close(self) -> None:
        """Never call again."""
        if self._handle is not None:
            self._handle.cancel()
