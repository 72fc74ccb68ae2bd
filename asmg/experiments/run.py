"""Run an experiment: methods × seeds on all cores, resumable, every number written down.

In the folder of a run:

    run.json              what was run: the log's card, the options, the versions, the machine, the methods' settings
    scores.parquet        seed, method, variant, step, period, test, slice, events, clicks, auc, logloss, calibration
    timings.parquet       seed, method, variant, step, stage, seconds, cpu_seconds
    calibration.parquet   seed, method, variant, period, bin, count, predicted, clicked
    forgetting.parquet    seed, method, variant, step, period, auc, logloss
    summary.json          of each method AUC and LogLoss over the test periods: mean and standard deviation over seeds;
                          wins and ties against IU and LightGBM, and the seed that favours the method least
    jobs/                 the same numbers, job by job; what is there is not computed again
    chains/               base models of the seeds that are not done

Each table also holds what run.json says, as its meta data "asmg" (`polars.read_parquet_metadata`).

"step" is the update after which a model was scored, "period" the one whose data it was scored on: the following one,
but in forgetting.parquet every one. Every file appears whole or not at all.
"""

import fcntl
import json
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from asmg.datasets.prepared import Card, read_prepared
from asmg.experiments.jobs import (
    BASE,
    METHODS,
    NO_REPEAT,
    OWN,
    SENSITIVE,
    Chain,
    MethodJob,
    Protocol,
    run_chain,
    run_method,
    run_yardstick,
    versions,
)
from asmg.experiments.log import Periods
from asmg.experiments.statistics import Array, mean, spread, tally
from asmg.training import DivergedError
from asmg.updaters import UPDATERS
from asmg.yardsticks import LIGHTGBM_MISSING, YARDSTICKS, installed_yardsticks

__all__ = [
    "HIDDEN_SIZES",
    "LENGTHS",
    "ExperimentError",
    "ExperimentOptions",
    "cores",
    "default_methods",
    "run_experiment",
]

LENGTHS = (1, 2, 3, 4, 5, 7)
"""Sequence lengths k of the sensitivity figure."""

HIDDEN_SIZES = (1, 2, 4, 8, 16)
"""Hidden sizes of the sensitivity figure."""

# Seconds on DIGINETICA (1 core; the others about 20): the longest first, so that no core waits for the last one.
_COSTS = {"sml": 190, "asmg-gru-full": 160, "lightgbm": 110, "sml-mf": 60}

Say = Callable[[str], None]


