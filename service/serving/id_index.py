"""From string ids to table rows without a Python dictionary: sorted 64-bit hashes and row numbers, memory-mapped.

Two ids with one hash would share a row; among n ids that happens with probability n²/2⁶⁵ (3·10⁻⁶ for ten million).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from asmg.batch import COLD_ROW

__all__ = ["IdIndex", "hash_ids"]


def hash_ids(ids: Sequence[str]) -> np.ndarray:
    """XXH3 of each id's UTF-8 bytes as uint64 [N]; stable across processes and versions."""
    return np.fromiter((xxhash.xxh3_64_intdigest(i.encode()) for i in ids), dtype=np.uint64, count=len(ids))


@dataclass(frozen=True)
class IdIndex:
    """Rows of known ids; everything else reads the cold row."""

    hashes: np.ndarray
    """uint64 [N], ascending and distinct."""
    rows: np.ndarray
    """int32 [N], the row of each hash."""

    @classmethod
    def build(cls, ids: Sequence[str], rows: np.ndarray) -> "IdIndex":
        """The index of `ids` with their `rows` (int [N]); of ids with the same hash the first is kept."""
        hashes, first = np.unique(hash_ids(ids), return_index=True)
        return cls(hashes, np.asarray(rows, dtype=np.int32)[first])

    def lookup(self, ids: Sequence[str]) -> np.ndarray:
        """The row of each id, int64 [N]; COLD_ROW for an unknown one."""
        if not len(self.hashes):
            return np.full(len(ids), COLD_ROW, dtype=np.int64)
        wanted = hash_ids(ids)
        place = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[place] == wanted, self.rows[place], COLD_ROW).astype(np.int64)
