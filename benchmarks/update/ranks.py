"""`asmg bench ranks`: the training stages of one update in one process and in several, by batch size; and reading."""

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from asmg.layout import DIM
from asmg.models import default_config
from asmg.progressive import stage_rng
from asmg.ranks import Ranks, joined
from asmg.training import Execution, TrainingConfig
from asmg.updaters.asmg import Asmg
from asmg.updaters.asmg_config import AsmgConfig
from benchmarks.learning.updaters import learned_state, warm_up
from benchmarks.learning.workload import StreamSizes, synthetic_workload
from benchmarks.machine import machine_facts
from benchmarks.measuring import Samples, in_turn
from benchmarks.options import at_least, distinct
from benchmarks.printing import print_line, print_machine, print_table, progress, seconds, times
from benchmarks.reports import check_writable, write_report
from benchmarks.update.reading import read_rows, write_state

STAGES = ("train_generator", "update_base")
TIMEOUT_SECONDS = 600.0
SUMS = (12_000, 180_000)
"""Numbers in the sums that are timed by themselves."""
SUM_REPEATS = 100


@dataclass(frozen=True, kw_only=True)
class RanksOptions:
    """What to measure; the help texts of `asmg bench ranks` say what each option means."""

    ranks: tuple[int, ...] = (1, 2)
    batches: tuple[int, ...] = (256, 1024, 4096)
    dim: int = DIM
    ids: int = 2_000_000
    """Users of the training state that is read."""
    sizes: StreamSizes = field(default_factory=StreamSizes)
    repeats: int = 3
    seed: int = 0
    report: Path | None = None

    def __post_init__(self) -> None:
        distinct(ranks=self.ranks, batches=self.batches)
        at_least(1, repeats=self.repeats, dim=self.dim, ids=self.ids)
        at_least(0, seed=self.seed)


def run_ranks(options: RanksOptions) -> int:
    """Measure, print, write. Returns the exit code."""
    check_writable(options.report)
    facts = machine_facts()
    cells, reading = [], {}
    for batch in options.batches:
        progress(f"batches of {batch}: learning the periods before the measured one, in every number of processes")
        with _groups(options, batch) as groups:
            stages = {size: {stage: Samples() for stage in STAGES} for size in groups}
            for repeat in range(options.repeats):
                progress(f"batches of {batch}: repeat {repeat + 1} of {options.repeats}")
                for size in in_turn(list(groups), repeat):
                    for stage, (wall, cpu) in groups[size].ask("stages")[0].items():
                        stages[size][stage].seconds.append(wall)
                        stages[size][stage].cpu_seconds.append(cpu)
                        stages[size][stage].threads.append(1)
            sums = {size: group.ask("sums")[0] for size, group in groups.items()}
            if batch == options.batches[0]:
                reading = _reading(options, groups)
        cells += [
            {"batch": batch, "ranks": size, "sum_seconds": sums[size]}
            | {stage: samples.to_json() for stage, samples in found.items()}
            for size, found in stages.items()
        ]
    _print(options, cells, reading, facts)
    write_report(
        options.report,
        {"dim": options.dim, "rows": options.sizes.rows, "repeats": options.repeats, "machine": facts, "cells": cells}
        | {"ids": options.ids, "reading": {str(size): found for size, found in reading.items()}},
    )
    return 0


@dataclass(frozen=True)
class _Group:
    """Processes that train together and wait to be asked."""

    processes: Sequence[SpawnProcess]
    pipes: Sequence[Connection]

    def ask(self, what: str, *arguments: Any) -> list[dict[Any, Any]]:
        """What each rank answers. All ranks do the same."""
        for pipe in self.pipes:
            pipe.send((what, arguments))
        return [pipe.recv() for pipe in self.pipes]


def _reading(options: RanksOptions, groups: Mapping[int, _Group]) -> dict[int, list[dict[str, float]]]:
    """Ranks → what each of them has measured of reading."""
    progress(f"reading rows of {options.ids:,} users")
    with tempfile.TemporaryDirectory() as folder:
        write_state(Path(folder), options.ids, options.dim)
        found = {}
        for size, group in groups.items():
            group.ask("read", Path(folder))  # what is read first is not in memory yet
            found[size] = group.ask("read", Path(folder))
        return found


