"""Update methods as they are served by default, and their states after some periods."""

from collections.abc import Sequence
from typing import Any

import torch

from asmg.batch import PeriodData
from asmg.models import EmbeddingMLPConfig, default_config
from asmg.progressive import stage_rng
from asmg.statistics import NAMES, StatisticsConfig
from asmg.updaters import build_updater
from asmg.updaters.base import Updater
from benchmarks.learning.workload import StreamSizes, synthetic_workload


def default_updater(method: str, *, reference: bool = False) -> Updater[Any]:
    """An update method with the base model that is served by default, which reads statistics.

    Args:
        method: one of `asmg.updaters.UPDATERS`.
        reference: with the authors' settings and their base model, which reads none.

    Raises:
        ValueError: there is no such method.
    """
    if reference:
        return build_updater(method, EmbeddingMLPConfig(), reference=True)
    shape = default_config(categories=False, numeric=len(NAMES))
    return build_updater(method, shape, statistics=StatisticsConfig())


def learned_state(updater: Updater[Any], periods: Sequence[PeriodData], seed: int) -> Any:
    """The state of an update method that has learned these periods, oldest first."""
    state = updater.initial(stage_rng(seed, 0, "initial"))
    for number, log in enumerate(periods, start=1):
        data = updater.prepare(state, log)
        for stage in updater.stages:
            state = updater.run_stage(stage, state, data, rng=stage_rng(seed, number, stage))
    return state


def warm_up(updater: Updater[Any]) -> None:
    """Learn a few tiny periods, so that machine code is compiled or loaded from numba's cache."""
    tiny = synthetic_workload(StreamSizes(users=30, items=20, rows=300, history=2), seed=0)
    state = learned_state(updater, tiny.before, 0)
    updater.update(state, tiny.measured, rng=torch.Generator().manual_seed(0))
