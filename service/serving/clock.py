"""The clock of Postgres, as an api process knows it: its own clock of elapsed time and a measured offset.

All processes switch versions by this clock, so their hosts' clocks may be wrong.
"""

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

__all__ = ["ServerClock", "elapsed"]

SAMPLES = 16
"""Newest measurements that are kept; the best one counts."""

DRIFT = 1e-4
"""How much two clocks may drift apart, in seconds a second. Clocks of computers keep to half of it."""

MAX_ERROR_SECONDS = 0.1
"""The largest error that is admitted, because predictions wait for twice as long when a version takes over. It takes
round trips of twice this time to exceed it."""

# On Linux it goes on while the machine sleeps, as Postgres' clock does.
elapsed: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""Seconds since some moment; it never goes back, whatever is done to the clock of the host."""


class _Sample(NamedTuple):
    at: float
    """When it was taken, by `elapsed`."""
    offset: float
    """Server time minus elapsed time."""
    error: float
    """Half of the round trip: the answer was made somewhere within it."""


class ServerClock:
    """The time of a server. Until it is measured it is the time of this host."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES)
        self._best: _Sample | None = None

    def note(self, *, sent: float, received: float, server: float) -> None:
        """Note an answer of the server.

        Args:
            sent: when the question was sent, by `elapsed`.
            received: when the answer had come.
            server: the server's time in it, in seconds of the epoch.
        """
        middle = (sent + received) / 2
        self._samples.append(_Sample(middle, server - middle, (received - sent) / 2))
        self._best = min(self._samples, key=lambda sample: _error(sample, received))

    def now(self) -> float:
        """Time of the server, in seconds of the epoch."""
        return self.read()[0]

    def read(self) -> tuple[float, float]:
        """Time of the server in seconds of the epoch, and how far it may be from the truth, in seconds."""
        if self._best is None:
            return time.time(), 0.0
        now = elapsed()
        return now + self._best.offset, min(_error(self._best, now), MAX_ERROR_SECONDS)


def _error(sample: _Sample, now: float) -> float:
    return sample.error + max(0.0, now - sample.at) * DRIFT
