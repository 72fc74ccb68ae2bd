"""The forward pass of a serving snapshot as machine code: from the ids of one request to its scores.

JSON → hashes of the ids; hashes → rows → gather → mean of the history → MLP → sigmoid: two calls, for one user and N
candidates, and nothing is done in Python for each of them. `service.serving.eager` is the second in torch, which the
tests and every published snapshot compare with. Compiled once and cached on disk (NUMBA_CACHE_DIR says where); the GIL
is free meanwhile.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from asmg.kernels.common import ONE, ZERO, Floats, Indices, Rows, compiled, inlined
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
from service.serving.beside import find_beside
from service.text_kernels import BACKSLASH, CLOSING, COMMA, OPENING, QUOTE, SPACE, behind_blanks, xxh64

__all__ = [
    "EPSILON",
    "NO_VALUES",
    "OF_CONTEXT",
    "OF_ITEM",
    "OF_USER",
    "SEPARATOR",
    "FieldValues",
    "Forward",
    "compiled_forward",
    "hash_json",
    "hash_text",
    "item_width",
    "score_mf",
    "score_mlp",
]

Hashes = NDArray[np.uint64]
Starts = NDArray[np.uint32]

SEPARATOR = "\0"
"""Between the ids of a text; no id holds it."""

EPSILON = 1e-6
"""Scores are kept this far from 0 and 1, so that no reader meets a logarithm of zero."""

LOWEST, HIGHEST = np.float32(EPSILON), np.float32(1 - EPSILON)

MINUS, ZERO_DIGIT, NINE_DIGIT = (ord(c) for c in "-09")
DIGITS = 18
"""Of an integer that 64 bits hold for certain."""

LANES = BLOCK
"""Candidates that go through the MLP together."""

LOOK_UPS = 16
"""Look-ups whose cache misses are waited for together."""

NOBODY = np.uint64(2**64 - 1)

OF_CONTEXT, OF_USER, OF_ITEM = 0, 1, 2
"""Whose value one of `FieldValues` is; from `OF_ITEM` on that of the context of a candidate, by its position."""


class FieldValues(NamedTuple):
    """The values of the fields of one request, in any order."""

    hashes: Hashes
    """[K]: by which a snapshot knows them (`service.serving.fields`)."""
    weights: Floats
    """[K]: 1, or, where the value is a number, that number, standardised."""
    owners: Rows
    """int32 [K]: 0 of the context, 1 of the user, 2 + n of the context of the n-th candidate alone."""


NO_VALUES = FieldValues(np.empty(0, np.uint64), np.empty(0, np.float32), np.empty(0, np.int32))
"""Of a request without fields."""


@compiled
def hash_text(text: bytes, hashes: Hashes) -> int:
    """XXH64 of each id in the UTF-8 `text`, whose ids have a `SEPARATOR` between them.

    Returns:
        the number of ids; no more than there is room for are written.
    """
    n, start = 0, 0
    for at in range(len(text) + 1):
        if at == len(text) or text[at] == 0:
            if n < len(hashes):
                hashes[n] = xxh64(text, start, at)
            n += 1
            start = at + 1
    return n


@compiled
def hash_json(text: bytes, longest: int, hashes: Hashes) -> int:
    """XXH64 of each id in a JSON array of plain strings and integers, without making strings of them.

    Args:
        text: UTF-8.
        longest: characters that a string may have.
        hashes: receives them.

    Returns:
        the number of ids; -1 for whatever needs a second look: other values, strings that are empty or too long, with
        an escape or with a character that is not ASCII, integers of more than `DIGITS` digits, more ids than there is
        room for, and what is no JSON.
    """
    n, at = 0, behind_blanks(text, 0)
    if at == len(text) or text[at] != OPENING:
        return -1
    while True:
        start = behind_blanks(text, at + 1)
        if start == len(text) or n == len(hashes):
            return -1
        if text[start] == QUOTE:
            start += 1
            end = _end_of_string(text, start)
            if not 0 < end - start <= longest:
                return -1
            at = end + 1
        else:
            at = end = _end_of_integer(text, start)
            if end < 0:
                return -1
        hashes[n] = xxh64(text, start, end)
        n += 1
        at = behind_blanks(text, at)
        if at < len(text) and text[at] == CLOSING:
            return n if behind_blanks(text, at + 1) == len(text) else -1
        if at == len(text) or text[at] != COMMA:
            return -1


@inlined
def _end_of_string(text: bytes, at: int) -> int:
    """Where the quote is that ends the plain string whose first letter is at `at`; -1 where there is none."""
    while at < len(text) and text[at] != QUOTE:
        if text[at] < SPACE or text[at] > 127 or text[at] == BACKSLASH:
            return -1
        at += 1
    return at if at < len(text) else -1


@inlined
def _end_of_integer(text: bytes, at: int) -> int:
    """Where the integer ends that begins at `at`; -1 where there is none, or one that is not its own decimal text."""
    if text[at] == MINUS:
        at += 1
    first = at
    while at < len(text) and ZERO_DIGIT <= text[at] <= NINE_DIGIT:
        at += 1
    if not 0 < at - first <= DIGITS or (text[first] == ZERO_DIGIT and (at - first > 1 or text[first - 1] == MINUS)):
        return -1
    return at


@compiled
def _find_rows(wanted: Hashes, hashes: Hashes, starts: Starts, rows: Indices) -> None:
    """The row of each hash; 0, the cold row, for an unknown one (`service.serving.id_index`)."""
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
            rows[i] = place + 1 if found == h and h != NOBODY else 0


@compiled
def _rows_of(
    asked: Hashes,
    history: Hashes,
    user_hashes: Hashes,
    user_starts: Starts,
    item_hashes: Hashes,
    item_starts: Starts,
) -> Indices:
    """Rows of the user, the candidates and the history, one after the other."""
    rows = np.empty(len(asked) + len(history), np.int64)
    _find_rows(asked[:1], user_hashes, user_starts, rows[:1])
    _find_rows(asked[1:], item_hashes, item_starts, rows[1 : len(asked)])
    _find_rows(history, item_hashes, item_starts, rows[len(asked) :])
    return rows


@inlined
def _note_cold(rows: Indices, cold: NDArray[np.int32]) -> int:
    found = 0
    for i in range(len(cold)):
        if rows[1 + i] == 0:
            cold[found] = i
            found += 1
    return found


@inlined
def _probability(logit: np.float32) -> np.float32:
    """Always inside (0, 1): parameters so large that their products overflow can make a NaN, and it ends up below."""
    p = ONE / (ONE + np.float32(math.exp(-logit)))
    if p > HIGHEST:
        return HIGHEST
    return p if p > LOWEST else LOWEST


@compiled
def score_mlp(
    asked: Hashes,
    history: Hashes,
    recent: Rows,
    values: Hashes,
    counts: Floats,
    owners: Rows,
    user_hashes: Hashes,
    user_starts: Starts,
    item_hashes: Hashes,
    item_starts: Starts,
    field_hashes: Hashes,
    field_starts: Starts,
    users: Floats,
    items: Floats,
    fields: Floats,
    firsts: Starts,
    neighbours: Starts,
    pairs: Floats,
    shape: Indices,
    dense: Floats,
    scores: Floats,
    cold: NDArray[np.int32],
) -> tuple[int, bool]:
    """Embedding&MLP (`asmg.models.EmbeddingMLP`).

    Args:
        asked: hashes of the user and of the N candidates, [1 + N].
        history: hashes of the user's earlier items.
        recent: what the user did of late, int32 [3] (`asmg.kernels.statistics.user_statistics`).
        values, counts, owners: `FieldValues`; not looked at without fields.
        user_hashes, user_starts, item_hashes, item_starts, field_hashes, field_starts: `IdIndex`.
        users, items, fields: tables [U, D], [I, ≥ W] and [V, D]; with fields an item has the sum of its own [D] behind
            its vector, with statistics its own ITEM behind that, and how often anything was clicked beside it.
        firsts, neighbours, pairs: what is beside the items (`service.serving.beside`); empty without statistics.
        shape: W; 1 with statistics, else 0; 1 with dot products, else 0; 1 with fields, else 0; the widths of the
            layers, from the first on.
        dense: one after the other the first layer's weights of what a request knows [D + W + 2·D + USER, out], its
            biases, its weights of a candidate [out, W + D + ITEM + PAIR], weights [out, in] and biases of the layers
            behind it, the dot products' weights of the user and of the history [W], and mean, factor [S] and average
            rate of the statistics; without what the model has not.
        scores: receives the click probabilities, [N].
        cold: receives the positions of unknown candidates, [N].

    Returns:
        the number of unknown candidates, and whether the user is unknown.
    """
    n, dim = len(scores), users.shape[1]
    width, statistics, dot, has_fields, first = shape[0], shape[1], shape[2], shape[3], shape[4]
    told = width + has_fields * dim + statistics * ITEM  # of a candidate by its row
    own = told + statistics * PAIR
    rows = _rows_of(asked, history, user_hashes, user_starts, item_hashes, item_starts)
    candidates, clicked = rows[1 : 1 + n], rows[1 + n :]
    scale = dense[len(dense) - statistics * (2 * STATISTICS + 1) :]
    sums_of, contexts = np.zeros((2 * has_fields, dim), np.float32), np.zeros((0, dim), np.float32)
    if has_fields:
        contexts = _sum_values(values, counts, owners, field_hashes, field_starts, fields, n, sums_of)
    request = _request(users[rows[0]], clicked, items, width, sums_of.reshape(-1), recent, scale)
    # The user's and the history's share of the first layer is the same for all candidates.
    base = dense[first * len(request) : first * (len(request) + 1)].copy()
    for k in range(len(request)):
        known, weights = request[k], dense[k * first : (k + 1) * first]
        for o in range(first):
            base[o] += weights[o] * known
    # So is what the dot products multiply a candidate with.
    product, weights = np.empty(dot * width, np.float32), dense[len(dense) - len(scale) - 2 * dot * width :]
    for k in range(len(product)):
        product[k] = weights[k] * request[k % dim] + weights[width + k] * request[dim + k]
    same, places, sums = np.empty(n, np.int32), np.empty(n, np.int32), np.empty((0, SUMS), np.float32)
    if statistics:
        sums = find_beside(
            asked[1:], history, candidates, clicked, items[:, told], firsts, neighbours, pairs, same, places
        )
    work, place = np.zeros((SUMS + 1, LANES), np.float32), np.zeros(LANES, np.int32)
    act, layers = np.empty((own + shape[4:].sum(), LANES), np.float32), dense[first * (len(request) + 1) :]
    for low in range(0, n, LANES):
        m = min(LANES, n - low)
        for lane in range(m):
            row = candidates[low + lane]
            for k in range(told):
                act[k, lane] = items[row, k]
        if statistics:
            for lane in range(m):
                i = same[low + lane]
                work[SUMS, lane], place[lane] = items[candidates[i], told], places[i]
                for k in range(SUMS):
                    work[k, lane] = sums[i, k]
            _pairs(work, place, scale, act[told:own])
        _layer(layers, base, act[:own], act[own : own + first], m, len(contexts) == 0)
        if len(contexts):
            _add_contexts(dense[(dim + width) * first :], contexts[low : low + m], act[own : own + first])
        last = own + _next_layers(shape, layers[first * own :], act[own:], m)
        logits = act[last, :m]
        for k in range(len(product)):
            x, times = act[k, :m], product[k]
            for lane in range(m):
                logits[lane] += times * x[lane]
        for lane in range(m):
            scores[low + lane] = _probability(logits[lane])
    return _note_cold(rows, cold), rows[0] == 0


@compiled
def _sum_values(
    values: Hashes,
    counts: Floats,
    owners: Rows,
    field_hashes: Hashes,
    field_starts: Starts,
    fields: Floats,
    n: int,
    sums: Floats,
) -> Floats:
    """Add the fields of a request to `sums` [2, D], of the context and of the user.

    Returns:
        the sums of what is of single candidates' contexts [n, D]; none [0, D] where there is no such value.
    """
    rows, own = np.empty(len(values), np.int64), False
    _find_rows(values, field_hashes, field_starts, rows)
    for i in range(len(values)):
        own |= owners[i] >= OF_ITEM
    contexts = np.zeros((n if own else 0, fields.shape[1]), np.float32)
    for i in range(len(values)):
        into = sums[owners[i]] if owners[i] < OF_ITEM else contexts[owners[i] - OF_ITEM]
        for k in range(fields.shape[1]):
            into[k] += counts[i] * fields[rows[i], k]
    return contexts


@compiled
def _add_contexts(weights: Floats, contexts: Floats, out: Floats) -> None:
    """Add to the first layer's outputs [O, …] what the candidates' own contexts [m, D] bring, and end the layer.

    weights: those of the context, [D, O].
    """
    m, dim = contexts.shape
    for o in range(len(out)):
        y = out[o, :m]
        for k in range(dim):
            w = weights[k * len(out) + o]
            for lane in range(m):
                y[lane] += w * contexts[lane, k]
        for lane in range(m):
            y[lane] = max(y[lane], ZERO)


@compiled
def _request(
    user: Floats, clicked: Indices, items: Floats, width: int, fields: Floats, recent: Rows, scale: Floats
) -> Floats:
    """What the first layer reads of a request: the user, the mean of its clicks, fields, its statistics."""
    dim, known = len(user), USER if len(scale) else 0
    request = np.zeros(dim + width + len(fields) + known, np.float32)
    request[:dim] = user
    pooled, numbers = request[dim : dim + width], request[dim + width + len(fields) :]
    request[dim + width : dim + width + len(fields)] = fields
    for row in clicked:
        for k in range(width):
            pooled[k] += items[row, k]
    if len(clicked) > 1:
        for k in range(width):
            pooled[k] /= np.float32(len(clicked))
    if known:
        user_statistics(recent, len(clicked), scale[len(scale) - 1], numbers)
        for k in range(USER):
            numbers[k] = standard(numbers[k], scale[k], scale[STATISTICS + k])
    return request


@compiled
def _pairs(sums: Floats, place: Rows, scale: Floats, out: Floats) -> None:
    """Out [PAIR, LANES]: what candidates are to the user's clicks, standardised; sums: their degrees behind them."""
    pair_statistics(sums[:SUMS], sums[SUMS], place, scale[len(scale) - 1], out)
    for k in range(PAIR):
        x, mean, by = out[k], scale[USER + ITEM + k], scale[STATISTICS + USER + ITEM + k]
        for lane in range(LANES):
            x[lane] = standard(x[lane], mean, by)


