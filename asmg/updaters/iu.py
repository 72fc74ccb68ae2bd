"""IU, the incremental update (the paper's "Conventional Incremental Update"; methods.md, section 2).

Θ_t = argmin_Θ L(Θ | D_t, Θ_{t-1}); see `asmg.base_training`, which the other methods use too.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from asmg.base_training import BaseState, BaseTraining, ModelConfig, TrainingConfig
from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint
from asmg.models import Params
from asmg.training import Execution, Progress
from asmg.updaters.base import Updater

__all__ = ["IncrementalUpdate"]


class IncrementalUpdate(Updater[BaseState]):
    """IU."""

    name = "iu"
    stages: ClassVar[tuple[str, ...]] = ("update_base", "commit")

    def __init__(
        self, model: ModelConfig, training: TrainingConfig | None = None, execution: Execution | None = None
    ) -> None:
        self.base = BaseTraining(model, training or TrainingConfig(), execution or Execution())
        self.model = self.base.model

    @override
    def initial(self, rng: torch.Generator) -> BaseState:
        return self.base.initial(rng)

    @override
    def started(self, base: BaseState, periods: Sequence[PeriodData], *, rng: torch.Generator) -> BaseState:
        return base

    @override
    def run_stage(
        self, stage: str, state: BaseState, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> BaseState:
        if stage == "update_base":
            return self.base.train(state, data, rng, progress)
        if stage == "commit":
            return self.base.committed(state)
        raise ValueError(f"stage: expected one of {self.stages}; received {stage!r}")

    @override
    def forgotten(self, state: BaseState, rows: Mapping[str, Tensor]) -> BaseState:
        return self.base.forgotten(state, rows)

    @override
    def serving_models(self, state: BaseState) -> dict[str, Params]:
        return {"incremental": state.params} if state.periods else {}

    @override
    def dump(self, state: BaseState) -> dict[str, Checkpoint]:
        return {"updater": self.header(), **self.base.dump(state)}

    @override
    def load(self, parts: Mapping[str, Checkpoint]) -> BaseState:
        self.check_header(parts)
        self.check_parts(parts, {"updater", "base", "optimizer"} | ({"pending"} & set(parts)))
        return self.base.load(parts)
