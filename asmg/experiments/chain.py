"""The chain of incremental models of a seed: pretrained once, updated by IU on each period.

IU and every ASMG method read the same chain, because ASMG's base model is IU's; their results are bit-identical to
those of a method that trains its base model itself. Of each update only the changed rows are stored (`RowUpdate`).
"""

import importlib.metadata
import json
import os
import platform
import shutil
import time
from pathlib import Path

from asmg.base_state import BASE_PARTS, BaseState, dump_base, load_base
from asmg.base_training import BaseTraining
from asmg.checkpoint import Checkpoint
from asmg.experiments.methods import MethodJob
from asmg.experiments.periods import Periods
from asmg.experiments.protocol import Protocol
from asmg.progressive import stage_rng
from asmg.yardsticks.boosting import lightgbm_version

__all__ = ["Chain", "Stopwatch", "run_chain", "versions"]


class Chain:
    """The folder with the pretrained base model and the updates of IU after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def complete(self) -> bool:
        """Whether the folder has a chain, made by the installed versions."""
        file = self.folder / "chain.json"
        return file.is_file() and json.loads(file.read_text())["versions"] == versions()

    def start(self, training: BaseTraining) -> BaseState:
        """The pretrained base model."""
        return load_base(training.model, {name: self._read(name) for name in BASE_PARTS})

    def update(self, training: BaseTraining, state: BaseState, step: int) -> BaseState:
        """The state with IU's update of a step pending.

        Args:
            training: of the base model.
            state: after the step before.
            step: number of the step.
        """
        return load_base(training.model, {**dump_base(training.model, state), "pending": self._read(f"update-{step}")})

    def seconds(self, step: int) -> tuple[float, float]:
        """The time that an update took: wall and CPU seconds."""
        wall, cpu = json.loads((self.folder / "chain.json").read_text())["seconds"][str(step)]
        return float(wall), float(cpu)

    def _read(self, name: str) -> Checkpoint:
        return Checkpoint.from_bytes((self.folder / f"{name}.safetensors").read_bytes())


def run_chain(
    folder: Path, periods: Periods, protocol: Protocol, seed: int, *, start: BaseState | None = None
) -> Chain:
    """Pretrain the base model and learn all of IU's updates.

    Args:
        folder: of the chain; it appears when it is complete.
        periods: of the log.
        protocol: the experiment's.
        seed: for everything random.
        start: a pretrained state to use instead of pretraining.
    """
    updater = MethodJob("iu").build(protocol)
    training, data = updater.base, periods.data
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)

    def write(name: str, part: Checkpoint) -> None:
        (partial / f"{name}.safetensors").write_bytes(part.to_bytes())

    state = start or training.pretrained(
        data[: protocol.pretrain], data[protocol.pretrain], stage_rng(seed, 0, "pretrain")
    )
    for name, part in dump_base(training.model, state).items():
        write(name, part)
    seconds = {}
    for step in protocol.steps:
        clock = Stopwatch()
        state = training.train(state, data[step - 1], stage_rng(seed, step, "update_base"))
        seconds[step] = clock.read()
        write(f"update-{step}", dump_base(training.model, state)["pending"])
        state = training.committed(state)
    (partial / "chain.json").write_text(json.dumps({"versions": versions(), "seconds": seconds}))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return Chain(folder)


def versions() -> dict[str, str]:
    """Name → version of Python, of this package and of the libraries that it computes with."""
    names = ["asmg-service", "torch", "numpy", "numba", "polars"]
    found = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
    return found | ({} if (lightgbm := lightgbm_version()) is None else {"lightgbm": lightgbm})


class Stopwatch:
    """Measures wall and CPU time from its creation."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Wall and CPU seconds so far."""
        return time.perf_counter() - self.wall, time.process_time() - self.cpu
