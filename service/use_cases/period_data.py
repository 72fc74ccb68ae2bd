"""From the log of a sealed period, in the frontends' ids, to the table rows that the updaters read."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from asmg.batch import NO_CATEGORY, PeriodData, build_histories
from service.storage.database import Database
from service.storage.repositories import Catalogue, EntityKind, PeriodLog, Positives

__all__ = ["prepare_period"]


@dataclass(frozen=True)
class _Rows:
    """Id → row of each table, for the ids at hand, and the rows each table has."""

    user: Mapping[str, int]
    item: Mapping[str, int]
    category: Mapping[str, int]
    sizes: Mapping[EntityKind, int]


async def prepare_period(database: Database, period: int, history_length: int) -> PeriodData:
    """The log of a period as rows, with every user's history as it was at each interaction.

    An id that was never in a closed period gets its row here, as do the catalogue's items and categories, so that a new
    item is at least the sum of its categories. Running it again gives the same rows.

    Args:
        database: the log, the catalogue and the rows.
        period: a sealed period with at least one interaction.
        history_length: most recent positives kept for each interaction.
    """
    async with database.read() as session:
        log = await session.interactions.log(period)
        earlier = await session.interactions.earlier_positives(period, history_length)
        catalogue = await session.items.catalogue()
    async with database.unit_of_work() as work:
        maps = {}
        for kind, ids in (
            (EntityKind.USER, log.user_ids),
            (EntityKind.ITEM, [*log.item_ids, *earlier.item_ids, *catalogue.item_ids]),
            (EntityKind.CATEGORY, [name for names in catalogue.categories for name in names]),
        ):
            distinct = list(dict.fromkeys(ids))
            rows = await work.entities.allocate(kind, distinct, period)
            maps[kind] = dict(zip(distinct, rows.tolist(), strict=True))
        sizes = {kind: await work.entities.count(kind) + 1 for kind in EntityKind}
        await work.commit()
    rows_of = _Rows(maps[EntityKind.USER], maps[EntityKind.ITEM], maps[EntityKind.CATEGORY], sizes)
    return await asyncio.to_thread(_encode, log, earlier, catalogue, rows_of, history_length)


def _encode(log: PeriodLog, earlier: Positives, catalogue: Catalogue, rows: _Rows, history_length: int) -> PeriodData:
    user, item = _lookup(rows.user, log.user_ids), _lookup(rows.item, log.item_ids)
    before = (_lookup(rows.user, earlier.user_ids), _lookup(rows.item, earlier.item_ids), earlier.timestamps_ms)
    # Newest first there; of equal times the last one counts as the most recent here.
    oldest_first = (before[0][::-1], before[1][::-1], before[2][::-1])
    history, offsets = build_histories(
        user, item, log.labels, log.timestamps_ms, earlier=oldest_first, length=history_length
    )
    width = max((len(names) for names in catalogue.categories), default=1) or 1
    categories = np.full((rows.sizes[EntityKind.ITEM], width), NO_CATEGORY, dtype=np.int32)
    for item_id, names in zip(catalogue.item_ids, catalogue.categories, strict=True):
        categories[rows.item[item_id], : len(names)] = [rows.category[name] for name in names]
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
    )


def _lookup(rows: Mapping[str, int], ids: Sequence[str]) -> NDArray[np.int64]:
    return np.fromiter((rows[i] for i in ids), dtype=np.int64, count=len(ids))
