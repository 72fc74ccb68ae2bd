"""Embedding&MLP as machine code: prediction, and the loss with its gradients (formulas:
`asmg.models.embedding_mlp`).
"""

import numpy as np

from asmg.kernels.common import ONE, ZERO, Floats, Indices, Rows, compiled, dot

__all__ = ["BLOCK", "cross_entropy", "predict"]

BLOCK = 64
"""Interactions that pass the MLP together, as lanes."""

GROUP = 4
"""Weights that a loop over lanes multiplies with at once: it then loads and stores its sums once for all of them."""


@compiled
def _forward_block(
    user: Rows,
    item: Rows,
    history: Rows,
    offsets: Indices,
    fields: Rows,
    weights: Floats,
    sums: Rows,
    numeric: Floats,
    lo: int,
    n: int,
    users: Floats,
    vectors: Floats,
    values: Floats,
    widths: Indices,
    dense: Floats,
    act: Floats,
) -> None:
    """Compute the activations act [Σ widths, BLOCK] of the interactions lo … lo + n - 1; the last row has the logits.

    Args:
        user, item, history, offsets: the interactions.
        fields, weights: [N, C], rows of `values` (-1 for none) and their weights; ignored by a model without fields.
        sums: [C], the sum of each column.
        numeric: [N, S].
        lo, n: the range of interactions, see above.
        users, vectors, values: rows of the users, vectors of the items, rows of the field table.
        widths: of the MLP's input and layers.
        dense: weights and biases of the MLP's layers, then the weights of the dot products, if any.
        act: the result.
    """
    dim, width = users.shape[1], vectors.shape[1]
    before, after = dim + 2 * width, widths[0] - numeric.shape[1]
    for lane in range(n):
        b = lo + lane
        u, e = user[b], item[b]
        for k in range(dim):
            act[k, lane] = users[u, k]
        first, last = offsets[b], offsets[b + 1]
        for k in range(width):
            act[dim + k, lane] = ZERO
        for m in range(first, last):
            v = history[m]
            for k in range(width):
                act[dim + k, lane] += vectors[v, k]
        if last > first + 1:
            share = ONE / np.float32(last - first)
            for k in range(width):
                act[dim + k, lane] *= share
        for k in range(width):
            act[dim + width + k, lane] = vectors[e, k]
        if after > before:
            for k in range(before, after):
                act[k, lane] = ZERO
            for c in range(fields.shape[1]):
                v, weight, into = fields[b, c], weights[b, c], before + dim * sums[c]
                if v >= 0:
                    for k in range(dim):
                        act[into + k, lane] += weight * values[v, k]
        for k in range(numeric.shape[1]):
            act[after + k, lane] = numeric[b, k]
    top, at = 0, 0
    for layer in range(len(widths) - 1):
        fan_in, fan_out = widths[layer], widths[layer + 1]
        out = top + fan_in
        for o in range(fan_out):
            bias, ao = dense[at + fan_in * fan_out + o], act[out + o, :n]
            for lane in range(n):
                ao[lane] = bias
            row = at + o * fan_in
            for i in range(0, fan_in - fan_in % GROUP, GROUP):
                w0, w1, w2, w3 = dense[row + i], dense[row + i + 1], dense[row + i + 2], dense[row + i + 3]
                a0, a1 = act[top + i, :n], act[top + i + 1, :n]
                a2, a3 = act[top + i + 2, :n], act[top + i + 3, :n]
                for lane in range(n):
                    ao[lane] += w0 * a0[lane] + w1 * a1[lane] + w2 * a2[lane] + w3 * a3[lane]
            for i in range(fan_in - fan_in % GROUP, fan_in):
                w, ai = dense[row + i], act[top + i, :n]
                for lane in range(n):
                    ao[lane] += w * ai[lane]
            if layer < len(widths) - 2:
                for lane in range(n):
                    ao[lane] = max(ao[lane], ZERO)
        at += (fan_in + 1) * fan_out
        top = out
    if len(dense) > at:
        logit = act[top, :n]
        for k in range(width):
            a, b = dense[at + k], dense[at + width + k]
            u, h, v = act[k % dim, :n], act[dim + k, :n], act[dim + width + k, :n]
            for lane in range(n):
                logit[lane] += (a * u[lane] + b * h[lane]) * v[lane]


@compiled
def _dot_backward(
    dim: int, width: int, n: int, at: int, dense: Floats, act: Floats, dact: Floats, ddense: Floats
) -> None:
    """Add the gradients of the dot products, whose weights start at `at`, to those of the MLP's inputs."""
    dlogit = dact[act.shape[0] - 1, :n]
    for k in range(width):
        a, b = dense[at + k], dense[at + width + k]
        u, h, v = act[k % dim, :n], act[dim + k, :n], act[dim + width + k, :n]
        du, dh, dv = dact[k % dim, :n], dact[dim + k, :n], dact[dim + width + k, :n]
        da, db = ZERO, ZERO
        for lane in range(n):
            dv[lane] += dlogit[lane] * (a * u[lane] + b * h[lane])
            scaled = dlogit[lane] * v[lane]
            du[lane] += a * scaled
            dh[lane] += b * scaled
            da += u[lane] * scaled
            db += h[lane] * scaled
        ddense[at + k] += da
        ddense[at + width + k] += db


