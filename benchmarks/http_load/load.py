"""A load of HTTP requests and its answers. Requests and seconds are limited; each connection has one request in flight.

In a closed loop a connection sends its next request as soon as it has an answer, and latency counts from sending. In an
open loop requests are due at fixed moments whatever the server does; one that finds no free connection waits, and
latency counts from the moment at which it was due. So a server that stalls is charged for every request that had to
wait (no coordinated omission), and so is a generator that is late itself.

Load is only ever sent to loopback addresses.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import numpy as np
from numpy.typing import NDArray

from benchmarks.options import at_least, more_than_zero


@dataclass(frozen=True)
class Target:
    """Address of the server."""

    host: str
    port: int

    def __post_init__(self) -> None:
        try:
            loopback = ip_address(self.host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise ValueError(f"host: expected a loopback address, for load goes nowhere else; received {self.host}")


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests to send, and how many."""

    requests: Sequence[bytes]
    """Sent one after the other; after the last the first follows again."""
    connections: int
    count: int
    """Most requests sent."""
    seconds: float
    """After this time nothing more is sent (closed loop) or becomes due (open loop)."""
    rate: float | None = None
    """Requests that become due each second; None for a closed loop."""
    keep_bodies: bool = False
    """Whether the bodies of the answers are wanted."""

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError("requests: expected at least 1; received none")
        at_least(1, connections=self.connections, count=self.count)
        more_than_zero(seconds=self.seconds, rate=self.rate)


def post(path: str, body: bytes, key: str) -> bytes:
    """The bytes of an HTTP/1.1 request that sends a JSON document with an API key and keeps its connection."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


@dataclass
class Answers:
    """The answers to a load. The arrays have an entry for each answer of status 200, in the order of arrival."""

    due: "array[float]" = field(default_factory=lambda: array("d"))
    """When its request was due, in seconds of `time.perf_counter`; in a closed loop the same as `sent`."""
    sent: "array[float]" = field(default_factory=lambda: array("d"))
    done: "array[float]" = field(default_factory=lambda: array("d"))
    request: "array[int]" = field(default_factory=lambda: array("q"))
    """Index of its request in `Load.requests`."""
    connection: "array[int]" = field(default_factory=lambda: array("q"))
    """Number of its connection; one that replaces another has a new number."""
    bodies: list[bytes] = field(default_factory=list)
    """Bodies of the answers, where they are wanted."""
    late: "array[float]" = field(default_factory=lambda: array("d"))
    """Open loop: of each request, by how many seconds the generator noticed too late that it was due."""
    faults: Counter[str] = field(default_factory=Counter)
    """What went wrong → how often."""
    cpu_seconds: float = 0.0
    """CPU time that the generator itself took."""

    @property
    def failed(self) -> int:
        """Requests without an answer of status 200."""
        return self.faults.total()

    @property
    def latencies(self) -> NDArray[np.float64]:
        """Seconds from when each was due to its answer."""
        return np.frombuffer(self.done) - np.frombuffer(self.due)

    @property
    def seconds(self) -> float:
        """Seconds from the first request to the last answer."""
        return self.done[-1] - self.due[0] if self.done else 0.0


def quantile_ms(seconds: NDArray[np.float64], percent: float) -> float | None:
    """The milliseconds that `percent` of the times do not exceed; None where there are no times."""
    return float(np.percentile(seconds, percent, method="higher")) * 1000 if len(seconds) else None
