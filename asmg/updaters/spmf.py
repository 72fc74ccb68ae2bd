"""SPMF, rehearsal from a reservoir (Wang et al. 2018, a baseline of the paper; methods.md, section 4, strategy 2).

A bounded sample of all past interactions is kept, positives and negatives apart (`asmg.updaters.reservoir`). One
update, when D_t has arrived:

1. The last model scores the R positives kept and ranks them, the best scored first (rank 0). ⌊0.1·positives of D_t⌋ of
   them are drawn without replacement with the weights exp(rank / R), so the worst scored are up to e times as likely.
   Of the negatives kept, ⌊0.1·negatives of D_t⌋ are drawn uniformly.
2. Θ_t is learned from Θ_{t-1} as by IU, on the drawn interactions and then on D_t, all in time order.
3. The j-th positive of D_t (j = 0, 1, …) enters the reservoir with probability R / (s + j + 1), s being the number of
   positives of all earlier periods, and replaces one kept before; negatives likewise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

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
from asmg.updaters.reservoir import Reservoir, weighted_sample

__all__ = ["ReservoirUpdate", "SpmfConfig", "SpmfState"]

CLASSES: tuple[Literal["negative", "positive"], ...] = ("negative", "positive")
"""Names of the two reservoirs, by label."""


@dataclass(frozen=True, kw_only=True)
class SpmfConfig:
    """Settings of SPMF."""

    ratio: float = 0.1
    """Old interactions drawn per new one of the same class, ≥ 0."""
    reservoir: int | None = 100_000
    """Maximum interactions kept of each class.

    Up to this number all are kept; afterwards every past interaction is kept with the same probability (Vitter's
    algorithm R, in which an interaction may replace one of the same period).

    None is the authors' way: the number that pretraining, or the first period with the class, brought. A period's
    interactions replace only those of earlier periods, which slightly favours the newest.
    """

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < math.inf:
            raise ValueError(f"ratio: expected a finite number, at least 0; received {self.ratio}")
        if self.reservoir is not None and self.reservoir < 1:
            raise ValueError(f"reservoir: expected at least 1, or None; received {self.reservoir}")

    @classmethod
    def reference(cls, **changes: Any) -> "SpmfConfig":
        """The authors' settings (methods.md, section 4)."""
        return cls(**{"reservoir": None, **changes})


@dataclass(frozen=True)
class SpmfState:
    """The state between periods."""

    base: BaseState
    """The model Θ_t and its optimizer."""
    reservoirs: tuple[Reservoir | None, Reservoir | None]
    """Negatives and positives, those of the new period included after the stage update_base; None without any yet."""
    seen: tuple[int, int]
    """Number of negatives and of positives in all periods so far."""


