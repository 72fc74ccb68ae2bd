"""The vectors of items from their rows and categories, and the gradients (formulas: `asmg.models`)."""

import numpy as np

from asmg.kernels.common import ZERO, Floats, Rows, compiled

__all__ = ["item_vectors", "item_vectors_backward"]


@compiled
def item_vectors(row: Rows, categories: Rows, item: Floats, category: Floats, out: Floats) -> None:
    """Out [E, W] = item[row], followed, if W > dim, by the mean of category[categories] (-1 for none)."""
    dim = item.shape[1]
    for e in range(len(row)):
        for k in range(dim):
            out[e, k] = item[row[e], k]
        if out.shape[1] > dim:
            present = 0
            for k in range(dim):
                out[e, dim + k] = ZERO
            for c in categories[e]:
                if c >= 0:
                    present += 1
                    for k in range(dim):
                        out[e, dim + k] += category[c, k]
            if present > 1:
                for k in range(dim):
                    out[e, dim + k] /= np.float32(present)


@compiled
def item_vectors_backward(row: Rows, categories: Rows, dout: Floats, ditem: Floats, dcategory: Floats) -> None:
    """Add the gradients of `item_vectors` to ditem and dcategory, given dout [E, W]."""
    dim = ditem.shape[1]
    for e in range(len(row)):
        for k in range(dim):
            ditem[row[e], k] += dout[e, k]
        if dout.shape[1] > dim:
            present = 0
            for c in categories[e]:
                present += c >= 0
            for c in categories[e]:
                if c >= 0:
                    for k in range(dim):
                        dcategory[c, k] += dout[e, dim + k] / np.float32(present)
