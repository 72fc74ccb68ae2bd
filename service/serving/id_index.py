"""From string ids to table rows without a Python dictionary: a snapshot's tables are in the order of the ids' hashes.

So a row number is a place among the sorted hashes and need not be stored. Since hashes are spread evenly, their upper
bits say where to look: `starts` has a place for each value of those bits, about four hashes apart, and a look-up reads
one number of `starts` and one cache line of `hashes`, however many ids there are.

Two ids with one hash would share a row; among n ids that happens with probability n²/2⁶⁵ (3·10⁻⁶ for ten million).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from asmg.layout import COLD_ROW

__all__ = ["NOBODY", "IdIndex", "hash_ids"]

NOBODY = 2**64 - 1
"""A hash that belongs to no id: it ends the sorted hashes, so that a look-up needs no other bound."""

HASHES_OF_A_START = 4
PADDED_TO = 8
"""Hashes of a cache line."""


def hash_ids(ids: Sequence[str]) -> NDArray[np.uint64]:
    """XXH64 of each id's UTF-8 bytes, [N]; stable across processes and versions."""
    return np.fromiter((xxhash.xxh64_intdigest(i.encode()) for i in ids), dtype=np.uint64, count=len(ids))


@dataclass(frozen=True)
class IdIndex:
    """Rows of known ids; everything else reads the cold row."""

    hashes: NDArray[np.uint64]
    """[≥ N + 1], ascending and distinct, then `NOBODY` to the end. The id of hash n has row n + 1."""
    starts: NDArray[np.uint32]
    """[2ᵏ + 1], the place of the first hash with each value of the upper k bits; k ≥ 1."""

    @classmethod
    def build(cls, ids: Sequence[str], rows: NDArray[Any]) -> tuple["IdIndex", NDArray[np.int64]]:
        """The index of `ids`, and which of their `rows` (int [N]) belong to its hashes; of ids with one hash the first
        is kept.
        """
        hashes, first = np.unique(hash_ids(ids), return_index=True)
        if len(hashes) and hashes[-1] == NOBODY:
            hashes, first = hashes[:-1], first[:-1]
        bits = max(1, math.ceil(math.log2(max(len(hashes), 1) / HASHES_OF_A_START)))
        values = np.arange(2**bits + 1, dtype=np.uint64)
        starts = np.searchsorted(hashes >> np.uint64(64 - bits), values).astype(np.uint32)
        padding = PADDED_TO - len(hashes) % PADDED_TO
        padded = np.concatenate([hashes, np.full(padding, NOBODY, dtype=np.uint64)])
        return cls(padded, starts), np.asarray(rows, dtype=np.int64)[first]

    @property
    def shift(self) -> int:
        """By how much a hash is shifted to be a place in `starts`."""
        return 65 - len(self.starts).bit_length()

    def lookup(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The row of each hash, [N]; COLD_ROW for an unknown one."""
        place = np.searchsorted(self.hashes, hashes)
        found = (self.hashes[place] == hashes) & (hashes != np.uint64(NOBODY))
        return np.where(found, place + 1, COLD_ROW)
