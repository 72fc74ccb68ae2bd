"""Training steps of the base model, many in one call."""

import numpy as np

from asmg.kernels.adam import adam_dense, adam_rows, read_rows
from asmg.kernels.common import ZERO, Doubles, Floats, Indices, Rows, compiled
from asmg.kernels.embedding_mlp import BLOCK, cross_entropy
from asmg.kernels.items import item_vectors, item_vectors_backward
from asmg.kernels.plan import TABLES, Plan

__all__ = ["base_steps"]


@compiled
def base_steps(
    plan: Plan,
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
    """Run the steps first … last - 1 of an epoch of the base model, in place.

    Args:
        plan: of the epoch.
        first, last: the range of steps.
        target, importance, numeric, field_weights: [N], [N], [N, S], [N, C], in the order of the plan.
        sums: [C], the sum of each field column.
        tables, firsts, seconds, moved: the tables user, item, category and field (one row for a missing one) with
            Adam's moments and step counts.
        dense, dense_first, dense_second: all other parameters, flat, with Adam's moments.
        widths, width: of the MLP's input and layers, and of an item's vector.
        step: number of steps made before.
        lr, beta1, beta2, eps, tail: Adam's settings and its tail sums (`asmg.adam`).
        losses: [S], gets the loss of each step; steps end at the first one that is not finite.
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
