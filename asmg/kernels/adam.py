"""Adam on flat arrays and on table rows as machine code (formulas: `asmg.adam.Adam`)."""

import numpy as np

from asmg.kernels.common import Doubles, Floats, Rows, compiled

__all__ = ["adam_dense", "adam_rows", "read_rows", "settle_rows"]

BLOCK_ROWS = 1024
"""Rows that `settle_rows` reads at a time, into a buffer that stays in the processor's cache."""


@compiled
def adam_dense(
    p: Floats, m: Floats, v: Floats, grad: Floats, rate: float, beta1: float, beta2: float, eps: float
) -> None:
    """One step of Adam on flat arrays, in place; `rate` is the step size with the bias corrections."""
    keep1, keep2 = np.float32(beta1), np.float32(beta2)
    new1, new2 = np.float32(1 - beta1), np.float32(1 - beta2)
    by, low = np.float32(rate), np.float32(eps)
    for lane in range(len(p)):  # one loop: three, one for each array, take three times as long for a row
        first = keep1 * m[lane] + new1 * grad[lane]
        second = keep2 * v[lane] + new2 * grad[lane] * grad[lane]
        m[lane] = first
        v[lane] = second
        p[lane] -= by * first / (np.sqrt(second) + low)


@compiled
def read_rows(
    rows: Rows,
    p: Floats,
    m: Floats,
    v: Floats,
    moved: Rows,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    tail: Doubles,
    out: Floats,
) -> None:
    """out[k] = p[rows[k]] after adding, in place, the moves by momentum alone since the row was last moved."""
    dim, last, low = p.shape[1], len(tail) - 1, np.float32(eps)
    ratio = np.log(beta1 / np.sqrt(beta2))
    log1, log2 = np.log(beta1), np.log(beta2)
    for k in range(len(rows)):
        row = rows[k]
        missed = step - moved[row]
        if missed > 0:
            reach = tail[min(step - missed, last)] - np.exp(ratio * missed) * tail[min(step, last)]
            far = np.float32(lr * reach)
            keep1, keep2 = np.float32(np.exp(log1 * missed)), np.float32(np.exp(log2 * missed))
            for i in range(dim):
                p[row, i] -= far * m[row, i] / (np.sqrt(v[row, i]) + low)
                m[row, i] *= keep1
                v[row, i] *= keep2
            moved[row] = step
        for i in range(dim):
            out[k, i] = p[row, i]


@compiled
def settle_rows(
    p: Floats,
    m: Floats,
    v: Floats,
    moved: Rows,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    tail: Doubles,
) -> None:
    """Read all rows of a table, for the moves that reading adds, as `asmg.adam.Adam.settle` does."""
    values = np.empty((BLOCK_ROWS, p.shape[1]), np.float32)
    for start in range(0, len(p), BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, len(p))).astype(np.int32)
        read_rows(rows, p, m, v, moved, step, lr, beta1, beta2, eps, tail, values)


@compiled
def adam_rows(
    rows: Rows,
    p: Floats,
    m: Floats,
    v: Floats,
    moved: Rows,
    grad: Floats,
    step: int,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One step of Adam, in place, on distinct rows that `read_rows` has just read."""
    for k in range(len(rows)):
        row = rows[k]
        adam_dense(p[row], m[row], v[row], grad[k], rate, beta1, beta2, eps)
        moved[row] = step
