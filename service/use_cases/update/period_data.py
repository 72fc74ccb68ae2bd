"""From the log of a period, in the frontends' ids, to the table rows that the update method reads; without Postgres."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from asmg.batch import COLD_ROW, NO_CATEGORY, PeriodData, build_histories, build_recent
from service.serving.encode import Known
from service.storage.postgres.repositories import Catalogue, Earlier, EntityKind, PeriodLog

__all__ = ["NewIds", "TableRows", "encode_period"]

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class TableRows:
    """Which rows of the embedding tables belong to the ids of a period."""

    of: Mapping[EntityKind, Mapping[str, int]]
    """Kind of a table → id → row."""
    sizes: Mapping[EntityKind, int]
    """Kind of a table → number of its rows."""
    allocations: dict[str, int]
    """Kind → number of the latest allocation of rows."""


class NewIds(NamedTuple):
    """The ids that a period has added to the tables."""

    of: Mapping[EntityKind, Known]
    """Kind → those that have its last rows."""
    deletions: int
    """How many deletions had been carried out when they got their rows."""


def encode_period(
    log: PeriodLog, earlier: Earlier, catalogue: Catalogue, rows: TableRows, history_length: int
) -> PeriodData:
    """The period as tensors, without its fields.

    Args:
        log: the interactions, in the order of time.
        earlier: what their users did before the period.
        catalogue: the categories of items.
        rows: rows of all ids that occur.
        history_length: most recent positives kept for each interaction.
    """
    user_rows, item_rows = rows.of[EntityKind.USER], rows.of[EntityKind.ITEM]
    user, item = _lookup(user_rows, log.user_ids), _lookup(item_rows, log.item_ids)
    # `earlier` has the newest first; where times are equal, the functions below take the last for the most recent.
    known = sorted(set(log.user_ids)) if len(earlier) else []
    past_user = _lookup(user_rows, known)[earlier.users][::-1]
    past_time, behind, clicks = earlier.timestamps_ms[::-1], earlier.behind[::-1], earlier.in_history[::-1]
    places = _ties_before(user, log.timestamps_ms, log.sampled)
    history, offsets = build_histories(
        user,
        item,
        log.labels,
        log.timestamps_ms,
        earlier=(past_user[clicks], _lookup(item_rows, earlier.item_ids)[::-1], past_time[clicks]),
        ties=(2 * places + 1, 2 * behind[clicks]),
        length=history_length,
    )
    recent = build_recent(
        user,
        log.labels,
        log.timestamps_ms,
        earlier=(past_user, earlier.labels[::-1], past_time),
        ties=(2 * places + 1, 2 * behind),
        sampled=log.sampled,
    )
    category_items, categories = _categories(catalogue, rows)
    return PeriodData(
        user=torch.from_numpy(user.astype(np.int32)),
        item=torch.from_numpy(item.astype(np.int32)),
        history=torch.from_numpy(history),
        offsets=torch.from_numpy(offsets),
        label=torch.from_numpy(log.labels.astype(np.float32)),
        users=rows.sizes[EntityKind.USER],
        items=rows.sizes[EntityKind.ITEM],
        categories=rows.sizes[EntityKind.CATEGORY],
        item_categories=torch.from_numpy(categories),
        category_items=torch.from_numpy(category_items),
        recent=torch.from_numpy(recent),
        weight=None if (log.weights == 1).all() else torch.from_numpy(log.weights),
    )


def _categories(catalogue: Catalogue, rows: TableRows) -> tuple[Rows, NDArray[np.int32]]:
    """The items of the catalogue that have a row, ascending, and the rows of their categories."""
    item_rows, category_rows = rows.of[EntityKind.ITEM], rows.of[EntityKind.CATEGORY]
    known = {item_rows[item_id]: names for item_id, names in zip(catalogue.item_ids, catalogue.categories, strict=True)}
    known.pop(COLD_ROW, None)  # evicted
    items = sorted(known)
    width = max((len(names) for names in known.values()), default=1) or 1
    categories = np.full((len(items), width), NO_CATEGORY, np.int32)
    for place, item in enumerate(items):
        categories[place, : len(known[item])] = [category_rows[name] for name in known[item]]
    return np.array(items, np.int64), categories


def _ties_before(user: Rows, timestamps_ms: Rows, sampled: NDArray[np.bool_]) -> Rows:
    """For each interaction of a log: how many of the same user and time come before it, without sampled negatives."""
    order = np.lexsort((timestamps_ms, user))  # stable: equal ones stay in the order of the log
    counted = (~sampled[order]).astype(np.int64)
    before = np.cumsum(counted) - counted
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(user[order]) != 0) | (np.diff(timestamps_ms[order]) != 0)
    first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    places = np.empty(len(order), np.int64)
    places[order] = before - before[first]
    return places


def _lookup(rows: Mapping[str, int], ids: Sequence[str]) -> Rows:
    """The row of each id [len(ids)]."""
    return np.fromiter(map(rows.__getitem__, ids), dtype=np.int64, count=len(ids))
