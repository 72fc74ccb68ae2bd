"""A bounded sample of past interactions, SPMF's memory (methods.md, section 4)."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from asmg.batch import PeriodData, concatenate

__all__ = ["Reservoir", "weighted_sample"]


@dataclass(frozen=True)
class Reservoir:
    """R ≥ 1 interactions of one class, in time order."""

    data: PeriodData
    """The R interactions, without item categories. Table sizes are those of the last period that was sampled."""
    arrival: Tensor
    """int64 [R], ascending: the number of interactions of both classes before each."""

    def __len__(self) -> int:
        return len(self.arrival)

    def take(self, index: Tensor) -> "Reservoir":
        """The rows at `index` (int64 [n], ascending, n ≥ 1)."""
        return Reservoir(self.data.select(index), self.arrival[index])

    def among(self, newest: PeriodData) -> PeriodData:
        """The interactions with the table sizes and item categories of a later period."""
        world = {name: getattr(newest, name) for name in ("users", "items", "categories", "item_categories")}
        return replace(self.data, **world)

    def updated(
        self, stream: "Reservoir", index: Tensor, seen: int, capacity: int | None, rng: torch.Generator
    ) -> "Reservoir":
        """The reservoir after one more period.

        Args:
            stream: all of the period's interactions.
            index: int64 [n], ascending: those of this class.
            seen: number of interactions of this class in all earlier periods.
            capacity: maximum number kept; None for the present number. See `SpmfConfig.reservoir`.
            rng: for the sampling.
        """
        held = len(self)
        room = 0 if capacity is None else min(capacity - held, len(index))
        size = held + room
        later = torch.arange(room, len(index))
        chance = size / (seen + later + 1).double()
        chosen = later[torch.rand(len(later), dtype=torch.float64, generator=rng) < chance]
        if not room and not len(chosen):
            return self
        if capacity is None and len(chosen) <= size:
            slots = torch.randperm(size, generator=rng)[: len(chosen)]
        else:  # One after the other; more than the reservoir holds cannot be replaced as one block.
            slots = torch.randint(size, (len(chosen),), generator=rng)
        places = held + index.numpy()  # in both, the reservoir first
        kept = np.concatenate([np.arange(held), places[:room]])
        kept[slots.numpy()] = places[chosen.numpy()]  # numpy keeps the last of several writes to a slot
        both = Reservoir(concatenate([self.data, stream.data]), torch.cat([self.arrival, stream.arrival]))
        return both.take(torch.from_numpy(np.sort(kept)))


def weighted_sample(log_weights: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Draw `count` of R indices one by one without replacement, with probabilities proportional to their weights.

    Uses the Gumbel-top-k trick (Kool et al. 2019): the largest log w + G, G ~ Gumbel(0, 1), have this distribution.
    torch.multinomial accepts at most 2²⁴ weights.

    Args:
        log_weights: float64 [R].
        count: at most R.
        rng: for the draw.

    Returns:
        int64 [count], ascending.
    """
    clocks = torch.empty(len(log_weights), dtype=torch.float64).exponential_(generator=rng)
    return (log_weights - clocks.log()).topk(count).indices.sort().values
