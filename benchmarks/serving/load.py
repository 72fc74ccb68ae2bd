"""What is asked, and what came of it: a bounded number of requests and of seconds, one request in flight a connection.

In a closed loop a connection asks again as soon as it has its answer, and latency counts from sending. In an open loop
requests are due at fixed moments whatever the server does; one that finds no free connection waits, and latency counts
from the moment at which it was due. So a server that stalls is charged for every request that had to wait (no
coordinated omission), and so is a generator that is late itself.

Only loopback addresses are ever asked.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import numpy as np
from numpy.typing import NDArray

__all__ = ["Answers", "Load", "Target"]


@dataclass(frozen=True)
class Target:
    """The server that is asked."""

    host: str
    port: int

    def __post_init__(self) -> None:
        try:
            loopback = ip_address(self.host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise ValueError(
                f"host: expected a loopback address, for load is never sent elsewhere; received {self.host}"
            )


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to ask, and how much of it."""

    requests: Sequence[bytes]
    """Asked in turn, and from the first on again."""
    connections: int
    count: int
    """Requests at most."""
    seconds: float
    """Nothing is sent, and in an open loop nothing becomes due, after so long."""
    rate: float | None = None
    """Requests that become due each second; None for a closed loop."""
    keep_bodies: bool = False

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError("requests: expected at least 1; received none")
        for name in ("connections", "count"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected at least 1; received {value}")
        for name in ("seconds", "rate"):
            if (limit := getattr(self, name)) is not None and limit <= 0:
                raise ValueError(f"{name}: expected more than 0; received {limit}")


@dataclass
class Answers:
    """What came of a load. The arrays have one entry for each good answer, in the order in which they came."""

    due: "array[float]" = field(default_factory=lambda: array("d"))
    """When each was to be sent, seconds of `time.perf_counter`; in a closed loop when it was."""
    sent: "array[float]" = field(default_factory=lambda: array("d"))
    done: "array[float]" = field(default_factory=lambda: array("d"))
    request: "array[int]" = field(default_factory=lambda: array("q"))
    """Index of the request."""
    connection: "array[int]" = field(default_factory=lambda: array("q"))
    """Number of the connection that it came on; a new one has a new number."""
    bodies: list[bytes] = field(default_factory=list)
    """Where they are kept."""
    late: "array[float]" = field(default_factory=lambda: array("d"))
    """In an open loop, seconds by which the generator noticed too late that a request was due; one for each."""
    faults: Counter[str] = field(default_factory=Counter)
    """What went wrong, and how often."""
    cpu_seconds: float = 0.0
    """Of the generator itself."""

    @property
    def failed(self) -> int:
        """Requests without a good answer."""
        return self.faults.total()

    @property
    def latencies(self) -> NDArray[np.float64]:
        """Seconds from when each was due to its answer."""
        return np.frombuffer(self.done) - np.frombuffer(self.due)

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return self.done[-1] - self.due[0] if self.done else 0.0
