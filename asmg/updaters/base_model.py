"""Update methods whose whole state is the base model: IU and IncCTR."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from asmg.base_state import BASE_PARTS, BaseState, dump_base, load_base
from asmg.base_training import BaseTraining
from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint
from asmg.models import ModelConfig
from asmg.training import Execution, Progress, TrainingConfig
from asmg.updaters.base import Updater

__all__ = ["BaseModelUpdater"]


class BaseModelUpdater(Updater[BaseState]):
    """A method that trains the base model on each period and keeps nothing else. Methods differ in what they learn."""

    stages: ClassVar[tuple[str, ...]] = ("update_base", "commit")

    def __init__(
        self, model: ModelConfig, training: TrainingConfig | None = None, execution: Execution | None = None
    ) -> None:
        self.base = BaseTraining(model, training, execution)
        self.model = self.base.model

    @abstractmethod
    def target(self, state: BaseState, data: PeriodData) -> Tensor | None:
        """What is learned of each interaction, float32 [N] in [0, 1]; None for the labels.

        Args:
            state: the state before the update; at least one period has been learned.
            data: the new period.
        """

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

    @override
    def forgotten(self, state: BaseState, rows: Mapping[str, Tensor]) -> BaseState:
        return self.base.forgotten(state, rows)

    @override
    def dump(self, state: BaseState) -> dict[str, Checkpoint]:
        return {"updater": self.header(), **dump_base(self.model, state)}

    @override
    def load(self, parts: Mapping[str, Checkpoint]) -> BaseState:
        self.check_header(parts)
        self.check_parts(parts, {"updater", *BASE_PARTS}, optional={"pending"})
        return load_base(self.model, parts)
