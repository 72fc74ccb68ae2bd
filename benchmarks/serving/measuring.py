"""One cell measured once: requests a second, latencies, CPU time and memory of the server."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.serving.load import Answers, Load
from benchmarks.serving.options import Cell, ServeOptions
from benchmarks.serving.servers import Server, cpu_seconds, memory_bytes

__all__ = ["figures", "measure", "quantile_ms"]

MB = 1e6

OPEN_SECONDS = 3.0
"""How long an open loop lasts, where it may: a pause at its beginning should not be most of what it finds."""


def measure(
    server: Server,
    requests: Sequence[bytes],
    cell: Cell,
    options: ServeOptions,
    *,
    rate: float | None,
    stores: Sequence[psutil.Process],
) -> dict[str, Any]:
    """Warm up, then measure one cell once.

    Args:
        server: what is asked.
        requests: for it.
        cell: says how many connections.
        options: how much, and how long.
        rate: of an open loop.
        stores: processes that work for the server beside its own.

    Raises:
        ServerFailed: the server cannot be connected to.
    """
    if options.warm_up:
        load = Load(
            requests=requests, connections=cell.concurrency, count=options.warm_up, seconds=options.seconds
        )  # fmt: skip
        server.ask(load)
    before, stores_before = cpu_seconds(server.processes()), cpu_seconds(stores)
    seconds, count = options.seconds, options.requests
    if rate is not None:
        seconds = min(seconds, OPEN_SECONDS)
        count = max(1, int(rate * seconds))
    load = Load(requests=requests, connections=cell.concurrency, count=count, seconds=seconds, rate=rate)
    answers = server.ask(load)
    processes = server.processes()
    used, stores_used = cpu_seconds(processes) - before, cpu_seconds(stores) - stores_before
    found = figures(answers, used) | {"memory_mb": memory_bytes(processes) / MB, "rate": rate}
    asked = len(answers.done) + answers.failed
    return found | ({"stores_cpu_us": 1e6 * stores_used / asked} if stores and asked else {})


def figures(answers: Answers, used: float) -> dict[str, Any]:
    """What came of a load, for which the server used so many CPU seconds, as plain JSON values."""
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


def quantile_ms(seconds: NDArray[np.float64], percent: float) -> float | None:
    """The milliseconds that so many percent stay within; None of nothing."""
    return float(np.percentile(seconds, percent, method="higher")) * 1000 if len(seconds) else None
