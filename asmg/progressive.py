"""Progressive validation: each period is first scored, then learned (after river's `progressive_val_score`)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from asmg.batch import PeriodData
from asmg.metrics import Scores
from asmg.training import evaluate
from asmg.updaters.base import StateT, Updater

__all__ = ["PeriodReport", "progressive_validation", "stage_rng"]


@dataclass(frozen=True)
class PeriodReport:
    """The metrics on a period of the models that existed before it."""

    period: int
    """Number of the period, from 1."""
    scores: dict[str, Scores]
    """Model name ("generated", "incremental") → scores; empty for the first period."""


def stage_rng(seed: int, period: int, stage: str) -> torch.Generator:
    """The random generator of one stage of one period's update; the same for equal arguments.

    Args:
        seed: of the whole run.
        period: its number.
        stage: its name.
    """
    value = seed & 0xFFFFFFFF
    for byte in f"{period}:{stage}".encode():
        value = (value * 1_000_003 ^ byte) & 0x7FFFFFFFFFFFFFFF
    return torch.Generator().manual_seed(value)


def progressive_validation(
    updater: Updater[StateT], periods: Iterable[PeriodData], *, seed: int = 0
) -> Iterator[tuple[PeriodReport, StateT]]:
    """Score every period with the models learned before it, then learn it.

    Args:
        updater: the method.
        periods: oldest first.
        seed: for everything random.

    Yields:
        the period's report and the state after learning it.
    """
    state = updater.initial(stage_rng(seed, 0, "initial"))
    for number, log in enumerate(periods, start=1):
        models, execution = updater.serving_models(state), updater.base.execution
        data = updater.prepare(state, log)
        found = {name: evaluate(updater.model, params, data, execution) for name, params in models.items()}
        report = PeriodReport(number, found)
        for stage in updater.stages:
            state = updater.run_stage(stage, state, data, rng=stage_rng(seed, number, stage))
        yield report, state
