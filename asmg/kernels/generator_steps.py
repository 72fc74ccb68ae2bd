"""Training steps of the generator: many in one call, or the gradient and the move of a single step."""

from typing import NamedTuple

import numpy as np

from asmg.kernels.adam import adam_dense
from asmg.kernels.common import ZERO, Doubles, Floats, Indices, Rows, compiled
from asmg.kernels.embedding_mlp import BLOCK, cross_entropy
from asmg.kernels.gru import gru_backward, gru_forward
from asmg.kernels.gru_dense import gru_backward_dense, gru_forward_dense
from asmg.kernels.items import item_vectors, item_vectors_backward
from asmg.kernels.plan import TABLES, Plan

__all__ = [
    "GeneratorBuffers",
    "GeneratorReads",
    "generator_buffers",
    "generator_gradient",
    "generator_gradient_dense",
    "generator_move",
    "generator_steps",
]


Tables = tuple[Floats, ...]
GeneratorReads = tuple[
    Floats, Floats, Floats, Floats, Rows, Doubles, Indices, Tables, Tables, Floats, Floats, bool, Tables
]  # fmt: skip
"""The arguments of `generator_steps` from `target` to `weights`."""


class GeneratorBuffers(NamedTuple):
    """Room for the numbers of one step; all float32 except `counts`. T steps of P positions, d hidden units."""

    x: np.ndarray
    """[TABLES, T, P, rows], inputs. One set per table: the backward pass starts after all of them have been read."""
    y: np.ndarray
    """[TABLES, T, P, rows], outputs."""
    dy: np.ndarray
    """Their gradients."""
    h0: np.ndarray
    """[TABLES, 1, P, d, rows], hidden states before the first step."""
    z: np.ndarray
    """[TABLES, T, P, d, rows], update gates."""
    r: np.ndarray
    """Reset gates, in the same form."""
    g: np.ndarray
    """Candidates, in the same form."""
    h: np.ndarray
    """Hidden states, in the same form."""
    dz: np.ndarray
    """[T, d, lanes], update gates of the MLP's scalars."""
    dr: np.ndarray
    """Their reset gates."""
    dg: np.ndarray
    """Their candidates."""
    dh: np.ndarray
    """Their hidden states."""
    dense: np.ndarray
    """[T, lanes], the MLP's scalars as generated."""
    ddense: np.ndarray
    """Their gradients."""
    values: np.ndarray
    """[TABLES, rows, P], the rows that score a batch."""
    grads: np.ndarray
    """Their gradients."""
    vectors: np.ndarray
    """[entities, width], the items' vectors."""
    dvectors: np.ndarray
    """Their gradients."""
    act: np.ndarray
    """[Σ widths, BLOCK], activations."""
    dact: np.ndarray
    """Their gradients."""
    counts: np.ndarray
    """int64 [TABLES, T], the rows that each output is needed for."""


@compiled
def _gather(rows: Rows, table: Floats, out: Floats) -> None:
    """out[i, slot] = table[rows[slot], i], 64 rows at a time so that they stay in the cache."""
    for lo in range(0, len(rows), 64):
        hi = min(lo + 64, len(rows))
        for i in range(table.shape[1]):
            line = out[i]
            for slot in range(lo, hi):
                line[slot] = table[rows[slot], i]


@compiled
def generator_buffers(
    plan: Plan,
    first: int,
    last: int,
    inputs: tuple[Floats, ...],
    dense_input: Floats,
    dense_state: Floats,
    widths: Indices,
    width: int,
) -> GeneratorBuffers:
    """Buffers that are large enough for each of the steps first … last - 1; arguments as of `generator_steps`."""
    steps_in, d, lanes = dense_input.shape[0], dense_state.shape[1], dense_input.shape[1]
    positions = inputs[0].shape[1] // steps_in
    most, entities = 1, 0
    for s in range(first, last):
        for k in range(TABLES):
            most = max(most, plan.row_bounds[k, s + 1] - plan.row_bounds[k, s])
        entities = max(entities, plan.entity_bounds[s + 1] - plan.entity_bounds[s])
    per_step, per_gate = (TABLES, steps_in, positions, most), (TABLES, steps_in, positions, d, most)
    dense_gate, per_row = (steps_in, d, lanes), (TABLES, most, positions)
    return GeneratorBuffers(
        np.empty(per_step, np.float32), np.empty(per_step, np.float32), np.empty(per_step, np.float32),
        np.empty((TABLES, 1, positions, d, most), np.float32),
        np.empty(per_gate, np.float32), np.empty(per_gate, np.float32),
        np.empty(per_gate, np.float32), np.empty(per_gate, np.float32),
        np.empty(dense_gate, np.float32), np.empty(dense_gate, np.float32),
        np.empty(dense_gate, np.float32), np.empty(dense_gate, np.float32),
        np.empty((steps_in, lanes), np.float32), np.empty((steps_in, lanes), np.float32),
        np.empty(per_row, np.float32), np.empty(per_row, np.float32),
        np.empty((entities, width), np.float32), np.empty((entities, width), np.float32),
        np.empty((widths.sum(), BLOCK), np.float32), np.empty((widths.sum(), BLOCK), np.float32),
        np.empty((TABLES, steps_in), np.int64),
    )  # fmt: skip


