"""Stage `prepare`: the log of the period, in the frontends' ids, becomes table rows that the update method reads."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from asmg.batch import COLD_ROW, PeriodData
from asmg.features import DEFAULT, Schema
from service.serving.encode import Known
from service.storage.postgres.database import Database, Lock, ReadSession, UnitOfWork
from service.storage.postgres.repositories import Allocation, Catalogue, Earlier, EntityKind, FeaturesOf, PeriodLog
from service.tasks import meanwhile
from service.use_cases.update.checkpoints import Checkpoints
from service.use_cases.update.context import Progress, UpdateContext, UpdateStart, origin_of
from service.use_cases.update.period_data import NewIds, TableRows, encode_period
from service.use_cases.update.period_fields import Given, NamedColumns, name_columns
from service.use_cases.update.stage import Notes

__all__ = ["PrepareNote", "PreparedPeriod", "prepare", "prepared_period"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareNote:
    """Result of the stage `prepare`."""

    origin: Mapping[str, Any]
    """What the update is computed from besides the log, see `origin_of`."""
    data: str
    """Digest of the prepared period."""
    allocations: Mapping[str, int]
    """Kind → number of the latest allocation of rows, which a model that has learned the period knows."""
    catalogue: int
    """The newest period whose catalogue entries all have their rows."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "origin": self.origin,
            "data": self.data,
            "allocations": self.allocations,
            "catalogue": self.catalogue,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], /) -> Self:
        """The inverse of `to_json`."""
        return cls(values["origin"], values["data"], values.get("allocations", {}), values.get("catalogue", 0))


class PreparedPeriod(NamedTuple):
    """A period as the update method reads it."""

    data: PeriodData
    allocations: dict[str, int]
    """Kind → number of the latest allocation of rows, which a model that has learned the data knows."""
    taken_up: NDArray[np.int64]
    """Items whose catalogue entry or features are new, ascending."""
    gone: dict[str, NDArray[np.int64]]
    """Kind → rows, ascending, whose embeddings in the training state belong to nobody now."""
    new_ids: NewIds
    written: asyncio.Future[None]
    """Done when the rows of new ids are in Postgres."""


async def prepare(
    context: UpdateContext, checkpoints: Checkpoints, start: UpdateStart, notes: Notes, _progress: Progress
) -> PrepareNote:
    """Turn the log into rows, add what the method's state says about them, and store that.

    New rows are written to Postgres while the next stages run, which read none of them there.
    """
    settings = context.settings
    known = int(start.head.state.get("catalogue", 0))  # every entry, after a release that did not note it
    period = prepared_period(
        context.database,
        start.period,
        settings.history_length,
        evict_after=settings.evict_after_periods,
        schema=context.schema,
        catalogue=known,
        kept=await checkpoints.kept_items(),
        known=start.head.state.get("allocations", {}),
    )
    data, allocations, taken_up, gone, new_ids, _ = await notes.begin(period)
    checkpoints.new_ids = new_ids
    await checkpoints.select(data, gone)
    state = await checkpoints.read_state(None)
    local = await asyncio.to_thread(checkpoints.selection.localised, data)
    prepared = await asyncio.to_thread(context.updater.prepare, state, local)
    digest = await checkpoints.write_data(data, prepared, taken_up)
    return PrepareNote(origin_of(context, start.head), digest, allocations, max(known, start.period))


@asynccontextmanager
async def prepared_period(
    database: Database,
    period: int,
    history_length: int,
    *,
    evict_after: int | None = None,
    schema: Schema = DEFAULT,
    catalogue: int = 0,
    kept: NDArray[np.int64] | None = None,
    known: Mapping[str, int] | None = None,
) -> AsyncIterator[PreparedPeriod]:
    """The log of a period as rows, each interaction with its user's history at that time.

    New rows are written to Postgres while the block runs, and are there once it has ended without an error. Where rows
    changed hands, all is written before the block begins.

    An id without a row gets one, as do the items and categories of catalogue entries that were put since the head was
    prepared, so that a new item starts as the sum of its categories. Before that, users and items lose their row that
    were not seen for `evict_after` periods, this one included. An id was seen in a period if it occurs in the log (not
    only as a sampled negative) or in a history read for it, or if its catalogue entry was made or changed. Periods are
    counted from the first that was prepared with eviction. Rows change hands in one transaction; preparing the period
    again gives the same rows.

    Args:
        database: the log, the catalogue and the rows.
        period: number of a sealed period with at least one interaction.
        history_length: most recent positives kept for each interaction.
        evict_after: number of periods; None never evicts.
        schema: the fields. Their values get rows as ids do, and lose them likewise.
        catalogue: number of a period; entries stored up to it have their rows, those stored later get theirs now.
        kept: rows of items in logs that the update method has kept; their categories are read too.
        known: kind → number of the latest allocation of rows that the training state knows; none by default.
    """
    kept = np.empty(0, np.int64) if kept is None else kept
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.CATALOGUE)  # all entries noted with this period are committed now
    while True:
        read = await _read_period(database, period, history_length, evict_after, schema, catalogue, kept)
        columns = await asyncio.to_thread(name_columns, schema, read.log, read.given)
        async with database.unit_of_work() as work:
            found = await _assign_rows(work, period, evict_after, read, columns, known or {})
            if found is not None:
                async with meanwhile(_append_rows(work, found.appended)) as written:
                    prepared = await asyncio.to_thread(_encoded, read, columns, found, history_length, written)
                    if found.handed_on:  # the next stages ask Postgres which rows changed hands
                        await written
                    del read, columns, found  # which take more than what was made of them
                    yield prepared
                return
        logger.info("period %d: somebody was deleted while it was prepared; it is read again", period)


