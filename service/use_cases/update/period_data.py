"""From the log of a sealed period, in the frontends' ids, to the table rows that the updaters read."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from asmg.batch import COLD_ROW, NO_CATEGORY, PeriodData, build_histories, build_recent
from asmg.features import DEFAULT, Schema
from service.storage.postgres.database import Database, ReadSession
from service.storage.postgres.repositories import Catalogue, Earlier, EntityKind, FeaturesOf, PeriodLog
from service.use_cases.update.period_fields import Given, name_columns

__all__ = ["PreparedPeriod", "prepare_period"]

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class _Rows:
    """Id → row of each table, for the ids at hand, and the rows each table has."""

    user: Mapping[str, int]
    item: Mapping[str, int]
    category: Mapping[str, int]
    sizes: Mapping[EntityKind, int]


class PreparedPeriod(NamedTuple):
    """A period as the updaters read it."""

    data: PeriodData
    allocations: dict[str, int]
    """Kind → number of the latest allocation of rows: what a model that has learned the data knows."""


async def prepare_period(
    database: Database, period: int, history_length: int, *, evict_after: int | None = None, schema: Schema = DEFAULT
) -> PreparedPeriod:
    """The log of a period as rows, with what every user did last as it was at each interaction.

    An id without a row gets one here, as do the catalogue's items and categories, so that a new item is at least the
    sum of its categories; before that, users and items lose theirs that were not seen for `evict_after` periods, this
    one included. Seen is what occurs in a log, other than as a sampled negative, or in a history that was read for it,
    or what was put into the catalogue. (It is noted only where ids are evicted, so the periods count from the first one
    for which they were.)
    All of it is one transaction, and running it again gives the same rows.

    Args:
        database: the log, the catalogue and the rows.
        period: a sealed period with at least one interaction.
        history_length: most recent positives kept for each interaction.
        evict_after: in periods; None never evicts.
        schema: of the fields; their values get rows as ids do, and lose them likewise.
    """
    while True:
        prepared = await _prepared(database, period, history_length, evict_after, schema)
        if prepared is not None:
            return prepared
        logger.info("period %d: somebody was deleted while it was prepared; it is read again", period)


async def _prepared(
    database: Database, period: int, history_length: int, evict_after: int | None, schema: Schema
) -> PreparedPeriod | None:
    """None where an id was deleted after it was read, which would have a row again."""
    async with database.read() as session:
        deletions = await session.deletions.finished()
        log = await session.interactions.log(period)
        earlier = await session.past.earlier(period, history_length)
        shown = [] if evict_after is None else await session.interactions.shown_items(period)
        catalogue = await session.items.catalogue()
        given = await _given(session, period, len(log), schema)
    fields = await asyncio.to_thread(name_columns, schema, log, given)
    async with database.unit_of_work() as work:
        for kind in EntityKind:
            await work.entities.lock(kind)
        if await work.deletions.finished() != deletions:
            return None
        # A period that is learned after later ones counts as the newest of them: who is seen in it is seen now.
        now = max(period, await work.models.newest_period() or 0)
        # An entry that was made so long ago gives its item no row any more; the item may have one of its own.
        oldest = 0 if evict_after is None else now - evict_after + 1
        current = [i for i, put in zip(catalogue.item_ids, catalogue.periods, strict=True) if put >= oldest]
        maps, sizes, allocations = {}, {}, {}
        for kind, seen, ids in (
            (EntityKind.USER, log.user_ids, log.user_ids),
            (EntityKind.ITEM, [*shown, *earlier.item_ids], [*log.item_ids, *earlier.item_ids, *current]),
            (EntityKind.CATEGORY, [], [name for names in catalogue.categories for name in names]),
            (EntityKind.FIELD, fields.names, fields.names),
        ):
            if evict_after is not None and kind is not EntityKind.CATEGORY:
                await work.entities.see(kind, seen, now)
                evicted = await work.entities.evict(kind, now, evict_after)
                logger.info("period %d: rows of %ss that are evicted: %d", period, kind, evicted)
            distinct = list(dict.fromkeys(ids))
            rows = await work.entities.allocate(kind, distinct, now)
            maps[kind] = dict(zip(distinct, rows.tolist(), strict=True))
            extent = await work.entities.extent(kind)
            sizes[kind], allocations[str(kind)] = extent.row + 1, extent.allocation
        if evict_after is None:
            await work.entities.forget_seen()
        else:
            rows = await work.entities.find(EntityKind.ITEM, catalogue.item_ids)
            maps[EntityKind.ITEM] |= zip(catalogue.item_ids, rows.tolist(), strict=True)
        await work.commit()
    rows_of = _Rows(maps[EntityKind.USER], maps[EntityKind.ITEM], maps[EntityKind.CATEGORY], sizes)
    data = await asyncio.to_thread(_encode, log, earlier, catalogue, rows_of, history_length)
    columns = fields.in_rows(maps[EntityKind.FIELD], sizes[EntityKind.FIELD])
    return PreparedPeriod(replace(data, fields=columns), allocations)


async def _given(session: ReadSession, period: int, count: int, schema: Schema) -> Given:
    """What clients sent of the fields of a period's `count` interactions; what no field of the schema is of stays
    unread.
    """
    contexts: list[Mapping[str, Any] | None] = [None] * count
    if schema.declared("context"):
        async for page in session.interactions.contexts(period):
            for place, values in zip(page.places.tolist(), page.values, strict=True):
                contexts[place] = values
    nothing = FeaturesOf([], np.empty(0, np.int64), [])
    users = await session.features.of_log("user", period) if schema.declared("user") else nothing
    items = await session.features.of_log("item", period) if schema.declared("item") else nothing
    return Given(contexts, users, items)


def _encode(log: PeriodLog, earlier: Earlier, catalogue: Catalogue, rows: _Rows, history_length: int) -> PeriodData:
    user, item = _lookup(rows.user, log.user_ids), _lookup(rows.item, log.item_ids)
    # Newest first there; of equal ties the last one counts as the most recent here.
    past_user = _lookup(rows.user, sorted(set(log.user_ids)))[earlier.users][::-1]
    past_time, behind, clicks = earlier.timestamps_ms[::-1], earlier.behind[::-1], earlier.in_history[::-1]
    places = _places(user, log.timestamps_ms, log.sampled)
    history, offsets = build_histories(
        user,
        item,
        log.labels,
        log.timestamps_ms,
        earlier=(past_user[clicks], _lookup(rows.item, earlier.item_ids)[::-1], past_time[clicks]),
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
    width = max((len(names) for names in catalogue.categories), default=1) or 1
    categories = np.full((rows.sizes[EntityKind.ITEM], width), NO_CATEGORY, dtype=np.int32)
    for item_id, names in zip(catalogue.item_ids, catalogue.categories, strict=True):
        if (row := rows.item[item_id]) != COLD_ROW:  # else it was evicted
            categories[row, : len(names)] = [rows.category[name] for name in names]
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
        recent=torch.from_numpy(recent),
        weight=None if (log.weights == 1).all() else torch.from_numpy(log.weights),
    )


def _places(user: Rows, timestamps_ms: Rows, sampled: NDArray[np.bool_]) -> Rows:
    """For each interaction of a log how many of the same user and timestamp come before it, sampled ones left out."""
    order = np.lexsort((timestamps_ms, user))  # stable: of equal ones as the log has them
    counted = (~sampled[order]).astype(np.int64)
    before = np.cumsum(counted) - counted
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(user[order]) != 0) | (np.diff(timestamps_ms[order]) != 0)
    first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    places = np.empty(len(order), np.int64)
    places[order] = before - before[first]
    return places


def _lookup(rows: Mapping[str, int], ids: Sequence[str]) -> Rows:
    return np.fromiter((rows[i] for i in ids), dtype=np.int64, count=len(ids))