class ReservoirUpdate(Updater[SpmfState]):
    """SPMF on any base model.

    The first period (or pretraining) is learned as by IU, in several shuffled passes.
    """

    name = "spmf"
    stages: ClassVar[tuple[str, ...]] = ("update_base", "commit")

    def __init__(
        self,
        model: ModelConfig,
        config: SpmfConfig | None = None,
        training: TrainingConfig | None = None,
        execution: Execution | None = None,
    ) -> None:
        self.config = config or SpmfConfig()
        self.base = BaseTraining(model, training, execution)
        self.model = self.base.model

    @override
    def initial(self, rng: torch.Generator) -> SpmfState:
        return SpmfState(self.base.initial(rng), (None, None), (0, 0))

    @override
    def started(self, base: BaseState, periods: Sequence[PeriodData], *, rng: torch.Generator) -> SpmfState:
        """See Updater. The reservoirs are filled from `periods`."""
        state = replace(self.initial(rng), base=base)
        return self.remembered(state, concatenate(periods), rng) if periods else state

    @override
    def run_stage(
        self, stage: str, state: SpmfState, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> SpmfState:
        if stage == "update_base":
            base = self.base.train(state.base, self.rehearsal(state, data, rng), rng, progress, shuffle=False)
            return self.remembered(replace(state, base=base), data, rng)
        if stage == "commit":
            return replace(state, base=self.base.committed(state.base))
        raise ValueError(f"stage: expected one of {self.stages}; received {stage!r}")

    def rehearsal(self, state: SpmfState, data: PeriodData, rng: torch.Generator) -> PeriodData:
        """The interactions to learn: those drawn from the reservoirs, in time order, then the period's own."""
        drawn = []
        for label, old in enumerate(state.reservoirs):
            new = int((data.label == label).sum())
            if old is None or not (count := min(len(old), math.floor(self.config.ratio * new))):
                continue
            if CLASSES[label] == "positive":
                index = weighted_sample(self.log_weights(state, old.among(data)), count, rng)
            else:
                index = torch.randperm(len(old), generator=rng)[:count].sort().values
            drawn.append(old.take(index))
        if not drawn:
            return data
        order = torch.cat([part.arrival for part in drawn]).argsort()
        return concatenate([concatenate([part.among(data) for part in drawn]).select(order), data])

    def log_weights(self, state: SpmfState, positives: PeriodData) -> Tensor:
        """Rank / R of each positive kept, float64 [R]; rank 0 has the highest score of the state's model."""
        scores = self.base.predicted(state.base.params, positives)
        weights = torch.empty(len(scores), dtype=torch.float64)
        weights[scores.argsort(descending=True, stable=True)] = torch.arange(len(scores)).double() / len(scores)
        return weights

    def remembered(self, state: SpmfState, data: PeriodData, rng: torch.Generator) -> SpmfState:
        """The state with the period's interactions sampled into its reservoirs and counted."""
        before, seen, reservoirs = sum(state.seen), list(state.seen), list(state.reservoirs)
        stream = Reservoir(
            replace(data, categories=0, item_categories=None), torch.arange(before, before + len(data))
        )  # fmt: skip
        for label, old in enumerate(state.reservoirs):
            index = torch.nonzero(data.label == label).squeeze(1)
            if not len(index):
                continue
            seen[label] += len(index)
            capacity = self.config.reservoir
            if old is not None:
                reservoirs[label] = old.updated(stream, index, state.seen[label], capacity, rng)
                continue
            if capacity is not None and len(index) > capacity:
                index = index[torch.randperm(len(index), generator=rng)[:capacity].sort().values]
            reservoirs[label] = stream.take(index)
        return replace(state, reservoirs=(reservoirs[0], reservoirs[1]), seen=(seen[0], seen[1]))

    @override
    def forgotten(self, state: SpmfState, rows: Mapping[str, Tensor]) -> SpmfState:
        negative, positive = (
            None if old is None else replace(old, data=old.data.forgotten(rows)) for old in state.reservoirs
        )
        return replace(state, base=self.base.forgotten(state.base, rows), reservoirs=(negative, positive))

    @override
    def signature(self) -> dict[str, Any]:
        return super().signature() | {"reservoir": self.config.reservoir}

    @override
    def dump(self, state: SpmfState) -> dict[str, Checkpoint]:
        parts = {"updater": self.header(seen=list(state.seen)), **dump_base(self.model, state.base)}
        for name, reservoir in zip(CLASSES, state.reservoirs, strict=True):
            if reservoir is not None:
                data = dump_data(reservoir.data)
                tensors = {**data.tensors, "arrival": reservoir.arrival}
                parts[f"reservoir.{name}"] = Checkpoint("reservoir", data.meta, tensors)
        return parts

    @override
    def load(self, parts: Mapping[str, Checkpoint]) -> SpmfState:
        seen = tuple(self.check_header(parts)["seen"])
        names = [f"reservoir.{name}" for name in CLASSES]
        present = {name for name, count in zip(names, seen, strict=True) if count}
        self.check_parts(parts, {"updater", *BASE_PARTS} | present, optional={"pending"})
        negative, positive = (_load(parts[name]) if name in present else None for name in names)
        return SpmfState(load_base(self.model, parts), (negative, positive), (seen[0], seen[1]))


def _load(checkpoint: Checkpoint) -> Reservoir:
    tensors = dict(checkpoint.tensors)
    arrival = tensors.pop("arrival")
    return Reservoir(load_data(replace(checkpoint, tensors=tensors)), arrival)
