"""The tensors `pairs.…` of a snapshot: which items were clicked beside each item, and how often."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from asmg.batch import COLD_ROW
from asmg.kernels.common import Floats, Indices, Rows, compiled
from asmg.statistics import Statistics
from service.serving.tensor_file import Blocks

__all__ = ["neighbour_tables"]

BLOCK_ROWS = 262_144
"""Items whose neighbours are copied and written at a time."""


def neighbour_tables(statistics: Statistics, order: Tensor) -> dict[str, Blocks]:
    """The tensors, which are computed while they are written. Neighbours without a row in the snapshot are left out.

    Args:
        statistics: of all items.
        order: the item of each row of the snapshot, int64 [I].

    Raises:
        ValueError: there are 2³² neighbours or more.
    """
    row_of = np.zeros(1 + int(order.max()), np.uint32)
    row_of[order.numpy()] = np.arange(len(order))
    lengths = [_neighbours(statistics, items, row_of)[0] for items in order.split(BLOCK_ROWS)]
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    count = int(firsts[-1])
    if count >= 2**32:
        raise ValueError(f"pairs: expected fewer than 2**32 of items; received {count}")

    def blocks() -> Iterator[tuple[NDArray[np.uint32], Floats]]:
        for start, items in enumerate(order.split(BLOCK_ROWS)):
            first = start * BLOCK_ROWS
            size = int(firsts[first + len(items)] - firsts[first])
            _, rows, counts = _neighbours(statistics, items, row_of, size)
            yield rows, counts

    return {
        "pairs.firsts": Blocks(np.uint32, firsts.shape, [firsts]),
        "pairs.items": Blocks(np.uint32, (count,), (rows for rows, _ in blocks())),
        "pairs.counts": Blocks(np.float32, (count, 2), (counts for _, counts in blocks())),
    }


def _neighbours(
    statistics: Statistics, items: Tensor, row_of: NDArray[np.uint32], size: int = 0
) -> tuple[Indices, NDArray[np.uint32], Floats]:
    """The neighbours of some items.

    Args:
        statistics: of all items.
        items: int64 [N].
        row_of: the row of each item in the snapshot, 0 for none.
        size: how many neighbours they have together; 0 where only their numbers are wanted.

    Returns:
        the number of neighbours of each item [N]; the rows [size] and counts [size, 2] of all neighbours.
    """
    known = items.where(items < len(statistics.counts), COLD_ROW)
    lengths = np.empty(len(items), np.int64)
    rows, counts = np.empty(size, np.uint32), np.empty((size, 2), np.float32)
    _copy_neighbours(
        known.numpy(), statistics.fading(known).numpy(), statistics.starts.numpy(), statistics.neighbours.numpy(),
        statistics.together.numpy(), statistics.passed.numpy(), row_of, lengths, rows, counts,
    )  # fmt: skip
    return lengths, rows, counts


@compiled
def _copy_neighbours(
    items: Indices,
    fading: Floats,
    starts: Indices,
    neighbours: Rows,
    together: Floats,
    passed: Floats,
    row_of: NDArray[np.uint32],
    lengths: Indices,
    rows: NDArray[np.uint32],
    counts: Floats,
) -> None:
    """Fill `lengths`, and `rows` and `counts` as far as they have room."""
    top = 0
    for b in range(len(items)):
        first = top
        for m in range(starts[items[b]], starts[items[b] + 1]):
            near = neighbours[m]
            if near >= len(row_of) or row_of[near] == 0:
                continue
            if top < len(rows):
                rows[top] = row_of[near]
                counts[top, 0], counts[top, 1] = together[m] * fading[b], passed[m] * fading[b]
            top += 1
        lengths[b] = top - first
