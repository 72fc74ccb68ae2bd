"""Training steps of the base model: many in one call, or the gradients and the move of a single step."""

from typing import NamedTuple

import numpy as np

from asmg.kernels.adam import adam_dense, adam_rows, read_rows
from asmg.kernels.common import ZERO, Doubles, Floats, Indices, Rows, compiled
from asmg.kernels.embedding_mlp import BLOCK, cross_entropy
from asmg.kernels.items import item_vectors, item_vectors_backward
from asmg.kernels.plan import TABLES, Plan

__all__ = ["BaseBuffers", "BaseReads", "base_buffers", "base_gradients", "base_move", "base_steps"]


Tables = tuple[Floats, ...]
BaseReads = tuple[Floats, Floats, Floats, Floats, Rows, Tables, Tables, Tables, tuple[Rows, ...]]
"""The arguments of `base_steps` from `target` to `moved`."""


class BaseBuffers(NamedTuple):
    """Room for the numbers of one step."""

    values: np.ndarray
    """float32 [TABLES, rows, dim], the rows of the step."""
    vectors: np.ndarray
    """float32 [entities, width], the items' vectors."""
    dvectors: np.ndarray
    """Their gradients."""
    act: np.ndarray
    """float32 [Σ widths, BLOCK], activations."""
    dact: np.ndarray
    """Their gradients."""


@compiled
def base_buffers(plan: Plan, first: int, last: int, dim: int, widths: Indices, width: int) -> BaseBuffers:
    """Buffers that are large enough for each of the steps first … last - 1."""
    most, entities = 1, 0
    for s in range(first, last):
        for k in range(TABLES):
            most = max(most, plan.row_bounds[k, s + 1] - plan.row_bounds[k, s])
        entities = max(entities, plan.entity_bounds[s + 1] - plan.entity_bounds[s])
    return BaseBuffers(
        np.empty((TABLES, most, dim), np.float32),
        np.empty((entities, width), np.float32),
        np.empty((entities, width), np.float32),
        np.empty((widths.sum(), BLOCK), np.float32),
        np.empty((widths.sum(), BLOCK), np.float32),
    )


@compiled
def base_gradients(
    plan: Plan,
    s: int,
    lo: int,
    hi: int,
    fraction: float,
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
    widths: Indices,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    tail: Doubles,
    buffers: BaseBuffers,
    grads: tuple[Floats, ...],
    ddense: Floats,
) -> float:
    """The loss of some interactions of a step, and its gradients; the rows of the step are brought up to date.

    Args:
        plan: of the epoch.
        s: the step.
        lo, hi: the range of interactions, within those of the step.
        fraction: of the importance of the step's interactions, that which these have.
        target, importance, numeric, field_weights, sums: see `base_steps`.
        tables, firsts, seconds, moved, dense, widths: see `base_steps`.
        step, lr, beta1, beta2, eps, tail: see `base_steps`.
        buffers: overwritten.
        grads: four of [R, dim], get the gradients of the step's rows.
        ddense: gets the gradients of `dense`.
    """
    values, vectors, dvectors, act, dact = buffers
    for k in range(TABLES):
        rows = plan.rows[k][plan.row_bounds[k, s] : plan.row_bounds[k, s + 1]]
        read_rows(rows, tables[k], firsts[k], seconds[k], moved[k], step, lr, beta1, beta2, eps, tail, values[k])
        grads[k][: len(rows)] = ZERO
    ddense[:] = ZERO
    if lo == hi:
        return 0.0
    first, last = plan.entity_bounds[s], plan.entity_bounds[s + 1]
    slots, categories = plan.entity_slot[first:last], plan.entity_categories[first:last]
    item_vectors(slots, categories, values[1], values[2], vectors)
    dvectors[:] = ZERO
    loss = cross_entropy(plan.user, plan.item, plan.history, plan.offsets, plan.fields, field_weights, sums,
                         numeric, lo, hi, target, importance, fraction, values[0], vectors, values[3], widths,
                         dense, act, dact, grads[0], dvectors, grads[3], ddense)  # fmt: skip
    item_vectors_backward(slots, categories, dvectors, grads[1], grads[2])
    return loss


@compiled
def base_move(
    plan: Plan,
    s: int,
    tables: tuple[Floats, ...],
    firsts: tuple[Floats, ...],
    seconds: tuple[Floats, ...],
    moved: tuple[Rows, ...],
    dense: Floats,
    dense_first: Floats,
    dense_second: Floats,
    grads: tuple[Floats, ...],
    ddense: Floats,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Adam's move `step`, counted from 1, by the gradients that `base_gradients` made of the plan's step s."""
    rate = lr * np.sqrt(1 - beta2**step) / (1 - beta1**step)
    for k in range(TABLES):
        rows = plan.rows[k][plan.row_bounds[k, s] : plan.row_bounds[k, s + 1]]
        adam_rows(rows, tables[k], firsts[k], seconds[k], moved[k], grads[k], step, rate, beta1, beta2, eps)
    adam_dense(dense, dense_first, dense_second, ddense, rate, beta1, beta2, eps)


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
    buffers = base_buffers(plan, first, last, tables[0].shape[1], widths, width)
    room, ddense = np.empty_like(buffers.values), np.empty_like(dense)
    grads = (room[0], room[1], room[2], room[3])
    for s in range(first, last):
        losses[s] = base_gradients(plan, s, plan.bounds[s], plan.bounds[s + 1], 1.0, target, importance, numeric,
                                   field_weights, sums, tables, firsts, seconds, moved, dense, widths,
                                   step, lr, beta1, beta2, eps, tail, buffers, grads, ddense)  # fmt: skip
        if not np.isfinite(losses[s]):
            return
        step += 1
        base_move(plan, s, tables, firsts, seconds, moved, dense, dense_first, dense_second,
                  grads, ddense, step, lr, beta1, beta2, eps)  # fmt: skip
