"""What machine code reads of items: their vectors, with those of their categories and fields, and their counts.

Counts are stored as they were when they changed last; how far they have faded since is a look-up in a small table.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asmg.kernels.common import ZERO, Floats, Indices, compiled
from asmg.kernels.statistics import BLOCK, item_statistics
from service.serving.forward.tables import (
    CATEGORIES,
    FIELDS,
    PackedFiles,
    Vectors,
    add_values,
    lists_of_items,
    value_table,
)

__all__ = ["Fading", "PairCounts", "mean_of_items", "read_items", "read_pair_counts", "read_statistics"]

DEGREE, COUNTED, PAIRED, IDENTITY = 4, 5, 6, 7
"""Places of an item's numbers behind its four counts (`service.serving.snapshot_file.COUNTS`)."""


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
def read_items(files: PackedFiles, table: Vectors, rows: Indices, dim: int, width: int, out: Floats) -> None:
    """Write the vectors of at most `BLOCK` items to `out`, one column each.

    Args:
        files: of the snapshot.
        table: of the items.
        rows: of these items.
        dim: D, the length of an embedding.
        width: W, the length of an item's vector: D, or 2·D with categories.
        out: receives the item's own embedding, with categories their mean, and with fields the sum of their vectors.
    """
    size = len(table.base)
    for lane in range(len(rows)):
        row = rows[lane]
        if row < size:
            for k in range(dim):
                out[k, lane] = table.base[row, k]
        else:
            for k in range(dim):
                out[k, lane] = table.newer[row - size, k]
    if width > dim:
        _read_values(files, CATEGORIES, rows, out[dim:width])
    if len(out) > width:
        _read_values(files, FIELDS, rows, out[width:])


@compiled
def _read_values(files: PackedFiles, at: int, rows: Indices, out: Floats) -> None:
    """Write the sums of the `CATEGORIES` or `FIELDS` of items to `out`, one column each."""
    lists, values = lists_of_items(files, at, 1), value_table(files, at, len(out))
    total = np.empty(len(out), np.float32)
    for lane in range(len(rows)):
        total[:] = ZERO
        add_values(lists, rows[lane], values, total)
        for k in range(len(out)):
            out[k, lane] = total[k]


@compiled
def mean_of_items(files: PackedFiles, table: Vectors, rows: Indices, dim: int, mean: Floats) -> None:
    """Write the mean vector of some items to `mean` [W], which starts at zero."""
    size = len(table.base)
    for row in rows:
        if row < size:
            for k in range(dim):
                mean[k] += table.base[row, k]
        else:
            for k in range(dim):
                mean[k] += table.newer[row - size, k]
    if len(mean) > dim:
        lists, values = lists_of_items(files, CATEGORIES, 1), value_table(files, CATEGORIES, dim)
        for row in rows:
            add_values(lists, row, values, mean[dim:])
    if len(rows) > 1:
        for k in range(len(mean)):
            mean[k] /= np.float32(len(rows))


@compiled
def read_pair_counts(table: Vectors, rows: Indices, dim: int, fading: Fading) -> PairCounts:
    """What is counted of the pairs of some items.

    Args:
        table: of the items.
        rows: of these items, [N].
        dim: where the counts begin in a row.
        fading: of the counts.
    """
    n, size, last = len(rows), len(table.base), len(fading.of_pairs) - 1
    found = PairCounts(np.empty(n, np.uint32), np.empty(n, np.float32), np.empty(n, np.float32))
    old, new = table.base.view(np.uint32), table.newer.view(np.uint32)
    for i in range(n):
        row = rows[i]
        if row < size:
            degree, paired, found.identities[i] = (
                table.base[row, dim + DEGREE],
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
        found.faded[i] = fading.of_pairs[min(max(fading.now - np.int64(paired), 0), last)]
        found.degrees[i] = degree * found.faded[i]
    return found


@compiled
def read_statistics(table: Vectors, rows: Indices, dim: int, fading: Fading, average: np.float32, out: Floats) -> None:
    """Write the statistics of at most `BLOCK` items to `out` [ITEM, BLOCK], not standardised."""
    size, last = len(table.base), len(fading.of_items) - 1
    counts, faded = np.zeros((4, BLOCK), np.float32), np.zeros(BLOCK, np.float32)
    old, new = table.base.view(np.uint32), table.newer.view(np.uint32)
    for lane in range(len(rows)):
        row = rows[lane]
        if row < size:
            for k in range(4):
                counts[k, lane] = table.base[row, dim + k]
            counted = old[row, dim + COUNTED]
        else:
            row -= size
            for k in range(4):
                counts[k, lane] = table.newer[row, dim + k]
            counted = new[row, dim + COUNTED]
        faded[lane] = fading.of_items[min(max(fading.now - np.int64(counted), 0), last)]
    item_statistics(counts, faded, average, out)
