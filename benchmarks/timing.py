"""Seconds, CPU seconds and the machine that they were taken on.

Where other programs keep a core busy, torch's threads wait for each other: two of them were up to three times slower
than one for the whole-table reference (DIGINETICA's generator step: 2.5 s and 0.9 s), and ten times for a small update
of ours. Neither shall win by that, so each gets as many threads as are faster just then (`faster_threads`).
"""

import gc
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

__all__ = ["Samples", "faster_threads", "machine_facts", "torch_threads"]

T = TypeVar("T")


@dataclass
class Samples:
    """Repeated timings of one thing."""

    seconds: list[float] = field(default_factory=list)
    """By the clock on the wall, one for each repeat."""
    cpu_seconds: list[float] = field(default_factory=list)
    """Of all threads of the process."""
    threads: list[int] = field(default_factory=list)
    """How many torch had."""

    def time(self, work: Callable[[], T], *, scale: float = 1.0) -> T:
        """Do the work and keep how long it took, times `scale`."""
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        self.seconds.append(wall * scale)
        self.cpu_seconds.append(cpu * scale)
        self.threads.append(torch.get_num_threads())
        return result

    @property
    def median(self) -> float:
        """Of the seconds."""
        return median(self.seconds)

    @property
    def cpu_median(self) -> float:
        """Of the CPU seconds."""
        return median(self.cpu_seconds)

    def __add__(self, other: "Samples") -> "Samples":
        """The same repeats of two things done one after the other."""
        return Samples(
            [a + b for a, b in zip(self.seconds, other.seconds, strict=True)],
            [a + b for a, b in zip(self.cpu_seconds, other.cpu_seconds, strict=True)],
            [max(a, b) for a, b in zip(self.threads, other.threads, strict=True)],
        )

    def to_json(self, prefix: str = "") -> dict[str, Any]:
        """Medians and raw repeats, as plain JSON values."""
        return {
            f"{prefix}seconds": self.median,
            f"{prefix}cpu_seconds": self.cpu_median,
            f"{prefix}repeats": {
                "seconds": list(self.seconds),
                "cpu_seconds": list(self.cpu_seconds),
                "threads": list(self.threads),
            },
        }


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """With so many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def faster_threads(work: Callable[[], object]) -> int:
    """Whether one thread of torch does the work faster just now, or all that it has; the work is done with either."""
    tried = {}
    for threads in {1, torch.get_num_threads()}:
        with torch_threads(threads):
            once = Samples()
            once.time(work)
            tried[threads] = once.median
    return min(tried, key=lambda threads: tried[threads])


def machine_facts() -> dict[str, Any]:
    """Processor, threads, versions and how busy the machine is, as plain JSON values."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(affinity(0)) if affinity else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "numpy", "numba", "asmg-service")},
    }


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
