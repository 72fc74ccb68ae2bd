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
from service.serving.forward.layers import add_candidates_own, further_layers, layer
from service.serving.forward.neighbours import NeighbourTable, sum_over_neighbours
from service.serving.forward.tables import EmbeddingTable, list_cold, probability, rows_of_request
from service.serving.id_hashes import Hashes
from service.serving.id_index import Starts, find_rows

__all__ = ["MLPTables", "score_mlp"]


class MLPTables(NamedTuple):
    """A snapshot's tensors as `score_mlp` reads them. Tables of inputs that the model does not have are empty.

    It is flat, because numba takes 2 µs longer to pass nested tuples; `score_mlp` puts them together.
    """

    user_hashes: Hashes
    user_starts: Starts
    users: Floats
    """Vectors [U, D]."""
    item_hashes: Hashes
    item_starts: Starts
    items: Floats
    """Vectors [I, ≥ W]. With fields the sum [D] of the item's own fields follows; with statistics then its own
    statistics [ITEM] and its degree, the number of clicks beside it."""
    field_hashes: Hashes
    field_starts: Starts
    fields: Floats
    """Vectors [V, D] of the values of all fields."""
    neighbour_firsts: Starts
    neighbour_rows: Starts
    neighbour_counts: Floats
    """The three arrays of a `NeighbourTable`."""
    shape: Indices
    """W; 1 with statistics, else 0; 1 with dot products, else 0; 1 with fields, else 0; then the width of each layer,
    from the first on."""
    dense: Floats
    """All weights, one after the other: the first layer's weights of what the request knows [D + W + 2·D + USER, out],
    its biases, its weights of a candidate [out, W + D + ITEM + PAIR]; weights [out, in] and biases of each further
    layer; the dot products' weights of the user and of the history [W]; mean [S], factor [S] and average rate of the
    statistics. Parts that the model does not have are left out."""


@compiled
def score_mlp(
    hashes: Hashes, history: Hashes, recent: Rows, values: FieldValues, tables: MLPTables, scores: Floats, cold: Rows
) -> tuple[int, bool]:
    """Arguments and result as of `service.serving.forward.interface.Forward`."""
    users, items, dense, shape = tables.users, tables.items, tables.dense, tables.shape
    n, dim = len(scores), users.shape[1]
    width, statistics, dot, has_fields, first = shape[0], shape[1], shape[2], shape[3], shape[4]
    stored = width + has_fields * dim + statistics * ITEM  # inputs of a candidate that its row holds
    inputs = stored + statistics * PAIR
    user_table = EmbeddingTable(tables.user_hashes, tables.user_starts, users)
    item_table = EmbeddingTable(tables.item_hashes, tables.item_starts, items)
    rows = rows_of_request(hashes, history, user_table, item_table)
    candidates, clicked = rows[1 : 1 + n], rows[1 + n :]
    scale = dense[len(dense) - statistics * (2 * STATISTICS + 1) :]
    field_sums, own_contexts = np.zeros((2 * has_fields, dim), np.float32), np.zeros((0, dim), np.float32)
    if has_fields:
        field_table = EmbeddingTable(tables.field_hashes, tables.field_starts, tables.fields)
        own_contexts = _sum_fields(values, field_table, n, field_sums)
    request = _request_inputs(users[rows[0]], clicked, items, width, field_sums.reshape(-1), recent, scale)
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
    if statistics:
        degrees = items[:, stored]
        neighbours = NeighbourTable(tables.neighbour_firsts, tables.neighbour_rows, tables.neighbour_counts)
        sums = sum_over_neighbours(hashes[1:], history, candidates, clicked, degrees, neighbours, same, places)
    block_sums, block_places = np.zeros((SUMS + 1, BLOCK), np.float32), np.zeros(BLOCK, np.int32)
    act, layers = np.empty((inputs + shape[4:].sum(), BLOCK), np.float32), dense[first * (len(request) + 1) :]
    for low in range(0, n, BLOCK):
        m = min(BLOCK, n - low)
        for lane in range(m):
            row = candidates[low + lane]
            for k in range(stored):
                act[k, lane] = items[row, k]
        if statistics:
            for lane in range(m):
                i = same[low + lane]
                block_sums[SUMS, lane], block_places[lane] = items[candidates[i], stored], places[i]
                for k in range(SUMS):
                    block_sums[k, lane] = sums[i, k]
            _pair_inputs(block_sums, block_places, scale, act[stored:inputs])
        layer(layers, base, act[:inputs], act[inputs : inputs + first], m, len(own_contexts) == 0)
        if len(own_contexts):
            add_candidates_own(
                dense[(dim + width) * first :], own_contexts[low : low + m], act[inputs : inputs + first]
            )  # fmt: skip
        last = inputs + further_layers(shape[4:], layers[first * inputs :], act[inputs:], m)
        logits = act[last, :m]
        for k in range(len(factors)):
            x, factor = act[k, :m], factors[k]
            for lane in range(m):
                logits[lane] += factor * x[lane]
        for lane in range(m):
            scores[low + lane] = probability(logits[lane])
    return list_cold(candidates, cold), rows[0] == 0


