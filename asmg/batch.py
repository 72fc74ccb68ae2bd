"""What the models read: one period's log as table rows, and mini-batches of it.

Row numbers, not ids: the caller maps its ids to rows ≥ 1 of the embedding tables. Row 0 of every table is the *cold
row*, the learned stand-in for everything unknown. Histories are ragged (values and offsets), so that a batch costs what
its histories really hold and padding does not exist.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from asmg.field_columns import BatchFields, FieldColumns
from asmg.kernels import Plan, plan_epoch, renumber
from asmg.layout import COLD_ROW, HISTORY_LENGTH, NO_CATEGORY, NO_VALUE, RECENT, RECENT_SHORT

__all__ = [
    "COLD_ROW",
    "HISTORY_LENGTH",
    "NO_CATEGORY",
    "NO_VALUE",
    "RECENT",
    "RECENT_SHORT",
    "TABLES",
    "Epoch",
    "Excerpt",
    "InteractionBatch",
    "ItemFeatures",
    "LocalBatches",
    "PeriodData",
    "build_histories",
    "build_recent",
    "concatenate",
    "excerpt",
]


TABLES = ("user", "item", "category", "field")
"""Names of the embedding tables, [rows, dim] each, in the order in which the kernels have them."""


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
    numeric: Tensor | None = None
    """float32 [B, S], the numeric inputs; None where there are none."""
    fields: BatchFields | None = None
    """What is read of the field table; None where there is none."""
    weight: Tensor | None = None
    """float32 [B], how much each interaction counts; None where all count alike."""


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
    numeric: Tensor | None = None
    """float32 [N, S], S ≥ 1: numeric inputs of each interaction, standardised (mean 0, deviation 1 or so), made of what
    was known before the interaction happened; None where there are none."""
    nobody: Tensor | None = None
    """float32 [2, S]: 1 for each numeric input that tells of the user (0 where it is the item's alone), and what it is
    of a user without a past; None where that is not known."""
    recent: Tensor | None = None
    """int32 [N, 3]: of the user's last `RECENT` interactions before each one, how many there are, the clicks among the
    newest `RECENT_SHORT`, and the clicks among all of them; None where nobody has counted."""
    fields: FieldColumns | None = None
    """Context, features of the users and features of the items, as of each interaction; None where there are none."""
    weight: Tensor | None = None
    """float32 [N] > 0, how much each interaction counts in what is learned; None where all count alike."""

    def __post_init__(self) -> None:
        n = len(self.user)
        for name, expected in (("item", n), ("label", n), ("offsets", n + 1)):
            if len(getattr(self, name)) != expected:
                raise ValueError(f"{name}: expected length {expected}; received {len(getattr(self, name))}")
        if self.recent is not None and self.recent.shape != (n, 3):
            raise ValueError(f"recent: expected shape ({n}, 3); received {tuple(self.recent.shape)}")
        if self.fields is not None and len(self.fields) != n:
            raise ValueError(f"fields: expected length {n}; received {len(self.fields)}")
        if self.weight is not None and self.weight.shape != (n,):
            raise ValueError(f"weight: expected shape ({n},); received {tuple(self.weight.shape)}")
        if self.weight is not None and not bool(((self.weight > 0) & torch.isfinite(self.weight)).all()):
            raise ValueError("weight: expected positive numbers; received another")
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
        if self.numeric is not None:
            shape, dtype = tuple(self.numeric.shape), self.numeric.dtype
            if len(shape) != 2 or shape[0] != n or shape[1] == 0 or dtype != torch.float32:
                raise ValueError(f"numeric: expected float32 [{n}, S] with S ≥ 1; received {dtype} {list(shape)}")
            if not all(math.isfinite(float(end)) for end in self.numeric.aminmax()):
                raise ValueError("numeric: expected finite numbers; received NaN or infinity")
            if self.nobody is not None and self.nobody.shape != (2, shape[1]):
                raise ValueError(f"nobody: expected shape (2, {shape[1]}); received {tuple(self.nobody.shape)}")
            if self.nobody is not None and not bool(torch.isfinite(self.nobody).all()):
                raise ValueError("nobody: expected finite numbers; received NaN or infinity")

    def __len__(self) -> int:
        return len(self.user)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each embedding table after this period, by table name."""
        sizes = {"user": self.users, "item": self.items}
        sizes |= {"category": self.categories} if self.categories else {}
        return sizes | ({} if self.fields is None else {"field": self.fields.size})

    @property
    def features(self) -> "ItemFeatures | None":
        """The categories of all items, for a forward pass on whole tables."""
        if self.item_categories is None:
            return None
        return ItemFeatures(torch.arange(self.items), self.item_categories.long())

    @property
    def inputs(self) -> Tensor:
        """`numeric` as a matrix [N, S] in any case: S = 0 where there are none."""
        return self.numeric.contiguous() if self.numeric is not None else torch.empty(len(self), 0)

    @property
    def importance(self) -> Tensor:
        """`weight` as float32 [N] in any case: 1 where all count alike."""
        return torch.ones(len(self)) if self.weight is None else self.weight

    def without_history(self) -> "PeriodData":
        """The same interactions for a model that does not look at histories."""
        return replace(self, history=self.history[:0], offsets=torch.zeros_like(self.offsets))

    def forgotten(self, rows: Mapping[str, Tensor]) -> "PeriodData":
        """The log with the cold row in the place of these users, items and values of fields.

        `rows`: "user", "item" and perhaps "field" → int64 [n], any of which may be past the tables' ends.
        """

        def cold(values: Tensor, table: str, size: int) -> Tensor:
            gone = torch.zeros(size, dtype=torch.bool)
            gone[rows[table][rows[table] < size]] = True
            here = gone[values.long()]
            return values.masked_fill(here, COLD_ROW) if bool(here.any()) else values

        return replace(
            self,
            user=cold(self.user, "user", self.users),
            item=cold(self.item, "item", self.items),
            history=cold(self.history, "item", self.items),
            fields=self.fields if self.fields is None or "field" not in rows else self.fields.forgotten(rows["field"]),
        )

    def without_past(self, where: Tensor, strangers: Tensor) -> "PeriodData":
        """The log as it would be had users no past in the interactions at `where` (bool [N]).

        So is a prediction when the histories cannot be read; and of these, those at `strangers` (bool [N]) are of users
        without a row too.

        Raises:
            ValueError: it is not known what the numeric inputs of a user without a past are.
        """
        if self.numeric is None or self.nobody is None:
            raise ValueError("nobody: expected the numeric inputs of a user without a past; received none")
        lengths = self.offsets.diff()
        kept = ~torch.repeat_interleave(where, lengths)
        offsets = torch.zeros_like(self.offsets)
        torch.cumsum(lengths.masked_fill(where, 0), 0, out=offsets[1:])
        theirs = torch.where(self.nobody[0] > 0, self.nobody[1], self.numeric[where])
        return replace(
            self,
            user=self.user.masked_fill(where & strangers, COLD_ROW),
            history=self.history[kept],
            offsets=offsets,
            numeric=self.numeric.index_put((where,), theirs),
        )

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
            numeric=None if self.numeric is None else self.numeric[index],
            fields=None if self.fields is None else self.fields.batch(index),
            weight=None if self.weight is None else self.weight[index],
        )

    def select(self, index: Tensor) -> "PeriodData":
        """The interactions at `index` (int64, not empty) in that order, as a period of their own (same table sizes)."""
        rows = self.batch(index)
        read = {name: getattr(rows, name).int() for name in ("user", "item", "history")}
        return replace(
            self,
            **read,
            offsets=rows.offsets,
            label=rows.label,
            numeric=rows.numeric,
            recent=None if self.recent is None else self.recent[index],
            fields=None if self.fields is None else self.fields.at(index),
            weight=rows.weight,
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
            numeric=None if self.numeric is None else self.numeric[start:stop],
            recent=None if self.recent is None else self.recent[start:stop],
            fields=None if self.fields is None else self.fields.cut(start, stop),
            weight=None if self.weight is None else self.weight[start:stop],
        )


