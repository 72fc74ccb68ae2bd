"""An update method whose base model reads statistics as numeric inputs (`asmg.statistics`).

It wraps another method and counts each period after that method has learned it. So the statistics of a period come from
the periods before it, in training as in serving.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic

import torch
from torch import Tensor
from typing_extensions import override

from asmg.base_state import BaseState
from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.models import EmbeddingMLPConfig, Params
from asmg.statistics import NAMES, Statistics, StatisticsConfig
from asmg.training import Progress
from asmg.updaters.base import ServedParts, StateT, Updater

__all__ = ["COUNT", "PART", "WithStatistics", "WithStatisticsState"]

PART = "statistics"
"""Name of the part that is added to the inner method's dump."""

COUNT = "count"
"""Name of the last stage."""


@dataclass(frozen=True)
class WithStatisticsState(Generic[StateT]):
    """The state between periods."""

    statistics: Statistics
    """Statistics of the periods learned."""
    inner: StateT
    """State of the inner method."""


class WithStatistics(Updater[WithStatisticsState[StateT]]):
    """Another update method, with statistics as inputs of its base model.

    Args:
        inner: a method whose base model has as many numeric inputs as there are statistics.
        config: settings of the statistics; by default `StatisticsConfig()`.

    Raises:
        ValueError: the inner method's model has another number of numeric inputs.
    """

    stages: tuple[str, ...]  # type: ignore[misc]  # depends on the inner method

    def __init__(self, inner: Updater[StateT], config: StatisticsConfig | None = None) -> None:
        shape = inner.model.config
        if not isinstance(shape, EmbeddingMLPConfig) or shape.numeric != len(NAMES):
            raise ValueError(f"inner: expected a method whose model has {len(NAMES)} numeric inputs; received {shape}")
        self.inner, self.config = inner, config or StatisticsConfig()
        self.name, self.model, self.base = inner.name, inner.model, inner.base
        self.stages, self.alone = (*inner.stages, COUNT), (*inner.alone, COUNT)

    @override
    def initial(self, rng: torch.Generator) -> WithStatisticsState[StateT]:
        return WithStatisticsState(Statistics.initial(self.config), self.inner.initial(rng))

    @override
    def started(
        self, base: BaseState, periods: Sequence[PeriodData], *, rng: torch.Generator
    ) -> WithStatisticsState[StateT]:
        statistics, prepared = self._count_all(periods)
        return WithStatisticsState(statistics, self.inner.started(base, prepared, rng=rng))

    @override
    def pretrained(
        self, periods: Sequence[PeriodData], validation: PeriodData, *, rng: torch.Generator
    ) -> WithStatisticsState[StateT]:
        statistics, prepared = self._count_all(periods)
        return WithStatisticsState(statistics, self.inner.pretrained(prepared, statistics.prepare(validation), rng=rng))

    @override
    def adopted(self, parts: Mapping[str, Checkpoint], *, rng: torch.Generator) -> WithStatisticsState[StateT]:
        """See Updater. The statistics are those of the dump."""
        return WithStatisticsState(self._load_statistics(parts), self.inner.adopted(_inner_parts(parts), rng=rng))

    @override
    def prepare(self, state: WithStatisticsState[StateT], data: PeriodData) -> PeriodData:
        """See Updater. Data that already has numeric inputs is returned unchanged."""
        return data if data.numeric is not None else state.statistics.prepare(data)

    @override
    def run_stage(
        self,
        stage: str,
        state: WithStatisticsState[StateT],
        data: PeriodData,
        *,
        rng: torch.Generator,
        progress: Progress | None = None,
    ) -> WithStatisticsState[StateT]:
        if stage == COUNT:
            return replace(state, statistics=state.statistics.learned(data))
        inner = self.inner.run_stage(stage, state.inner, self.prepare(state, data), rng=rng, progress=progress)
        return replace(state, inner=inner)

    @override
    def base_of(self, state: WithStatisticsState[StateT]) -> BaseState:
        return self.inner.base_of(state.inner)

    @override
    def rehearse(
        self,
        state: WithStatisticsState[StateT],
        data: PeriodData,
        held_out: PeriodData,
        *,
        rng: torch.Generator,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        parts = (self.prepare(state, part) for part in (data, held_out))
        return self.inner.rehearse(state.inner, *parts, rng=rng, progress=progress)

    @override
    def forgotten(self, state: WithStatisticsState[StateT], rows: Mapping[str, Tensor]) -> WithStatisticsState[StateT]:
        return WithStatisticsState(state.statistics.forgotten(rows), self.inner.forgotten(state.inner, rows))

    @override
    def serving_models(self, state: WithStatisticsState[StateT]) -> dict[str, Params]:
        return self.inner.serving_models(state.inner)

    @override
    def served_parts(self, state: WithStatisticsState[StateT]) -> dict[str, ServedParts]:
        return self.inner.served_parts(state.inner)

    @property
    @override
    def rewrites_tables(self) -> bool:
        return self.inner.rewrites_tables

    @override
    def statistics_of(self, state: WithStatisticsState[StateT]) -> Statistics:
        return state.statistics

    @override
    def for_training(self, state: WithStatisticsState[StateT]) -> WithStatisticsState[StateT]:
        """See Updater. A period that was prepared has the statistics as inputs."""
        return WithStatisticsState(Statistics.initial(self.config), self.inner.for_training(state.inner))

    @override
    def dump(self, state: WithStatisticsState[StateT]) -> dict[str, Checkpoint]:
        parts = self.inner.dump(state.inner)
        header = replace(parts["updater"], meta={**parts["updater"].meta, PART: self.signature()[PART]})
        return {**parts, "updater": header, PART: state.statistics.dump()}

    @override
    def load(self, parts: Mapping[str, Checkpoint]) -> WithStatisticsState[StateT]:
        self.check_header(parts)
        return WithStatisticsState(self._load_statistics(parts), self.inner.load(_inner_parts(parts)))

    @override
    def check_continuable(self, meta: Mapping[str, Any], names: Collection[str]) -> None:
        super().check_continuable(meta, names)
        if meta.get(PART) != (expected := self.signature()[PART]):
            raise CheckpointError(f"{PART}: expected {expected}; received {meta.get(PART)}")

    @override
    def signature(self) -> dict[str, Any]:
        return {**self.inner.signature(), PART: asdict(self.config)}

    def _count_all(self, periods: Sequence[PeriodData]) -> tuple[Statistics, list[PeriodData]]:
        """The statistics after these periods, and the periods with the statistics before each as inputs."""
        statistics, prepared = Statistics.initial(self.config), []
        for data in periods:
            prepared.append(statistics.prepare(data))
            statistics = statistics.learned(data)
        return statistics, prepared

    def _load_statistics(self, parts: Mapping[str, Checkpoint]) -> Statistics:
        if PART not in parts:
            raise CheckpointError(f"{self.name}: expected the part {PART} too; received {sorted(parts)}")
        statistics = Statistics.load(parts[PART])
        if statistics.config != self.config:
            raise CheckpointError(f"{PART}: expected those of {self.config}; received those of {statistics.config}")
        return statistics


def _inner_parts(parts: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    return {name: part for name, part in parts.items() if name != PART}