@compiled
def _backward_block(
    user: Rows,
    item: Rows,
    history: Rows,
    offsets: Indices,
    fields: Rows,
    weights: Floats,
    sums: Rows,
    numeric: int,
    lo: int,
    n: int,
    widths: Indices,
    dense: Floats,
    act: Floats,
    dact: Floats,
    dusers: Floats,
    dvectors: Floats,
    dvalues: Floats,
    ddense: Floats,
) -> None:
    """Add the gradients of a block, given those of the logits in the last row of dact. `numeric` is S."""
    dim, width = dusers.shape[1], dvectors.shape[1]
    before, after = dim + 2 * width, widths[0] - numeric
    end = 0
    for layer in range(len(widths) - 1):
        end += (widths[layer] + 1) * widths[layer + 1]
    at, out = end, act.shape[0] - 1
    for layer in range(len(widths) - 2, -1, -1):
        fan_in, fan_out = widths[layer], widths[layer + 1]
        at -= (fan_in + 1) * fan_out
        top = out - fan_in
        reached = fan_in if layer > 0 else after  # the numeric inputs need no gradient
        for i in range(fan_in):
            di, ai = dact[top + i, :n], act[top + i, :n]
            for lane in range(n):
                di[lane] = ZERO
            for o in range(fan_out):
                w, do = dense[at + o * fan_in + i], dact[out + o, :n]
                if i < reached:
                    for lane in range(n):
                        di[lane] += w * do[lane]
                ddense[at + o * fan_in + i] += dot(do, ai)
            if layer > 0:
                for lane in range(n):
                    di[lane] = di[lane] if ai[lane] > ZERO else ZERO
        for o in range(fan_out):
            do, total = dact[out + o, :n], ZERO
            for lane in range(n):
                total += do[lane]
            ddense[at + fan_in * fan_out + o] += total
        out = top
    if len(dense) > end:
        _dot_backward(dim, width, n, end, dense, act, dact, ddense)
    for lane in range(n):
        b = lo + lane
        u, e = user[b], item[b]
        for k in range(dim):
            dusers[u, k] += dact[k, lane]
        first, last = offsets[b], offsets[b + 1]
        if last > first:
            share = ONE / np.float32(last - first)
            for m in range(first, last):
                v = history[m]
                for k in range(width):
                    dvectors[v, k] += dact[dim + k, lane] * share
        for k in range(width):
            dvectors[e, k] += dact[dim + width + k, lane]
        if after > before:
            for c in range(fields.shape[1]):
                v, weight, into = fields[b, c], weights[b, c], before + dim * sums[c]
                if v >= 0:
                    for k in range(dim):
                        dvalues[v, k] += weight * dact[into + k, lane]


@compiled
def cross_entropy(
    user: Rows,
    item: Rows,
    history: Rows,
    offsets: Indices,
    fields: Rows,
    weights: Floats,
    sums: Rows,
    numeric: Floats,
    lo: int,
    hi: int,
    target: Floats,
    importance: Floats,
    weight: float,
    users: Floats,
    vectors: Floats,
    values: Floats,
    widths: Indices,
    dense: Floats,
    act: Floats,
    dact: Floats,
    dusers: Floats,
    dvectors: Floats,
    dvalues: Floats,
    ddense: Floats,
) -> float:
    """`weight` times the mean cross-entropy of the interactions lo … hi - 1, weighted by `importance` [N]; adds
    gradients.
    """
    total, whole, last = 0.0, 0.0, act.shape[0] - 1
    for k in range(lo, hi):
        whole += importance[k]
    scale = weight / whole
    for start in range(lo, hi, BLOCK):
        n = min(BLOCK, hi - start)
        _forward_block(user, item, history, offsets, fields, weights, sums, numeric, start, n,
                       users, vectors, values, widths, dense, act)  # fmt: skip
        for lane in range(n):
            x, y = np.float64(act[last, lane]), np.float64(target[start + lane])
            e = np.exp(-abs(x))
            count = np.float64(importance[start + lane])
            total += count * (max(x, 0.0) - x * y + np.log1p(e))
            probability = 1.0 / (1.0 + e) if x >= 0 else e / (1.0 + e)
            dact[last, lane] = np.float32((probability - y) * count * scale)
        _backward_block(user, item, history, offsets, fields, weights, sums, numeric.shape[1], start, n,
                        widths, dense, act, dact, dusers, dvectors, dvalues, ddense)  # fmt: skip
    return total * scale


@compiled
def predict(
    user: Rows,
    item: Rows,
    history: Rows,
    offsets: Indices,
    fields: Rows,
    weights: Floats,
    sums: Rows,
    numeric: Floats,
    users: Floats,
    vectors: Floats,
    values: Floats,
    widths: Indices,
    dense: Floats,
    logits: Floats,
) -> None:
    """Compute logits [N] of interactions; users [U, D], vectors [I, W] and values [V, D] are whole (small) tables."""
    act = np.empty((widths.sum(), BLOCK), np.float32)
    for lo in range(0, len(user), BLOCK):
        n = min(BLOCK, len(user) - lo)
        _forward_block(user, item, history, offsets, fields, weights, sums, numeric, lo, n,
                       users, vectors, values, widths, dense, act)  # fmt: skip
        for lane in range(n):
            logits[lo + lane] = act[act.shape[0] - 1, lane]