@compiled
def _layer(weights: Floats, bias: Floats, x: Floats, out: Floats, m: int, hidden: bool) -> None:
    """Out [O, m] = weights [O, I] · x [I, m] + bias, of a hidden layer no less than 0; one candidate a lane.

    Two outputs and four inputs at a time, so that fewer numbers are loaded and stored than multiplied.
    """
    inputs, outputs = len(x), len(out)
    for o in range(outputs):
        y = out[o, :m]
        for lane in range(m):
            y[lane] = bias[o]
    for o in range(0, outputs - 1, 2):
        y, z, at, to = out[o, :m], out[o + 1, :m], o * inputs, (o + 1) * inputs
        for i in range(0, inputs - 3, 4):
            a, b, c, d = weights[at + i], weights[at + i + 1], weights[at + i + 2], weights[at + i + 3]
            e, f, g, h = weights[to + i], weights[to + i + 1], weights[to + i + 2], weights[to + i + 3]
            p, q, r, s = x[i, :m], x[i + 1, :m], x[i + 2, :m], x[i + 3, :m]
            for lane in range(m):
                y[lane] += a * p[lane] + b * q[lane] + c * r[lane] + d * s[lane]
                z[lane] += e * p[lane] + f * q[lane] + g * r[lane] + h * s[lane]
        for i in range(inputs - inputs % 4, inputs):
            a, e, p = weights[at + i], weights[to + i], x[i, :m]
            for lane in range(m):
                y[lane] += a * p[lane]
                z[lane] += e * p[lane]
    for o in range(outputs - outputs % 2, outputs):
        y = out[o, :m]
        for i in range(inputs):
            a, p = weights[o * inputs + i], x[i, :m]
            for lane in range(m):
                y[lane] += a * p[lane]
    if hidden:
        for o in range(outputs):
            y = out[o, :m]
            for lane in range(m):
                y[lane] = max(y[lane], ZERO)