@compiled
def generator_gradient(
    plan: Plan,
    s: int,
    target: Floats,
    importance: Floats,
    numeric: Floats,
    field_weights: Floats,
    sums: Rows,
    lambdas: Doubles,
    outputs: Indices,
    inputs: tuple[Floats, ...],
    states: tuple[Floats, ...],
    dense_input: Floats,
    dense_state: Floats,
    residual: bool,
    weights: tuple[Floats, ...],
    widths: Indices,
    buffers: GeneratorBuffers,
    gradient: Floats,
) -> float:
    """The loss of step s of the plan, and its gradient but for the MLP's group; arguments as of `generator_steps`.

    `buffers` are overwritten; `ddense` of them gets the gradient of the MLP's scalars, of which
    `generator_gradient_dense` makes that of their weights. `gradient` gets the gradient of all other weights, flat, and
    zeros. Both are undefined if the loss is not finite.
    """
    x, y, dy, h0, z, r, g, h, dz, dr, dg, dh, dense, ddense, values, grads, vectors, dvectors, act, dact, counts = (
        buffers
    )
    steps_in, positions, most = x.shape[1], x.shape[2], x.shape[3]
    batches, d = len(outputs), dense_state.shape[1]
    gradient[:] = ZERO
    for k in range(TABLES):
        # Output j is needed for the slots of all batches that are scored by it or by a later output.
        counts[k] = 0
        if weights[k].size == 0:  # no such table
            continue
        for q in range(batches):
            for j in range(outputs[q] + 1):
                counts[k, j] = max(counts[k, j], plan.counts[k, s, q])
        rows = plan.rows[k][plan.row_bounds[k, s] : plan.row_bounds[k, s + 1]]
        _gather(rows[: counts[k, 0]], inputs[k], x[k].reshape(steps_in * positions, most))
        _gather(rows[: counts[k, 0]], states[k], h0[k].reshape(positions * d, most))
        gru_forward(weights[k], x[k], h0[k], counts[k], residual, z[k], r[k], g[k], h[k], y[k])
    gru_forward_dense(weights[TABLES], dense_input, dense_state, residual, dz, dr, dg, dh, dense)
    ddense[:] = ZERO
    for k in range(TABLES):
        for j in range(steps_in):
            for p in range(positions):
                dy[k, j, p, : counts[k, j]] = ZERO
    lo, hi = plan.entity_bounds[s], plan.entity_bounds[s + 1]
    slots, categories = plan.entity_slot[lo:hi], plan.entity_categories[lo:hi]
    total = 0.0
    for q in range(batches):
        lo, hi, j = plan.bounds[s * batches + q], plan.bounds[s * batches + q + 1], outputs[q]
        if lo == hi:
            continue
        for k in range(TABLES):
            used, yj = counts[k, j], y[k, j]
            for slot in range(used):
                for p in range(positions):
                    values[k, slot, p] = yj[p, slot]
            grads[k, :used] = ZERO
        needed = plan.counts[TABLES, s, q]
        item_vectors(slots[:needed], categories[:needed], values[1], values[2], vectors)
        dvectors[:needed] = ZERO
        total += cross_entropy(plan.user, plan.item, plan.history, plan.offsets, plan.fields, field_weights, sums,
                       numeric, lo, hi, target, importance, lambdas[s, q], values[0], vectors, values[3], widths,
                       dense[j], act, dact, grads[0], dvectors, grads[3], ddense[j])  # fmt: skip
        item_vectors_backward(slots[:needed], categories[:needed], dvectors, grads[1], grads[2])
        for k in range(TABLES):
            dyj = dy[k, j]
            for slot in range(counts[k, j]):
                for p in range(positions):
                    dyj[p, slot] += grads[k, slot, p]
    if not np.isfinite(total):
        return total
    at = 0
    for k in range(TABLES):
        size = weights[k].size
        dw = gradient[at : at + size].reshape(weights[k].shape)
        gru_backward(weights[k], x[k], h0[k], counts[k], z[k], r[k], g[k], h[k], dy[k], dw)
        at += size
    return total