@compiled
def _sum_fields(values: FieldValues, table: EmbeddingTable, n: int, sums: Floats) -> Floats:
    """Add up the vectors of a request's field values.

    Args:
        values: of the fields.
        table: of the vectors.
        n: candidates.
        sums: to which those of the context and of the user are added, float32 [2, D].

    Returns:
        the sums of the candidates' own contexts, float32 [N, D]; [0, D] where no candidate has one.
    """
    rows, any_own = np.empty(len(values.hashes), np.int64), False
    find_rows(values.hashes, table.hashes, table.starts, rows)
    for i in range(len(rows)):
        any_own |= values.owners[i] >= OF_ITEM
    dim = table.vectors.shape[1]
    own = np.zeros((n if any_own else 0, dim), np.float32)
    for i in range(len(rows)):
        owner = values.owners[i]
        into = sums[owner] if owner < OF_ITEM else own[owner - OF_ITEM]
        for k in range(dim):
            into[k] += values.weights[i] * table.vectors[rows[i], k]
    return own


@compiled
def _request_inputs(
    user: Floats, clicked: Indices, items: Floats, width: int, field_sums: Floats, recent: Rows, scale: Floats
) -> Floats:
    """What the first layer reads of the request: user, mean of the clicked items, fields, statistics of the user."""
    dim, known = len(user), USER if len(scale) else 0
    request = np.zeros(dim + width + len(field_sums) + known, np.float32)
    request[:dim] = user
    mean, numbers = request[dim : dim + width], request[dim + width + len(field_sums) :]
    request[dim + width : dim + width + len(field_sums)] = field_sums
    for row in clicked:
        for k in range(width):
            mean[k] += items[row, k]
    if len(clicked) > 1:
        for k in range(width):
            mean[k] /= np.float32(len(clicked))
    if known:
        user_statistics(recent, len(clicked), scale[len(scale) - 1], numbers)
        for k in range(USER):
            numbers[k] = standard(numbers[k], scale[k], scale[STATISTICS + k])
    return request


@compiled
def _pair_inputs(sums: Floats, places: Rows, scale: Floats, out: Floats) -> None:
    """Write the standardised statistics of candidates and the user's clicks to `out` [PAIR, BLOCK].

    The last row of `sums` [SUMS + 1, BLOCK] holds the degrees of the candidates.
    """
    pair_statistics(sums[:SUMS], sums[SUMS], places, scale[len(scale) - 1], out)
    for k in range(PAIR):
        x, mean, by = out[k], scale[USER + ITEM + k], scale[STATISTICS + USER + ITEM + k]
        for lane in range(BLOCK):
            x[lane] = standard(x[lane], mean, by)
