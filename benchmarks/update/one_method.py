"""One update method in a process of its own: the time of its stages, and how much memory a whole update takes.

    python -m benchmarks.one_method FOLDER

FOLDER holds `job.json` and `periods.npz`, see `measure_apart`; what was found is left there in `result.json`. A process
of its own, so that the peak of memory is not that of something else.
"""

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from asmg.batch import PeriodData
from asmg.progressive import stage_rng
from asmg.training import Execution
from asmg.updaters.base import Updater
from benchmarks.timing import Samples, faster_threads, torch_threads
from benchmarks.workload import (
    StreamSizes,
    Workload,
    default_updater,
    load_periods,
    prepared,
    save_periods,
    synthetic_workload,
)

MB = 1e6

PREPARE = "prepare"
"""What comes before the stages of a method that reads statistics: computing those of the period."""

WHOLE_TABLES = ("commit", "generate")
"""Stages that write all rows of the tables."""


def measure_apart(method: str, workload: Workload, *, repeats: int, seed: int, threads: int) -> dict[str, Any]:
    """What `measure_method` finds, in a process of its own.

    Raises:
        ValueError: that process failed; the message is the last line that it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="asmg-bench-") as folder:
        job = {"method": method, "repeats": repeats, "seed": seed, "threads": threads}
        Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
        save_periods(Path(folder, "periods.npz"), workload.periods)
        command = [sys.executable, "-m", "benchmarks.one_method", folder]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise ValueError(f"{method}: {lines[-1] if lines else f'ended with exit code {done.returncode}'}")
        found: dict[str, Any] = json.loads(Path(folder, "result.json").read_text(encoding="utf-8"))
        return found


def measure_method(method: str, workload: Workload, *, repeats: int, seed: int) -> dict[str, Any]:
    """Learn the periods before, then time every stage of one more update with the method's default settings.

    A stage that writes whole tables ("commit", "generate") has their rows; those of the others are the log's.
    """
    started = time.perf_counter()
    updater = default_updater(method)
    warm_up(updater)
    warmed = time.perf_counter()
    state, data = prepared(updater, workload, seed), workload.measured
    reads_statistics = updater.statistics_of(state) is not None
    names = (PREPARE, *updater.stages) if reads_statistics else updater.stages
    ready = time.perf_counter()

    def step(name: str, before: tuple[Any, PeriodData]) -> tuple[Any, PeriodData]:
        after, read = before
        if name == PREPARE:
            return after, updater.prepare(after, read)
        return updater.run_stage(name, after, read, rng=stage_rng(seed, 0, name)), read

    def update() -> Any:
        after = (state, data)
        for name in names:
            after = step(name, after)
        return after[0]

    memory = peak_of(update, state)
    stages = {name: Samples() for name in names}
    after, threads = (state, data), {}
    for name in names if repeats else ():
        threads[name] = faster_threads(lambda name=name, after=after: step(name, after))  # type: ignore[misc]
        after = step(name, after)
    for _ in range(repeats):
        after = (state, data)
        for name, samples in stages.items():
            with torch_threads(threads[name]):
                after = samples.time(lambda name=name, after=after: step(name, after))  # type: ignore[misc]
    tables = data.users + data.items - 2
    rows = {name: tables if name in WHOLE_TABLES else len(data) for name in names}
    found: dict[str, Any] = {
        "method": method,
        "device": str(Execution().torch_device),
        "warm_up_seconds": warmed - started,
        "prepare_seconds": ready - warmed,
        "memory": memory,
        "stages": {},
    }
    if repeats:
        found["stages"] = {name: _with_rows(samples, rows[name]) for name, samples in stages.items()}
        total = sum(stages.values(), Samples([0.0] * repeats, [0.0] * repeats, [0] * repeats))
        found["update"] = _with_rows(total, len(data))
    return found


def _with_rows(samples: Samples, rows: int) -> dict[str, Any]:
    return {**samples.to_json(), "rows": rows, "rows_per_second": rows / samples.median}


def warm_up(updater: Updater[Any]) -> None:
    """Learn a few tiny periods: machine code is compiled, or loaded from where it is kept."""
    tiny = synthetic_workload(StreamSizes(users=30, items=20, rows=300, history=2), seed=0)
    updater.update(prepared(updater, tiny, 0), tiny.measured, rng=torch.Generator().manual_seed(0))


def peak_of(work: Any, state: Any) -> dict[str, Any]:
    """By how much the resident memory of this process grows while `work` makes a new state, in MB of 10⁶ bytes.

    `state` is held meanwhile, as the service holds it. "peak_mb" is the growth without the tables of the new state
    that the old one has not: they are what an update is for.
    """
    process = psutil.Process()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is taken now
    resets = _reset_peak()
    before = process.memory_info().rss
    after = work()
    peak = _peak(resets)
    known = {t.untyped_storage().data_ptr() for t in _tensors(state)}
    new = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(after)}
    tables = sum(size for at, size in new.items() if at not in known)
    how = (
        "VmHWM of /proc/self/status, set back by /proc/self/clear_refs right before the update"
        if resets
        else "ru_maxrss of the process: an upper bound, for it may be from before the update"
    )
    return {
        "peak_mb": max(0, peak - before - tables) / MB,
        "peak_rss_mb": peak / MB,
        "rss_before_mb": before / MB,
        "new_tables_mb": tables / MB,
        "how": how,
    }


def _reset_peak() -> bool:
    """Whether the peak could be set back to what is resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak(resets: bool) -> int:
    if resets:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a state, however it is nested."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for part in fields(value):
            yield from _tensors(getattr(value, part.name))
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def main(folder: Path) -> None:
    """See the module."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    workload = Workload(name="", periods=load_periods(folder / "periods.npz"), which="")
    found = measure_method(job["method"], workload, repeats=job["repeats"], seed=job["seed"])
    (folder / "result.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
