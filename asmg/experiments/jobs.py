"""One job of an experiment: a method or a yardstick with one seed.

A job is a pure function of the periods, the options and the seed, so an interrupted job is simply run again.
"""

from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from asmg.base_training import BaseTraining
from asmg.batch import PeriodData, excerpt
from asmg.experiments.chain import Chain, Stopwatch
from asmg.experiments.methods import MethodJob
from asmg.experiments.observations import add_observations, empty_tables
from asmg.experiments.periods import Periods
from asmg.experiments.protocol import Protocol
from asmg.metrics import scores
from asmg.models import Params
from asmg.progressive import stage_rng
from asmg.training import take
from asmg.updaters.asmg import Asmg, AsmgState
from asmg.updaters.base import Updater
from asmg.updaters.iu import IncrementalUpdate
from asmg.yardsticks import build_yardstick

__all__ = ["run_method", "run_yardstick"]


def run_method(
    job: MethodJob, periods: Periods, protocol: Protocol, seed: int, chain: Chain, *, matrix: bool = True
) -> dict[str, Any]:
    """Update a method on every period and score each model on the period after it.

    Args:
        job: the method.
        periods: of the log.
        protocol: the experiment's.
        seed: for everything random.
        chain: of the seed; methods with another base model ignore it and pretrain their own.
        matrix: whether every model is also scored on every period, for the table "forgetting".

    Returns:
        plain JSON values: "config", and the rows of the tables "scores", "timings", "calibration" and "forgetting" (see
        `asmg.experiments.run`).
    """
    updater, data = job.build(protocol), periods.data
    if updater.model.config == protocol.model:
        base = chain.start(updater.base)
        state = updater.started(base, data[: protocol.pretrain], rng=stage_rng(seed, 0, "start"))
    else:
        rng = stage_rng(seed, 0, "pretrain")
        state = updater.pretrained(data[: protocol.pretrain], data[protocol.pretrain], rng=rng)
    reads: dict[int, _Reader] = {}
    found: dict[str, Any] = {"config": _config(updater), **empty_tables()}

    def score_models(step: int) -> None:
        models = updater.serving_models(state)
        served = models.get("generated", models["incremental"])

        def read(period: int) -> Tensor:
            reader = reads.get(period) or _Reader(updater.base, data[period - 1])
            if matrix:  # all later models score this period too
                reads[period] = reader
            return reader.logits(served)

        logits = read(step + 1)
        add_observations(found, logits, periods, protocol, step)
        for period in range(1, protocol.periods + 1) if matrix else ():
            own = logits if period == step + 1 else read(period)
            score = scores(own, data[period - 1].label)
            found["forgetting"].append({"step": step, "period": period, "auc": score.auc, "logloss": score.logloss})

    score_models(protocol.pretrain)
    for step in protocol.steps:
        for stage in updater.stages:
            clock = Stopwatch()
            if stage == "update_base" and isinstance(updater, Asmg | IncrementalUpdate):
                base = chain.update(updater.base, state.base if isinstance(state, AsmgState) else state, step)
                state = replace(state, base=base) if isinstance(state, AsmgState) else base
                wall, cpu = chain.seconds(step)
            else:
                state = updater.run_stage(stage, state, data[step - 1], rng=stage_rng(seed, step, stage))
                wall, cpu = clock.read()
            found["timings"].append({"step": step, "stage": stage, "seconds": wall, "cpu_seconds": cpu})
        score_models(step)
    return found


def run_yardstick(job: MethodJob, periods: Periods, protocol: Protocol) -> dict[str, Any]:
    """As `run_method`, for a yardstick, which is deterministic and has no seed.

    The table "forgetting" is empty: a yardstick can only predict the period after those that it has counted.
    """
    yardstick = build_yardstick(job.method, dropped=protocol.dropped_columns, fields=periods.fields)
    data = periods.data
    found: dict[str, Any] = {"config": yardstick.config, **empty_tables()}
    yardstick.learn(data[: protocol.pretrain])
    for step in (protocol.pretrain, *protocol.steps):
        if step > protocol.pretrain:
            clock = Stopwatch()
            yardstick.learn([data[step - 1]])
            wall, cpu = clock.read()
            found["timings"].append({"step": step, "stage": "learn", "seconds": wall, "cpu_seconds": cpu})
        add_observations(found, yardstick.logits(data[step]), periods, protocol, step)
    return found


class _Reader:
    """One period's log cut down to the rows that it touches, to be scored by many models."""

    def __init__(self, base: BaseTraining, data: PeriodData) -> None:
        self.base = base
        (self.data,), self.rows = excerpt([data], base.model.tables)

    def logits(self, params: Params) -> Tensor:
        """Logits [N] of a model on the period, in its order."""
        return self.base.predicted(take(params, self.rows), self.data)


def _config(updater: Updater[Any]) -> dict[str, Any]:
    """All settings of a method, as plain JSON values."""
    found = {"model": updater.model.config.to_json(), "training": asdict(updater.base.config)}
    config = getattr(updater, "config", None)
    return found if config is None else found | {"method": asdict(config)}
