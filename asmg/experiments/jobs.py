"""What an experiment computes: for each seed the chain of incremental models, and on it one method after the other.

A job is a pure function of the periods, the options and the seed, so one that was interrupted is simply run again. The
base model is pretrained once for each seed. From there IU's updates are learned once, and kept as what they are: the
rows that each period moved (`RowUpdate`). IU and every ASMG method read the same chain, because ASMG's base model *is*
IU's; the numbers are to the bit those of a method that trains its base model itself. Yardsticks (`asmg.yardsticks`)
read no chain.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from asmg.base_training import BaseState, BaseTraining
from asmg.batch import PeriodData, excerpt
from asmg.checkpoint import Checkpoint
from asmg.datasets.prepared import PreparedLog
from asmg.experiments.log import Known, Periods, cut_periods, with_numbers, with_statistics
from asmg.generator import GeneratorConfig
from asmg.metrics import scores
from asmg.models import EmbeddingMLPConfig, Params, default_config
from asmg.progressive import stage_rng
from asmg.statistics import NAMES
from asmg.training import take
from asmg.updaters import UPDATERS, build_updater
from asmg.updaters.asmg import Asmg, AsmgConfig, AsmgState
from asmg.updaters.base import Updater
from asmg.updaters.iu import IncrementalUpdate
from asmg.yardsticks import YARDSTICKS, build_yardstick
from asmg.yardsticks.boosting import lightgbm_version

__all__ = [
    "BASE",
    "BINS",
    "METHODS",
    "NO_REPEAT",
    "OWN",
    "SENSITIVE",
    "SLICES",
    "VARIANTS",
    "Chain",
    "MethodJob",
    "Protocol",
    "Settings",
    "run_chain",
    "run_method",
    "run_yardstick",
    "versions",
]

BINS = 20
"""Bins of a reliability curve, of equal numbers of predictions."""

METHODS = (*UPDATERS, *YARDSTICKS)
"""What an experiment can be run with."""

NO_REPEAT = "no repeat"
"""The slice of the interactions whose item is in none of the user's last 30 clicks."""

SLICES = ("all", "cold user", "warm user", "cold item", "warm item", NO_REPEAT)
"""Of a period's interactions; cold: a user in no row, an item in no click of the earlier periods."""

BASE = "iu"
"""The method that the others are compared with."""

SENSITIVE = "asmg-gru-multi"
"""The method that the sensitivity figures are about."""

OWN: dict[str, int] = {"k": AsmgConfig().window or 0, "hidden": GeneratorConfig().hidden}
"""Its own sequence length and hidden size."""

VARIANTS: dict[str, Callable[[str], Any]] = {
    "k": int,
    "hidden": int,
    "lr": float,
    "dense_share": float,
    "epochs": int,
    "caution": float,
}
"""Settings of the generator that a variant can change (`AsmgConfig`, k its window and hidden that of the GRUs), and how
their values are read."""

