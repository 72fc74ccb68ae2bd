"""Statistics: numbers that tell of an interaction what a table of counts knows and embeddings do not.

Of a user u, a candidate item i and the moment τ at which u may click i. Nothing is in them that the service would not
have known at τ: what is counted of items and of pairs comes from closed periods, what is known of the user from its
interactions strictly before τ. With rate(c, n) = (c + 2·p) / (n + 2), where p is the average click rate of late, and
log for log(1 + ·):

=== =================== =====================================================================================
#   name                is
=== =================== =====================================================================================
0   user_interactions   log of the user's last interactions, at most 30
1   user_rate_10        rate of the last 10 of them
2   user_rate_30        rate of all of them
3   user_clicks         log of the user's last clicks, at most 30
4   item_clicks_late    log of the item's clicks, halved each period
5   item_rate_late      rate of these among its impressions, halved each period
6   item_clicks         log of all its clicks
7   item_impressions    log of all its impressions
8   item_rate           rate of all of them
9   pair_last           log of the share of the item among what was clicked beside the user's last click
10  pair_most           the same, for that of the user's last 10 clicks where it is the largest
11  pair_total          log of the sum of these shares, each click counting 0.7 of the next newer one
12  pair_likeness_most  √ of the largest cosine of the item and one of these clicks
13  pair_likeness       √ of the sum as above, of cosines
14  pair_rate           rate of the item among users who had clicked one of these before
15  pair_impressions    log of how often it was shown to such users
16  repeat              1 / (1 + n) where the user's n-th last click (from 0) is of this very item, else 0
17  pair_evidence       log of how often anything was clicked beside these clicks
=== =================== =====================================================================================

Two items are clicked beside each other when a user clicks one while the other is among its five clicks before. n_h(i)
counts that for an item h of the user's past and the candidate i, fading by `pair_decay` a period; only the `neighbours`
largest of each h are kept. The share of i is n_h(i) / √(1 + n_h), the cosine n_h(i) / √((1 + n_h)(1 + n_i)), with n_h
the sum over all i. An id that nobody knows has the statistics of nobody: zeros, and the average rate.

A model reads them standardised: (x - mean) / standard deviation, both over the interactions of closed periods, older
ones fading, and within ±5.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.kernels.statistics import FURTHEST, ITEM, STATISTICS, USER, count_items, count_pairs, interaction_statistics
from asmg.numbers import LEAST_DEVIATION, NumberMoments

__all__ = ["NAMES", "Statistics", "StatisticsConfig"]

NAMES = (
    "user_interactions", "user_rate_10", "user_rate_30", "user_clicks",
    "item_clicks_late", "item_rate_late", "item_clicks", "item_impressions", "item_rate",
    "pair_last", "pair_most", "pair_total", "pair_likeness_most", "pair_likeness", "pair_rate", "pair_impressions",
    "repeat", "pair_evidence",
)  # fmt: skip
"""What the columns are, in order."""


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """What is counted, and how it fades."""

    neighbours: int = 512
    """Most items that are kept beside an item, those clicked beside it most often; 12 bytes each. On DIGINETICA (43,000
    items) an item has 47 on average; at most 32 cost 0.03 AUC there, at most 128 cost 0.005."""
    decay: float = 0.5
    """What a click or an impression of an item counts after one more period, where it fades."""
    pair_decay: float = 0.95
    """The same of pairs."""
    moments_decay: float = 0.9
    """The same of interactions in the means and standard deviations, and in the average click rate."""

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours: expected at least 1; received {self.neighbours}")
        for name in ("decay", "pair_decay", "moments_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number in (0, 1]; received {getattr(self, name)}")


@dataclass(frozen=True)
class Statistics:
    """What the statistics are made of, after some periods. Nothing in it ever changes."""

    config: StatisticsConfig
    periods: int
    """Closed, and counted here."""
    counts: Tensor
    """float32 [I, 4]: clicks and impressions that fade, and all of them, as of period `counted`; row 0 is nobody's."""
    counted: Tensor
    """int32 [I]: the last period that brought the item."""
    starts: Tensor
    """int64 [I + 1]: the neighbours of item i are those from starts[i] to starts[i + 1] - 1."""
    neighbours: Tensor
    """int32 [M]: items that were clicked beside it, ascending."""
    together: Tensor
    """float32 [M]: how often, as of period `paired`."""
    passed: Tensor
    """float32 [M]: how often the neighbour was shown, and not clicked, to somebody who had clicked the item."""
    degrees: Tensor
    """float32 [I]: how often anything was clicked beside it."""
    paired: Tensor
    """int32 [I]: the last period that brought the item a pair."""
    moments: Tensor
    """float64 [2, S + 2]: fading sums of 1, of the labels and of the statistics, and of their squares."""
    numbers: NumberMoments
    """The same of the fields that enter as numbers."""

    @classmethod
    def initial(cls, config: StatisticsConfig) -> "Statistics":
        """Before the first period; row 0, of nobody, is the only one."""
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
        """p, the click rate of late; ½ before the first period."""
        events, clicks = self.moments[0, :2].tolist()
        return clicks / events if events else 0.5

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        """What is taken off each number, and what it is multiplied by then; float32 [S] each."""
        events = self.moments[0, 0].clamp(min=1e-9)
        mean, square = self.moments[0, 2:] / events, self.moments[1, 2:] / events
        deviation = (square - mean**2).clamp(min=0).sqrt()
        # In the first period all counts of items are zero: no model has learned what they mean, and scaled by next to
        # nothing they would drown the rest in the second.
        by = torch.where(deviation > LEAST_DEVIATION, 1 / (deviation + LEAST_DEVIATION), 0.0)
        return mean.float(), by.float()

    def raw(self, data: PeriodData) -> Tensor:
        """The statistics of a log's interactions as the table above has them, float32 [N, S].

        Args:
            data: of the period after the last one counted here, with `recent`.
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
        """The same, standardised; of the very first period, before which nothing was counted, by its own moments."""
        raw = self.raw(data)
        return self._scaled_by(raw, data).standardised(raw)

    def standardised(self, raw: Tensor) -> Tensor:
        """Statistics [N, S] as a model reads them."""
        mean, by = self.scale
        return ((raw - mean) * by).clamp_(-float(FURTHEST), float(FURTHEST))

    def prepare(self, data: PeriodData) -> PeriodData:
        """The log with these statistics as numeric inputs, those of a user without a past, and its numbers scaled."""
        raw = self.raw(data)
        scaled = self._scaled_by(raw, data)
        nobody = scaled.standardised(self.raw(_by_strangers(torch.zeros(1, dtype=torch.int64))))
        of_the_user = torch.ones_like(nobody)
        of_the_user[:, USER : USER + ITEM] = 0
        fields = None if data.fields is None else self.numbers.prepare(data.fields)
        return replace(data, numeric=scaled.standardised(raw), nobody=torch.cat([of_the_user, nobody]), fields=fields)

    def _scaled_by(self, raw: Tensor, data: PeriodData) -> "Statistics":
        """These, or before the first period ones with its moments."""
        return self if self.periods else replace(self, moments=_moments(raw, data.label))

    def of_items(self, items: Tensor) -> Tensor:
        """The part of `inputs` that is the items' alone, float32 [n, ITEM]; items int64 [n], any of them unknown."""
        return self.inputs(_by_strangers(items))[:, USER : USER + ITEM]

    def fading(self, items: Tensor) -> Tensor:
        """What a pair of each of these items (int64 [n], all known) counts now, float32 [n]."""
        return (self.config.pair_decay ** (self.periods - self.paired[items]).double()).float()

    def learned(self, data: PeriodData) -> "Statistics":
        """With one more period: what happened in it counts from the next one on."""
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
        """As if nobody had ever seen these items and these fields.

        `rows`: table name → int64 [n], rows ≥ 1, any of which may be unknown; "item" and "field" count here.
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
        """As a checkpoint of the kind "statistics"."""
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
            CheckpointError: it holds other statistics than this release computes.
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
    """A copy with rows for so many items."""
    return torch.cat([tensor, tensor.new_zeros(items - len(tensor), *tensor.shape[1:])])


def _by_strangers(items: Tensor) -> PeriodData:
    """One interaction with each of these items (int64 [n]), by users without a past."""
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
    """Sums of 1, of the labels and of the statistics, and of their squares."""
    columns = torch.cat([torch.ones(len(raw), 1), label.unsqueeze(1), raw], 1).double()
    return torch.stack([columns.sum(0), (columns**2).sum(0)])


assert len(NAMES) == STATISTICS
