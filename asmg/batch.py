"""What the models read: one period's log as table rows, and mini-batches of it.

Row numbers, not ids: the caller maps its ids to rows ≥ 1 of the embedding tables. Row 0 of every table is the *cold
row*, the learned stand-in for everything unknown. Histories are ragged (values and offsets), so that a batch costs what
its histories really hold and padding does not exist.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "COLD_ROW",
    "HISTORY_LENGTH",
    "NO_CATEGORY",
    "InteractionBatch",
    "ItemFeatures",
    "LocalBatches",
    "PeriodData",
    "build_histories",
    "localise",
    "shuffled_batches",
]

COLD_ROW = 0
"""Row of every embedding table that stands for an unknown user, item or category."""

HISTORY_LENGTH = 30
"""Most recent positives of a user that a model looks at."""

NO_CATEGORY = -1
"""Filler of the item × category matrix."""


class InteractionBatch(NamedTuple):
    """Rows of a log, ready for a forward pass."""

    user: Tensor
    """int64 [B], rows of the user table."""
    item: Tensor
    """int64 [B], rows of the item table (the candidate)."""
    history: Tensor
    """int64 [M], rows of the item table: the users' earlier positives, all of the batch one after the other."""
    offsets: Tensor
    """int64 [B + 1]; interaction b owns history[offsets[b]:offsets[b + 1]], most recent first; may be empty."""
    label: Tensor
    """float32 [B], 1 for a click."""


