"""Biased matrix factorization (`asmg.models.MatrixFactorization`) as machine code: from hashes to scores."""

from typing import NamedTuple

from asmg.kernels.common import Floats, Rows, compiled
from service.serving.forward.tables import EmbeddingTable, list_cold, probability, rows_of_request
from service.serving.id_hashes import Hashes
from service.serving.id_index import Starts

__all__ = ["MFTables", "score_mf"]


class MFTables(NamedTuple):
    """A snapshot's tensors as `score_mf` reads them."""

    user_hashes: Hashes
    user_starts: Starts
    users: Floats
    """Vectors [U, D + 1]; the last column holds the biases."""
    item_hashes: Hashes
    item_starts: Starts
    items: Floats
    """Vectors [I, D + 1], likewise."""


@compiled
def score_mf(hashes: Hashes, history: Hashes, tables: MFTables, scores: Floats, cold: Rows) -> tuple[int, bool]:
    """Arguments and result as of `service.serving.forward.interface.Forward`; the model reads no history."""
    users, items = tables.users, tables.items
    user_table = EmbeddingTable(tables.user_hashes, tables.user_starts, users)
    item_table = EmbeddingTable(tables.item_hashes, tables.item_starts, items)
    rows = rows_of_request(hashes, history[:0], user_table, item_table)
    dim = users.shape[1] - 1
    for i in range(len(scores)):
        logit = users[rows[0], dim] + items[rows[1 + i], dim]
        for k in range(dim):
            logit += users[rows[0], k] * items[rows[1 + i], k]
        scores[i] = probability(logit)
    return list_cold(rows[1:], cold), rows[0] == 0
