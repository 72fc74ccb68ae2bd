"""Metrics of predictions by parts of a log: along the predictions, by group, and by item between two models.

A group is some of the N interactions, as int64 [n] their places in the log, each at most once. Groups may overlap, as
those of a field with several values do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.metrics import Scores

__all__ = ["Bin", "Change", "Predicted", "by_group", "by_prediction", "by_value", "changed_items"]

Numbers = NDArray[np.int64]

LOWEST, HIGHEST = 1e-12, 1 - 1e-12
"""Bounds of a mean prediction whose log-odds are taken: those of 0 and 1 are infinite."""


class Bin(NamedTuple):
    """The interactions with predictions between two bounds."""

    rows: int
    predicted: float
    """Mean predicted probability."""
    clicked: float
    """Click rate."""


class Change(NamedTuple):
    """An item of which two models say different things."""

    item: int
    """As in the log."""
    rows: int
    clicks: int
    before: float
    """Mean probability that the earlier model predicts."""
    after: float
    """Mean probability that the later model predicts."""


@dataclass(frozen=True)
class Predicted:
    """What a model says of N interactions and what became of them, by ascending prediction."""

    place: Numbers
    """int64 [N]: where the n-th interaction of the log is in the other arrays."""
    tie: Numbers
    """int64 [N], ascending: equal for equal predictions."""
    probability: NDArray[np.float64]
    """[N] in [0, 1]."""
    loss: NDArray[np.float64]
    """[N], cross-entropy in nats."""
    click: NDArray[np.bool_]
    """[N]"""

    @classmethod
    def of(cls, logit: Tensor, label: Tensor) -> "Predicted":
        """From finite logits [N] and labels [N]."""
        ascending, order = torch.sort(logit, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        tie = torch.cumsum(torch.diff(ascending, prepend=ascending[:1]) > 0, 0)
        x, y = ascending.double(), label[order].double()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")
        return cls(place.numpy(), tie.numpy(), torch.sigmoid(x).numpy(), loss.numpy(), (y > 0.5).numpy())

    def __len__(self) -> int:
        return len(self.place)


def by_prediction(predicted: Predicted, most: int = 10) -> list[Bin]:
    """The calibration curve: at most `most` bins of about equally many interactions, by ascending prediction.

    Equal predictions are in one bin, so there may be fewer bins, and larger ones.
    """
    cuts = predicted.tie[[n * len(predicted) // most for n in range(most)]]
    starts = np.unique(np.searchsorted(predicted.tie, cuts))  # the first of equal predictions
    rows = np.diff(np.append(starts, len(predicted)))
    sums, clicks = (np.add.reduceat(each.astype(float), starts) for each in (predicted.probability, predicted.click))
    return [Bin(int(n), float(p / n), float(c / n)) for n, p, c in zip(rows, sums, clicks, strict=True)]


def by_group(predicted: Predicted, groups: Sequence[Numbers]) -> list[Scores | None]:
    """The metrics of each group: what `asmg.metrics.scores` says of its interactions alone. None of an empty group."""
    inside, ordered = np.zeros(len(predicted), bool), list[Numbers]()
    for group in groups:
        if len(group):
            inside[predicted.place[group]] = True
            ordered.append(np.flatnonzero(inside))
            inside[ordered[-1]] = False
    if not ordered:
        return [None] * len(groups)
    sizes = np.array([len(each) for each in ordered])
    at, starts = np.concatenate(ordered), np.cumsum(sizes) - sizes
    click = predicted.click[at]
    clicks = np.add.reduceat(click, starts, dtype=np.int64)
    pairs = _pairs_in_order(predicted.tie[at], click, starts)
    loss, total = (np.add.reduceat(each[at], starts) for each in (predicted.loss, predicted.probability))
    found = iter(
        [
            Scores(
                events=int(n),
                clicks=int(c),
                auc=float(pairs[g] / (c * (n - c))) if 0 < c < n else None,
                logloss=float(loss[g] / n),
                calibration=float(total[g] / c) if c else None,
            )
            for g, (n, c) in enumerate(zip(sizes, clicks, strict=True))
        ]
    )
    return [next(found) if len(group) else None for group in groups]


def _pairs_in_order(tie: Numbers, click: NDArray[np.bool_], starts: Numbers) -> NDArray[np.float64]:
    """Of each group, how many pairs of a click and a non-click have the click higher; equal predictions count half.

    Args:
        tie: int64 [P], one group after the other, ascending in each; equal for equal predictions.
        click: [P].
        starts: where each group begins; none is empty.
    """
    new = np.diff(tie, prepend=-1) != 0
    new[starts] = True
    runs = np.flatnonzero(new)  # of equal predictions in one group
    clicks = np.add.reduceat(click, runs, dtype=np.int64)
    others = np.diff(np.append(runs, len(tie))) - clicks
    below = np.cumsum(others) - others
    first = np.searchsorted(runs, starts)  # the first run of each group
    below -= np.repeat(below[first], np.diff(np.append(first, len(runs))))
    return np.asarray(np.add.reduceat(clicks * (below + others / 2), first))


def by_value(values: Numbers, most: int) -> tuple[list[int], list[Numbers]]:
    """Groups of the interactions with each of the most frequent values, and one of those with any other.

    Args:
        values: int64 [N, C], the values of each interaction, at most C different ones: numbers from 1 on, 0 for one
            that is not known, below 0 for no (further) value.
        most: of values that get a group of their own.

    Returns:
        the values, the most frequent first and of equally frequent ones the lower first; and the groups, one for each
        value and then one for all others.
    """
    rows, flat = np.repeat(np.arange(len(values)), values.shape[1]), values.ravel()
    rows, flat = rows[flat >= 0], flat[flat >= 0]
    sizes = np.bincount(flat, minlength=1)
    sizes[0] = 0
    chosen = np.argsort(-sizes, kind="stable")[:most]
    chosen = chosen[sizes[chosen] > 0]
    group_of = np.full(len(sizes), len(chosen), np.uint8)
    group_of[chosen] = np.arange(len(chosen))
    of = group_of[flat]
    rows = rows[np.argsort(of, kind="stable")]
    *groups, rest = np.split(rows, np.cumsum(np.bincount(of, minlength=len(chosen) + 1))[:-1])
    return chosen.tolist(), [*groups, np.unique(rest)]  # once, also with two other values


def changed_items(
    item: Numbers, before: Predicted, after: Predicted, *, most: int = 20, least: int = 3
) -> Sequence[Change]:
    """The items of which two models say the most different things: by the log-odds of the mean predictions.

    Args:
        item: int64 [N], of each interaction.
        before, after: what the models say of the same N interactions.
        most: of items.
        least: interactions of an item: of fewer, the mean says more about who was shown it.
    """
    known, which = np.unique(item, return_inverse=True)
    rows = np.bincount(which)
    clicks = np.bincount(which, after.click[after.place])
    first, last = (np.bincount(which, each.probability[each.place]) / rows for each in (before, after))
    moved = np.abs(_log_odds(last) - _log_odds(first))
    moved[rows < least] = 0
    order = np.lexsort((known, -moved))[:most]
    return [
        Change(int(known[n]), int(rows[n]), int(clicks[n]), float(first[n]), float(last[n]))
        for n in order[moved[order] > 0]
    ]


def _log_odds(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    bounded = np.clip(probability, LOWEST, HIGHEST)
    return np.asarray(np.log(bounded) - np.log1p(-bounded))