class ExperimentError(RuntimeError):
    """A run ended before its time; what was done until then is kept."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_methods() -> tuple[str, ...]:
    """All methods, but for LightGBM where it is not installed."""
    return (*UPDATERS, *installed_yardsticks())


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """What is run."""

    methods: tuple[str, ...] = field(default_factory=default_methods)
    """Names of `asmg.updaters.UPDATERS` and of `asmg.yardsticks.YARDSTICKS`."""
    seeds: int = 5
    """Seeds 0 … seeds - 1."""
    protocol: Protocol = field(default_factory=Protocol)
    """Periods and settings."""
    sensitivity: bool = True
    """Whether asmg-gru-multi, where it is a method, is also run with other sequence lengths and hidden sizes."""
    processes: int | None = None
    """Jobs at a time; None for as many as there are cores."""

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("methods: expected at least one; received none")
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods: expected some of {', '.join(METHODS)}; received {name!r}")
            if name in YARDSTICKS and name not in installed_yardsticks():
                raise ValueError(f"methods: {LIGHTGBM_MISSING}")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods: expected each once; received {', '.join(self.methods)}")
        if self.seeds < 1:
            raise ValueError(f"seeds: expected at least 1; received {self.seeds}")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes: expected at least 1; received {self.processes}")

    @property
    def jobs(self) -> list[MethodJob]:
        """Of each seed."""
        found = [MethodJob(name) for name in self.methods]
        if self.sensitivity and SENSITIVE in self.methods:
            numbers = [("k", k) for k in LENGTHS] + [("hidden", d) for d in HIDDEN_SIZES]
            found += [MethodJob(SENSITIVE, f"{name}={n}") for name, n in numbers if n != OWN[name]]
        return found


def run_experiment(data: Path, out: Path, options: ExperimentOptions, *, say: Say = print) -> dict[str, Any]:
    """Run what is left of an experiment, and write its results.

    Args:
        data: a folder of `asmg experiment prepare`.
        out: the folder of the run; one with results of the same log and protocol is gone on with.
        options: what is run.
        say: told of progress, line by line.

    Returns:
        the summary.

    Raises:
        LogFormatError: `data` is not such a folder.
        ValueError: `out` holds something else, or another experiment; the periods do not fit the log.
        ExperimentError: a method diverged, or a process was killed.
    """
    started, card = time.monotonic(), read_prepared(data).card
    protocol = options.protocol
    if card.rows < protocol.periods:
        raise ValueError(f"periods: expected at most {card.rows}, the rows of the log; received {protocol.periods}")
    if protocol.categories and not card.categories:
        raise ValueError(f"categories: expected a log whose items have them; {card.dataset} has none")
    _claim(out, {"dataset": card.to_json(), "protocol": asdict(protocol)})
    with _alone(out):
        return _run_claimed(data, out, options, card, started, say)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against another run at the same time; the system lets go of it when the process ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out: expected a folder that no other run is at work in; one is in {folder}") from None
        yield
    finally:
        os.close(handle)


def _run_claimed(
    data: Path, out: Path, options: ExperimentOptions, card: Card, started: float, say: Say
) -> dict[str, Any]:
    protocol = options.protocol
    for partial in (out / "chains").glob("*.partial-*"):
        shutil.rmtree(partial)
    for partial in (out / "jobs").rglob(".*.json.*"):  # of a process that was killed while it wrote
        partial.unlink()

    left = [(seed, job) for seed in range(options.seeds) for job in options.jobs if not _file(out, seed, job).is_file()]
    total = options.seeds * len(options.jobs)
    processes = min(options.processes or cores(), max(1, len(left)))
    say(
        f"{card.dataset}: {card.rows:,} rows, {protocol.periods} periods; {len(options.methods)} methods, "
        f"{options.seeds} seeds: {total} runs, {total - len(left)} of them done already; {processes} at a time"
    )
    if left:
        _run(data, out, options, left, processes, say)
    summary = _write_results(out, card.dataset, options)
    shutil.rmtree(out / "chains", ignore_errors=True)
    say(f"done in {_duration(time.monotonic() - started)}: {out / 'summary.json'}")
    return summary


def _claim(out: Path, experiment: dict[str, Any]) -> None:
    """Make the folder of the run, or see that it is one of this experiment."""
    file = out / "run.json"
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(experiment))
        for part, values in wanted.items():
            for name, value in sorted(values.items(), key=lambda item: item[0] != "log_sha256"):
                if (received := known.get(part, {}).get(name)) != value and name != "asmg_version":
                    raise ValueError(
                        f"out: expected a new folder, or one with the same {part}; {file} has {name} {received!r}, "
                        f"not {value!r}"
                    )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out: expected a new folder, or one of an earlier run; {out} holds something else")
    out.mkdir(parents=True, exist_ok=True)
    _write(file, json.dumps(experiment, indent=1))


def _run(
    data: Path, out: Path, options: ExperimentOptions, left: list[tuple[int, MethodJob]], processes: int, say: Say
) -> None:
    """All jobs that are left, those of a seed once its chain is there."""
    waiting: dict[int, list[MethodJob]] = {}
    for seed, job in left:
        waiting.setdefault(seed, []).append(job)
    started, done, spent, whole = time.monotonic(), 0, 0, sum(_cost(job) for _, job in left)
    pool = ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=_start_worker, initargs=(data, out, options.protocol)
    )
    running: dict[Future[Any], tuple[int, MethodJob | None]] = {}
    try:
        ready = {
            seed
            for seed, jobs in waiting.items()
            if all(job.is_yardstick for job in jobs) or Chain(_chain(out, seed)).complete
        }

        def start(job: Callable[..., Any], *arguments: object) -> Future[Any]:
            try:
                return pool.submit(job, *arguments)
            except (OSError, ValueError) as error:  # the pool broke while it was starting a process
                raise BrokenProcessPool from error

        def submit() -> None:
            """As many jobs as there are processes; the slow ones first, and chains before anything of the next seed."""
            while len(running) < processes and (waiting or pending):
                seed = next((s for s in waiting if s in ready), None)
                if pending and (seed is None or pending[0] < seed):
                    seed = pending.pop(0)
                    running[start(_chain_job, seed)] = (seed, None)
                elif seed is not None:
                    jobs = waiting[seed]
                    job = max(jobs, key=_cost)
                    jobs.remove(job)
                    if not jobs:
                        del waiting[seed]
                    running[start(_method_job, seed, job)] = (seed, job)
                else:
                    return

        pending = [seed for seed in waiting if seed not in ready]
        submit()
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                seed, finished_job = running.pop(future)
                try:
                    found = future.result()
                except DivergedError as error:
                    raise ExperimentError(f"seed {seed}, {finished_job or 'pretraining'}: {error}") from error
                if finished_job is None:
                    ready.add(seed)
                    say(f"          seed {seed}: pretrained, and the chain of incremental models, in {found:.1f} s")
                    continue
                done, spent, past = done + 1, spent + _cost(finished_job), time.monotonic() - started
                say(
                    f"{done:4} / {len(left)}  seed {seed} {finished_job!s:24} {found['text']} "
                    f"{found['seconds']:7.1f} s; "
                    f"{_duration(past)} so far, about {_duration(past / spent * (whole - spent))} left"
                )
                if seed not in waiting and seed not in {s for s, _ in running.values()}:
                    shutil.rmtree(_chain(out, seed), ignore_errors=True)  # yardsticks alone have none
            submit()
    except BrokenProcessPool:
        raise ExperimentError(
            "a process of the experiment was ended from outside (out of memory?); the same command goes on from here"
        ) from None
    finally:
        _stop(pool)


def _cost(job: MethodJob) -> int:
    """How long a job takes, beside others."""
    return _COSTS.get(job.method, 20)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool at once, whatever they are doing: what they have not written is computed again."""
    workers = list((pool._processes or {}).values())  # the pool has no public way before Python 3.14
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()


