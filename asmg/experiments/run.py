"""Run an experiment: methods × seeds on all cores, resumable, with all results in files.

The folder of a run holds:

    run.json              what was run: the log's card, the options, the versions, the machine, the methods' settings
    scores.parquet        seed, method, variant, step, period, test, slice, events, clicks, auc, logloss, calibration
    timings.parquet       seed, method, variant, step, stage, seconds, cpu_seconds
    calibration.parquet   seed, method, variant, period, bin, count, predicted, clicked
    forgetting.parquet    seed, method, variant, step, period, auc, logloss
    summary.json          AUC and LogLoss of each method over the test periods: mean and standard deviation over seeds;
                          wins and ties against IU and LightGBM, and the seed with the worst result of the method
    jobs/                 the results of each job; a job whose file exists is not run again
    chains/               base models of the seeds that are not finished

Each table has the contents of run.json as its meta data "asmg" (`polars.read_parquet_metadata`).

"step" is the update after which a model was scored. "period" is the period on which it was scored: the one after the
step, in forgetting.parquet every one. Each file appears complete or not at all.
"""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from asmg.datasets.card import Card
from asmg.datasets.prepared import read_prepared
from asmg.experiments.chain import Chain
from asmg.experiments.folder import chain_folder, claim, exclusive, job_file
from asmg.experiments.methods import MethodJob
from asmg.experiments.options import ExperimentOptions, cores
from asmg.experiments.schedule import Schedule, cost
from asmg.experiments.tables import write_results
from asmg.experiments.worker import chain_job, method_job, start_worker
from asmg.training import DivergedError

__all__ = ["ExperimentError", "run_experiment"]

Say = Callable[[str], None]
"""Called with each line of progress."""


class ExperimentError(RuntimeError):
    """A run ended early; its finished jobs are kept."""


def run_experiment(data: Path, out: Path, options: ExperimentOptions, *, say: Say = print) -> dict[str, Any]:
    """Run the jobs of an experiment that are not done yet, and write its results.

    Args:
        data: a folder that `asmg experiment prepare` wrote.
        out: the folder of the run: new, or one of the same log and protocol, which is continued.
        options: what to run.
        say: called with each line of progress.

    Returns:
        the summary.

    Raises:
        LogFormatError: `data` is not such a folder.
        ValueError: `out` holds something else or another experiment, or the periods do not fit the log.
        ExperimentError: a method diverged, or a process was killed.
    """
    started, card = time.monotonic(), read_prepared(data).card
    protocol = options.protocol
    if card.rows < protocol.periods:
        raise ValueError(f"periods: expected at most {card.rows}, the rows of the log; received {protocol.periods}")
    if protocol.categories and not card.categories:
        raise ValueError(f"categories: expected a log whose items have them; {card.dataset} has none")
    claim(out, {"dataset": card.to_json(), "protocol": asdict(protocol)})
    with exclusive(out):
        return _run_in(data, out, options, card, started, say)


def _run_in(data: Path, out: Path, options: ExperimentOptions, card: Card, started: float, say: Say) -> dict[str, Any]:
    """Run what is left in a claimed and locked folder."""
    protocol = options.protocol
    for partial in (out / "chains").glob("*.partial-*"):
        shutil.rmtree(partial)
    for partial in (out / "jobs").rglob(".*.json.*"):  # of a process that was killed while it wrote
        partial.unlink()

    left = [
        (seed, job) for seed in range(options.seeds) for job in options.jobs if not job_file(out, seed, job).is_file()
    ]
    total = options.seeds * len(options.jobs)
    processes = min(options.processes or cores(), max(1, len(left)))
    say(
        f"{card.dataset}: {card.rows:,} rows, {protocol.periods} periods; {len(options.methods)} methods, "
        f"{options.seeds} seeds: {total} runs, {total - len(left)} of them done already; {processes} at a time"
    )
    if left:
        _run_jobs(data, out, options, left, processes, say)
    summary = write_results(out, card.dataset, options)
    shutil.rmtree(out / "chains", ignore_errors=True)
    say(f"done in {_duration(time.monotonic() - started)}: {out / 'summary.json'}")
    return summary


def _run_jobs(
    data: Path, out: Path, options: ExperimentOptions, left: list[tuple[int, MethodJob]], processes: int, say: Say
) -> None:
    """Run the jobs that are left, `processes` at a time, and report each one that is done."""
    schedule = Schedule(left, lambda seed: Chain(chain_folder(out, seed)).complete)
    started, done, spent, whole = time.monotonic(), 0, 0, sum(cost(job) for _, job in left)
    others = set(active_children())
    pool = ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=start_worker, initargs=(data, out, options.protocol)
    )
    running: dict[Future[Any], tuple[int, MethodJob | None]] = {}

    def start_jobs() -> None:
        while len(running) < processes and (found := schedule.next()) is not None:
            seed, job = found
            try:
                future = pool.submit(chain_job, seed) if job is None else pool.submit(method_job, seed, job)
            except (OSError, ValueError) as error:  # the pool broke while it was starting a process
                raise BrokenProcessPool from error
            running[future] = found

    try:
        start_jobs()
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                seed, job = running.pop(future)
                try:
                    found = future.result()
                except DivergedError as error:
                    raise ExperimentError(f"seed {seed}, {job or 'pretraining'}: {error}") from error
                if job is None:
                    schedule.chain_done(seed)
                    say(f"          seed {seed}: pretrained, and the chain of incremental models, in {found:.1f} s")
                    continue
                done, spent, past = done + 1, spent + cost(job), time.monotonic() - started
                say(
                    f"{done:4} / {len(left)}  seed {seed} {job!s:24} {found['text']} {found['seconds']:7.1f} s; "
                    f"{_duration(past)} so far, about {_duration(past / spent * (whole - spent))} left"
                )
                if not schedule.has_jobs(seed) and seed not in {s for s, _ in running.values()}:
                    shutil.rmtree(chain_folder(out, seed), ignore_errors=True)  # there is none for yardsticks alone
            start_jobs()
    except BrokenProcessPool:
        raise ExperimentError(
            "a process of the experiment was ended from outside (out of memory?); the same command goes on from here"
        ) from None
    finally:
        # Stop whatever the processes are doing: results that are not written yet are computed again by the next run.
        workers = [process for process in active_children() if process not in others]
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
