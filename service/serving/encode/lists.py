"""The lists of a snapshot's items: their categories, the values of their fields, and their neighbours."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.field_columns import FieldColumns
from asmg.layout import COLD_ROW, NO_CATEGORY, NO_VALUE
from asmg.tensor_writer import Blocks
from service.serving.encode.inputs import ItemCounts, TrainedModel
from service.serving.snapshot_file import NUMBER

__all__ = ["BLOCK_ROWS", "Members", "counted_ones", "item_lists", "list_tensors", "scales_of"]

BLOCK_ROWS = 262_144
"""Items that are read and written at a time."""


class Members(NamedTuple):
    """The lists of n items, one after the other."""

    lengths: NDArray[np.int64]
    """[n]."""
    rows: NDArray[np.uint32]
    """[M], identities."""
    weights: NDArray[np.float32]
    """[M], or [M, 2] for pairs."""


ReadLists = Callable[[Tensor], Members]
"""The lists of some items, int64 [n]."""


def item_lists(trained: TrainedModel) -> dict[str, ReadLists]:
    """How the lists of the format (`service.serving.snapshot_file`) are read, by their names."""
    found: dict[str, ReadLists] = {}
    if trained.categories is not None:
        found["items.categories"] = lambda items: _categories(trained, items)
    if trained.fields is not None:
        found["items.fields"] = lambda items: _fields(trained, items)
    if trained.statistics is not None:
        found["items.pairs"] = lambda items: _pairs(trained, items)
    return found


def list_tensors(name: str, read: ReadLists, order: Tensor) -> Mapping[str, Blocks]:
    """The tensors of some lists, which are read while they are written.

    Args:
        name: of the lists.
        read: reads them.
        order: the item of each row of the file, int64 [I].

    Raises:
        ValueError: the lists have 2³² members or more.
    """
    blocks = order.split(BLOCK_ROWS)
    lengths = [read(items).lengths for items in blocks]
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    count = int(firsts[-1])
    if count >= 2**32:
        raise ValueError(f"{name}: expected fewer than 2**32 members; received {count}")
    shape = (count, 2) if name == "items.pairs" else (count,)
    return {
        f"{name}.firsts": Blocks(np.uint32, firsts.shape, [firsts]),
        f"{name}.rows": Blocks(np.uint32, (count,), (read(items).rows for items in blocks)),
        f"{name}.weights": Blocks(np.float32, shape, (read(items).weights for items in blocks)),
    }


def scales_of(columns: FieldColumns) -> dict[int, tuple[float, float]]:
    """Global row of each numeric field of the columns → what is subtracted from its numbers, and the factor."""
    numbers, (mean, by) = columns.numbers.tolist(), columns.scale.tolist()
    return {row: (mean[c], by[c]) for c, row in enumerate(numbers) if row != NO_VALUE}


def _categories(trained: TrainedModel, items: Tensor) -> Members:
    assert trained.categories is not None
    categories = trained.categories[items]
    present = categories != NO_CATEGORY
    lengths = present.sum(1)
    weights = (1 / lengths.clamp(min=1)).unsqueeze(1).expand(present.shape)[present]
    return _members(trained, "category", lengths, categories[present], weights)


def _fields(trained: TrainedModel, items: Tensor) -> Members:
    assert trained.fields is not None
    columns = trained.fields.of_items.at(items)
    present = columns.rows != NO_VALUE
    number = (columns.rows == columns.numbers) & present
    found = _members(trained, "field", present.sum(1), columns.rows[present], columns.weights[present])
    return found._replace(rows=found.rows | np.uint32(NUMBER) * number[present].numpy())


def _members(trained: TrainedModel, table: str, lengths: Tensor, rows: Tensor, weights: Tensor) -> Members:
    """Rows are global already; those that no table can have would be read from outside of it."""
    if trained.global_rows.get(table) is None and len(rows) and not int(rows.max()) < len(trained.params[table]):
        raise ValueError(f"{table}: expected rows below {len(trained.params[table])}; received {int(rows.max())}")
    return Members(lengths.numpy(), rows.numpy().astype(np.uint32), weights.float().numpy())


def _pairs(trained: TrainedModel, items: Tensor) -> Members:
    statistics = trained.statistics
    assert statistics is not None
    lengths = np.zeros(len(items), np.int64)
    counted = counted_ones(statistics, items)
    found = statistics.neighbours_of(items[counted])
    lengths[counted.numpy()] = found.lengths.numpy()
    weights = torch.stack([found.together, found.passed], 1)
    return Members(lengths, trained.identities("item", found.items.numpy()), weights.numpy())


def counted_ones(statistics: ItemCounts, items: Tensor) -> Tensor:
    """Which of some items are within the tables of the statistics, bool [n]; the cold row is not."""
    return (items != COLD_ROW) & (items < len(statistics.counts))
