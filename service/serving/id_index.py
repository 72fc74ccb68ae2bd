"""Looks up the table row of an id by its hash, without a Python dictionary.

The tables of a snapshot are in the order of the hashes of their ids (`service.serving.id_hashes`): the id with the
n-th smallest hash has row n + 1, so row numbers need not be stored. Hashes are spread evenly, so their upper bits say
where to look: `starts` holds the first place for each value of those bits, about four hashes apart. A look-up
therefore reads one number of `starts` and one cache line of `hashes`, however many ids there are.

Two ids with the same hash share a row. Among n ids that happens with probability n²/2⁶⁵ (3·10⁻⁶ for ten million).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asmg.kernels.common import Indices, compiled
from asmg.layout import COLD_ROW
from service.serving.id_hashes import NOBODY, Hashes

__all__ = ["IdIndex", "Starts", "find_rows"]

Starts = NDArray[np.uint32]

HASHES_PER_START = 4
PADDED_TO = 8
"""Hashes of a cache line."""

LOOK_UPS = 16
"""Look-ups whose cache misses the processor waits for together."""

_NOBODY, _COLD = np.uint64(NOBODY), COLD_ROW


@dataclass(frozen=True)
class IdIndex:
    """Rows of the ids that a table knows; every other id has the cold row."""

    hashes: Hashes
    """uint64 [≥ N + 1], ascending and distinct, then `NOBODY` to the end. The id of hash n has row n + 1."""
    starts: Starts
    """uint32 [2ᵏ + 1], the place of the first hash with each value of the upper k bits; k ≥ 1."""

    @classmethod
    def of_hashes(cls, hashes: Hashes, rows: NDArray[Any]) -> tuple["IdIndex", NDArray[np.int64]]:
        """Build the index of ids, and put their rows in its order.

        Args:
            hashes: of N ids. Of several that are equal the first is kept.
            rows: int [N], where each id is in the table that is being put in order.

        Returns:
            the index, and for each of its hashes the member of `rows` that belongs to it.
        """
        hashes, first = np.unique(hashes, return_index=True)
        if len(hashes) and hashes[-1] == NOBODY:
            hashes, first = hashes[:-1], first[:-1]
        bits = max(1, math.ceil(math.log2(max(len(hashes), 1) / HASHES_PER_START)))
        values = np.arange(2**bits + 1, dtype=np.uint64)
        starts = np.searchsorted(hashes >> np.uint64(64 - bits), values).astype(np.uint32)
        padding = PADDED_TO - len(hashes) % PADDED_TO
        padded = np.concatenate([hashes, np.full(padding, NOBODY, dtype=np.uint64)])
        return cls(padded, starts), np.asarray(rows, dtype=np.int64)[first]

    @property
    def shift(self) -> int:
        """The number of bits to shift a hash by to get its place in `starts`."""
        return 65 - len(self.starts).bit_length()

    def lookup(self, hashes: Hashes) -> NDArray[np.int64]:
        """The row of each hash, int64 [N]; COLD_ROW for an unknown one. `find_rows` is the same as machine code."""
        place = np.searchsorted(self.hashes, hashes)
        found = (self.hashes[place] == hashes) & (hashes != np.uint64(NOBODY))
        return np.where(found, place + 1, COLD_ROW)


@compiled
def find_rows(wanted: Hashes, hashes: Hashes, starts: Starts, rows: Indices) -> None:
    """Write the row of each wanted hash to `rows`; COLD_ROW for an unknown one.

    Args:
        wanted: uint64 [N].
        hashes, starts: of an `IdIndex`.
        rows: receives the rows, int64 [N].
    """
    bits = 0
    while 1 << (bits + 1) < len(starts):
        bits += 1
    shift = np.uint64(64 - bits)
    for i in range(len(wanted)):
        rows[i] = starts[np.int64(wanted[i] >> shift)]
    near = np.empty(LOOK_UPS, np.uint64)
    for low in range(0, len(wanted), LOOK_UPS):
        high = min(low + LOOK_UPS, len(wanted))
        # All cache lines are asked for before the first is needed: the processor waits once, not once for each.
        for i in range(low, high):
            near[i - low] = hashes[rows[i]]
        for i in range(low, high):
            h, place, found = wanted[i], rows[i], near[i - low]
            while found < h:
                place += 1
                found = hashes[place]
            rows[i] = place + 1 if found == h and h != _NOBODY else _COLD
