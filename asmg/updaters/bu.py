"""BU-w, the batch update (a baseline of the paper; methods.md, section 3).

Θ_t = argmin_Θ L(Θ | D_{t-w+1:t}, Θ_{t-1}): as IU, from BU's own last model and Adam's moments, but a pass runs over the
last w periods together in one random order, so that every period is learned w times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from asmg.base_training import BaseState, BaseTraining, ModelConfig, TrainingConfig
from asmg.batch import PeriodData, concatenate
from asmg.checkpoint import Checkpoint, dump_data, load_data
from asmg.models import Params
from asmg.training import Execution, Progress
from asmg.updaters.base import Updater

__all__ = ["BatchConfig", "BatchState", "BatchUpdate"]


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How far back a pass reaches."""

    window: int | None = 7
    """w, the number of most recent periods that are learned together; None for all. The paper has 3, 5 and 7."""

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window: expected at least 1, or None; received {self.window}")


@dataclass(frozen=True)
class BatchState:
    """Everything that is kept between periods."""

    base: BaseState
    """The model Θ_t and its optimizer."""
    data: tuple[PeriodData, ...]
    """The last w-1 periods (at most), oldest first, from update_base on with the one that is being learned.

    Without item categories: the next period knows the newest.
    """


class BatchUpdate(Updater[BatchState]):
    """BU-w; its name is "bu-<w>", or "bu-full" where the window is None."""

    stages: ClassVar[tuple[str, ...]] = ("update_base", "commit")

    def __init__(
        self,
        model: ModelConfig,
        config: BatchConfig | None = None,
        training: TrainingConfig | None = None,
        execution: Execution | None = None,
    ) -> None:
        self.config = config or BatchConfig()
        self.name = "bu-full" if self.config.window is None else f"bu-{self.config.window}"
        self.base = BaseTraining(model, training or TrainingConfig(), execution or Execution())
        self.model = self.base.model

    @override
    def initial(self, rng: torch.Generator) -> BatchState:
        return BatchState(self.base.initial(rng), ())

    @override
    def started(self, base: BaseState, periods: Sequence[PeriodData], *, rng: torch.Generator) -> BatchState:
        """See Updater. The window of the next period reaches back into `periods`."""
        return BatchState(base, self._kept(periods))

    @override
    def run_stage(
        self, stage: str, state: BatchState, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> BatchState:
        if stage == "update_base":
            periods = [*state.data, data]
            return BatchState(self.base.train(state.base, concatenate(periods), rng, progress), self._kept(periods))
        if stage == "commit":
            return replace(state, base=self.base.committed(state.base))
        raise ValueError(f"stage: expected one of {self.stages}; received {stage!r}")

    def _kept(self, periods: Sequence[PeriodData]) -> tuple[PeriodData, ...]:
        """Those of `periods` that the next window holds."""
        oldest = 0 if self.config.window is None else max(0, len(periods) - (self.config.window - 1))
        return tuple(
            data if data.item_categories is None else replace(data, categories=0, item_categories=None)
            for data in periods[oldest:]
        )

    @override
    def forgotten(self, state: BatchState, rows: Mapping[str, Tensor]) -> BatchState:
        return BatchState(self.base.forgotten(state.base, rows), tuple(data.forgotten(rows) for data in state.data))

    @override
    def serving_models(self, state: BatchState) -> dict[str, Params]:
        return {"incremental": state.base.params} if state.base.periods else {}

    @override
    def dump(self, state: BatchState) -> dict[str, Checkpoint]:
        parts = {"updater": self.header(data=len(state.data)), **self.base.dump(state.base)}
        # Counted from the newest, as ASMG does.
        return parts | {f"data.{age}": dump_data(data) for age, data in enumerate(reversed(state.data))}

    @override
    def load(self, parts: Mapping[str, Checkpoint]) -> BatchState:
        meta = self.check_header(parts)
        names = [f"data.{age}" for age in range(meta["data"] - 1, -1, -1)]
        self.check_parts(parts, {"updater", "base", "optimizer", *names} | ({"pending"} & set(parts)))
        return BatchState(self.base.load(parts), tuple(load_data(parts[name]) for name in names))