@compiled
def generator_gradient_dense(
    dense_input: Floats, dense_state: Floats, weights: tuple[Floats, ...], buffers: GeneratorBuffers, gradient: Floats
) -> None:
    """Add the gradient of the MLP's group to the flat `gradient`, after `generator_gradient` with the same buffers."""
    dw = gradient[len(gradient) - weights[TABLES].size :].reshape(weights[TABLES].shape)
    gru_backward_dense(weights[TABLES], dense_input, dense_state, buffers.dz, buffers.dr, buffers.dg, buffers.dh,
                       buffers.ddense, dw)  # fmt: skip


@compiled
def generator_move(
    flat: Floats,
    moments: tuple[Floats, ...],
    mean: Floats,
    gradient: Floats,
    top: int,
    s: int,
    step: int,
    lr: float,
    dense_share: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Adam's move `step`, counted from 1, after step s of the pass; arguments as of `generator_steps`.

    The MLP's weights start at `top`.
    """
    rate = lr * np.sqrt(1 - beta2**step) / (1 - beta1**step)
    m, v = moments
    adam_dense(flat[:top], m[:top], v[:top], gradient[:top], rate, beta1, beta2, eps)
    adam_dense(flat[top:], m[top:], v[top:], gradient[top:], rate * dense_share, beta1, beta2, eps)
    if len(mean):
        share = np.float32(1.0 / (s + 1))
        for lane in range(len(flat)):
            mean[lane] += share * (flat[lane] - mean[lane])


@compiled
def generator_steps(
    plan: Plan,
    first: int,
    last: int,
    target: Floats,
    importance: Floats,
    numeric: Floats,
    field_weights: Floats,
    sums: Rows,
    lambdas: Doubles,
    outputs: Indices,
    inputs: tuple[Floats, ...],
    states: tuple[Floats, ...],
    dense_input: Floats,
    dense_state: Floats,
    residual: bool,
    weights: tuple[Floats, ...],
    flat: Floats,
    moments: tuple[Floats, ...],
    mean: Floats,
    widths: Indices,
    width: int,
    step: int,
    lr: float,
    dense_share: float,
    beta1: float,
    beta2: float,
    eps: float,
    losses: Doubles,
) -> None:
    """Run the steps first … last - 1 of an epoch of the generator, in place.

    Args:
        plan: of the epoch.
        first, last: the range of steps.
        target, importance, numeric, field_weights: [N], [N], [N, S], [N, C], in the order of the plan.
        sums: [C], the sum of each field column.
        lambdas, outputs: [S, k] and [k], for each batch of a step, the newest first, its weight and the output that
            scores it.
        inputs, states: for the tables user, item, category and field the rows' values in the T models [n, T·P], and
            their hidden states [n, P·d].
        dense_input, dense_state: the same of the MLP's scalars, [T, P] and [1, d, P].
        residual: whether the input is added to the output.
        weights: of the five groups, as views [C, P] of `flat`.
        flat, moments: all weights, and Adam's moments in the same form.
        mean: the running mean of the weights after each step; empty if not wanted.
        widths, width: of the MLP's input and layers, and of an item's vector.
        step: number of steps made before.
        lr, dense_share, beta1, beta2, eps: Adam's settings; `dense_share` is the fraction of `lr` for the MLP's group.
        losses: [S], gets the loss of each step; steps end at the first one that is not finite.
    """
    buffers, gradient = (
        generator_buffers(plan, first, last, inputs, dense_input, dense_state, widths, width),
        np.empty_like(flat),
    )
    top = len(flat) - weights[TABLES].size
    for s in range(first, last):
        losses[s] = generator_gradient(plan, s, target, importance, numeric, field_weights, sums, lambdas, outputs,
                                       inputs, states, dense_input, dense_state, residual, weights, widths,
                                       buffers, gradient)  # fmt: skip
        if not np.isfinite(losses[s]):
            return
        generator_gradient_dense(dense_input, dense_state, weights, buffers, gradient)
        step += 1
        generator_move(flat, moments, mean, gradient, top, s, step, lr, dense_share, beta1, beta2, eps)
