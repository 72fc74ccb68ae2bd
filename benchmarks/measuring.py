"""Timing of work in this process: repeated samples with their medians, and how many threads torch works with.

Where other programs keep a core busy, torch's threads wait for each other: two of them were up to three times slower
than one for the whole-table reference (DIGINETICA's generator step: 2.5 s and 0.9 s), and ten times slower for a small
update of ours. Neither side may win by that, so each gets the number of threads that is faster just then
(`faster_threads`).
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass
class Samples:
    """Repeated timings of the same work."""

    seconds: list[float] = field(default_factory=list)
    """Wall-clock time of each repeat."""
    cpu_seconds: list[float] = field(default_factory=list)
    """CPU time of each repeat, of all threads of the process."""
    threads: list[int] = field(default_factory=list)
    """Threads that torch had in each repeat."""

    def time(self, work: Callable[[], T], *, scale: float = 1.0) -> T:
        """Do the work, add how long it took, multiplied by `scale`, and return what the work returns."""
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
        """Median of the wall-clock seconds."""
        return median(self.seconds)

    @property
    def cpu_median(self) -> float:
        """Median of the CPU seconds."""
        return median(self.cpu_seconds)

    def __add__(self, other: "Samples") -> "Samples":
        """The samples of two pieces of work done one after the other in each repeat."""
        return Samples(
            [a + b for a, b in zip(self.seconds, other.seconds, strict=True)],
            [a + b for a, b in zip(self.cpu_seconds, other.cpu_seconds, strict=True)],
            [max(a, b) for a, b in zip(self.threads, other.threads, strict=True)],
        )

    def to_json(self, prefix: str = "") -> dict[str, Any]:
        """Medians and single repeats as plain JSON values, the names prefixed."""
        return {
            f"{prefix}seconds": self.median,
            f"{prefix}cpu_seconds": self.cpu_median,
            f"{prefix}repeats": {
                "seconds": list(self.seconds),
                "cpu_seconds": list(self.cpu_seconds),
                "threads": list(self.threads),
            },
        }


def in_turn(contestants: Sequence[T], number: int) -> Sequence[T]:
    """The contestants in the order of round `number`: each round begins with another one."""
    first = number % max(len(contestants), 1)
    return [*contestants[first:], *contestants[:first]]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def faster_threads(work: Callable[[], object]) -> int:
    """The faster number of torch threads for this work at the moment: 1 or all. Does the work once with each."""
    tried = {}
    for threads in {1, torch.get_num_threads()}:
        with torch_threads(threads):
            once = Samples()
            once.time(work)
            tried[threads] = once.median
    return min(tried, key=lambda threads: tried[threads])