# What runs in the processes.


@dataclass(frozen=True)
class _Worker:
    """What a process holds between its jobs."""

    data: Path
    out: Path
    protocol: Protocol

    @cached_property
    def periods(self) -> Periods:
        """Of the log."""
        return self.protocol.cut(read_prepared(self.data))


_worker: _Worker | None = None


def _start_worker(data: Path, out: Path, protocol: Protocol) -> None:
    global _worker
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the parent decides
    torch.set_num_threads(1)  # steps are small: a second thread costs more than it gives
    _worker = _Worker(data, out, protocol)


def _chain_job(seed: int) -> float:
    assert _worker is not None
    started = time.monotonic()
    run_chain(_chain(_worker.out, seed), _worker.periods, _worker.protocol, seed)
    return time.monotonic() - started


def _method_job(seed: int, job: MethodJob) -> dict[str, Any]:
    assert _worker is not None
    started, protocol = time.monotonic(), _worker.protocol
    if job.is_yardstick:
        found = run_yardstick(job, _worker.periods, protocol)
    else:
        chain = Chain(_chain(_worker.out, seed))
        found = run_method(job, _worker.periods, protocol, seed, chain, matrix=not job.variant)
    _write(_file(_worker.out, seed, job), json.dumps({"versions": versions(), **found}))
    rows = [row for row in found["scores"] if row["test"] and row["slice"] == "all"]
    text = "  ".join(
        f"{label} {np.mean([row[name] for row in rows]):.4f}"
        for label, name in (("AUC", "auc"), ("LogLoss", "logloss"))
        if all(row[name] is not None for row in rows)
    )
    return {"text": text, "seconds": time.monotonic() - started}


def _chain(out: Path, seed: int) -> Path:
    return out / "chains" / f"seed-{seed}"


def _file(out: Path, seed: int, job: MethodJob) -> Path:
    return out / "jobs" / f"seed-{seed}" / f"{str(job).replace(' ', '-').replace('=', '')}.json"


# What comes out.

_SCHEMAS: dict[str, dict[str, Any]] = {
    "scores": {
        "step": pl.Int32, "period": pl.Int32, "test": pl.Boolean, "slice": pl.String, "events": pl.Int64,
        "clicks": pl.Int64, "auc": pl.Float64, "logloss": pl.Float64, "calibration": pl.Float64,
    },
    "timings": {"step": pl.Int32, "stage": pl.String, "seconds": pl.Float64, "cpu_seconds": pl.Float64},
    "calibration": {
        "period": pl.Int32, "bin": pl.Int32, "count": pl.Int64, "predicted": pl.Float64, "clicked": pl.Float64,
    },
    "forgetting": {"step": pl.Int32, "period": pl.Int32, "auc": pl.Float64, "logloss": pl.Float64},
}  # fmt: skip