@compiled
def _next_layers(shape: Indices, dense: Floats, act: Floats, m: int) -> int:
    """The layers behind the first, whose activations are there; the row of the logits."""
    at, top = 0, 0
    for layer in range(4, len(shape) - 1):
        fan_in, fan_out = shape[layer], shape[layer + 1]
        behind, end = at + fan_in * fan_out, top + fan_in
        _layer(dense[at:], dense[behind:], act[top:end], act[end : end + fan_out], m, layer < len(shape) - 2)
        at, top = behind + fan_out, end
    return top


@compiled
def score_mf(
    asked: Hashes,
    history: Hashes,
    user_hashes: Hashes,
    user_starts: Starts,
    item_hashes: Hashes,
    item_starts: Starts,
    users: Floats,
    items: Floats,
    scores: Floats,
    cold: NDArray[np.int32],
) -> tuple[int, bool]:
    """Biased matrix factorization (`asmg.models.MatrixFactorization`), where the last column holds the biases and the
    history has no say. Arguments and result as of `score_mlp`.
    """
    rows = _rows_of(asked, history[:0], user_hashes, user_starts, item_hashes, item_starts)
    dim = users.shape[1] - 1
    for i in range(len(scores)):
        logit = users[rows[0], dim] + items[rows[1 + i], dim]
        for k in range(dim):
            logit += users[rows[0], k] * items[rows[1 + i], k]
        scores[i] = _probability(logit)
    return _note_cold(rows, cold), rows[0] == 0


