"""Embedding tables as tensors: reading, growing and forgetting their rows."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from asmg.batch import COLD_ROW, NO_CATEGORY, NO_VALUE, TABLES
from asmg.field_columns import SUMS, BatchFields

__all__ = [
    "Params",
    "check_tensors",
    "field_sums",
    "forget",
    "grow",
    "masked_mean",
    "placed",
    "read_rows",
    "replace_rows",
    "table_sizes",
    "uniform",
]

Params = dict[str, Tensor]
"""Parameter name → tensor."""


def masked_mean(table: Tensor, rows: Tensor, fill: int = NO_CATEGORY) -> Tensor:
    """Mean of `table[rows]` over the entries of `rows` [R, C] that are not `fill`: [R, dim]; zeros if there are
    none.
    """
    present = (rows != fill).unsqueeze(-1)
    total = (table[rows.clamp(min=0)] * present).sum(1)
    return total / present.sum(1).clamp(min=1)


def field_sums(table: Tensor, fields: BatchFields) -> Tensor:
    """The weighted sums of field rows of context, user and item (`SUMS`), concatenated: [B, 3·dim]."""
    weights = fields.weights.masked_fill(fields.rows == NO_VALUE, 0.0)
    read = table[fields.rows.clamp(min=0)] * weights.unsqueeze(-1)
    sums = read.new_zeros(len(read), len(SUMS), read.shape[2])
    return sums.index_add(1, fields.sums, read).flatten(1)


def uniform(shape: tuple[int, ...], fans: float, rng: torch.Generator) -> Tensor:
    """Glorot-uniform numbers U(-L, L) with L = √(6 / fans), `fans` being fan_in + fan_out."""
    return (2 * torch.rand(shape, generator=rng) - 1) * math.sqrt(6 / fans)


def read_rows(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]`, with the cold row for rows past the table's end (ids that are newer than the table)."""
    return table[torch.where(rows < len(table), rows, COLD_ROW)]


def table_sizes(params: Mapping[str, Tensor]) -> dict[str, int]:
    """Table name → number of rows, for each embedding table in `params`."""
    return {name: params[name].shape[0] for name in TABLES if name in params}


def grow(table: Tensor, rows: int) -> Tensor:
    """A copy of the table with at least `rows` rows; new rows are copies of the cold row."""
    missing = rows - table.shape[0]
    return torch.cat([table, table[COLD_ROW].expand(missing, -1)]) if missing > 0 else table.clone()


def placed(table: Tensor, rows: Tensor, values: Tensor, *, size: int, fill: Tensor) -> Tensor:
    """A copy of the table with other values in some rows.

    Args:
        table: [n, …].
        rows: int64 [r], distinct, below `size`.
        values: [r, …], their values.
        size: rows of the copy, at least n.
        fill: value of the rows from n on that are not in `rows`.
    """
    copy = table.new_empty((size, *table.shape[1:]))
    copy[: len(table)] = table
    copy[len(table) :] = fill
    return copy.index_copy_(0, rows, values)


def forget(params: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Params:
    """The parameters with these rows reset to the cold row of their table.

    Args:
        params: tables and other parameters; the others are returned unchanged.
        rows: table name → int64 [n]; rows past a table's end are ignored.
    """
    return {n: replace_rows(p, rows[n], p[COLD_ROW]) if n in rows else p for n, p in params.items()}


def replace_rows(table: Tensor, rows: Tensor, value: Tensor) -> Tensor:
    """A copy of the table with `value` in these rows; the table itself if all of them are past its end."""
    inside = rows[rows < len(table)]
    return table.index_copy(0, inside, value.expand(len(inside), *table.shape[1:])) if len(inside) else table


def check_tensors(what: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """Check names, shapes and values of tensors that come from outside.

    Args:
        what: how the error message calls them.
        tensors: name → tensor.
        shapes: name → expected shape; None for a size that may be any.

    Raises:
        ValueError: other names or shapes, or a number that is not finite; the message names the tensor.
    """
    if set(tensors) != set(shapes):
        raise ValueError(f"{what}: expected {sorted(shapes)}; received {sorted(tensors)}")
    for name, shape in shapes.items():
        received = tuple(tensors[name].shape)
        if len(received) != len(shape) or any(s not in (None, r) for s, r in zip(shape, received, strict=True)):
            raise ValueError(f"{name}: expected shape {shape}; received {received}")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ValueError(f"{name}: expected finite numbers; received NaN or infinity")
