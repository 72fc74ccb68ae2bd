"""Measures one cell of one server once: requests a second, latencies, CPU time and memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from benchmarks.http_load.load import Answers, Load, quantile_ms
from benchmarks.machine import MB, cpu_seconds, memory_bytes
from benchmarks.servers import Server
from benchmarks.serving.options import Cell, ServeOptions

OPEN_SECONDS = 3.0
"""How long an open loop lasts at most. It is long enough that a pause at its beginning is not most of what it finds."""


def measure(
    server: Server,
    requests: Sequence[bytes],
    cell: Cell,
    options: ServeOptions,
    *,
    rate: float | None,
    stores: Sequence[psutil.Process],
) -> dict[str, Any]:
    """Warm the server up, then measure one cell; figures as plain JSON values.

    Args:
        server: the server.
        requests: what to send.
        cell: its number of connections counts.
        options: how many requests, and for how long.
        rate: requests a second of an open loop; None for a closed loop.
        stores: processes of Postgres and Redis, whose CPU time is told apart; empty for a server without them.

    Raises:
        ServerFailed: the server cannot be connected to.
    """
    seconds, count = options.seconds, options.requests
    if options.warm_up:
        server.ask(Load(requests=requests, connections=cell.concurrency, count=options.warm_up, seconds=seconds))
    before, stores_before = cpu_seconds(server.processes()), cpu_seconds(stores)
    if rate is not None:
        seconds = min(seconds, OPEN_SECONDS)
        count = max(1, int(rate * seconds))
    answers = server.ask(Load(requests=requests, connections=cell.concurrency, count=count, seconds=seconds, rate=rate))
    processes = server.processes()
    used, stores_used = cpu_seconds(processes) - before, cpu_seconds(stores) - stores_before
    found = _figures(answers, used) | {"memory_mb": memory_bytes(processes) / MB, "rate": rate}
    asked = len(answers.done) + answers.failed
    return found | ({"stores_cpu_us": 1e6 * stores_used / asked} if stores and asked else {})


def _figures(answers: Answers, used: float) -> dict[str, Any]:
    """The figures of a load for which the server used so many CPU seconds."""
    good, failed = len(answers.done), answers.failed
    waited = np.frombuffer(answers.sent) - np.frombuffer(answers.due)
    return {
        "requests": good,
        "failed": failed,
        "faults": dict(answers.faults),
        "rps": good / answers.seconds if answers.seconds else 0.0,
        **{f"p{q}_ms": quantile_ms(answers.latencies, q) for q in (50, 95, 99)},
        "max_ms": quantile_ms(answers.latencies, 100),
        "waited_p99_ms": quantile_ms(waited, 99),
        "generator_late_p99_ms": quantile_ms(np.frombuffer(answers.late), 99),
        "cpu_us": 1e6 * used / max(good + failed, 1),
        "generator_cpu_us": 1e6 * answers.cpu_seconds / max(good + failed, 1),
    }
