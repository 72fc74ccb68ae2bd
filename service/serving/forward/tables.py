"""The tables that a forward pass reads, the rows of a request in them, and what it writes for each candidate."""

import math
from typing import NamedTuple

import numpy as np

from asmg.kernels.common import ONE, Floats, Indices, Rows, compiled, inlined
from service.serving.forward.interface import EPSILON
from service.serving.id_hashes import Hashes
from service.serving.id_index import Starts, find_rows

__all__ = ["EmbeddingTable", "list_cold", "probability", "rows_of_request"]

LOWEST, HIGHEST = np.float32(EPSILON), np.float32(1 - EPSILON)


class EmbeddingTable(NamedTuple):
    """Vectors by id: an `IdIndex`, and the table whose rows it finds. Row 0 is the cold row."""

    hashes: Hashes
    starts: Starts
    vectors: Floats


@compiled
def rows_of_request(hashes: Hashes, history: Hashes, users: EmbeddingTable, items: EmbeddingTable) -> Indices:
    """The rows of the user, the candidates and the history, one after the other, int64 [1 + N + H]."""
    rows = np.empty(len(hashes) + len(history), np.int64)
    find_rows(hashes[:1], users.hashes, users.starts, rows[:1])
    find_rows(hashes[1:], items.hashes, items.starts, rows[1 : len(hashes)])
    find_rows(history, items.hashes, items.starts, rows[len(hashes) :])
    return rows


@inlined
def list_cold(candidates: Indices, cold: Rows) -> int:
    """Write the positions of the candidates in the cold row to `cold`; returns their number."""
    found = 0
    for i in range(len(candidates)):
        if candidates[i] == 0:
            cold[found] = i
            found += 1
    return found


@inlined
def probability(logit: np.float32) -> np.float32:
    """The sigmoid, in [ε, 1 − ε]. NaN, which parameters whose products overflow can give, becomes ε."""
    p = ONE / (ONE + np.float32(math.exp(-logit)))
    if p > HIGHEST:
        return HIGHEST
    return p if p > LOWEST else LOWEST
