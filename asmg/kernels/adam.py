"""Adam on flat arrays and on table rows as machine code (formulas: `asmg.adam.Adam`)."""

import numpy as np

from asmg.kernels.common import Doubles, Floats, Rows, compiled

__all__ = ["adam_dense", "adam_rows", "read_rows", "settle_rows"]


@compiled
def adam_dense(
    p: Floats, m: Floats, v: Floats, grad: Floats, rate: float, beta1: float, beta2: float, eps: float
) -> None:
    """One step of Adam on flat arrays, in place; `rate` is the step size with the bias corrections."""
    keep1, keep2 = np.float32(beta1), np.float32(beta2)
    new1, new2 = np.float32(1 - beta1), np.float32(1 - beta2)
    by, low = np.float32(rate), np.float32(eps)
    for lane in range(len(p)):
        m[lane] = keep1 * m[lane] + new1 * grad[lane]
    for lane in range(len(p)):
        v[lane] = keep2 * v[lane] + new2 * grad[lane] * grad[lane]
    for lane in range(len(p)):
        p[lane] -= by * m[lane] / (np.sqrt(v[lane]) + low)


@compiled
def catch_up(
    row: int,
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
    """Add to a row, in place, the moves by momentum alone since it was last moved."""
    missed = step - moved[row]
    if missed > 0:
        last, low = len(tail) - 1, np.float32(eps)
        decay = np.exp(np.log(beta1 / np.sqrt(beta2)) * missed)
        far = np.float32(lr * (tail[min(step - missed, last)] - decay * tail[min(step, last)]))
        keep1, keep2 = np.float32(np.exp(np.log(beta1) * missed)), np.float32(np.exp(np.log(beta2) * missed))
        for i in range(p.shape[1]):
            p[row, i] -= far * m[row, i] / (np.sqrt(v[row, i]) + low)
            m[row, i] *= keep1
            v[row, i] *= keep2
        moved[row] = step


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
    """out[k] = p[rows[k]] after `catch_up`."""
    for k in range(len(rows)):
        row = rows[k]
        catch_up(row, p, m, v, moved, step, lr, beta1, beta2, eps, tail)
        for i in range(p.shape[1]):
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
    """Let all rows of a table `catch_up`, as `asmg.adam.Adam.settle` does."""
    for row in range(len(p)):
        catch_up(row, p, m, v, moved, step, lr, beta1, beta2, eps, tail)


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
    dim = p.shape[1]
    for k in range(len(rows)):
        row = rows[k]
        adam_dense(p[row], m[row], v[row], grad[k, :dim], rate, beta1, beta2, eps)
        moved[row] = step
