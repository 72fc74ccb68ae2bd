"""What machine code reads of items: their vectors, with those of their categories and fields, and their counts.

Counts are stored as they were when they changed last; how far they have faded since is a look-up in a small table.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asmg.kernels.common import ZERO, Floats, Indices, Rows, compiled, inlined
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
    n, size = len(rows), len(table.base)
    found = PairCounts(np.empty(n, np.uint32), np.empty(n, np.float32), np.empty(n, np.float32))
    base, newer = table.base.view(np.int32), table.newer.view(np.int32)
    for i in range(n):
        if rows[i] < size:
            _read_pairs(table.base, base, rows[i], dim, fading, i, found)
        else:
            _read_pairs(table.newer, newer, rows[i] - size, dim, fading, i, found)
    return found


@inlined
def _read_pairs(vectors: Floats, integers: Rows, row: int, dim: int, fading: Fading, i: int, found: PairCounts) -> None:
    found.identities[i] = np.uint32(integers[row, dim + IDENTITY])
    found.faded[i] = _faded(fading.of_pairs, fading.now, integers[row, dim + PAIRED])
    found.degrees[i] = vectors[row, dim + DEGREE] * found.faded[i]


@compiled
def read_statistics(table: Vectors, rows: Indices, dim: int, fading: Fading, average: np.float32, out: Floats) -> None:
    """Write the statistics of at most `BLOCK` items to `out` [ITEM, BLOCK], not standardised."""
    size, counts, faded = len(table.base), np.zeros((4, BLOCK), np.float32), np.zeros(BLOCK, np.float32)
    base, newer = table.base.view(np.int32), table.newer.view(np.int32)
    for lane in range(len(rows)):
        row = rows[lane]
        if row < size:
            _read_counts(table.base, base, row, dim, fading, lane, counts, faded)
        else:
            _read_counts(table.newer, newer, row - size, dim, fading, lane, counts, faded)
    item_statistics(counts, faded, average, out)


@inlined
def _read_counts(
    vectors: Floats, integers: Rows, row: int, dim: int, fading: Fading, lane: int, counts: Floats, faded: Floats
) -> None:
    for k in range(4):
        counts[k, lane] = vectors[row, dim + k]
    faded[lane] = _faded(fading.of_items, fading.now, integers[row, dim + COUNTED])


@inlined
def _faded(fadings: Floats, now: int, changed: np.int32) -> np.float32:
    """What is left of counts that have last changed in a period."""
    missed = min(max(int(now - changed), 0), len(fadings) - 1)
    found: np.float32 = fadings[missed]
    return found
