"""This machine, for the head of a report, and the CPU time and memory that processes of it use."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

MB = 1e6
PACKAGES = ("torch", "numpy", "numba", "asmg-service")


def machine_facts(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Processor, threads, load and versions, as plain JSON values.

    Args:
        packages: further packages whose versions are wanted where they are installed.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    versions = {name: _version(name) for name in (*PACKAGES, *packages)}
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(affinity(0)) if affinity else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name, version in versions.items() if version or name in PACKAGES},
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


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """User and system time of processes and of their ended children, as exact as the system tells."""
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            own = _clock_of(process.pid)
            total += times.user + times.system if own is None else own
            total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return total


def _clock_of(pid: int) -> float | None:
    """CPU time of a process in steps of nanoseconds (psutil's steps are 10 ms); None where the system has no such."""
    if psutil.LINUX:
        with suppress(OSError):
            return time.clock_gettime((~pid << 3) | 2)  # how Linux numbers the CPU-time clocks of processes
    return None


def memory_bytes(processes: Iterable[psutil.Process]) -> int:
    """Proportional memory: a page shared by n processes counts 1/n for each. Resident memory where that is unknown."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total


def need_memory(what: str, needed: float) -> None:
    """Raise ValueError where fewer than `needed` bytes of memory are free."""
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"{what} needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; take smaller tables"
        )
