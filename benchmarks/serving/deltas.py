"""Some rows of a model as the small model of which a delta is written."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.field_columns import FieldColumns
from asmg.statistics import Statistics
from service.serving.encode import Known, TrainedModel

__all__ = ["some_rows"]

Changed = Mapping[str, NDArray[np.int64]]


def some_rows(trained: TrainedModel, changed: Changed) -> TrainedModel:
    """The model with some of its rows, numbered anew.

    Args:
        trained: a model with whole tables, statistics and columns in memory.
        changed: name of a table → its rows, int64 [n], distinct and ≥ 1.
    """
    rows = {name: np.concatenate([[0], own]) for name, own in changed.items()}
    params = dict(trained.params)
    for name, own in rows.items():
        params[name] = cast(Tensor, params[name])[torch.from_numpy(own)]
    items, statistics, fields = rows["item"], trained.statistics, trained.fields
    if statistics is not None:
        statistics, rows["item"] = _some_counts(cast(Statistics, statistics), items)
    if fields is not None:
        of_items = cast(FieldColumns, fields.of_items).at(torch.from_numpy(items))
        fields = replace(fields, values=_some_ids(fields.values, rows["field"]), of_items=of_items)
    return replace(
        trained,
        params=params,
        users=_some_ids(trained.users, rows["user"]),
        items=_some_ids(trained.items, items),
        categories=None if trained.categories is None else trained.categories[torch.from_numpy(items)],
        statistics=statistics,
        fields=fields,
        global_rows=rows,
    )


def _some_ids(known: Known, rows: NDArray[np.int64]) -> Known:
    """The ids of these rows; the first of them is the cold row."""
    place = np.full(1 + max(int(known.rows.max(initial=0)), int(rows.max())), -1)
    place[rows] = np.arange(len(rows))
    kept = place[known.rows] > 0
    return Known(known.hashes[kept], place[known.rows[kept]])


def _some_counts(statistics: Statistics, items: NDArray[np.int64]) -> tuple[Statistics, NDArray[np.int64]]:
    """The counts of these items, of which the first is the cold row; and the items, followed by their neighbours."""
    own = torch.from_numpy(items)
    within = own.where(own < len(statistics.counts), 0)
    found = statistics.neighbours_of(within)
    others = np.setdiff1d(found.items.numpy(), items)
    numbered = np.concatenate([items, others])
    place = np.zeros(1 + int(numbered.max()), np.int32)
    place[numbered] = np.arange(len(numbered))
    starts = torch.zeros(len(items) + 1, dtype=torch.int64)
    torch.cumsum(found.lengths, 0, out=starts[1:])
    by_item = {name: getattr(statistics, name)[within] for name in ("counts", "counted", "degrees", "paired")}
    neighbours = torch.from_numpy(place[found.items.numpy()])
    return replace(
        statistics, **by_item, starts=starts, neighbours=neighbours, together=found.together, passed=found.passed
    ), numbered
