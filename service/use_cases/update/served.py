"""What a version serves: its parameters and statistics, read from the layers of the training state it was made from."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.batch import PeriodData
from asmg.layers import Selection, Stack, StatisticsStack
from asmg.models import BaseModel, Params, build_model, config_from_json, forget
from asmg.statistics import Statistics
from asmg.updaters.base import ServedParts
from asmg.updaters.trust import blend
from service.storage.artifacts.state_files import StateFiles
from service.use_cases.update.checkpoints import Parts, layers_of, rows_of_nobody
from service.use_cases.update.context import UpdateContext

__all__ = ["ServedModel", "read_served", "served_state"]


@dataclass(frozen=True)
class ServedModel:
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

    def excerpt(self, selection: Selection) -> Params:
        """The parameters with the selected rows of the tables. Rows that changed hands are like the cold row."""
        params = dict(self.part.excerpt(selection).tensors)
        if self.toward is not None:
            toward = self.toward.excerpt(selection).tensors
            params = blend(params, toward, self.fraction)
        return forget(params, _local(selection.rows, self.nobody))

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


def served_state(parts: Parts, served: ServedParts) -> dict[str, Any]:
    """The entry `serving` of a version's state, as JSON."""
    toward = None if served.toward is None else layers_of(parts[served.toward])
    return {"part": layers_of(parts[served.part]), "toward": toward, "fraction": served.fraction}


async def read_served(context: UpdateContext, files: StateFiles, state: Mapping[str, Any]) -> ServedModel:
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
    assert isinstance(part, Stack) and not isinstance(toward, StatisticsStack)
    assert not isinstance(counted, Stack)
    return await asyncio.to_thread(ServedModel, part, toward, serving["fraction"], counted, nobody)


def _local(known: Mapping[str, NDArray[np.int64]], rows: Mapping[str, NDArray[np.int64]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.flatnonzero(np.isin(known[name], gone))) for name, gone in rows.items()}
