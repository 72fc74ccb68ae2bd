"""Metrics that every process has: how fast Postgres and Redis answer it, and how full its pools of connections are."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["PoolState", "ServerMetrics"]

PROBE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)
"""Upper bounds in seconds, from an idle server on the same host to the longest that a probe waits."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool of connections at this moment."""

    in_use: int
    """Connections that somebody has."""
    most: int
    """Connections that there may be."""
    waiting: int
    """Callers that wait for one, those included whose connection is just being opened."""


class ServerMetrics:
    """Postgres and Redis as this process sees them.

    Args:
        registry: that gets the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "asmg_server_seconds",
            "Seconds until a server answered a small question, asked every few seconds, as the processes see it.",
            ["server"],
            buckets=PROBE_BUCKETS,
            registry=registry,
        )
        self._failures = Counter(
            "asmg_server_failures", "Such questions that were not answered in time.", ["server"], registry=registry
        )
        self._connections = Gauge(
            "asmg_pool_connections",
            "Connections of the processes' pools: in use a moment ago, and the most that there may be.",
            ["server", "state"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._waiting = Gauge(
            "asmg_pool_waiting",
            "Callers that waited for a connection of their process's pool a moment ago.",
            ["server"],
            registry=registry,
            multiprocess_mode="livesum",
        )

    def note_answer(self, server: str, seconds: float | None) -> None:
        """Note after how many seconds a server answered; None where it did not."""
        if seconds is None:
            self._failures.labels(server).inc()
        else:
            self._seconds.labels(server).observe(seconds)

    def note_pool(self, server: str, pool: PoolState) -> None:
        """Note the pool of connections to a server."""
        self._connections.labels(server, "in_use").set(pool.in_use)
        self._connections.labels(server, "most").set(pool.most)
        self._waiting.labels(server).set(pool.waiting)