Settings = Literal["default", "paper"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The paper's protocol: pretrain on the first periods, update on each of the others, test on the last."""

    periods: int = 31
    """Equal periods that the log is cut into."""
    pretrain: int = 10
    """Periods of pretraining; the one after them says after how many passes the base model was best."""
    test_from: int = 24
    """The first update step that counts: the model after it is scored on the following period."""
    settings: Settings = "default"
    """With our settings, or with those of the paper's authors."""
    categories: bool = False
    """Whether items have their categories."""
    statistics: bool | None = None
    """Whether the base model reads statistics; None: with our settings it does, with the authors' it does not."""
    fields: bool = False
    """Whether methods read the fields of the log, hour and weekday among them."""
    dropped: tuple[str, ...] = ()
    """Statistics, of `asmg.statistics.NAMES`, in the place of which every method reads zeros: what each is worth."""
    dim: int | None = None
    """Width of the base model's embeddings; None: as the settings have it."""
    hidden: tuple[int, ...] | None = None
    """Widths of its hidden layers; None: as the settings have it."""
    dot: bool | None = None
    """Whether it has the dot products; None: as the settings have it."""

    def __post_init__(self) -> None:
        if self.settings not in ("default", "paper"):
            raise ValueError(f"settings: expected default or paper; received {self.settings!r}")
        if self.pretrain < 1:
            raise ValueError(f"pretrain: expected at least 1; received {self.pretrain}")
        for name in self.dropped:
            if name not in NAMES:
                raise ValueError(f"dropped: expected some of {', '.join(NAMES)}; received {name!r}")
        if not self.pretrain < self.test_from < self.periods:
            raise ValueError(
                "expected pretrain < test_from < periods; "
                f"received pretrain {self.pretrain}, test_from {self.test_from}, periods {self.periods}"
            )
        _ = self.model  # its widths are checked there

    @property
    def steps(self) -> range:
        """The update steps: the last period is only scored."""
        return range(self.pretrain + 1, self.periods)

    @property
    def reads_statistics(self) -> bool:
        """Whether the base model does."""
        return self.settings == "default" if self.statistics is None else self.statistics

    @property
    def dropped_columns(self) -> list[int]:
        """The columns of `dropped`."""
        return [NAMES.index(name) for name in self.dropped]

    @property
    def model(self) -> EmbeddingMLPConfig:
        """The base model."""
        numeric = len(NAMES) if self.reads_statistics else 0
        shape = default_config if self.settings == "default" else EmbeddingMLPConfig
        asked = {"dim": self.dim, "hidden": self.hidden, "dot": self.dot}
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return replace(shape(categories=self.categories, numeric=numeric), fields=self.fields, **changes)

    def cut(self, log: PreparedLog) -> Periods:
        """The periods of a log as the base model reads them."""
        known: Known = "all" if self.settings == "paper" else "so_far"
        periods = cut_periods(log, self.periods, known=known, categories=self.categories, fields=self.fields)
        return with_statistics(periods, self.dropped_columns) if self.reads_statistics else with_numbers(periods)


@dataclass(frozen=True, order=True)
class MethodJob:
    """A method, or for the sensitivity figures one of asmg-gru-multi with another setting."""

    method: str
    """One of METHODS."""
    variant: str = ""
    """Nothing, or a setting of the generator (`VARIANTS`), such as "k=5" or "lr=0.01"."""

    def __str__(self) -> str:
        return f"{self.method} {self.variant}".rstrip()

    @property
    def is_yardstick(self) -> bool:
        """Whether it reads no chain of incremental models."""
        return self.method in YARDSTICKS

    def build(self, protocol: Protocol) -> Updater[Any]:
        """The method.

        Raises:
            ValueError: there is no such method or variant.
        """
        updater = build_updater(self.method, protocol.model, reference=protocol.settings == "paper")
        if not self.variant:
            return updater
        name, _, number = self.variant.partition("=")
        shape = updater.config.generator if isinstance(updater, Asmg) else None
        try:
            value = VARIANTS[name](number)
            if not isinstance(shape, GeneratorConfig):
                raise ValueError
        except (KeyError, ValueError):
            known = ", ".join(f"{known}=…" for known in VARIANTS)
            raise ValueError(f"variant: expected one of {known} of an ASMG-GRU method; received {self}") from None
        assert isinstance(updater, Asmg)
        if name == "hidden":
            changes: dict[str, Any] = {"generator": replace(shape, hidden=value)}
        else:
            changes = {"window" if name == "k" else name: value}
        config = replace(updater.config, **changes)
        return Asmg(updater.base.model.config, config, updater.base.config, updater.execution, name=updater.name)


class Chain:
    """The pretrained base model and the updates of IU after it, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def complete(self) -> bool:
        """Whether there is one, made by these versions."""
        file = self.folder / "chain.json"
        return file.is_file() and json.loads(file.read_text())["versions"] == versions()

    def start(self, training: BaseTraining) -> BaseState:
        """The pretrained base model."""
        return training.load({name: self._read(name) for name in ("base", "optimizer")})

    def update(self, training: BaseTraining, state: BaseState, step: int) -> BaseState:
        """The state with IU's update of this step pending; `state` is that after the step before."""
        return training.load({**training.dump(state), "pending": self._read(f"update-{step}")})

    def seconds(self, step: int) -> tuple[float, float]:
        """What learning that update took, wall and CPU."""
        wall, cpu = json.loads((self.folder / "chain.json").read_text())["seconds"][str(step)]
        return float(wall), float(cpu)

    def _read(self, name: str) -> Checkpoint:
        return Checkpoint.from_bytes((self.folder / f"{name}.safetensors").read_bytes())


def run_chain(
    folder: Path, periods: Periods, protocol: Protocol, seed: int, *, start: BaseState | None = None
) -> Chain:
    """Pretrain the base model, unless it is given, and learn all of IU's updates.

    The folder appears when all is there.
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
    for name, part in training.dump(state).items():
        write(name, part)
    seconds = {}
    for step in protocol.steps:
        clock = _Clock()
        state = training.train(state, data[step - 1], stage_rng(seed, step, "update_base"))
        seconds[step] = clock.read()
        write(f"update-{step}", training.dump(state)["pending"])
        state = training.committed(state)
    (partial / "chain.json").write_text(json.dumps({"versions": versions(), "seconds": seconds}))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return Chain(folder)


def run_method(
    job: MethodJob, periods: Periods, protocol: Protocol, seed: int, chain: Chain, *, matrix: bool = True
) -> dict[str, Any]:
    """Update on every period, score each model on the period after it, and look at all that there is to see.

    Args:
        job: the method.
        periods: of the log.
        protocol: what is pretrained, updated, tested.
        seed: of everything random.
        chain: the seed's; methods on another base model pretrain themselves.
        matrix: whether every model is also scored on every period (forgetting).

    Returns:
        plain JSON values: "config" and the rows of four tables, "scores", "timings", "calibration", "forgetting"; see
        `asmg.experiments.run`.
    """
    updater, data = job.build(protocol), periods.data
    if updater.model.config == protocol.model:
        base = chain.start(updater.base)
        state = updater.started(base, data[: protocol.pretrain], rng=stage_rng(seed, 0, "start"))
    else:
        rng = stage_rng(seed, 0, "pretrain")
        state = updater.pretrained(data[: protocol.pretrain], data[protocol.pretrain], rng=rng)
    reads: dict[int, _Reader] = {}
    found: dict[str, Any] = {"config": _config(updater), **_nothing()}

    def look(step: int) -> None:
        models = updater.serving_models(state)
        served = models.get("generated", models["incremental"])

        def read(period: int) -> Tensor:
            reader = reads.get(period) or _Reader(updater.base, data[period - 1])
            if matrix:  # it will be needed again
                reads[period] = reader
            return reader.logits(served)

        logits = read(step + 1)
        _note(found, logits, periods, protocol, step)
        for period in range(1, protocol.periods + 1) if matrix else ():
            own = logits if period == step + 1 else read(period)
            score = scores(own, data[period - 1].label)
            found["forgetting"].append({"step": step, "period": period, "auc": score.auc, "logloss": score.logloss})

    look(protocol.pretrain)
    for step in protocol.steps:
        for stage in updater.stages:
            clock = _Clock()
            if stage == "update_base" and isinstance(updater, Asmg | IncrementalUpdate):
                base = chain.update(updater.base, state.base if isinstance(state, AsmgState) else state, step)
                state = replace(state, base=base) if isinstance(state, AsmgState) else base
                wall, cpu = chain.seconds(step)
            else:
                state = updater.run_stage(stage, state, data[step - 1], rng=stage_rng(seed, step, stage))
                wall, cpu = clock.read()
            found["timings"].append({"step": step, "stage": stage, "seconds": wall, "cpu_seconds": cpu})
        look(step)
    return found


def run_yardstick(job: MethodJob, periods: Periods, protocol: Protocol) -> dict[str, Any]:
    """The same of a yardstick, which is deterministic: it has no seed.

    Its table "forgetting" is empty: it predicts by what was counted up to now, and no other period than the next one.
    """
    yardstick = build_yardstick(job.method, dropped=protocol.dropped_columns, fields=periods.fields)
    data = periods.data
    found: dict[str, Any] = {"config": yardstick.config, **_nothing()}
    yardstick.learn(data[: protocol.pretrain])
    for step in (protocol.pretrain, *protocol.steps):
        if step > protocol.pretrain:
            clock = _Clock()
            yardstick.learn([data[step - 1]])
            wall, cpu = clock.read()
            found["timings"].append({"step": step, "stage": "learn", "seconds": wall, "cpu_seconds": cpu})
        _note(found, yardstick.logits(data[step]), periods, protocol, step)
    return found


def versions() -> dict[str, str]:
    """Of Python, of this and of what it computes with."""
    names = ["asmg-service", "torch", "numpy", "numba", "polars"]
    found = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
    return found | ({} if (lightgbm := lightgbm_version()) is None else {"lightgbm": lightgbm})


class _Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


class _Reader:
    """One period's log in the rows that it touches, to be scored by many models."""

    def __init__(self, base: BaseTraining, data: PeriodData) -> None:
        self.base = base
        (self.data,), self.rows = excerpt([data], base.model.tables)

    def logits(self, params: Params) -> Tensor:
        """Of the whole period, in its order."""
        return self.base.predicted(take(params, self.rows), self.data)


def _nothing() -> dict[str, list[dict[str, Any]]]:
    """The tables of a run, empty."""
    return {"scores": [], "timings": [], "calibration": [], "forgetting": []}


def _note(found: dict[str, Any], logits: Tensor, periods: Periods, protocol: Protocol, step: int) -> None:
    """Add what a model after `step` predicted of the following period to the tables."""
    test = step >= protocol.test_from
    where = {"step": step, "period": step + 1, "test": test}
    found["scores"] += [{**where, **row} for row in _slices(logits, periods, step)]
    if test:
        found["calibration"] += [{"period": step + 1, **row} for row in _bins(logits, periods.data[step].label)]


def _slices(logits: Tensor, periods: Periods, step: int) -> Iterator[dict[str, Any]]:
    """Scores of a period's predictions, of all and of each slice."""
    label = periods.data[step].label
    user, item = periods.cold(step)
    masks = (torch.ones_like(user), user, ~user, item, ~item, ~periods.repeats(step))
    for name, mask in zip(SLICES, masks, strict=True):
        if mask.any():
            score = scores(logits[mask], label[mask])
            yield {"slice": name, **asdict(score)}
        else:
            yield {"slice": name, "events": 0, "clicks": 0, "auc": None, "logloss": None, "calibration": None}


def _bins(logits: Tensor, label: Tensor) -> Iterator[dict[str, Any]]:
    """The reliability curve: predictions in ascending order, in `BINS` bins of equal numbers (of one, ±1)."""
    order = torch.sort(logits, stable=True).indices
    predicted, clicked = torch.sigmoid(logits.double())[order], label.double()[order]
    for n, (p, y) in enumerate(zip(predicted.tensor_split(BINS), clicked.tensor_split(BINS), strict=True)):
        if len(p):
            yield {"bin": n, "count": len(p), "predicted": float(p.mean()), "clicked": float(y.mean())}


def _config(updater: Updater[Any]) -> dict[str, Any]:
    """All settings of a method as plain JSON values."""
    found = {"model": updater.model.config.to_json(), "training": asdict(updater.base.config)}
    config = getattr(updater, "config", None)
    return found if config is None else found | {"method": asdict(config)}
