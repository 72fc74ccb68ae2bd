"""The arguments of a forward pass: a batch of interactions and the categories of its items."""

from typing import NamedTuple

from torch import Tensor

from asmg.field_columns import BatchFields

__all__ = ["TABLES", "InteractionBatch", "ItemFeatures"]

TABLES = ("user", "item", "category", "field")
"""Names of the embedding tables, each [rows, dim], in the order in which the kernels take them."""


class InteractionBatch(NamedTuple):
    """B interactions, ready for a forward pass."""

    user: Tensor
    """int64 [B], rows of the user table."""
    item: Tensor
    """int64 [B], rows of the item table (the candidate)."""
    history: Tensor
    """int64 [M], rows of the item table: the histories (earlier positives) of all interactions, concatenated."""
    offsets: Tensor
    """int64 [B + 1]: the history of interaction b is history[offsets[b]:offsets[b + 1]], most recent first."""
    label: Tensor
    """float32 [B], 1 for a click, else 0; or the target probability that is learned instead."""
    numeric: Tensor | None = None
    """float32 [B, S], the numeric inputs; None without any."""
    fields: BatchFields | None = None
    """Rows and weights of the field table; None without fields."""
    weight: Tensor | None = None
    """float32 [B], weight of each interaction in the loss; None for equal weights."""


class ItemFeatures(NamedTuple):
    """The embedding row and the categories of E distinct items."""

    row: Tensor
    """int64 [E], the row of params["item"] that each item reads; several may read the cold row."""
    categories: Tensor
    """int64 [E, C], rows of params["category"], padded with NO_CATEGORY."""
