"""The statistics of a training state as a base and layers: reading those of some items."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.layers.selection import PartExcerpt, Rows, Selection
from asmg.layers.stack import SIZES, find, layer_rows, resets
from asmg.statistics import Neighbours, StatisticsConfig

__all__ = ["BY_ITEM", "BY_PAIR", "ITEM", "ItemStatistics", "StackCounts", "StatisticsStack", "statistics_layer"]

ITEM = "item"

BY_ITEM = ("counts", "counted", "degrees", "paired")
BY_PAIR = ("neighbours", "together", "passed")
FIELDS = "numbers.rows"
"""Rows of the field table that the statistics name."""


class ItemStatistics(NamedTuple):
    """The statistics of n items."""

    of_item: dict[str, Tensor]
    """Name of a tensor of `asmg.statistics.Statistics` → its rows [n, …]."""
    lengths: Rows
    """Number of neighbours of each item [n]."""
    of_pair: dict[str, NDArray[np.generic]]
    """Name of a tensor → the values of all neighbours, one item after the other. The neighbours of an item ascend."""


class StatisticsStack:
    """The statistics as of one version.

    Args:
        layers: the base and the layers of the version, oldest first.
    """

    def __init__(self, layers: Sequence[Checkpoint]) -> None:
        self._layers = list(layers)
        newest = layers[-1]
        self.kind = newest.kind
        self.meta = {name: value for name, value in newest.meta.items() if name != SIZES}
        self.sizes = {ITEM: int(newest.meta.get(SIZES, {}).get(ITEM, len(newest.tensors["counts"])))}
        """Table name → rows of the whole table."""
        self.whole = {n: t for n, t in newest.tensors.items() if n == "moments" or n.startswith("numbers.")}
        """The tensors without a row for each item."""
        for layer in layers:
            rows = layer_rows(layer, ITEM)
            count = len(layer.tensors["counts"]) if rows is None else len(rows)
            if layer.kind != self.kind or len(layer.tensors["starts"]) != count + 1:
                raise CheckpointError(f"layer: expected statistics of {count} items; received other numbers")

    def read(self, rows: Rows, *, pairs: bool = True) -> ItemStatistics:
        """The statistics of some items; zeros and no neighbours for those that have none.

        Args:
            rows: of the item table, ascending.
            pairs: whether to read the neighbours.
        """
        newest = self._layers[-1].tensors
        of_item = {n: newest[n].new_zeros(len(rows), *newest[n].shape[1:]) for n in BY_ITEM}
        lengths, pieces = np.zeros(len(rows), np.int64), []
        open_, gone_since = np.arange(len(rows)), np.empty(0, np.int64)
        for layer in reversed(self._layers):
            if not len(open_):
                break
            at, place = find(layer_rows(layer, ITEM), rows[open_], len(layer.tensors["counts"]))
            places = torch.from_numpy(place)
            for name in BY_ITEM:
                of_item[name][open_[at]] = layer.tensors[name][places]
            if pairs:
                pieces.append(_pairs(layer, open_[at], places, gone_since))
            open_ = np.delete(open_, at)
            gone = resets(layer, ITEM)
            if len(gone):
                open_ = open_[~np.isin(rows[open_], gone)]
                gone_since = np.union1d(gone_since, gone)
        owners = np.concatenate([owners for owners, _ in pieces] or [np.empty(0, np.int64)])
        order = np.argsort(owners, kind="stable")
        lengths += np.bincount(owners, minlength=len(rows))
        of_pair = {
            name: np.concatenate([found[name] for _, found in pieces] or [newest[name][:0].numpy()])[order]
            for name in BY_PAIR
        }
        return ItemStatistics(of_item, lengths, of_pair)

    def whole_column(self, name: str) -> Tensor | None:
        """A tensor with a row for each item, where the base is the only layer; else None."""
        (base, *others) = self._layers
        return None if others or layer_rows(base, ITEM) is not None else base.tensors[name]

    def excerpt(self, selection: Selection, universe: Rows | None = None) -> tuple[Checkpoint, Rows]:
        """The statistics of the selected items, as the update method would have stored them.

        Items that are only neighbours of selected ones get rows behind those; of them nothing is known.

        Args:
            selection: the items.
            universe: the item of each row, as an excerpt of the same selection returned it that had all neighbours of
                this one; None for a new one.

        Returns:
            the statistics, and the item of each row.
        """
        rows = selection.rows[ITEM]
        found = self.read(rows)
        near = found.of_pair["neighbours"].astype(np.int64)
        place = np.minimum(np.searchsorted(rows, near), len(rows) - 1)
        outside = np.flatnonzero(rows[place] != near)
        if universe is None:
            universe = np.concatenate([rows, np.unique(near[outside])])
        place[outside] = len(rows) + np.searchsorted(universe[len(rows) :], near[outside])
        order = _ascending(np.repeat(np.arange(len(rows)), found.lengths), place)
        starts = np.zeros(len(universe) + 1, np.int64)
        starts[1 : len(rows) + 1] = np.cumsum(found.lengths)
        starts[len(rows) + 1 :] = starts[len(rows)]
        tensors, further = dict(self.whole), len(universe) - len(rows)
        if FIELDS in tensors:
            tensors[FIELDS] = torch.from_numpy(np.searchsorted(selection.rows["field"], tensors[FIELDS].numpy()))
        for name, values in found.of_item.items():
            tensors[name] = torch.cat([values, values.new_zeros(further, *values.shape[1:])])
        for name, pairs in found.of_pair.items():
            tensors[name] = torch.from_numpy(np.ascontiguousarray(pairs[order]))
        tensors["neighbours"] = torch.from_numpy(place[order].astype(np.int32))
        tensors["starts"] = torch.from_numpy(starts)
        return Checkpoint(self.kind, self.meta, tensors), universe

    @property
    def named(self) -> Mapping[str, Tensor]:
        """Table name → rows that the part itself names and that an excerpt needs."""
        return {"field": self.whole[FIELDS]} if FIELDS in self.whole else {}


class StackCounts:
    """The statistics of a stack, of which some items are read at a time, as a serving snapshot is written from them.

    Args:
        stack: the statistics.
    """

    def __init__(self, stack: StatisticsStack) -> None:
        self._stack = stack
        self.config = StatisticsConfig(**stack.meta["config"])
        self.periods, self.moments = int(stack.meta["periods"]), stack.whole["moments"]
        self.counts, self.counted = _Column(stack, "counts"), _Column(stack, "counted")
        self.degrees, self.paired = _Column(stack, "degrees"), _Column(stack, "paired")

    def neighbours_of(self, items: Tensor) -> Neighbours:
        """The neighbours of some items, int64 [n], each at most once."""
        ordered = np.sort(items.numpy())
        found = self._stack.read(ordered)
        place, ends = np.searchsorted(ordered, items.numpy()), np.cumsum(found.lengths)
        at = _ranges(ends[place] - found.lengths[place], found.lengths[place])
        pairs = (torch.from_numpy(np.ascontiguousarray(found.of_pair[name][at])) for name in BY_PAIR)
        return Neighbours(torch.from_numpy(found.lengths[place]), *pairs)


class _Column:
    """A tensor with a row for each item."""

    def __init__(self, stack: StatisticsStack, name: str) -> None:
        self._stack, self._name = stack, name

    def __len__(self) -> int:
        return self._stack.sizes[ITEM]

    def __getitem__(self, rows: Tensor) -> Tensor:
        if (whole := self._stack.whole_column(self._name)) is not None:
            return whole[rows]
        distinct, place = np.unique(rows.numpy(), return_inverse=True)
        return self._stack.read(distinct, pairs=False).of_item[self._name][torch.from_numpy(place)]


def statistics_layer(before: PartExcerpt | None, after: Checkpoint, selection: Selection, gone: Rows) -> Checkpoint:
    """What a period has changed in the statistics, as a layer.

    Args:
        before: the excerpt that the period started from; None where nothing was counted yet.
        after: the excerpt after it.
        selection: of both.
        gone: items that changed hands before the period, ascending.
    """
    rows = universe = selection.rows[ITEM]
    changed, size = np.arange(min(len(rows), len(after.tensors["counts"]))), selection.sizes[ITEM]
    if before is not None:
        assert before.universe is not None, "statistics have one"
        universe, size = before.universe, max(size, before.sizes[ITEM])
        differs = torch.zeros(len(rows), dtype=torch.bool)
        for name in BY_ITEM:
            old, new = (part.tensors[name][: len(rows)].reshape(len(rows), -1) for part in (before.checkpoint, after))
            differs |= (old != new).any(1)
        changed = torch.nonzero(differs).flatten().numpy()
    own = torch.from_numpy(changed)
    starts = after.tensors["starts"].numpy()
    lengths = starts[changed + 1] - starts[changed]
    owners, index = np.repeat(np.arange(len(changed)), lengths), _ranges(starts[changed], lengths)
    near = universe[after.tensors["neighbours"].numpy()[index]]
    order = _ascending(owners, near)
    tensors = {n: t for n, t in after.tensors.items() if n == "moments" or n.startswith("numbers.")}
    if FIELDS in tensors:
        tensors[FIELDS] = torch.from_numpy(selection.rows["field"][tensors[FIELDS].numpy()])
    tensors |= {name: after.tensors[name][own] for name in BY_ITEM}
    tensors |= {name: after.tensors[name][torch.from_numpy(index[order])] for name in BY_PAIR}
    tensors["neighbours"] = torch.from_numpy(near[order].astype(np.int32))
    tensors["starts"] = torch.from_numpy(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
    tensors[f"rows.{ITEM}"] = torch.from_numpy(rows[changed])
    if len(gone):
        tensors[f"reset.{ITEM}"] = torch.from_numpy(gone)
    return Checkpoint(after.kind, {**after.meta, SIZES: {ITEM: size}}, tensors)


def _pairs(layer: Checkpoint, owners: Rows, places: Tensor, gone: Rows) -> tuple[Rows, dict[str, NDArray[np.generic]]]:
    """The pairs of some items in a layer, without the neighbours that are gone, and the owner of each."""
    starts, ends = (layer.tensors["starts"][places + step].numpy() for step in (0, 1))
    owner, index = np.repeat(owners, ends - starts), _ranges(starts, ends - starts)
    pairs = {name: layer.tensors[name][torch.from_numpy(index)].numpy() for name in BY_PAIR}
    if len(gone):
        kept = ~np.isin(pairs["neighbours"], gone)
        owner, pairs = owner[kept], {name: values[kept] for name, values in pairs.items()}
    return owner, pairs


def _ascending(owners: Rows, neighbours: Rows) -> Rows:
    """The order of distinct pairs by owner and neighbour, both under 2³¹; sooner found than by `np.lexsort`."""
    return np.argsort(owners << 32 | neighbours)


def _ranges(starts: Rows, lengths: Rows) -> Rows:
    """The numbers starts[n] to starts[n] + lengths[n] - 1 of all n, one after the other."""
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))
