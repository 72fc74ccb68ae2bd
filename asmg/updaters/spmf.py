"""SPMF, rehearsal from a reservoir (Wang et al. 2018, a baseline of the paper; methods.md, section 4, strategy 2).

Of all interactions so far a bounded sample is kept, positives and negatives apart. One update, when D_t has arrived:

1. The last model scores the R positives kept and ranks them, the best fitted first (rank 0); ⌊0.1·positives of D_t⌋ of
   them are drawn without replacement by the weights exp(rank / R), so the worst fitted are up to e times as likely. Of
   the negatives kept, ⌊0.1·negatives of D_t⌋ are drawn uniformly.
2. Θ_t is learned from Θ_{t-1} as by IU, but on what was drawn and then D_t, all in time order.
3. The j-th positive of D_t (j = 0, 1, …) is kept with probability R / (s + j + 1), s being the positives of all earlier
   periods, in the place of one kept before; likewise the negatives.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from asmg.base_training import BaseState, BaseTraining, ModelConfig, TrainingConfig
from asmg.batch import PeriodData, concatenate
from asmg.checkpoint import Checkpoint, dump_data, load_data
from asmg.models import Params
from asmg.training import Execution, Progress
from asmg.updaters.base import Updater

__all__ = ["Reservoir", "ReservoirUpdate", "SpmfConfig", "SpmfState", "weighted_sample"]

CLASSES: tuple[Literal["negative", "positive"], ...] = ("negative", "positive")
"""Names of the two reservoirs, by label."""


@dataclass(frozen=True, kw_only=True)
class SpmfConfig:
    """What is kept, and how much of it is learned again."""

    ratio: float = 0.1
    """Old interactions drawn for each new one of the same class."""
    reservoir: int | None = 100_000
    """Most interactions kept of each class.

    Up to that number all are kept; from then on every one that ever came is as likely as any other to be among them,
    exactly (Vitter's algorithm R: what comes later in a period may replace what came earlier in it).

    None is the authors' way: all that pretraining, or the first period with any of the class, brought, and never more.
    What a period leaves there replaces earlier periods' interactions only, which favours the newest a little.
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
class Reservoir:
    """Interactions of one class, in time order."""

    data: PeriodData
    """R ≥ 1 rows. Table sizes are those of the period that last left something here; no item categories."""
    arrival: Tensor
    """int64 [R], ascending: how many interactions, of both classes, came before each."""

    def __len__(self) -> int:
        return len(self.arrival)

    def take(self, index: Tensor) -> "Reservoir":
        """The rows at `index` (int64, ascending, not empty)."""
        return Reservoir(self.data.select(index), self.arrival[index])

    def among(self, newest: PeriodData) -> PeriodData:
        """The rows with the table sizes and item categories of a later period."""
        world = {name: getattr(newest, name) for name in ("users", "items", "categories", "item_categories")}
        return replace(self.data, **world)

    def updated(self, fresh: "Reservoir", seen: int, capacity: int | None, rng: torch.Generator) -> "Reservoir":
        """The reservoir after a period that brought `fresh`.

        Args:
            fresh: all of the period's rows of this class.
            seen: rows of this class in all periods before.
            capacity: most rows kept; None for as many as are here, and replaced in one block. See SpmfConfig.
        """
        held = len(self)
        room = 0 if capacity is None else min(capacity - held, len(fresh))
        size = held + room
        later = torch.arange(room, len(fresh))
        chance = size / (seen + later + 1).double()
        chosen = later[torch.rand(len(later), dtype=torch.float64, generator=rng) < chance]
        if not room and not len(chosen):
            return self
        if capacity is None and len(chosen) <= size:
            slots = torch.randperm(size, generator=rng)[: len(chosen)]
        else:  # One after the other. (A block of more than the reservoir holds does not fit.)
            slots = torch.randint(size, (len(chosen),), generator=rng)
        kept = np.arange(size)
        kept[slots.numpy()] = held + chosen.numpy()  # of a slot named twice numpy keeps the last
        both = Reservoir(concatenate([self.data, fresh.data]), torch.cat([self.arrival, fresh.arrival]))
        return both.take(torch.from_numpy(np.sort(kept)))


@dataclass(frozen=True)
class SpmfState:
    """Everything that is kept between periods."""

    base: BaseState
    """The model Θ_t and its optimizer."""
    reservoirs: tuple[Reservoir | None, Reservoir | None]
    """Of the negatives and of the positives, from update_base on with the period's; None as long as there was none."""
    seen: tuple[int, int]
    """Negatives and positives in all periods so far."""


class ReservoirUpdate(Updater[SpmfState]):
    """SPMF on any base model.

    The first period (or pretraining) is learned as by IU, in several shuffled passes: there is nothing to rehearse yet.
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
        self.base = BaseTraining(model, training or TrainingConfig(), execution or Execution())
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
        """What is learned: interactions drawn from the reservoirs, in time order, then the period's own."""
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
        """Rank over R of each positive kept, float64 [R]; the state's model scores the one of rank 0 highest."""
        scores = self.base.predicted(state.base.params, positives)
        weights = torch.empty(len(scores), dtype=torch.float64)
        weights[scores.argsort(descending=True, stable=True)] = torch.arange(len(scores)).double() / len(scores)
        return weights

    def remembered(self, state: SpmfState, data: PeriodData, rng: torch.Generator) -> SpmfState:
        """The state with the period's interactions in its reservoirs and counted."""
        before, seen, reservoirs = sum(state.seen), list(state.seen), list(state.reservoirs)
        stream = Reservoir(
            replace(data, categories=0, item_categories=None), torch.arange(before, before + len(data))
        )  # fmt: skip
        for label, old in enumerate(state.reservoirs):
            index = torch.nonzero(data.label == label).squeeze(1)
            if not len(index):
                continue
            fresh, capacity = stream.take(index), self.config.reservoir
            if old is not None:
                reservoirs[label] = old.updated(fresh, seen[label], capacity, rng)
            elif capacity is None or len(fresh) <= capacity:
                reservoirs[label] = fresh
            else:
                reservoirs[label] = fresh.take(torch.randperm(len(fresh), generator=rng)[:capacity].sort().values)
            seen[label] += len(index)
        return replace(state, reservoirs=(reservoirs[0], reservoirs[1]), seen=(seen[0], seen[1]))

    @override
    def forgotten(self, state: SpmfState, rows: Mapping[str, Tensor]) -> SpmfState:
        negative, positive = (
            None if old is None else replace(old, data=old.data.forgotten(rows)) for old in state.reservoirs
        )
        return replace(state, base=self.base.forgotten(state.base, rows), reservoirs=(negative, positive))

    @override
    def serving_models(self, state: SpmfState) -> dict[str, Params]:
        return {"incremental": state.base.params} if state.base.periods else {}

    @override
    def signature(self) -> dict[str, Any]:
        return super().signature() | {"reservoir": self.config.reservoir}

    @override
    def dump(self, state: SpmfState) -> dict[str, Checkpoint]:
        parts = {"updater": self.header(seen=list(state.seen)), **self.base.dump(state.base)}
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
        self.check_parts(parts, {"updater", "base", "optimizer"} | present | ({"pending"} & set(parts)))
        negative, positive = (_load(parts[name]) if name in present else None for name in names)
        return SpmfState(self.base.load(parts), (negative, positive), (seen[0], seen[1]))


def weighted_sample(log_weights: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` of R indices, int64 ascending, drawn one by one without replacement by their weights.

    By the Gumbel-top-k trick: the largest of log w + G, G ~ Gumbel(0, 1), are distributed so (Kool et al. 2019).
    (torch.multinomial takes 2²⁴ weights at most.)

    Args:
        log_weights: float64 [R].
    """
    clocks = torch.empty(len(log_weights), dtype=torch.float64).exponential_(generator=rng)
    return (log_weights - clocks.log()).topk(count).indices.sort().values


def _load(checkpoint: Checkpoint) -> Reservoir:
    tensors = dict(checkpoint.tensors)
    arrival = tensors.pop("arrival")
    return Reservoir(load_data(replace(checkpoint, tensors=tensors)), arrival)