class ItemFeatures(NamedTuple):
    """What an item is beside its own embedding row."""

    row: Tensor
    """int64 [E], row of params["item"] that each item of the batch reads (several may share the cold row)."""
    categories: Tensor
    """int64 [E, C], rows of params["category"], NO_CATEGORY where there is none."""


class LocalBatches(NamedTuple):
    """Batches whose rows are numbered within the few table rows that they touch together."""

    batches: list[InteractionBatch]
    """Users and fields count within `rows`; items within `features`, or where that is None within rows["item"]."""
    rows: dict[str, Tensor]
    """Table name → int64 [R], distinct rows of the whole table, the cold row first."""
    features: ItemFeatures | None
    """The categories of the items; None where they have none."""


def concatenate(periods: Sequence[PeriodData]) -> PeriodData:
    """Several periods as one, oldest first; tables and categories are those of the last.

    `recent` is there where each of them has it: those of an older release's training state do not.

    Raises:
        ValueError: they have not all as many numeric inputs.
    """
    numeric = [p.numeric for p in periods if p.numeric is not None]
    widths = {0 if p.numeric is None else p.numeric.shape[1] for p in periods}
    if len(widths) > 1:
        raise ValueError(f"numeric: expected as many inputs in every period; received {sorted(widths)}")
    recent = [p.recent for p in periods if p.recent is not None]
    fields = [p.fields or FieldColumns.none(len(p)) for p in periods]
    lengths = [0, *(len(p.history) for p in periods[:-1])]
    starts = np.cumsum(lengths).tolist()
    return replace(
        periods[-1],
        user=torch.cat([p.user for p in periods]),
        item=torch.cat([p.item for p in periods]),
        history=torch.cat([p.history for p in periods]),
        label=torch.cat([p.label for p in periods]),
        numeric=torch.cat(numeric) if numeric else None,
        recent=torch.cat(recent) if len(recent) == len(periods) else None,
        fields=FieldColumns.concatenate(fields) if any(p.fields is not None for p in periods) else None,
        weight=torch.cat([p.importance for p in periods]) if any(p.weight is not None for p in periods) else None,
        offsets=torch.cat([periods[0].offsets[:1], *(p.offsets[1:] + s for p, s in zip(periods, starts, strict=True))]),
    )