async def _append_rows(work: UnitOfWork, appended: Mapping[EntityKind, Allocation]) -> None:
    for kind in sorted(appended):  # as in the indexes: a row that goes to their end costs less than one in the middle
        await work.entities.append(kind, appended[kind])
    await work.commit()


def _encoded(
    read: "_Read", columns: NamedColumns, found: "_Found", history_length: int, written: asyncio.Future[None]
) -> PreparedPeriod:
    rows = found.rows
    data = encode_period(read.log, read.earlier, read.catalogue, rows, history_length)
    fields = columns.in_rows(rows.of[EntityKind.FIELD], rows.sizes[EntityKind.FIELD])
    of_item = rows.of[EntityKind.ITEM]
    taken_up = np.unique(np.array([of_item[item] for item in read.taken_up], np.int64))
    data, taken_up = replace(data, fields=fields), taken_up[taken_up != COLD_ROW]
    new = {
        kind: Known.of(ids, np.arange(last - len(ids) + 1, last + 1))
        for kind, (_, (last, _), _, ids, _) in found.appended.items()
    }
    return PreparedPeriod(data, rows.allocations, taken_up, found.gone, NewIds(new, read.deletions), written)


@dataclass(frozen=True)
class _Read:
    """What was read of a period, in one transaction."""

    deletions: int
    """How many deletions had been carried out by then."""
    log: PeriodLog
    earlier: Earlier
    shown: list[str]
    """Items of the log that are no mere sampled negatives; empty where nothing is evicted."""
    put: Catalogue
    """Entries that are taken up."""
    catalogue: Catalogue
    """The items that the period and kept logs touch, those whose entries are taken up and those with new features."""
    taken_up: list[str]
    """The items whose entries are taken up, and those with new features."""
    given: Given


async def _read_period(
    database: Database,
    period: int,
    history_length: int,
    evict_after: int | None,
    schema: Schema,
    catalogue: int,
    kept: NDArray[np.int64],
) -> _Read:
    async with database.read() as session:
        deletions = await session.deletions.finished()
        log = await session.interactions.log(period)
        earlier = await session.past.earlier(period, history_length)
        put = await session.items.put_since(catalogue + 1)
        described = await session.features.items_put_since(catalogue + 1) if schema.of("item") else []
        others = [item for item in await session.entities.ids_at(EntityKind.ITEM, kept) if item is not None]
        touched = await asyncio.to_thread(lambda: list(dict.fromkeys([*log.item_ids, *earlier.item_ids, *others])))
        categories = await session.items.categories(touched)
        return _Read(
            deletions=deletions,
            log=log,
            earlier=earlier,
            shown=[] if evict_after is None else list(await session.interactions.shown_items(period)),
            put=put,
            catalogue=_catalogue(categories, put, described),
            taken_up=[*put.item_ids, *described],
            given=await _read_fields(session, period, len(log), schema),
        )


def _catalogue(categories: Mapping[str, tuple[str, ...]], put: Catalogue, described: Sequence[str]) -> Catalogue:
    """What the period says of items.

    Args:
        categories: of the items that the period and kept logs touch.
        put: entries that are taken up.
        described: items that have new features.
    """
    of_item = {item: () for item in described} | dict(categories)
    of_item |= dict(zip(put.item_ids, put.categories, strict=True))
    return Catalogue(list(of_item), list(of_item.values()), [])


