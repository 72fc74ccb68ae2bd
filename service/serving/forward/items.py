"""What machine code reads of items: their vectors, with those of their categories and fields, and their counts.

Counts are stored as they were when they changed last; how far they have faded since is a look-up in a small table.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asmg.kernels.common import ZERO, Floats, Indices, compiled
from asmg.kernels.statistics import BLOCK, item_statistics
from service.serving.forward.tables import Lists, RowTable, ValueTable, add_values

__all__ = ["Fading", "ItemTables", "PairCounts", "mean_of_items", "read_items", "read_pair_counts", "read_statistics"]

DEGREE, COUNTED, PAIRED, IDENTITY = 4, 5, 6, 7
"""Places of an item's numbers behind its four counts (`service.serving.snapshot_file.COUNTS`)."""


class ItemTables(NamedTuple):
    """The items of a snapshot."""

    rows: RowTable
    categories: Lists
    category: ValueTable
    fields: Lists
    field: ValueTable


class Fading(NamedTuple):
    """How counts fade."""

    now: int
    """Number of closed periods."""
    of_items: Floats
    """`asmg.kernels.statistics.fadings` of the counts of items."""
    of_pairs: Floats
    """The same of the counts of pairs."""


class PairCounts(NamedTuple):
    """What the statistics of pairs need of some items."""

    identities: NDArray[np.uint32]
    """Of each item; 0 for an unknown one."""
    degrees: Floats
    """How often anything was clicked beside it, as of now."""
    faded: Floats
    """What is left of the counts of its pairs."""


@compiled
def read_items(tables: ItemTables, rows: Indices, dim: int, width: int, out: Floats) -> None:
    """Write the vectors of at most `BLOCK` items to `out`, one column each.

    Args:
        tables: of the items.
        rows: of these items.
        dim: D, the length of an embedding.
        width: W, the length of an item's vector: D, or 2·D with categories.
        out: receives the item's own embedding, with categories their mean, and with fields the sum of their vectors.
    """
    vectors, newer, size = tables.rows.vectors, tables.rows.newer, len(tables.rows.vectors)
    for lane in range(len(rows)):
        row = rows[lane]
        if row < size:
            for k in range(dim):
                out[k, lane] = vectors[row, k]
        else:
            for k in range(dim):
                out[k, lane] = newer[row - size, k]
    if width > dim:
        _read_values(tables.categories, tables.category, rows, out[dim:width])
    if len(out) > width:
        _read_values(tables.fields, tables.field, rows, out[width:])


@compiled
def _read_values(lists: Lists, values: ValueTable, rows: Indices, out: Floats) -> None:
    total = np.empty(len(out), np.float32)
    for lane in range(len(rows)):
        total[:] = ZERO
        add_values(lists, rows[lane], values, total)
        for k in range(len(out)):
            out[k, lane] = total[k]


@compiled
def mean_of_items(tables: ItemTables, rows: Indices, dim: int, mean: Floats) -> None:
    """Write the mean vector of some items to `mean` [W], which starts at zero."""
    vectors, newer, size = tables.rows.vectors, tables.rows.newer, len(tables.rows.vectors)
    of_categories = mean[dim:]
    for row in rows:
        if row < size:
            for k in range(dim):
                mean[k] += vectors[row, k]
        else:
            for k in range(dim):
                mean[k] += newer[row - size, k]
        if len(of_categories):
            add_values(tables.categories, row, tables.category, of_categories)
    if len(rows) > 1:
        for k in range(len(mean)):
            mean[k] /= np.float32(len(rows))


@compiled
def read_pair_counts(table: RowTable, rows: Indices, dim: int, fading: Fading) -> PairCounts:
    """What is counted of the pairs of some items.

    Args:
        table: of the items.
        rows: of these items, [N].
        dim: where the counts begin in a row.
        fading: of the counts.
    """
    n, size, last = len(rows), len(table.vectors), len(fading.of_pairs) - 1
    found = PairCounts(np.empty(n, np.uint32), np.empty(n, np.float32), np.empty(n, np.float32))
    old, new = table.vectors.view(np.uint32), table.newer.view(np.uint32)
    for i in range(n):
        row = rows[i]
        if row < size:
            degree, paired, found.identities[i] = (
                table.vectors[row, dim + DEGREE],
                old[row, dim + PAIRED],
                old[row, dim + IDENTITY],
            )
        else:
            row -= size
            degree, paired, found.identities[i] = (
                table.newer[row, dim + DEGREE],
                new[row, dim + PAIRED],
                new[row, dim + IDENTITY],
            )
        found.faded[i] = fading.of_pairs[min(fading.now - np.int64(paired), last)]
        found.degrees[i] = degree * found.faded[i]
    return found


@compiled
def read_statistics(table: RowTable, rows: Indices, dim: int, fading: Fading, average: np.float32, out: Floats) -> None:
    """Write the statistics of at most `BLOCK` items to `out` [ITEM, BLOCK], not standardised."""
    size, last = len(table.vectors), len(fading.of_items) - 1
    counts, faded = np.zeros((4, BLOCK), np.float32), np.zeros(BLOCK, np.float32)
    old, new = table.vectors.view(np.uint32), table.newer.view(np.uint32)
    for lane in range(len(rows)):
        row = rows[lane]
        if row < size:
            for k in range(4):
                counts[k, lane] = table.vectors[row, dim + k]
            counted = old[row, dim + COUNTED]
        else:
            row -= size
            for k in range(4):
                counts[k, lane] = table.newer[row, dim + k]
            counted = new[row, dim + COUNTED]
        faded[lane] = fading.of_items[min(fading.now - np.int64(counted), last)]
    item_statistics(counts, faded, average, out)
