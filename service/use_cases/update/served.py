"""What a version serves: its parameters and statistics, read from the layers of the training state it was made from."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.batch import COLD_ROW, TABLES, PeriodData
from asmg.layers import Selection, Stack, StackCounts, StackTable, StatisticsStack, is_base, rows_of_layers
from asmg.models import BaseModel, Params, build_model, config_from_json, forget
from asmg.numbers import NumberMoments
from asmg.statistics import Statistics
from asmg.updaters.base import ServedParts
from asmg.updaters.trust import blend
from service.storage.artifacts.state_files import StateFiles
from service.use_cases.update.checkpoints import Parts, layers_of, rows_of_nobody
from service.use_cases.update.context import UpdateContext

__all__ = ["ServedLayers", "changed_rows", "read_served", "served_state"]


@dataclass(frozen=True)
class ServedLayers:
    """The model that a version serves, as stacks of which any rows can be read."""

    part: Stack
    toward: Stack | None
    """The parameters are part + `fraction`·(toward - part), those of `part` alone without it."""
    fraction: float
    statistics: StatisticsStack | None
    nobody: Mapping[str, NDArray[np.int64]]
    """Table name → rows that changed hands since, ascending."""

    @property
    def model(self) -> BaseModel:
        """The model of these parameters."""
        return build_model(config_from_json(self.part.meta["model"]))

    @property
    def numbers(self) -> NumberMoments:
        """The moments of the numeric fields."""
        return NumberMoments.initial() if self.statistics is None else NumberMoments.of(self.statistics.whole)

    def tables(self, shift: float, beat: Callable[[], None]) -> dict[str, Any]:
        """The parameters, of whose tables some rows are read at a time.

        Args:
            shift: is added to every logit.
            beat: called with each read.
        """
        params = self.excerpt(Selection.everything([], {}))
        added = self.model.shifted({name: torch.zeros_like(p) for name, p in params.items()}, shift)
        shifted: dict[str, Any] = self.model.shifted(params, shift)
        return shifted | {name: _ServedTable(self, name, added[name][COLD_ROW], beat) for name in self.part.tables}

    @property
    def counts(self) -> "StackCounts | None":
        """The statistics, of which some items are read at a time."""
        return None if self.statistics is None else StackCounts(self.statistics)

    def excerpt(self, selection: Selection) -> Params:
        """The parameters with the selected rows of the tables. Rows that changed hands are like the cold row."""
        params = dict(self.part.excerpt(selection).tensors)
        if self.toward is not None:
            toward = self.toward.excerpt(selection).tensors
            params = blend(params, toward, self.fraction)
        return forget(params, _local(selection.rows, self.nobody))

    def corrected(self, table: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of these rows of a table, within it, that are served otherwise than `part` has them."""
        if self.toward is None:
            return rows[:0]
        part, toward = (StackTable(stack, table)[torch.from_numpy(rows)] for stack in (self.part, self.toward))
        differs: NDArray[np.bool_] = (part != toward).any(1).numpy()
        return rows[differs]

    def statistics_of(self, selection: Selection) -> tuple[Statistics, NDArray[np.int64]]:
        """The statistics of the selected items, and the item of each of their rows.

        Raises:
            ValueError: the model was made without statistics.
        """
        if self.statistics is None:
            raise ValueError("statistics: expected those of the model; received none")
        stored, universe = self.statistics.excerpt(selection)
        gone = _local({**selection.rows, "item": universe}, self.nobody)
        return Statistics.load(stored).forgotten(gone), universe

    def prepared(self, data: PeriodData, selection: Selection) -> PeriodData:
        """A log, in rows of an excerpt, with the inputs that this model reads beside ids."""
        plain = replace(data, numeric=None, nobody=None)
        return plain if self.statistics is None else self.statistics_of(selection)[0].prepare(plain)


class _ServedTable:
    """A table of a served model, with the same numbers added to each row."""

    def __init__(self, layers: ServedLayers, table: str, added: Tensor, beat: Callable[[], None]) -> None:
        self._part, self._added = StackTable(layers.part, table), added
        self._toward = None if layers.toward is None else StackTable(layers.toward, table)
        self._fraction, self._beat = layers.fraction, beat

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, rows: Tensor) -> Tensor:
        self._beat()
        part = self._part[rows]
        served = part if self._toward is None else torch.lerp(part, self._toward[rows], self._fraction)
        return served + self._added


def served_state(parts: Parts, served: ServedParts) -> dict[str, Any]:
    """The entry `serving` of a version's state, as JSON."""
    toward = None if served.toward is None else layers_of(parts[served.toward])
    return {
        "part": layers_of(parts[served.part]),
        "toward": toward,
        "fraction": served.fraction,
        "lasting": served.lasting,
    }


async def changed_rows(
    files: StateFiles, old: Mapping[str, Any], new: Mapping[str, Any], served: ServedLayers
) -> dict[str, NDArray[np.int64]] | None:
    """Table name → rows, ascending, with the cold row, that two versions may serve otherwise.

    Args:
        files: the layers.
        old: state of the earlier version.
        new: state of the later one.
        served: what the earlier one serves.

    Returns:
        None where the later version does not have the layers of the earlier one, or corrects all rows otherwise.
    """
    before, after = old["serving"], new["serving"]
    corrected = (before["fraction"] if before["toward"] else 0.0, after["fraction"] if after["toward"] else 0.0)
    if corrected[0] != corrected[1] and (before.get("lasting") or after.get("lasting")):
        return None
    added: list[str] = []
    for earlier, later in (
        (before["part"], after["part"]),
        (before["toward"], after["toward"]) if before["toward"] and after["toward"] else ([], []),
        (layers_of(old.get("serving_statistics") or []), layers_of(new.get("serving_statistics") or [])),
    ):
        if earlier and earlier[-1] not in later:
            return None
        added += later[later.index(earlier[-1]) + 1 :] if earlier else []
    opened = [await files.open(digest) for digest in dict.fromkeys(added)]
    newest = [await files.open(before["toward"][-1])] if before["toward"] and before["toward"] != before["part"] else []
    if any(is_base(layer) for layer in (*opened, *newest)):
        return None

    def rows(table: str) -> NDArray[np.int64]:
        changed = rows_of_layers(opened, table)
        if not newest or table not in served.model.tables:
            return changed
        # What the earlier version corrected may be plain again; what it made plain again stays so.
        return np.union1d(changed, served.corrected(table, rows_of_layers(newest, table)))

    return await asyncio.to_thread(lambda: {name: rows(name) for name in TABLES})


async def read_served(context: UpdateContext, files: StateFiles, state: Mapping[str, Any]) -> ServedLayers:
    """The model that a version with this state serves.

    Args:
        context: knows which rows changed hands since.
        files: the artifacts.
        state: of a version that serves a learned model.
    """
    serving, statistics = state["serving"], state.get("serving_statistics")
    nobody = await rows_of_nobody(context, state.get("serving_allocations", {}))
    part = await files.stack(serving["part"])
    toward = await files.stack(serving["toward"]) if serving["toward"] else None
    counted = await files.stack(layers_of(statistics)) if statistics else None
    assert isinstance(part, Stack)
    assert not isinstance(toward, StatisticsStack)
    assert not isinstance(counted, Stack)
    return await asyncio.to_thread(ServedLayers, part, toward, serving["fraction"], counted, nobody)


def _local(known: Mapping[str, NDArray[np.int64]], rows: Mapping[str, NDArray[np.int64]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.flatnonzero(np.isin(known[name], gone))) for name, gone in rows.items()}