class Excerpt(NamedTuple):
    """Logs and the table rows that they touch, numbered anew: the problem at the size of the traffic."""

    periods: list[PeriodData]
    """The logs, their rows counted within `rows`."""
    rows: dict[str, Tensor]
    """Table name → int64 [n], distinct rows of the whole table, the cold row first."""


def excerpt(
    periods: Sequence[PeriodData],
    tables: Sequence[str],
    *,
    sizes: Mapping[str, int] | None = None,
    more: Mapping[str, Tensor] | None = None,
) -> Excerpt:
    """Number the rows that `periods` touch, by first appearance.

    Gradients reach a table only through the rows looked up, so computing with these rows alone is the same mathematics
    at a cost that grows with the traffic and not with the tables.

    Args:
        periods: the last one knows the categories of all items.
        tables: those of the model; without "category" the items' categories are left out, without "field" the fields.
        sizes: rows of the models' tables, where ids past them need no rows of their own: all of them read the cold
            row. (Not so an item that has categories.)
        more: further rows that shall be in the excerpt.
    """
    newest = periods[-1]
    matrix = newest.item_categories if "category" in tables else None
    limits = dict(newest.sizes) | ({} if sizes is None else dict(sizes))
    if matrix is not None:
        limits["item"] = max(newest.items, limits["item"])
    rows: dict[str, Tensor] = {}
    numbers: dict[str, np.ndarray] = {}

    def number(table: str, ids: Sequence[Tensor]) -> list[Tensor]:
        limit = limits[table]
        extra = [] if more is None or table not in more else [more[table].int()]
        numbers[table] = np.zeros(max(1, limit), np.int32)
        found = np.zeros(1 + sum(len(i) for i in (*ids, *extra)), np.int32)
        count = renumber(np.zeros(1, np.int32), limit, numbers[table], found, 0)
        for part in (*ids, *extra):
            count = renumber(part.numpy(), limit, numbers[table], found, count)
        rows[table] = torch.from_numpy(found[:count]).long()
        return [
            torch.from_numpy(numbers[table][np.where(i < limit, i, COLD_ROW)] - 1) for i in (t.numpy() for t in ids)
        ]

    users = number("user", [p.user for p in periods])
    items = number("item", [t for p in periods for t in (p.item, p.history)])
    small, categories = None, 0
    if matrix is not None:
        known = matrix[torch.where(rows["item"] < len(matrix), rows["item"], COLD_ROW)]
        known = torch.where(known < limits["category"], known, COLD_ROW)
        present = known != NO_CATEGORY
        (numbered,) = number("category", [known[present]])
        small = torch.full_like(known, NO_CATEGORY).masked_scatter_(present, numbered)
        categories = len(rows["category"])
    elif "category" in tables:
        raise ValueError("item_categories: expected them for a model with categories; received none")
    columns: Sequence[FieldColumns | None] = [None] * len(periods)
    if "field" in tables:
        own = [(p.fields or FieldColumns.none(len(p))).within(limits["field"]) for p in periods]
        read = [values for f in own for values in (f.rows, f.neutral)]
        rowed = [values >= COLD_ROW for values in read]
        found = number("field", [values[at] for values, at in zip(read, rowed, strict=True)])
        placed = [values.masked_scatter(at, rows_) for values, at, rows_ in zip(read, rowed, found, strict=True)]
        columns = [
            replace(f, rows=r, neutral=n, size=len(rows["field"]))
            for f, r, n in zip(own, placed[::2], placed[1::2], strict=True)
        ]
    sizes_of: dict[str, Any] = {"users": len(rows["user"]), "items": len(rows["item"]), "categories": categories}
    parts = [
        replace(p, user=u, item=i, history=h, item_categories=small, fields=f, **sizes_of)
        for p, u, i, h, f in zip(periods, users, items[::2], items[1::2], columns, strict=True)
    ]
    return Excerpt(parts, rows)


