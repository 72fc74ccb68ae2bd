"""One update method in a process of its own: the time of its stages, and the memory that a whole update takes.

The process is its own so that its peak of memory is that of the update alone.
"""

import multiprocessing
import pickle
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from asmg.batch import PeriodData
from asmg.progressive import stage_rng
from asmg.training import Execution
from benchmarks.learning.updaters import default_updater, learned_state, warm_up
from benchmarks.learning.workload import Workload
from benchmarks.measuring import Samples, faster_threads, torch_threads
from benchmarks.update.memory import peak_of

PREPARE = "prepare"
"""What precedes the stages of a method that reads statistics: computing those of the period."""
WHOLE_TABLES = ("commit", "generate")
"""Stages that write all rows of the tables."""


def measure_apart(method: str, workload: Workload, *, repeats: int, seed: int, threads: int) -> dict[str, Any]:
    """The figures of an update by a method, as plain JSON values, measured in a new process.

    Args:
        method: one of `asmg.updaters.UPDATERS`, with its default settings.
        workload: its last period is measured.
        repeats: of each stage; 0 measures the memory alone.
        seed: of everything random.
        threads: of torch, at most.

    Raises:
        ValueError: the process failed.
    """
    job = pickle.dumps((method, workload.periods, repeats, seed, threads))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, job).result()
        except Exception as error:
            raise ValueError(f"{method}: {type(error).__name__}: {error}") from error


def _measure(job: bytes) -> dict[str, Any]:
    method, periods, repeats, seed, threads = pickle.loads(job)
    torch.set_num_threads(threads)
    return measure_method(method, periods, repeats=repeats, seed=seed)


def measure_method(method: str, periods: list[PeriodData], *, repeats: int, seed: int) -> dict[str, Any]:
    """Learn all periods but the last, then measure every stage of one more update, and the memory of all of it.

    "rows" of a stage that writes whole tables are their rows, of another stage the rows of the log.
    """
    started = time.perf_counter()
    updater = default_updater(method)
    warm_up(updater)
    warmed = time.perf_counter()
    state, data = learned_state(updater, periods[:-1], seed), periods[-1]
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

    found: dict[str, Any] = {
        "method": method,
        "device": str(Execution().torch_device),
        "warm_up_seconds": warmed - started,
        "prepare_seconds": ready - warmed,
        "memory": peak_of(update, state),
        "stages": {},
    }
    if not repeats:
        return found
    after, threads = (state, data), {}
    for name in names:
        threads[name] = faster_threads(lambda name=name, after=after: step(name, after))  # type: ignore[misc]
        after = step(name, after)
    stages = {name: Samples() for name in names}
    for _ in range(repeats):
        after = (state, data)
        for name, samples in stages.items():
            with torch_threads(threads[name]):
                after = samples.time(lambda name=name, after=after: step(name, after))  # type: ignore[misc]
    tables = data.users + data.items - 2
    for name, samples in stages.items():
        found["stages"][name] = _with_rows(samples, tables if name in WHOLE_TABLES else len(data))
    total = sum(stages.values(), Samples([0.0] * repeats, [0.0] * repeats, [0] * repeats))
    return found | {"update": _with_rows(total, len(data))}


def _with_rows(samples: Samples, rows: int) -> dict[str, Any]:
    return {**samples.to_json(), "rows": rows, "rows_per_second": rows / samples.median}
