"""The contract of every update method: previous state + a period's data → new state + serving model.

An update is a sequence of named stages, each a pure function of (state, data, rng), so that a caller can store the
state between stages and go on after a crash with the same result to the bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

import torch

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint
from asmg.models import EmbeddingMLP, Params
from asmg.training import Progress

__all__ = ["StateT", "Updater"]

StateT = TypeVar("StateT")


class Updater(ABC, Generic[StateT]):
    """An update method. Instances hold configuration only; all that changes is in the state."""

    name: ClassVar[str]
    """How settings and reports call it."""
    stages: ClassVar[tuple[str, ...]]
    """The stages of one update, in order."""
    model: EmbeddingMLP
    """The base model that is kept up to date."""

    @abstractmethod
    def initial(self, rng: torch.Generator) -> StateT:
        """The state before the first period."""

    @abstractmethod
    def run_stage(
        self, stage: str, state: StateT, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> StateT:
        """One stage of learning `data`; `state` is left as it was.

        Raises:
            ValueError: for a stage that is not in `stages`.
            DivergedError: when training met a loss that is not finite.
        """

    def update(
        self, state: StateT, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> StateT:
        """Learn one period: all stages in order. `progress` is told the fraction of all stages done."""
        for i, stage in enumerate(self.stages):

            def part(fraction: float, i: int = i) -> None:
                if progress:
                    progress((i + fraction) / len(self.stages))

            state = self.run_stage(stage, state, data, rng=rng, progress=part)
        return state

    @abstractmethod
    def serving_models(self, state: StateT) -> dict[str, Params]:
        """The models that this state offers for serving, best first by the method's own lights.

        Keys are "generated" (where the method generates) and "incremental". Empty before the first period.
        """

    @abstractmethod
    def dump(self, state: StateT) -> dict[str, Checkpoint]:
        """The state in named parts; a part that a period did not change has the same bytes as before."""

    @abstractmethod
    def load(self, parts: Mapping[str, Checkpoint]) -> StateT:
        """The inverse of `dump`.

        Raises:
            CheckpointError: when the parts belong to another method or configuration.
        """