def _write_results(out: Path, dataset: str, options: ExperimentOptions) -> dict[str, Any]:
    """The tables and the summary of all jobs of these options."""
    results = {
        (seed, job): json.loads(_file(out, seed, job).read_text(encoding="utf-8"))
        for job in options.jobs
        for seed in range(options.seeds)
    }
    known = json.loads((out / "run.json").read_text(encoding="utf-8"))
    known = {name: known[name] for name in ("dataset", "protocol")}
    known["options"] = {
        "methods": list(options.methods),
        "seeds": options.seeds,
        **asdict(options.protocol),
        "sensitivity": options.sensitivity,
    }
    known["versions"] = sorted({json.dumps(found["versions"], sort_keys=True) for found in results.values()})
    known["versions"] = [json.loads(text) for text in known["versions"]]
    known["machine"] = {"system": platform.system(), "processor": platform.machine(), "cores": cores()}
    known["configs"] = {str(job): results[0, job]["config"] for job in options.jobs}
    frames = {}
    for name, schema in _SCHEMAS.items():
        parts = []
        for (seed, job), found in results.items():
            own = pl.DataFrame(found[name], schema=schema, orient="row")
            where = {"seed": pl.lit(seed, pl.Int32), "method": pl.lit(job.method), "variant": pl.lit(job.variant)}
            parts.append(own.select(**where, **{column: pl.col(column) for column in schema}))
        frame = pl.concat(parts)
        if name == "scores":
            given = {"dataset": pl.lit(dataset), "settings": pl.lit(options.protocol.settings)}
            frame = frame.select(**given, **{column: pl.col(column) for column in frame.columns})
        frames[name] = frame
        temporary = out / f".{name}.parquet"
        frame.write_parquet(temporary, metadata={"asmg": json.dumps(known)})
        temporary.replace(out / f"{name}.parquet")
    _write(out / "run.json", json.dumps(known, indent=1))
    summary = _summary(dataset, options, frames["scores"], frames["timings"])
    _write(out / "summary.json", json.dumps(summary, indent=1))
    return summary


def _summary(dataset: str, options: ExperimentOptions, scores: pl.DataFrame, timings: pl.DataFrame) -> dict[str, Any]:
    """AUC and LogLoss over the test periods; "periods" are means over seeds, "std" is over the seeds' means.

    A period of one class has no AUC and is left out of the mean. "no_repeat": the same of the rows whose item is none
    of the user's last 30 clicks. "against_iu" and "against_lightgbm", where these were run, have of each metric "wins"
    and "ties" out of all "pairs" of seed and test period, and "worst_seed", the "seed" that favours the method least,
    with the mean by which it is "better" there (lower LogLoss is better).
    "seconds" is what all updates of one seed took, the mean over seeds.
    """
    tested = scores.filter(pl.col("test")).sort("seed", "period")

    def values_of(job: MethodJob, metric: str, part: str = "all") -> Array:
        """Of each seed in each test period [seeds, periods]."""
        mine = (pl.col("method") == job.method) & (pl.col("variant") == job.variant) & (pl.col("slice") == part)
        table = tested.filter(mine).pivot("period", index="seed", values=metric, sort_columns=False)
        return table.drop("seed").to_numpy().astype(float)

    def against(job: MethodJob, other: str, metric: str) -> dict[str, Any]:
        better = values_of(job, metric) - values_of(MethodJob(other), metric)
        found = tally(better if metric == "auc" else -better)
        worst = None if found.worst is None else {"seed": found.worst_seed, "better": found.worst}
        return {"wins": found.wins, "ties": found.ties, "pairs": found.pairs, "worst_seed": worst}

    def over(job: MethodJob, part: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for metric in ("auc", "logloss"):
            values = values_of(job, metric, part)
            over_seeds = spread(mean(values, 1))
            found[metric] = {
                "mean": over_seeds and over_seeds.mean,
                "std": over_seeds and (over_seeds.std or 0.0),
                "periods": [None if np.isnan(v) else float(v) for v in mean(values, 0)],
            }
        return found

    def of(job: MethodJob) -> dict[str, Any]:
        mine = (pl.col("method") == job.method) & (pl.col("variant") == job.variant)
        found = {**over(job, "all"), "no_repeat": over(job, NO_REPEAT)}
        for other in (BASE, "lightgbm"):
            if other in options.methods and job.method != other:
                found[f"against_{other}"] = {metric: against(job, other, metric) for metric in ("auc", "logloss")}
        found["seconds"] = timings.filter(mine)["seconds"].sum() / options.seeds
        return found

    summary = {
        "dataset": dataset,
        "settings": options.protocol.settings,
        "methods": {name: of(MethodJob(name)) for name in options.methods},
    }
    variants = [job for job in options.jobs if job.variant]
    if variants:
        summary["sensitivity"] = {str(job): of(job) for job in variants}
    return summary


def _write(file: Path, text: str) -> None:
    """The whole file or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