async def _read_fields(session: ReadSession, period: int, count: int, schema: Schema) -> Given:
    """What clients sent for the fields of a period's `count` interactions; only what the schema declares is read."""
    contexts: list[Mapping[str, Any] | None] = [None] * count
    if schema.declared("context"):
        async for page in session.interactions.contexts(period):
            for place, values in zip(page.places.tolist(), page.values, strict=True):
                contexts[place] = values
    nothing = FeaturesOf([], np.empty(0, np.int64), [])
    users = await session.features.of_log("user", period) if schema.declared("user") else nothing
    items = await session.features.of_log("item", period) if schema.declared("item") else nothing
    return Given(contexts, users, items)


class _Found(NamedTuple):
    """The rows of the ids of a period."""

    rows: TableRows
    appended: dict[EntityKind, Allocation]
    """Those that are yet to be added to the tables."""
    gone: dict[str, NDArray[np.int64]]
    """See `PreparedPeriod`."""
    handed_on: bool
    """Whether rows were freed, or given to other ids."""


async def _assign_rows(
    work: UnitOfWork,
    period: int,
    evict_after: int | None,
    read: _Read,
    columns: NamedColumns,
    known: Mapping[str, int],
) -> _Found | None:
    """Evict ids that were not seen for long and give rows to new ones.

    Returns:
        the rows; None where an id was deleted after the period was read, and would get a row again.
    """
    maps: dict[EntityKind, dict[str, int]] = {}
    found: dict[EntityKind, Allocation] = {}
    handed_on = False
    for kind in EntityKind:
        await work.entities.lock(kind)
    if await work.deletions.finished() != read.deletions:
        return None
    # A period that is learned after later ones counts as the newest of them: who is seen in it is seen now.
    now = max(period, await work.models.newest_period() or 0)
    # A catalogue entry older than this gives its item no row; the item may have one by itself.
    oldest = 0 if evict_after is None else now - evict_after + 1
    for kind, ids in (await asyncio.to_thread(_ids_of, read, columns, oldest)).items():
        if evict_after is not None and kind is not EntityKind.CATEGORY:
            await work.entities.see(kind, ids.seen, now)
            evicted = await work.entities.evict(kind, now, evict_after)
            logger.info("period %d: rows of %ss that are evicted: %d", period, kind, evicted)
            handed_on |= evicted > 0
        found[kind] = await work.entities.begin_allocation(kind, ids.distinct, now)
        maps[kind] = await asyncio.to_thread(_row_of, ids.distinct, found[kind].rows)
    if evict_after is None:
        await work.entities.forget_seen()
    # Of items outside of the log, and of the categories of all, the rows are looked up: they have theirs, or none.
    for kind, names in (
        (EntityKind.ITEM, read.catalogue.item_ids),
        (EntityKind.CATEGORY, [name for categories in read.catalogue.categories for name in categories]),
    ):
        others = [id_ for id_ in dict.fromkeys(names) if id_ not in maps[kind]]
        maps[kind] |= _row_of(others, await work.entities.find(kind, others))
    gone = {
        str(kind): await work.entities.rows_of_nobody(kind, known.get(kind, 0), allocation.extent.row)
        for kind, allocation in found.items()
    }
    sizes = {kind: allocation.extent.row + 1 for kind, allocation in found.items()}
    allocations = {str(kind): allocation.extent.allocation for kind, allocation in found.items()}
    handed_on |= any(allocation.reused for allocation in found.values())
    return _Found(TableRows(maps, sizes, allocations), found, gone, handed_on)


class _Ids(NamedTuple):
    """The ids of one kind in a period."""

    seen: Sequence[str]
    """Those that keep their rows for having been seen; they may repeat. Empty for categories."""
    distinct: list[str]
    """Those that get rows, in the order in which they get them."""


def _ids_of(read: _Read, columns: NamedColumns, oldest: int) -> dict[EntityKind, _Ids]:
    """The ids that occur in a period.

    Args:
        read: the period.
        columns: its fields.
        oldest: items of catalogue entries that were stored in an earlier period than this get no row by them.
    """
    log, earlier, put = read.log, read.earlier, read.put
    current = [item for item, number in zip(put.item_ids, put.periods, strict=True) if number >= oldest]
    categories = [name for names in put.categories for name in names]
    return {
        kind: _Ids(seen, list(dict.fromkeys(ids)))
        for kind, seen, ids in (
            (EntityKind.USER, log.user_ids, log.user_ids),
            (EntityKind.ITEM, [*read.shown, *earlier.item_ids], [*log.item_ids, *earlier.item_ids, *current]),
            (EntityKind.CATEGORY, [], categories),
            (EntityKind.FIELD, columns.names, columns.names),
        )
    }


def _row_of(ids: Sequence[str], rows: NDArray[np.int64]) -> dict[str, int]:
    return dict(zip(ids, rows.tolist(), strict=True))
