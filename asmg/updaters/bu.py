"""BU-w, the batch update (a baseline of the paper; methods.md, section 3).

Θ_t = argmin_Θ L(Θ | D_{t-w+1:t}, Θ_{t-1}): as IU, but one pass runs over the last w periods together in one random
order. So every period is learned w times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from asmg.base_state import BASE_PARTS, BaseState, dump_base, load_base
from asmg.base_training import BaseTraining
from asmg.batch import PeriodData, concatenate
from asmg.checkpoint import Checkpoint, dump_data, load_data
from asmg.models import ModelConfig
from asmg.training import Execution, Progress, TrainingConfig
from asmg.updaters.base import Updater

__all__ = ["BatchConfig", "BatchState", "BatchUpdate"]


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Settings of BU."""

    window: int | None = 7
    """w, the number of most recent periods that are learned together; None for all. The paper uses 3, 5 and 7."""

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window: expected at least 1, or None; received {self.window}")


@dataclass(frozen=True)
class BatchState:
    """The state between periods."""

    base: BaseState
    """The model Θ_t and its optimizer."""
    data: tuple[PeriodData, ...]
    """At most the last w - 1 periods, oldest first, without item categories (the next period has the newest). After the
    stage update_base the new period is included."""


class BatchUpdate(Updater[BatchState]):
    """BU-w. Its name is "bu-<w>", or "bu-full" if the window is None."""

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
        self.base = BaseTraining(model, training, execution)
        self.model = self.base.model

    @override
    def initial(self, rng: torch.Generator) -> BatchState:
        return BatchState(self.base.initial(rng), ())

    @override
    def started(self, base: BaseState, periods: Sequence[PeriodData], *, rng: torch.Generator) -> BatchState:
        """See Updater. `periods` are part of the next window."""
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
        """The periods that belong to the next window."""
        oldest = 0 if self.config.window is None else max(0, len(periods) - (self.config.window - 1))
        return tuple(
            data if data.item_categories is None else replace(data, categories=0, item_categories=None)
            for data in periods[oldest:]
        )

    @override
    def forgotten(self, state: BatchState, rows: Mapping[str, Tensor]) -> BatchState:
        return BatchState(self.base.forgotten(state.base, rows), tuple(data.forgotten(rows) for data in state.data))

    @override
    def dump(self, state: BatchState) -> dict[str, Checkpoint]:
        parts = {"updater": self.header(data=len(state.data)), **dump_base(self.model, state.base)}
        # Numbered from the newest, so that a period keeps its place while the window fills.
        return parts | {f"data.{age}": dump_data(data) for age, data in enumerate(reversed(state.data))}

    @override
    def load(self, parts: Mapping[str, Checkpoint]) -> BatchState:
        meta = self.check_header(parts)
        names = [f"data.{age}" for age in range(meta["data"] - 1, -1, -1)]
        self.check_parts(parts, {"updater", *BASE_PARTS, *names}, optional={"pending"})
        return BatchState(load_base(self.model, parts), tuple(load_data(parts[name]) for name in names))
