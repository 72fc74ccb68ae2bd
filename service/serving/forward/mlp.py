"""Embedding&MLP (`asmg.models.EmbeddingMLP`) as machine code: from hashes to scores.

    hashes → rows → vectors; the user and the mean of its clicks → share of the first layer that all candidates have
    each candidate's vector → its share of the first layer → further layers, plus dot products → sigmoid

Candidates go through the layers `BLOCK` at a time, one in each lane of the vector instructions.
"""

from typing import NamedTuple

import numpy as np

from asmg.kernels.common import Floats, Indices, Rows, compiled
from asmg.kernels.statistics import (
    BLOCK,
    ITEM,
    PAIR,
    STATISTICS,
    SUMS,
    USER,
    pair_statistics,
    standard,
    user_statistics,
)
from service.serving.fields import OF_ITEM, FieldValues
from service.serving.forward.items import (
    Fading,
    mean_of_items,
    read_items,
    read_pair_counts,
    read_statistics,
)
from service.serving.forward.layers import add_candidates_own, further_layers, layer
from service.serving.forward.neighbours import sum_over_neighbours
from service.serving.forward.tables import (
    FIELDS,
    ITEMS,
    PAIRS,
    USERS,
    PackedFiles,
    Words,
    cold_row,
    find_values,
    list_cold,
    lists_of_items,
    probability,
    rows_of_request,
    value_table,
    vector_of,
    vectors_of,
)
from service.serving.id_hashes import Hashes

__all__ = ["SHAPE", "MLPTables", "score_mlp"]

SHAPE = 8
"""Numbers of `MLPTables.shape` before the widths of the layers."""


class MLPTables(NamedTuple):
    """A snapshot as `score_mlp` reads it.

    It is flat, because numba takes 2 µs longer to pass nested tuples; `score_mlp` puts them together.
    """

    base: Words
    newer: Words
    places: Indices
    """The three arrays of `PackedFiles`."""
    shape: Indices
    """D; the width of an item's row; the number of closed periods; the length of the first part of `fadings`; then 1
    or 0 for each of categories, statistics, dot products and fields; then the width of each layer, from the first on.
    """
    dense: Floats
    """All weights, one after the other: the first layer's weights of what the request knows [D + W + 2·D + USER, out],
    its biases, its weights of a candidate [out, W + D + ITEM + PAIR]; weights [out, in] and biases of each further
    layer; the dot products' weights of the user and of the history [W]; mean [S], factor [S] and average rate of the
    statistics. Parts that the model does not have are left out."""
    fadings: Floats
    """`asmg.kernels.statistics.fadings` of the counts of items, and then of pairs."""


