"""Statistics: counts about a user u, a candidate item i and the time τ of an interaction, as numeric inputs of a model.

They contain nothing that the service does not know at τ: counts of items and pairs come from closed periods, those of
the user from its interactions strictly before τ. With rate(c, n) = (c + 2·p) / (n + 2), p being the recent average
click rate, and log meaning log(1 + ·):

=== =================== =====================================================================================
#   name                value
=== =================== =====================================================================================
0   user_interactions   log of the number of the user's last interactions, at most 30
1   user_rate_10        click rate of the last 10 of them
2   user_rate_30        click rate of all of them
3   user_clicks         log of the number of the user's last clicks, at most 30
4   item_clicks_late    log of the item's clicks, which are halved each period
5   item_rate_late      click rate of the item, clicks and impressions being halved each period
6   item_clicks         log of all its clicks
7   item_impressions    log of all its impressions
8   item_rate           click rate over all of them
9   pair_last           log of the item's share among the items clicked beside the user's last click
10  pair_most           log of its largest share, over the user's last 10 clicks
11  pair_total          log of the sum of these shares, weighted 0.7 per newer click
12  pair_likeness_most  √ of the largest cosine of the item with one of these clicks
13  pair_likeness       √ of the sum of these cosines, weighted likewise
14  pair_rate           click rate of the item among users who had clicked one of these before
15  pair_impressions    log of the impressions to such users
16  repeat              1 / (1 + n) if the user's n-th last click (from 0) was on this item, else 0
17  pair_evidence       log of the number of clicks on any item beside these clicks
=== =================== =====================================================================================

Two items are clicked beside each other when a user clicks one and the other is among the user's five clicks before.
n_h(i) counts this for an item h of the user's history and the candidate i, multiplied by `pair_decay` per period; only
the `neighbours` largest counts of each h are kept. The share of i is n_h(i) / √(1 + n_h), the cosine n_h(i) / √((1 +
n_h)(1 + n_i)), n_h being the sum over all i. Unknown ids have zero counts and the average rate.

A model reads the statistics standardised, (x - mean) / standard deviation over the interactions of closed periods
(older ones fading), limited to ±5.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.kernels.counting import count_items, count_pairs
from asmg.kernels.statistics import FURTHEST, ITEM, STATISTICS, USER, interaction_statistics
from asmg.numbers import LEAST_DEVIATION, NumberMoments

__all__ = ["NAMES", "Neighbours", "Statistics", "StatisticsConfig"]

NAMES = (
    "user_interactions", "user_rate_10", "user_rate_30", "user_clicks",
    "item_clicks_late", "item_rate_late", "item_clicks", "item_impressions", "item_rate",
    "pair_last", "pair_most", "pair_total", "pair_likeness_most", "pair_likeness", "pair_rate", "pair_impressions",
    "repeat", "pair_evidence",
)  # fmt: skip
"""Names of the S statistics, in the order of the columns."""


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """Settings of the counts and of their decay."""

    neighbours: int = 512
    """Maximum neighbours kept per item, those clicked beside it most often; 12 bytes each. On DIGINETICA (43,000 items)
    an item has 47 on average; a maximum of 32 costs 0.03 AUC there, 128 costs 0.005."""
    decay: float = 0.5
    """Weight, in (0, 1], that an item's recent clicks and impressions keep per period."""
    pair_decay: float = 0.95
    """Weight that the counts of pairs keep per period."""
    moments_decay: float = 0.9
    """Weight that interactions keep per period in the means, the standard deviations and the average click rate."""

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours: expected at least 1; received {self.neighbours}")
        for name in ("decay", "pair_decay", "moments_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number in (0, 1]; received {getattr(self, name)}")


class Neighbours(NamedTuple):
    """The items that were clicked beside n items."""

    lengths: Tensor
    """int64 [n], how many there are of each."""
    items: Tensor
    """int32 [M], their rows, those of all n one after the other, ascending for each."""
    together: Tensor
    """float32 [M], see `Statistics`."""
    passed: Tensor
    """float32 [M], likewise."""