@contextmanager
def _groups(options: RanksOptions, batch: int) -> Iterator[dict[int, _Group]]:
    """Processes by their number in a group, which have learned all periods but the last."""
    spawn, groups = multiprocessing.get_context("spawn"), {}
    try:
        for size in options.ranks:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            processes, pipes = [], []
            for rank in range(size):
                own, other = spawn.Pipe()
                processes.append(spawn.Process(target=_serve, args=(rank, size, port, other, options, batch)))
                processes[-1].start()
                other.close()
                pipes.append(own)
            groups[size] = _Group(processes, pipes)
            groups[size].ask("ready")
        yield groups
    finally:
        for group in groups.values():
            for process in group.processes:
                process.kill()
                process.join()


def _serve(rank: int, size: int, port: int, pipe: Connection, options: RanksOptions, batch: int) -> None:
    """What a process does: it learns, then answers what it is asked."""
    variables = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    with joined("cpu", TIMEOUT_SECONDS) as ranks:
        updater = Asmg(
            replace(default_config(categories=False, numeric=0), dim=options.dim),
            AsmgConfig(batch_size=batch),
            TrainingConfig(batch_size=batch),
            Execution(device="cpu", ranks=ranks, least_shared=1),
        )
        warm_up(updater)
        workload = synthetic_workload(options.sizes, options.seed)
        state, data = learned_state(updater, workload.before, options.seed), workload.measured
        while True:
            what, arguments = pipe.recv()
            if what == "stages":
                found = {}
                for stage in STAGES:
                    samples = Samples()
                    rng = stage_rng(options.seed, 0, stage)
                    samples.time(lambda stage=stage, rng=rng: updater.run_stage(stage, state, data, rng=rng))  # type: ignore[misc]
                    found[stage] = (samples.median, samples.cpu_median)
                pipe.send(found)
            elif what == "read":
                pipe.send(read_rows(ranks, arguments[0], options.ids, options.sizes.rows))
            else:
                pipe.send(_sums(ranks) if what == "sums" else {})


def _sums(ranks: Ranks) -> dict[int, float]:
    """Numbers in a sum over the ranks → seconds that it takes."""
    found = {}
    for count in SUMS:
        numbers, samples = torch.ones(count), Samples()
        samples.time(lambda numbers=numbers: [ranks.add_up(numbers) for _ in range(SUM_REPEATS)])  # type: ignore[misc]
        found[count] = samples.median / SUM_REPEATS
    return found


def _print(
    options: RanksOptions,
    cells: Sequence[dict[str, Any]],
    reading: Mapping[int, Sequence[dict[str, float]]],
    facts: dict[str, Any],
) -> None:
    sizes = options.sizes
    first: dict[int, dict[str, Any]] = {}
    print_line(
        f"One period of asmg-gru-multi, vectors of {options.dim}: {sizes.rows:,} interactions of {sizes.users:,} users "
        f"with {sizes.items:,} items, {sizes.history} earlier items each. Medians of {options.repeats} repeats."
    )
    print_machine(facts, "Every process has one thread.")
    rows = []
    for cell in cells:
        one = first.setdefault(cell["batch"], cell)
        columns = [f"{cell['batch']:,}", f"{cell['ranks']}"]
        for stage in STAGES:
            found = cell[stage]
            columns += [seconds(found["seconds"]), times(one[stage]["seconds"] / found["seconds"])]
            columns.append(seconds(found["cpu_seconds"]))
        columns += [f"{1e6 * cell['sum_seconds'][count]:,.0f}" for count in SUMS]
        rows.append(columns)
    print_table(
        "seconds a period",
        ("batch", "processes", "generator", "faster", "CPU s", "base", "faster", "CPU s", "µs: 12,000", "180,000"),
        rows,
    )
    print_line(
        "faster = than the first number of processes; CPU s = of one process; µs = for a sum of so many numbers over "
        "the processes: every step sums its gradients once."
    )
    print_table(
        f"reading {sizes.rows:,} of {options.ids:,} users",
        ("processes", "rank", "s", "CPU s", "mapped MB", "its part MB"),
        [
            [f"{size}", f"{rank}", seconds(one["seconds"]), seconds(one["cpu_seconds"])]
            + [f"{one[name]:,.0f}" for name in ("rss", "pss")]
            for size, found in reading.items()
            for rank, one in enumerate(found)
        ],
    )
    print_line("mapped = of the files; its part = a page that n processes have counts 1/n.")