class Epoch:
    """One pass over several logs in lock-step, planned ahead: step s reads the s-th batch of each."""

    def __init__(
        self,
        periods: Sequence[PeriodData],
        batches: Sequence[Sequence[Tensor]],
        *,
        cold_rate: float = 0.0,
        rng: torch.Generator | None = None,
    ) -> None:
        """Plan it.

        Args:
            periods: an excerpt's, newest first.
            batches: for each period the indices (int64) of the interactions of every batch.
            cold_rate: probability that a user or item is read as the cold one throughout a step: id dropout, by which
                the cold rows learn to stand for unknown ids. An item keeps its categories.
            rng: source of the coin flips; needed with `cold_rate`.
        """
        if cold_rate > 0 and rng is None:
            raise ValueError("rng: expected a torch.Generator with cold_rate > 0; received None")
        self.features = periods[0].item_categories is not None
        starts = np.cumsum([0, *(len(p) for p in periods[:-1])]).tolist()
        parts = [i + start for step in zip(*batches, strict=True) for i, start in zip(step, starts, strict=True)]
        bounds = np.cumsum([0, *(len(part) for part in parts)])
        self.order = torch.cat(parts)
        """int64 [N], the interactions (of all periods one after the other) by the step and batch that reads them."""
        plain = [replace(p, item_categories=None, categories=0) for p in periods]
        data = concatenate(plain)
        self.label = data.label[self.order]
        """float32 [N], in that order."""
        self.importance = data.importance[self.order]
        """float32 [N], how much each counts, in that order."""
        self.weighted = data.weight is not None
        """Whether they do not all count alike."""
        self.numeric = data.inputs[self.order]
        """float32 [N, S], in that order; S = 0 where there are no numeric inputs."""
        columns = data.fields or FieldColumns.none(len(data))
        self.weights = columns.weights[self.order].contiguous()
        """float32 [N, C], those of the fields, in that order."""
        self.sums = columns.sums
        """int32 [C], the sum that each of their columns belongs to."""
        categories = periods[0].item_categories if self.features else torch.empty(data.items, 0, dtype=torch.int32)
        assert categories is not None
        ids = 2 * len(data) + len(data.history) + columns.rows.numel()
        coins = torch.rand(ids, generator=rng) if cold_rate > 0 else torch.ones(1)
        planned = plan_epoch(
            self.order.numpy(),
            bounds,
            len(periods),
            data.user.numpy(),
            data.item.numpy(),
            data.history.numpy(),
            data.offsets.numpy(),
            categories.contiguous().numpy(),
            columns.rows.contiguous().numpy(),
            columns.weights.contiguous().numpy(),
            np.array([data.users, data.items, max(1, periods[0].categories), columns.size]),
            cold_rate,
            coins.numpy(),
        )
        self.plan = Plan(self.order.numpy(), bounds, *planned)
        self.tables = tuple(t for t in TABLES if t in periods[0].sizes)
        self.periods = len(periods)
        self._tensors: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Steps."""
        return (len(self.plan.bounds) - 1) // self.periods

    def local(self, step: int, target: Tensor) -> LocalBatches:
        """What a step reads, on the device of `target`: float32 [N], what to learn of each interaction, as `label`."""
        plan, on = self.plan, self._on(target.device)

        def ends(bounds: np.ndarray, at: int) -> slice:
            return slice(int(bounds[at]), int(bounds[at + 1]))

        entities = ends(plan.entity_bounds, step)
        slots = on["slots"][entities]
        batches = []
        for q in range(step * self.periods, (step + 1) * self.periods):
            own = ends(plan.bounds, q)
            past = slice(int(plan.offsets[own.start]), int(plan.offsets[own.stop]))
            item, history = on["item"][own], on["history"][past]
            if not self.features:
                item, history = slots[item], slots[history]
            offsets = on["offsets"][own.start : own.stop + 1] - past.start
            numeric = on["numeric"][own] if self.numeric.shape[1] else None
            fields = BatchFields(on["fields"][own], on["weights"][own], on["sums"]) if "field" in self.tables else None
            weight = on["importance"][own] if self.weighted else None
            read = (on["user"][own], item, history, offsets, target[own], numeric, fields, weight)
            batches.append(InteractionBatch(*read))
        rows = {
            table: on[f"rows.{table}"][ends(plan.row_bounds[k], step)]
            for k, table in enumerate(TABLES)
            if table in self.tables
        }
        features = ItemFeatures(slots, on["categories"][entities]) if self.features else None
        return LocalBatches(batches, rows, features)

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        """The plan as int64 tensors on a device, and beside it the numbers of each interaction, made once."""
        if not self._tensors or self._tensors["user"].device != device:
            plan = self.plan
            arrays = {"user": plan.user, "item": plan.item, "history": plan.history, "offsets": plan.offsets}
            arrays |= {"slots": plan.entity_slot, "categories": plan.entity_categories}
            arrays |= {"fields": plan.fields, "sums": self.sums.numpy()}
            arrays |= {f"rows.{t}": r for t, r in zip(TABLES, plan.rows, strict=True)}
            self._tensors = {name: torch.from_numpy(array).to(device).long() for name, array in arrays.items()}
            numbers = {"numeric": self.numeric, "weights": self.weights, "importance": self.importance}
            self._tensors |= {name: tensor.to(device) for name, tensor in numbers.items()}
        return self._tensors


Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


def build_histories(
    user: np.ndarray,
    item: np.ndarray,
    label: np.ndarray,
    timestamp: np.ndarray,
    *,
    earlier: Columns | None = None,
    ties: tuple[np.ndarray, np.ndarray] | None = None,
    length: int = HISTORY_LENGTH,
) -> tuple[np.ndarray, np.ndarray]:
    """Each interaction's history: up to `length` positives of its user with a strictly smaller timestamp.

    Args:
        user, item: int [N] rows; label: [N] of 0 and 1; timestamp: int64 [N]; in any order.
        earlier: (user, item, timestamp) of positives before this log, in any order.
        ties: int [N] and int [E], numbers of the interactions and of the earlier ones: of equal timestamps a larger
            one counts as more recent. Where they are equal too, or not given, the later in the input does, and any
            interaction of this log as more recent than the earlier ones.
        length: most entries kept.

    Returns:
        values int32 [M] and offsets int64 [N + 1]: the histories in the order of the interactions, most recent first.
    """
    positive = np.flatnonzero(np.asarray(label) == 1)
    values, begin, end = _past(user, timestamp, item, positive, earlier, ties)
    lengths = np.minimum(end - begin, length)
    offsets = np.zeros(len(user) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    back = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return values[np.repeat(end, lengths) - 1 - back].astype(np.int32), offsets


def build_recent(
    user: np.ndarray,
    label: np.ndarray,
    timestamp: np.ndarray,
    *,
    earlier: Columns | None = None,
    ties: tuple[np.ndarray, np.ndarray] | None = None,
    sampled: np.ndarray | None = None,
) -> np.ndarray:
    """What the last interactions of each interaction's user were, whose timestamp is strictly smaller.

    Args:
        user: int [N] rows; label: [N] of 0 and 1; timestamp: int64 [N]; in any order.
        earlier: (user, label, timestamp) of interactions before this log, in any order.
        ties: as `build_histories` has them.
        sampled: bool [N], negatives that nobody was shown: they count for nobody.

    Returns:
        int32 [N, 3]: how many of the last `RECENT` interactions there are, the clicks among the newest `RECENT_SHORT`,
        and the clicks among all of them.
    """
    counted = np.arange(len(user)) if sampled is None else np.flatnonzero(~sampled)
    clicks, begin, end = _past(user, timestamp, np.asarray(label) == 1, counted, earlier, ties)
    before = np.concatenate([[0], np.cumsum(clicks)])  # clicks before each of the sorted interactions

    def clicked(window: int) -> np.ndarray:
        return np.asarray(before[end] - before[np.maximum(begin, end - window)])

    return np.stack([np.minimum(end - begin, RECENT), clicked(RECENT_SHORT), clicked(RECENT)], axis=1).astype(np.int32)


def _past(
    user: np.ndarray,
    timestamp: np.ndarray,
    values: np.ndarray,
    counted: np.ndarray,
    earlier: Columns | None,
    ties: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort what can be in somebody's past: the interactions `counted` (places) and the `earlier` ones.

    Returns:
        their `values` (of the earlier ones the middle column), oldest first in each user; and for each of the N
        interactions where in that its user's begin and where those with a smaller timestamp end.
    """
    past_user, past_value, past_time = user[counted], values[counted], timestamp[counted]
    tie = np.arange(len(counted)) if ties is None else ties[0][counted]
    if earlier is not None:
        past_user = np.concatenate([earlier[0], past_user])
        past_value = np.concatenate([earlier[1], past_value])
        past_time = np.concatenate([earlier[2], past_time])
        tie = np.concatenate([np.full(len(earlier[0]), -1) if ties is None else ties[1], tie])
    order = np.lexsort((tie, past_time, past_user))  # stable
    past_user, past_value, past_time = past_user[order], past_value[order], past_time[order]
    # Rank (user, time) pairs so that one searchsorted finds, for every row, where its user's earlier ones end.
    times, time_rank = np.unique(np.concatenate([past_time, timestamp]), return_inverse=True)
    width = len(times) + 1
    key = past_user.astype(np.int64) * width + time_rank[: len(past_time)]
    end = np.searchsorted(key, user.astype(np.int64) * width + time_rank[len(past_time) :], side="left")
    return past_value, np.searchsorted(past_user, user, side="left"), end
