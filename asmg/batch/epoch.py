"""One pass over logs, planned before its first step."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asmg.batch.interactions import TABLES, InteractionBatch, ItemFeatures
from asmg.batch.period import PeriodData, concatenate
from asmg.field_columns import BatchFields, FieldColumns
from asmg.kernels import Plan, plan_epoch
from asmg.ranks import ALONE, Ranks

__all__ = ["Epoch", "LocalBatches"]


class LocalBatches(NamedTuple):
    """The batches of one step; their rows are places within the table rows that they touch together."""

    batches: list[InteractionBatch]
    """Users and fields are places within `rows`; items within `features`, or within rows["item"] if that is None."""
    rows: dict[str, Tensor]
    """Table name → int64 [R], the distinct rows of the whole table, cold row first."""
    features: ItemFeatures | None
    """The categories of the items; None without categories."""


class Epoch:
    """One pass over several logs in lock-step: step s reads the s-th batch of each. Planned before the first step."""

    def __init__(
        self,
        periods: Sequence[PeriodData],
        batches: Sequence[Sequence[Tensor]],
        *,
        cold_rate: float = 0.0,
        rng: torch.Generator | None = None,
    ) -> None:
        """Plan the epoch.

        Args:
            periods: of an excerpt, newest first.
            batches: for each period, the indices (int64) of the interactions of every batch.
            cold_rate: probability, for each distinct id of a step, that it is read as the cold row (id dropout). It
                trains the cold rows to represent unknown ids. An item keeps its categories.
            rng: for id dropout; required with `cold_rate` > 0.

        Raises:
            ValueError: `cold_rate` > 0 without `rng`.
        """
        if cold_rate > 0 and rng is None:
            raise ValueError("rng: expected a torch.Generator with cold_rate > 0; received None")
        self.features = periods[0].item_categories is not None
        starts = np.cumsum([0, *(len(p) for p in periods[:-1])]).tolist()
        parts = [i + start for step in zip(*batches, strict=True) for i, start in zip(step, starts, strict=True)]
        bounds = np.cumsum([0, *(len(part) for part in parts)])
        self.order = torch.cat(parts)
        """int64 [N], the interactions of all periods (concatenated) in the order in which steps and batches read
        them."""
        plain = [replace(p, item_categories=None, categories=0) for p in periods]
        data = concatenate(plain)
        self.label = data.label[self.order]
        """float32 [N], the labels in this order."""
        self.importance = data.importance[self.order]
        """float32 [N], the weights in the loss, in this order."""
        self.weighted = data.weight is not None
        """Whether the weights differ."""
        self.numeric = data.inputs[self.order]
        """float32 [N, S], the numeric inputs in this order; S = 0 without any."""
        columns = data.fields or FieldColumns.none(len(data))
        self.weights = columns.weights[self.order].contiguous()
        """float32 [N, C], the weights of the field columns, in this order."""
        self.sums = columns.sums
        """int32 [C], the sum to which each field column is added (`asmg.field_columns.SUMS`)."""
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
        """The number of steps."""
        return (len(self.plan.bounds) - 1) // self.periods

    def fractions(self, ranks: Ranks) -> np.ndarray:
        """float64 [S·k], of the importance of the interactions of each batch the fraction in this rank's share."""
        if ranks.size == 1:
            return np.ones(len(self.plan.bounds) - 1)
        sums = np.concatenate([np.zeros(1), np.cumsum(self.importance.double().numpy())])
        shares = [ranks.share(*batch) for batch in zip(self.plan.bounds[:-1], self.plan.bounds[1:], strict=True)]
        own = np.array([sums[stop] - sums[start] for start, stop in shares])
        found: np.ndarray = own / np.diff(sums[self.plan.bounds])
        return found

    def local(self, step: int, target: Tensor, ranks: Ranks = ALONE) -> LocalBatches:
        """What one step reads, on the device of `target`.

        Args:
            step: from 0.
            target: float32 [N], what is learned of each interaction, in the order of `label`.
            ranks: share the interactions of each batch; all of them read the rows of the whole step.
        """
        plan, on = self.plan, self._on(target.device)

        def ends(bounds: np.ndarray, at: int) -> slice:
            return slice(int(bounds[at]), int(bounds[at + 1]))

        entities = ends(plan.entity_bounds, step)
        slots = on["slots"][entities]
        batches = []
        for q in range(step * self.periods, (step + 1) * self.periods):
            own = slice(*ranks.share(int(plan.bounds[q]), int(plan.bounds[q + 1])))
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
        """The plan as int64 tensors, and the numbers of each interaction, on a device; kept for the next call."""
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