@dataclass(frozen=True, kw_only=True)
class PeriodData:
    """One period's log in time order, as table rows.

    The tables must hold `users`, `items` and `categories` rows (row 0 included) once this period has been learned. Rows
    at or past a model's own size are ids that model has never seen: it reads its cold row for them.
    """

    user: Tensor
    """int32 [N]"""
    item: Tensor
    """int32 [N]"""
    history: Tensor
    """int32 [M]"""
    offsets: Tensor
    """int64 [N + 1]"""
    label: Tensor
    """float32 [N], 0 or 1"""
    users: int
    """Rows of the user table after this period."""
    items: int
    """Rows of the item table after this period."""
    categories: int = 0
    """Rows of the category table after this period; 0 where items have no categories."""
    item_categories: Tensor | None = None
    """int32 [items, C]: category rows of each item, filled up with NO_CATEGORY; row 0 has none."""

    def __post_init__(self) -> None:
        n = len(self.user)
        for name, expected in (("item", n), ("label", n), ("offsets", n + 1)):
            if len(getattr(self, name)) != expected:
                raise ValueError(f"{name}: expected length {expected}; received {len(getattr(self, name))}")
        if n == 0:
            raise ValueError("period: expected at least one interaction; received none")
        if int(self.offsets[0]) != 0 or int(self.offsets[-1]) != len(self.history):
            raise ValueError(
                f"offsets: expected to run from 0 to {len(self.history)}; "
                f"received {int(self.offsets[0])} to {int(self.offsets[-1])}"
            )
        if bool((self.offsets[1:] < self.offsets[:-1]).any()):
            raise ValueError("offsets: expected values that never decrease; received a decrease")
        for name, size in (("user", self.users), ("item", self.items), ("history", self.items)):
            rows = getattr(self, name)
            if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < size):
                raise ValueError(f"{name}: expected rows in [0, {size}); received {int(rows.min())}..{int(rows.max())}")
        if bool(((self.label != 0) & (self.label != 1)).any()):
            raise ValueError("label: expected 0 or 1; received another value")
        if (self.item_categories is None) != (self.categories == 0):
            raise ValueError("item_categories: expected exactly when categories > 0; received the contrary")
        if self.item_categories is not None:
            if self.item_categories.shape[0] != self.items:
                raise ValueError(
                    f"item_categories: expected {self.items} rows; received {self.item_categories.shape[0]}"
                )
            values = self.item_categories
            low, top = (int(values.min()), int(values.max())) if values.numel() else (NO_CATEGORY, NO_CATEGORY)
            if low < NO_CATEGORY or top >= self.categories:
                raise ValueError(
                    f"item_categories: expected rows under {self.categories} or {NO_CATEGORY}; received {low}..{top}"
                )

    def __len__(self) -> int:
        return len(self.user)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each embedding table after this period, by table name."""
        sizes = {"user": self.users, "item": self.items}
        return sizes | {"category": self.categories} if self.categories else sizes

    def batch(self, index: Tensor) -> InteractionBatch:
        """The interactions at `index` (int64 [B]) as a batch."""
        starts = self.offsets[index]
        lengths = self.offsets[index + 1] - starts
        offsets = torch.zeros(len(index) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        source = torch.repeat_interleave(starts - offsets[:-1], lengths) + torch.arange(int(offsets[-1]))
        return InteractionBatch(
            user=self.user[index].long(),
            item=self.item[index].long(),
            history=self.history[source].long(),
            offsets=offsets,
            label=self.label[index],
        )

    def slice(self, start: int, stop: int) -> "PeriodData":
        """Interactions start..stop-1 as a period of their own (same table sizes)."""
        low, high = int(self.offsets[start]), int(self.offsets[stop])
        return replace(
            self,
            user=self.user[start:stop],
            item=self.item[start:stop],
            history=self.history[low:high],
            offsets=self.offsets[start : stop + 1] - low,
            label=self.label[start:stop],
        )


def shuffled_batches(data: PeriodData, batch_size: int, rng: torch.Generator) -> Iterator[InteractionBatch]:
    """One epoch in a random order: batches of `batch_size`, the last one as long as what is left."""
    for index in torch.randperm(len(data), generator=rng).split(batch_size):
        yield data.batch(index)


class ItemFeatures(NamedTuple):
    """What an item is beside its own embedding row."""

    row: Tensor
    """int64 [E], row of params["item"] that each item of the batch reads (several may share the cold row)."""
    categories: Tensor
    """int64 [E, C], rows of params["category"], NO_CATEGORY where there is none."""


class LocalBatches(NamedTuple):
    """Batches whose rows are numbered within the few table rows that they touch together."""

    batches: list[InteractionBatch]
    """Users count within rows["user"]; items within `features`, or where that is None within rows["item"]."""
    rows: dict[str, Tensor]
    """Table name → int64 [R], the distinct rows of the whole table, ascending."""
    features: ItemFeatures | None
    """The categories of the items; None for a model without categories."""


def localise(
    batches: Sequence[InteractionBatch],
    sizes: Mapping[str, int],
    item_categories: Tensor | None = None,
    *,
    cold_rate: float = 0.0,
    rng: torch.Generator | None = None,
) -> LocalBatches:
    """Number the rows of `batches` within the distinct rows that they touch together.

    Gradients reach a table only through the rows looked up, so computing with these rows alone is the same mathematics
    at a cost that grows with the traffic and not with the tables.

    Args:
        batches: rows of the whole tables; rows at or past `sizes` are read as the cold row.
        sizes: rows of each table.
        item_categories: int [items, C] for a model with categories; may know more items than `sizes` says. Of no
            account where `sizes` has no category table.
        cold_rate: probability that a user or item is read as the cold one throughout these batches: id dropout, by
            which the cold rows learn to stand for unknown ids. An item keeps its categories.
        rng: source of the coin flips; needed with `cold_rate`.
    """
    if cold_rate > 0 and rng is None:
        raise ValueError("rng: expected a torch.Generator with cold_rate > 0; received None")

    def readable(name: str, ids: Tensor) -> Tensor:
        """The row that is read for each id: its own, or the cold one."""
        rows = torch.where(ids < sizes[name], ids, COLD_ROW)
        if cold_rate > 0:
            rows = torch.where(torch.rand(len(rows), generator=rng) < cold_rate, COLD_ROW, rows)
        return rows

    users, user_index = torch.unique(torch.cat([b.user for b in batches]), return_inverse=True)
    items, item_index = torch.unique(torch.cat([t for b in batches for t in (b.item, b.history)]), return_inverse=True)
    rows: dict[str, Tensor] = {}
    rows["user"], gather = torch.unique(readable("user", users), return_inverse=True)
    user_index = gather[user_index]
    rows["item"], gather = torch.unique(readable("item", items), return_inverse=True)
    features = None
    if item_categories is None or "category" not in sizes:
        item_index = gather[item_index]
    else:
        categories = item_categories[torch.where(items < len(item_categories), items, COLD_ROW)].long()
        known = torch.where(categories < sizes["category"], categories, COLD_ROW)
        rows["category"], index = torch.unique(known.clamp(min=0), return_inverse=True)
        features = ItemFeatures(row=gather, categories=index.masked_fill(categories == NO_CATEGORY, NO_CATEGORY))
    renumbered, u, i = [], 0, 0
    for b in batches:
        n, m = len(b.user), len(b.history)
        renumbered.append(
            b._replace(user=user_index[u : u + n], item=item_index[i : i + n], history=item_index[i + n : i + n + m])
        )
        u, i = u + n, i + n + m
    return LocalBatches(renumbered, rows, features)


def build_histories(
    user: np.ndarray,
    item: np.ndarray,
    label: np.ndarray,
    timestamp: np.ndarray,
    *,
    earlier: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    length: int = HISTORY_LENGTH,
) -> tuple[np.ndarray, np.ndarray]:
    """Each interaction's history: up to `length` positives of its user with a strictly smaller timestamp.

    Args:
        user, item: int [N] rows; label: [N] of 0 and 1; timestamp: int64 [N]; in any order.
        earlier: (user, item, timestamp) of positives before this log, in any order.
        length: most entries kept.

    Returns:
        values int32 [M] and offsets int64 [N + 1]: the histories in the order of the interactions, most recent first;
        of equal timestamps the later in the input counts as more recent.
    """
    n = len(user)
    positive = np.flatnonzero(np.asarray(label) == 1)
    pos_user, pos_item, pos_time = user[positive], item[positive], timestamp[positive]
    if earlier is not None:
        pos_user = np.concatenate([earlier[0], pos_user])
        pos_item = np.concatenate([earlier[1], pos_item])
        pos_time = np.concatenate([earlier[2], pos_time])
    order = np.lexsort((np.arange(len(pos_user)), pos_time, pos_user))
    pos_user, pos_item, pos_time = pos_user[order], pos_item[order], pos_time[order]
    # Rank (user, time) pairs so that one searchsorted finds, for every row, where its user's earlier positives end.
    times, time_rank = np.unique(np.concatenate([pos_time, timestamp]), return_inverse=True)
    width = len(times) + 1
    pos_key = pos_user.astype(np.int64) * width + time_rank[: len(pos_time)]
    end = np.searchsorted(pos_key, user.astype(np.int64) * width + time_rank[len(pos_time) :], side="left")
    begin = np.searchsorted(pos_user, user, side="left")
    lengths = np.minimum(end - begin, length)
    offsets = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    back = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return pos_item[np.repeat(end, lengths) - 1 - back].astype(np.int32), offsets