@dataclass(frozen=True)
class Statistics:
    """The counts of I items after some number of periods. Immutable."""

    config: StatisticsConfig
    periods: int
    """Number of closed periods counted."""
    counts: Tensor
    """float32 [I, 4], at period `counted`: fading clicks and impressions, all clicks and impressions. Row 0 is the cold
    row."""
    counted: Tensor
    """int32 [I], the last period with an interaction of the item."""
    starts: Tensor
    """int64 [I + 1]: the neighbours of item i are at starts[i] to starts[i + 1] - 1."""
    neighbours: Tensor
    """int32 [M], the items that were clicked beside it, ascending."""
    together: Tensor
    """float32 [M], how often they were clicked beside it, at period `paired`."""
    passed: Tensor
    """float32 [M], how often the neighbour was shown to a user who had clicked the item, without being clicked."""
    degrees: Tensor
    """float32 [I], n_h: how often any item was clicked beside it."""
    paired: Tensor
    """int32 [I], the last period in which a pair with the item was counted."""
    moments: Tensor
    """float64 [2, S + 2]: fading sums of 1, of the labels and of the statistics; second row, of their squares."""
    numbers: NumberMoments
    """The moments of the numeric fields."""

    @classmethod
    def initial(cls, config: StatisticsConfig) -> "Statistics":
        """The counts before the first period, with the cold row only."""
        return cls(
            config=config,
            periods=0,
            counts=torch.zeros(1, 4),
            counted=torch.zeros(1, dtype=torch.int32),
            starts=torch.zeros(2, dtype=torch.int64),
            neighbours=torch.zeros(0, dtype=torch.int32),
            together=torch.zeros(0),
            passed=torch.zeros(0),
            degrees=torch.zeros(1),
            paired=torch.zeros(1, dtype=torch.int32),
            moments=torch.zeros(2, len(NAMES) + 2, dtype=torch.float64),
            numbers=NumberMoments.initial(),
        )

    @property
    def average(self) -> float:
        """p, the recent average click rate; ½ before the first period."""
        events, clicks = self.moments[0, :2].tolist()
        return clicks / events if events else 0.5

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        """What is subtracted from each statistic, and the factor applied afterwards; float32 [S] each."""
        events = self.moments[0, 0].clamp(min=1e-9)
        mean, square = self.moments[0, 2:] / events, self.moments[1, 2:] / events
        deviation = (square - mean**2).clamp(min=0).sqrt()
        # In the first period all item counts are zero. Divided by a deviation near zero they would dominate all other
        # inputs in the second period.
        by = torch.where(deviation > LEAST_DEVIATION, 1 / (deviation + LEAST_DEVIATION), 0.0)
        return mean.float(), by.float()

    def raw(self, data: PeriodData) -> Tensor:
        """The statistics of a log's interactions, float32 [N, S], not standardised.

        Args:
            data: the period after the last one counted, with `recent`.

        Raises:
            ValueError: the data has no `recent`.
        """
        if data.recent is None:
            raise ValueError("recent: expected what the users did before each interaction; received none")
        out = torch.empty(len(data), len(NAMES))
        interaction_statistics(
            data.item.numpy(), data.history.numpy(), data.offsets.numpy(), data.recent.numpy(),
            self.counts.numpy(), self.counted.numpy(), self.starts.numpy(), self.neighbours.numpy(),
            self.together.numpy(), self.passed.numpy(), self.degrees.numpy(), self.paired.numpy(),
            self.periods, self.config.decay, self.config.pair_decay, np.float32(self.average), out.numpy(),
        )  # fmt: skip
        return out

    def inputs(self, data: PeriodData) -> Tensor:
        """The statistics standardised, float32 [N, S]; those of the first period by its own moments."""
        raw = self.raw(data)
        return self._scaled_by(raw, data).standardised(raw)

    def standardised(self, raw: Tensor) -> Tensor:
        """Statistics [N, S] standardised and limited to ±FURTHEST."""
        mean, by = self.scale
        return ((raw - mean) * by).clamp_(-float(FURTHEST), float(FURTHEST))

    def prepare(self, data: PeriodData) -> PeriodData:
        """The log with the statistics as `numeric`, those of a user without a past as `nobody`, and scaled field
        numbers.
        """
        raw = self.raw(data)
        scaled = self._scaled_by(raw, data)
        nobody = scaled.standardised(self.raw(_by_strangers(torch.zeros(1, dtype=torch.int64))))
        of_the_user = torch.ones_like(nobody)
        of_the_user[:, USER : USER + ITEM] = 0
        fields = None if data.fields is None else self.numbers.prepare(data.fields)
        return replace(data, numeric=scaled.standardised(raw), nobody=torch.cat([of_the_user, nobody]), fields=fields)

    def _scaled_by(self, raw: Tensor, data: PeriodData) -> "Statistics":
        """These counts; before the first period, with the moments of `raw`."""
        return self if self.periods else replace(self, moments=_moments(raw, data.label))

    def of_items(self, items: Tensor) -> Tensor:
        """The standardised statistics that depend on the item alone, float32 [n, ITEM]; items int64 [n], known or
        not.
        """
        return self.inputs(_by_strangers(items))[:, USER : USER + ITEM]

    def counts_any(self, items: Tensor) -> Tensor:
        """Whether any interaction of each item was counted, bool [n]; items int [n], known or not."""
        known = items < len(self.counts)
        return known & (self.counts[items.long() * known, 3] > 0)

    def fading(self, items: Tensor) -> Tensor:
        """The factor by which the pair counts of these known items (int64 [n]) have decayed since `paired`, float32
        [n].
        """
        return (self.config.pair_decay ** (self.periods - self.paired[items]).double()).float()

    def neighbours_of(self, items: Tensor) -> Neighbours:
        """The neighbours of these known items, int64 [n]."""
        first = self.starts[items]
        lengths = self.starts[items + 1] - first
        skipped = torch.repeat_interleave(first - lengths.cumsum(0) + lengths, lengths)
        at = torch.arange(len(skipped)) + skipped
        return Neighbours(lengths, self.neighbours[at], self.together[at], self.passed[at])

    def learned(self, data: PeriodData) -> "Statistics":
        """The counts after one more period, to be used from the next period on."""
        now, config = self.periods + 1, self.config
        moments = self.moments * config.moments_decay + _moments(self.raw(data), data.label)
        items, item, label = max(data.items, len(self.counts)), data.item.numpy(), data.label.numpy()
        grown = {name: _grown(getattr(self, name), items) for name in _BY_ITEM}
        starts = torch.cat([self.starts, self.starts[-1:].expand(items - len(self.counts))])
        count_items(item, label, grown["counts"].numpy(), grown["counted"].numpy(), now, config.decay)
        pairs = count_pairs(
            item, data.history.numpy(), data.offsets.numpy(), label,
            starts.numpy(), self.neighbours.numpy(), self.together.numpy(), self.passed.numpy(),
            grown["degrees"].numpy(), grown["paired"].numpy(), config.neighbours, now, config.pair_decay,
        )  # fmt: skip
        lists = dict(zip(("starts", *_BY_PAIR), (torch.from_numpy(array) for array in pairs), strict=True))
        numbers = self.numbers.learned(data.fields, config.moments_decay)
        return Statistics(config=config, periods=now, moments=moments, numbers=numbers, **grown, **lists)

    def forgotten(self, rows: Mapping[str, Tensor]) -> "Statistics":
        """The counts without these items and fields.

        Args:
            rows: table name → int64 [n], rows ≥ 1; only "item" and "field" are read, unknown rows are ignored.
        """
        nothing = torch.empty(0, dtype=torch.int64)
        numbers = self.numbers.forgotten(rows.get("field", nothing))
        items = rows.get("item", nothing)
        items = items[items < len(self.counts)]
        if not len(items):
            return self if numbers is self.numbers else replace(self, numbers=numbers)
        gone = torch.zeros(len(self.counts), dtype=torch.bool)
        gone[items] = True
        lengths = self.starts.diff()
        owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        kept = ~(gone[owner] | gone[self.neighbours.long()])
        starts = torch.zeros_like(self.starts)
        torch.cumsum(torch.bincount(owner[kept], minlength=len(lengths)), 0, out=starts[1:])
        own = {name: getattr(self, name).clone() for name in _BY_ITEM}
        for tensor in own.values():
            tensor[items] = 0
        pairs = {name: getattr(self, name)[kept] for name in _BY_PAIR}
        return replace(self, starts=starts, numbers=numbers, **own, **pairs)

    def dump(self) -> Checkpoint:
        """The counts as a checkpoint of kind "statistics"."""
        meta = {"config": asdict(self.config), "names": list(NAMES), "periods": self.periods}
        return Checkpoint(
            "statistics",
            meta,
            {name: getattr(self, name) for name in _TENSORS} | self.numbers.tensors(),
        )

    @classmethod
    def load(cls, stored: Checkpoint) -> "Statistics":
        """The inverse of `dump`.

        Raises:
            CheckpointError: it holds other statistics than this release computes, or a number is not finite.
        """
        if stored.kind != "statistics" or stored.meta.get("names") != list(NAMES):
            raise CheckpointError(f"statistics: expected {list(NAMES)}; received {stored.meta.get('names')}")
        for name, tensor in stored.tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"statistics: {name}: expected finite numbers; received NaN or infinity")
        config = StatisticsConfig(**stored.meta["config"])
        tensors = {name: stored.tensors[name] for name in _TENSORS}
        numbers = NumberMoments.of(stored.tensors)
        return cls(config=config, periods=int(stored.meta["periods"]), numbers=numbers, **tensors)


