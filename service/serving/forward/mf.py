"""Biased matrix factorization (`asmg.models.MatrixFactorization`) as machine code: from hashes to scores."""

from typing import NamedTuple

import numpy as np

from asmg.kernels.common import ZERO, Floats, Indices, Rows, compiled
from service.serving.forward.tables import (
    CATEGORIES,
    ITEMS,
    USERS,
    PackedFiles,
    Words,
    add_values,
    cold_row,
    list_cold,
    lists_of_items,
    probability,
    rows_of_request,
    value_table,
    vector_of,
    vectors_of,
)
from service.serving.id_hashes import Hashes

__all__ = ["MFTables", "score_mf"]


class MFTables(NamedTuple):
    """A snapshot as `score_mf` reads it."""

    base: Words
    newer: Words
    places: Indices
    """The three arrays of `PackedFiles`."""
    shape: Indices
    """D + 1, the length of a vector, whose last number is the bias; 1 with categories, else 0."""


@compiled
def score_mf(hashes: Hashes, history: Hashes, tables: MFTables, scores: Floats, cold: Rows) -> tuple[int, bool]:
    """Arguments and result as of `service.serving.forward.interface.Forward`; the model reads no history."""
    files, width, has_categories = (
        PackedFiles(tables.base, tables.newer, tables.places),
        tables.shape[0],
        tables.shape[1],
    )
    users, items = vectors_of(files, USERS, width), vectors_of(files, ITEMS, width)
    categories, category = lists_of_items(files, CATEGORIES, 1), value_table(files, CATEGORIES, width)
    rows = rows_of_request(files, hashes, history[:0])
    user, of_categories = vector_of(users, rows[0]), np.zeros(width, np.float32)
    for i in range(len(scores)):
        item = vector_of(items, rows[1 + i])
        if has_categories:
            of_categories[:] = ZERO
            add_values(categories, rows[1 + i], category, of_categories)
        logit = user[width - 1] + item[width - 1] + of_categories[width - 1]
        for k in range(width - 1):
            logit += user[k] * (item[k] + of_categories[k])
        scores[i] = probability(logit)
    return list_cold(rows[1:], cold_row(files, ITEMS), cold), rows[0] == cold_row(files, USERS)