@compiled
def score_mlp(
    hashes: Hashes, history: Hashes, recent: Rows, values: FieldValues, tables: MLPTables, scores: Floats, cold: Rows
) -> tuple[int, bool]:
    """Arguments and result as of `service.serving.forward.interface.Forward`."""
    files, shape, dense = PackedFiles(tables.base, tables.newer, tables.places), tables.shape, tables.dense
    dim, item_row, split = shape[0], shape[1], shape[3]
    categories, statistics, dot, has_fields = shape[4], shape[5], shape[6], shape[7]
    n, first, width = len(scores), shape[SHAPE], dim + categories * dim
    vectors = width + has_fields * dim  # inputs of a candidate that are vectors
    inputs = vectors + statistics * (ITEM + PAIR)
    items = vectors_of(files, ITEMS, item_row)
    rows = rows_of_request(files, hashes, history)
    candidates, clicked = rows[1 : 1 + n], rows[1 + n :]
    scale = dense[len(dense) - statistics * (2 * STATISTICS + 1) :]
    field_sums, own_contexts = np.zeros((2 * has_fields, dim), np.float32), np.zeros((0, dim), np.float32)
    if has_fields:
        own_contexts = _sum_fields(values, files, n, field_sums)
    request = np.zeros(dim + width + 2 * has_fields * dim + USER * statistics, np.float32)
    request[:dim] = vector_of(vectors_of(files, USERS, dim), rows[0])
    mean_of_items(files, items, clicked, dim, request[dim : dim + width])
    request[dim + width : dim + width + 2 * has_fields * dim] = field_sums.reshape(-1)
    if statistics:
        _user_inputs(recent, len(clicked), scale, request[len(request) - USER :])
    # The request's share of the first layer is the same for all candidates.
    base = dense[first * len(request) : first * (len(request) + 1)].copy()
    for k in range(len(request)):
        known, weights = request[k], dense[k * first : (k + 1) * first]
        for o in range(first):
            base[o] += weights[o] * known
    # So are the factors of the dot products with a candidate's vector.
    factors, weights = np.empty(dot * width, np.float32), dense[len(dense) - len(scale) - 2 * dot * width :]
    for k in range(len(factors)):
        factors[k] = weights[k] * request[k % dim] + weights[width + k] * request[dim + k]
    same, places, sums = np.empty(n, np.int32), np.empty(n, np.int32), np.empty((0, SUMS), np.float32)
    fading = Fading(shape[2], tables.fadings[:split], tables.fadings[split:])
    counts = read_pair_counts(items, rows[1 : 1 + len(rows) * statistics], dim, fading)
    if statistics:
        pairs = lists_of_items(files, PAIRS, 2)
        sums = sum_over_neighbours(hashes[1:], history, counts, clicked, pairs, same, places)
    block_sums, block_places = np.zeros((SUMS + 1, BLOCK), np.float32), np.zeros(BLOCK, np.int32)
    act, layers = np.empty((inputs + shape[SHAPE:].sum(), BLOCK), np.float32), dense[first * (len(request) + 1) :]
    for low in range(0, n, BLOCK):
        m = min(BLOCK, n - low)
        read_items(files, items, candidates[low : low + m], dim, width, act[:vectors])
        if statistics:
            for lane in range(m):
                i = same[low + lane]
                block_sums[SUMS, lane], block_places[lane] = counts.degrees[i], places[i]
                for k in range(SUMS):
                    block_sums[k, lane] = sums[i, k]
            average, numbers = scale[len(scale) - 1], act[vectors:inputs]
            read_statistics(items, candidates[low : low + m], dim, fading, average, numbers[:ITEM])
            pair_statistics(block_sums[:SUMS], block_sums[SUMS], block_places, average, numbers[ITEM:])
            _standardise(numbers, scale[USER:], scale[STATISTICS + USER :])
        layer(layers, base, act[:inputs], act[inputs : inputs + first], m, len(own_contexts) == 0)
        if len(own_contexts):
            add_candidates_own(
                dense[(dim + width) * first :], own_contexts[low : low + m], act[inputs : inputs + first]
            )  # fmt: skip
        last = inputs + further_layers(shape[SHAPE:], layers[first * inputs :], act[inputs:], m)
        logits = act[last, :m]
        for k in range(len(factors)):
            x, factor = act[k, :m], factors[k]
            for lane in range(m):
                logits[lane] += factor * x[lane]
        for lane in range(m):
            scores[low + lane] = probability(logits[lane])
    return list_cold(candidates, cold_row(files, ITEMS), cold), rows[0] == cold_row(files, USERS)


@compiled
def _sum_fields(values: FieldValues, files: PackedFiles, n: int, sums: Floats) -> Floats:
    """Add up the vectors of a request's field values.

    Args:
        values: of the fields.
        files: with all values.
        n: candidates.
        sums: to which those of the context and of the user are added, float32 [2, D].

    Returns:
        the sums of the candidates' own contexts, float32 [N, D]; [0, D] where no candidate has one.
    """
    rows, any_own = np.empty(len(values.hashes), np.int64), False
    find_values(files, values.hashes, rows)
    for i in range(len(rows)):
        any_own |= values.owners[i] >= OF_ITEM
    dim = sums.shape[1]
    vectors = value_table(files, FIELDS, dim).vectors
    own = np.zeros((n if any_own else 0, dim), np.float32)
    for i in range(len(rows)):
        owner = values.owners[i]
        into = sums[owner] if owner < OF_ITEM else own[owner - OF_ITEM]
        for k in range(dim):
            into[k] += values.weights[i] * vectors[rows[i], k]
    return own


@compiled
def _user_inputs(recent: Rows, clicked: int, scale: Floats, out: Floats) -> None:
    """Write the standardised statistics of the user to `out` [USER]."""
    user_statistics(recent, clicked, scale[len(scale) - 1], out)
    for k in range(USER):
        out[k] = standard(out[k], scale[k], scale[STATISTICS + k])


@compiled
def _standardise(numbers: Floats, mean: Floats, by: Floats) -> None:
    """Standardise statistics [K, BLOCK] in place."""
    for k in range(len(numbers)):
        x, less, factor = numbers[k], mean[k], by[k]
        for lane in range(BLOCK):
            x[lane] = standard(x[lane], less, factor)
