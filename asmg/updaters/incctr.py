"""IncCTR, distillation from one model to the next (Wang et al. 2020, a baseline of the paper; methods.md, section 5).

Θ_t = argmin_Θ (1-λ)·CE(f_Θ(x), y) + λ·CE(f_Θ(x), p) on D_t from Θ_{t-1}, where p = f_{Θ_{t-1}}(x) is the probability
that the last model gives: as IU, but a part of every label is the teacher's. Cross-entropy is linear in its target, so
this is plain training on the target (1-λ)·y + λ·p.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

__all__ = ["IncCTR", "IncCTRConfig"]


@dataclass(frozen=True, kw_only=True)
class IncCTRConfig:
    """How much the last model has to say."""

    distillation: float = 0.1
    """λ, the teacher's part of the loss, in [0, 1); 0 is IU."""

    def __post_init__(self) -> None:
        if not 0 <= self.distillation < 1:
            raise ValueError(f"distillation: expected a number in [0, 1); received {self.distillation}")


class IncCTR(Updater[BaseState]):
    """IncCTR. The very first period has no teacher and is learned plainly, and so is what pretraining learns."""

    name = "incctr"
    stages: ClassVar[tuple[str, ...]] = ("update_base", "commit")

    def __init__(
        self,
        model: ModelConfig,
        config: IncCTRConfig | None = None,
        training: TrainingConfig | None = None,
        execution: Execution | None = None,
    ) -> None:
        self.config = config or IncCTRConfig()
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
            target = self.target(state, data) if state.periods else None
            return self.base.train(state, data, rng, progress, target=target)
        if stage == "commit":
            return self.base.committed(state)
        raise ValueError(f"stage: expected one of {self.stages}; received {stage!r}")

    def target(self, state: BaseState, data: PeriodData) -> Tensor:
        """(1-λ)·y + λ·p, float32 [N], p being the probabilities that the state's model gives; fixed for all passes.

        Of ids that it does not know it says what its cold row says.
        """
        teacher = self.base.predicted(state.params, data).sigmoid()
        return data.label.lerp(teacher, self.config.distillation)

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
