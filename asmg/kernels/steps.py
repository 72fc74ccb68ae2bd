"""Whole training steps, many in one call."""

import numpy as np

from asmg.kernels.adam import adam_dense, adam_rows, read_rows
from asmg.kernels.common import ZERO, Doubles, Floats, Indices, Rows, compiled
from asmg.kernels.embedding_mlp import BLOCK, cross_entropy, item_vectors, item_vectors_backward
from asmg.kernels.gru import gru_backward, gru_backward_dense, gru_forward, gru_forward_dense
from asmg.kernels.plan import Plan

__all__ = ["base_steps", "generator_steps"]

TABLES = 4
"""User, item, category and field (`asmg.batch.TABLES`)."""


@compiled
def base_steps(
    plan: "Plan",
    first: int,
    last: int,
    target: Floats,
    importance: Floats,
    numeric: Floats,
    field_weights: Floats,
    sums: Rows,
    tables: tuple[Floats, ...],
    firsts: tuple[Floats, ...],
    seconds: tuple[Floats, ...],
    moved: tuple[Rows, ...],
    dense: Floats,
    dense_first: Floats,
    dense_second: Floats,
    widths: Indices,
    width: int,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    tail: Doubles,
    losses: Doubles,
) -> None:
    """Steps first … last-1 of an epoch of the base model; everything is changed in place.

    target, importance [N], numeric [N, S] and field_weights [N, C] in the order of the plan; sums [C]: the sum that
    each column belongs to; tables, firsts, seconds, moved: user, item, category and field (one row where there are
    none), with Adam's moments; dense: all other parameters, flat; width: of an item; step: steps made before. losses
    gets the loss of each step and ends at the first that is not finite.
    """
    dim = tables[0].shape[1]
    most, entities = 1, 0
    for s in range(first, last):
        for k in range(TABLES):
            most = max(most, plan.row_bounds[k, s + 1] - plan.row_bounds[k, s])
        entities = max(entities, plan.entity_bounds[s + 1] - plan.entity_bounds[s])
    values, grads = np.empty((TABLES, most, dim), np.float32), np.empty((TABLES, most, dim), np.float32)
    vectors, dvectors = np.empty((entities, width), np.float32), np.empty((entities, width), np.float32)
    ddense = np.empty_like(dense)
    act, dact = np.empty((widths.sum(), BLOCK), np.float32), np.empty((widths.sum(), BLOCK), np.float32)
    for s in range(first, last):
        for k in range(TABLES):
            rows = plan.rows[k][plan.row_bounds[k, s] : plan.row_bounds[k, s + 1]]
            read_rows(rows, tables[k], firsts[k], seconds[k], moved[k], step, lr, beta1, beta2, eps, tail, values[k])
            grads[k, : len(rows)] = ZERO
        lo, hi = plan.entity_bounds[s], plan.entity_bounds[s + 1]
        slots, categories = plan.entity_slot[lo:hi], plan.entity_categories[lo:hi]
        item_vectors(slots, categories, values[1], values[2], vectors)
        dvectors[:] = ZERO
        ddense[:] = ZERO
        lo, hi = plan.bounds[s], plan.bounds[s + 1]
        losses[s] = cross_entropy(plan.user, plan.item, plan.history, plan.offsets, plan.fields, field_weights, sums,
                          numeric, lo, hi, 0, target, importance, 1.0, values[0], vectors, values[3], widths, dense,
                          act, dact, grads[0], dvectors, grads[3], ddense)  # fmt: skip
        if not np.isfinite(losses[s]):
            return
        item_vectors_backward(slots, categories, dvectors, grads[1], grads[2])
        step += 1
        rate = lr * np.sqrt(1 - beta2**step) / (1 - beta1**step)
        for k in range(TABLES):
            rows = plan.rows[k][plan.row_bounds[k, s] : plan.row_bounds[k, s + 1]]
            adam_rows(rows, tables[k], firsts[k], seconds[k], moved[k], grads[k], step, rate, beta1, beta2, eps)
        adam_dense(dense, dense_first, dense_second, ddense, rate, beta1, beta2, eps)


@compiled
def _gather(rows: Rows, table: Floats, out: Floats) -> None:
    """out[i, slot] = table[rows[slot], i], some rows at a time so that they stay in the cache."""
    for lo in range(0, len(rows), 64):
        hi = min(lo + 64, len(rows))
        for i in range(table.shape[1]):
            line = out[i]
            for slot in range(lo, hi):
                line[slot] = table[rows[slot], i]