class Forward(Protocol):
    """A way to compute a snapshot's scores: compiled or eager."""

    def __call__(
        self, asked: Hashes, history: Hashes, recent: Rows, values: FieldValues, scores: Floats, cold: Rows, /
    ) -> tuple[int, bool]:
        """Fill `scores` and `cold`; see `score_mlp` for arguments and result."""


def item_width(config: Mapping[str, Any]) -> int:
    """W, the length of what an item is to Embedding&MLP."""
    return int(config["dim"]) * (2 if config["categories"] else 1)


def compiled_forward(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Forward:
    """The kernel over the tensors of a snapshot whose model has this configuration."""
    parts = ("users.hashes", "users.starts", "items.hashes", "items.starts", "users.vectors", "items.vectors")
    uh, us, ih, starts, users, items = (tensors[name] for name in parts)
    if "hidden" not in config:
        return lambda asked, history, recent, values, scores, cold: score_mf(
            asked, history, uh, us, ih, starts, users, items, scores, cold
        )
    shape, dense = _dense(config, tensors)
    firsts, neighbours, pairs, fh, fs, fields = (
        tensors[name] if name in tensors else _read_only(shape_of_none, dtype)
        for name, shape_of_none, dtype in (
            ("pairs.firsts", (0,), np.uint32),
            ("pairs.items", (0,), np.uint32),
            ("pairs.counts", (0, 2), np.float32),
            ("fields.hashes", (0,), np.uint64),
            ("fields.starts", (0,), np.uint32),
            ("fields.vectors", (0, users.shape[1]), np.float32),
        )
    )

    def forward(
        asked: Hashes, history: Hashes, recent: Rows, values: FieldValues, scores: Floats, cold: Rows
    ) -> tuple[int, bool]:
        return score_mlp(
            asked, history, recent, *values, uh, us, ih, starts, fh, fs, users, items, fields,
            firsts, neighbours, pairs, shape, dense, scores, cold,
        )  # fmt: skip

    return forward


def _read_only(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """No numbers, of one type with those of a file: else the kernel would be compiled once more."""
    array = np.empty(shape, dtype)
    array.flags.writeable = False
    return array


def _dense(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> tuple[Indices, Floats]:
    """Arguments `shape` and `dense` of `score_mlp`."""
    layers = range(len(config["hidden"]) + 1)
    weights = [tensors[f"mlp.{layer}.weight"] for layer in layers]
    biases = [tensors[f"mlp.{layer}.bias"] for layer in layers]
    width, dim = item_width(config), int(config["dim"])
    statistics, dot, fields = (bool(config.get(name)) for name in ("numeric", "dot", "fields"))
    widths = [dim + width, width, 2 * dim * fields, dim * fields, USER * statistics]
    request, candidate, values, own, user, rest = np.split(weights[0], np.cumsum(widths), axis=1)
    parts = [np.concatenate([request, values, user], 1).T, biases[0], np.concatenate([candidate, own, rest], 1)]
    parts += [part for layer in layers[1:] for part in (weights[layer], biases[layer])]
    parts += [tensors["dot.user"], tensors["dot.history"]] if dot else []
    parts += [tensors["statistics.scale"], tensors["statistics.average"]] if statistics else []
    shape = np.array([width, statistics, dot, fields, *map(len, weights)], dtype=np.int64)
    return shape, np.concatenate([part.ravel() for part in parts])
