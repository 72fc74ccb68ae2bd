"""The jobs as they run in the processes of an experiment. Each process cuts the log into periods once."""

import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asmg.datasets.prepared import read_prepared
from asmg.experiments.chain import Chain, run_chain, versions
from asmg.experiments.folder import chain_folder, job_file, write_whole
from asmg.experiments.jobs import run_method, run_yardstick
from asmg.experiments.methods import MethodJob
from asmg.experiments.periods import Periods
from asmg.experiments.protocol import Protocol

__all__ = ["chain_job", "method_job", "start_worker"]


@dataclass(frozen=True)
class _Worker:
    """What a process keeps between its jobs."""

    data: Path
    out: Path
    protocol: Protocol

    @cached_property
    def periods(self) -> Periods:
        """The periods of the log."""
        return self.protocol.cut(read_prepared(self.data))


_worker: _Worker | None = None


def start_worker(data: Path, out: Path, protocol: Protocol) -> None:
    """Prepare a new process: it ends with its parent, ignores Ctrl-C and computes in one thread.

    Args:
        data: the folder of the prepared log.
        out: the folder of the run.
        protocol: the experiment's.
    """
    global _worker
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent reacts
    torch.set_num_threads(1)  # steps are small: a second thread costs more than it gives
    _worker = _Worker(data, out, protocol)


def chain_job(seed: int) -> float:
    """Run the chain of a seed; return the seconds that it took."""
    assert _worker is not None
    started = time.monotonic()
    run_chain(chain_folder(_worker.out, seed), _worker.periods, _worker.protocol, seed)
    return time.monotonic() - started


def method_job(seed: int, job: MethodJob) -> dict[str, Any]:
    """Run a method and write its results.

    Returns:
        "text", its mean scores for the progress line, and "seconds", the time that it took.
    """
    assert _worker is not None
    started, protocol = time.monotonic(), _worker.protocol
    if job.is_yardstick:
        found = run_yardstick(job, _worker.periods, protocol)
    else:
        chain = Chain(chain_folder(_worker.out, seed))
        found = run_method(job, _worker.periods, protocol, seed, chain, matrix=not job.variant)
    write_whole(job_file(_worker.out, seed, job), json.dumps({"versions": versions(), **found}))
    rows = [row for row in found["scores"] if row["test"] and row["slice"] == "all"]
    text = "  ".join(
        f"{label} {np.mean([row[name] for row in rows]):.4f}"
        for label, name in (("AUC", "auc"), ("LogLoss", "logloss"))
        if all(row[name] is not None for row in rows)
    )
    return {"text": text, "seconds": time.monotonic() - started}