@compiled
def generator_steps(
    plan: "Plan",
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
    """Steps first … last-1 of an epoch of the generator; everything is changed in place.

    target, importance [N], numeric [N, S] and field_weights [N, C] in the order of the plan; sums [C]: the sum that
    each column belongs to; width: of an item. lambdas, outputs [k]: for each batch of a step, the newest first, its
    weight and which output it is scored by. inputs: for user, item, category and field [n, T·P], the values of a row in
    each model; states [n, P·d]; dense_input [T, P], dense_state [1, d, P]. weights: the five groups as views [C, P] of
    `flat`; moments: Adam's, each like `flat`; mean: the running mean of the iterates, empty where not wanted;
    dense_share: of the step size, for the weights of the dense parameters' GRUs.
    """
    steps_in = dense_input.shape[0]
    batches, d = len(lambdas), dense_state.shape[1]
    positions = inputs[0].shape[1] // steps_in
    most, entities = 1, 0
    for s in range(first, last):
        for k in range(TABLES):
            most = max(most, plan.row_bounds[k, s + 1] - plan.row_bounds[k, s])
        entities = max(entities, plan.entity_bounds[s + 1] - plan.entity_bounds[s])
    # One set of buffers for each table, for the backward pass comes after all of them have been read.
    per_step, per_gate = (TABLES, steps_in, positions, most), (TABLES, steps_in, positions, d, most)
    x, y, dy = np.empty(per_step, np.float32), np.empty(per_step, np.float32), np.empty(per_step, np.float32)
    h0 = np.empty((TABLES, 1, positions, d, most), np.float32)
    z, r = np.empty(per_gate, np.float32), np.empty(per_gate, np.float32)
    g, h = np.empty(per_gate, np.float32), np.empty(per_gate, np.float32)
    lanes = dense_input.shape[1]
    dense_gate = (steps_in, d, lanes)
    dz, dr = np.empty(dense_gate, np.float32), np.empty(dense_gate, np.float32)
    dg, dh = np.empty(dense_gate, np.float32), np.empty(dense_gate, np.float32)
    dense, ddense = np.empty((steps_in, lanes), np.float32), np.empty((steps_in, lanes), np.float32)
    values, grads = np.empty((TABLES, most, positions), np.float32), np.empty((TABLES, most, positions), np.float32)
    vectors, dvectors = np.empty((entities, width), np.float32), np.empty((entities, width), np.float32)
    act, dact = np.empty((widths.sum(), BLOCK), np.float32), np.empty((widths.sum(), BLOCK), np.float32)
    counts = np.empty((TABLES, steps_in), np.int64)
    gradient = np.empty_like(flat)
    for s in range(first, last):
        gradient[:] = ZERO
        for k in range(TABLES):
            # Output j is needed for the slots of the batches that are scored by it or by a later one.
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
                           numeric, lo, hi, 0, target, importance, lambdas[q], values[0], vectors, values[3], widths,
                           dense[j], act, dact, grads[0], dvectors, grads[3], ddense[j])  # fmt: skip
            item_vectors_backward(slots[:needed], categories[:needed], dvectors, grads[1], grads[2])
            for k in range(TABLES):
                dyj = dy[k, j]
                for slot in range(counts[k, j]):
                    for p in range(positions):
                        dyj[p, slot] += grads[k, slot, p]
        losses[s] = total
        if not np.isfinite(total):
            return
        at = 0
        for k in range(TABLES + 1):
            size = weights[k].size
            dw = gradient[at : at + size].reshape(weights[k].shape)
            if k < TABLES:
                gru_backward(weights[k], x[k], h0[k], counts[k], z[k], r[k], g[k], h[k], dy[k], dw)
            else:
                gru_backward_dense(weights[k], dense_input, dense_state, dz, dr, dg, dh, ddense, dw)
            at += size
        step += 1
        rate = lr * np.sqrt(1 - beta2**step) / (1 - beta1**step)
        # The MLP's weights come last.
        top = len(flat) - weights[TABLES].size
        m, v = moments
        adam_dense(flat[:top], m[:top], v[:top], gradient[:top], rate, beta1, beta2, eps)
        adam_dense(flat[top:], m[top:], v[top:], gradient[top:], rate * dense_share, beta1, beta2, eps)
        if len(mean):
            share = np.float32(1.0 / (s + 1))
            for lane in range(len(flat)):
                mean[lane] += share * (flat[lane] - mean[lane])