_BY_ITEM = ("counts", "counted", "degrees", "paired")
_BY_PAIR = ("neighbours", "together", "passed")
_TENSORS = ("moments", "starts", *_BY_ITEM, *_BY_PAIR)


def _grown(tensor: Tensor, items: int) -> Tensor:
    """A copy with rows for `items` items; new rows are zero."""
    return torch.cat([tensor, tensor.new_zeros(items - len(tensor), *tensor.shape[1:])])


def _by_strangers(items: Tensor) -> PeriodData:
    """One interaction with each of these items (int64 [n]), each by a user without a past."""
    n, nothing = len(items), torch.zeros(len(items), dtype=torch.int32)
    return PeriodData(
        user=nothing,
        item=items.int(),
        history=nothing[:0],
        offsets=torch.zeros(n + 1, dtype=torch.int64),
        label=torch.zeros(n),
        recent=torch.zeros(n, 3, dtype=torch.int32),
        users=1,
        items=int(items.max()) + 1,
    )


def _moments(raw: Tensor, label: Tensor) -> Tensor:
    """Sums of 1, of the labels [N] and of the statistics [N, S], and of their squares: float64 [2, S + 2]."""
    columns = torch.cat([torch.ones(len(raw), 1), label.unsqueeze(1), raw], 1).double()
    return torch.stack([columns.sum(0), (columns**2).sum(0)])


assert len(NAMES) == STATISTICS
