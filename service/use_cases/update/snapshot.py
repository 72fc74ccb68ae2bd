"""Writes the serving snapshot of a version: a delta to the version before, or a base where there is none to add to.

The stage `publish` calls `write_snapshot`; compaction calls `write_base`. Both read the layers of the training state,
so that no table is in memory as a whole.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asmg.batch import COLD_ROW, NO_CATEGORY
from asmg.features import Schema
from asmg.layers import Selection
from service.files import DigestedFile, create, keep_newest
from service.serving.encode import Known, TrainedModel, encode_base, encode_delta
from service.serving.id_hashes import hash_ids
from service.storage.artifacts.state_files import StateFiles
from service.storage.artifacts.store import FILE_SUFFIX
from service.storage.postgres.database import ReadSession
from service.storage.postgres.repositories import EntityKind, IdRows, ModelVersion
from service.use_cases.update.context import UpdateContext
from service.use_cases.update.period_fields import (
    NamedRows,
    columns_of_items,
    fields_of_snapshot,
    names_of_missing,
    names_of_numbers,
)
from service.use_cases.update.served import ServedLayers, changed_rows, read_served

__all__ = ["write_base", "write_snapshot"]

Rows = NDArray[np.int64]


async def write_snapshot(
    context: UpdateContext,
    files: StateFiles,
    state: Mapping[str, Any],
    before: ModelVersion,
    new: Mapping[EntityKind, Known],
) -> list[str]:
    """Write the file that a version adds to the snapshot of the one before, or a base; return the snapshot's files.

    Args:
        context: dependencies.
        files: the layers of training states.
        state: of the version: what it serves.
        before: the version before it.
        new: see `write_base`.
    """
    layers = await read_served(context, files, state)
    rows = await _rows_of_delta(context, files, layers, state, before)
    if rows is None:
        return [await write_base(context, files, state, new=new)]
    async with context.database.read() as session:
        trained = await _delta(session, context.schema, layers, rows, state)
    written = [*before.snapshot_files, await _store(context, lambda file: encode_delta(file, trained))]
    await asyncio.to_thread(keep_newest, context.settings.serving_dir, FILE_SUFFIX, written)
    return written


async def write_base(
    context: UpdateContext,
    files: StateFiles,
    state: Mapping[str, Any],
    *,
    new: Mapping[EntityKind, Known] = MappingProxyType({}),
    beat: Callable[[], None] = lambda: None,
) -> str:
    """Write a snapshot as one file with all rows; return its digest.

    Args:
        context: dependencies.
        files: the layers of training states.
        state: of the version: what it serves.
        new: ids that have the last rows of their table and are not read from Postgres.
        beat: called after each block of rows, from a thread; what it raises ends the work.
    """
    layers = await read_served(context, files, state)
    async with context.database.read() as session:
        trained = await _base(session, context.schema, layers, state, new, beat)
    return await _store(context, lambda file: encode_base(file, trained))


async def _store(context: UpdateContext, encode: Callable[[DigestedFile], None]) -> str:
    """Write a file for the processes of this host, and store it."""
    folder = context.settings.serving_dir

    def write() -> DigestedFile:
        with create(folder, FILE_SUFFIX) as file:
            encode(file)
        return file

    return await context.artifacts.put_file(await asyncio.to_thread(write), "serving")


async def _rows_of_delta(
    context: UpdateContext, files: StateFiles, layers: ServedLayers, state: Mapping[str, Any], before: ModelVersion
) -> dict[str, Rows] | None:
    """Table name → the rows that are served otherwise than before, ascending; None where only a base will do."""
    old = before.state
    if "serving" not in old or not before.snapshot_files:
        return None
    if old.get("serving_schema") != state.get("serving_schema"):
        return None
    known = await read_served(context, files, old)
    rows = await changed_rows(files, old, state, known)
    if rows is None:
        return None
    # A row that went to another id stands in neighbours' lists, and ids that are no more have no hash to be found by.
    if any((gone < known.part.sizes.get(table, 0)).any() for table, gone in known.nobody.items()):
        return None
    return rows | {"field": np.union1d(rows["field"], layers.numbers.rows.numpy())}  # the scales of all numbers


async def _delta(
    session: ReadSession, schema: Schema, layers: ServedLayers, rows: Mapping[str, Rows], state: Mapping[str, Any]
) -> TrainedModel:
    """A small model with these rows, and those of the values that an unknown item has."""
    missing = await _find(session, EntityKind.FIELD, names_of_missing(schema))
    rows = {**rows, "field": np.union1d(rows["field"], np.array(list(missing.values()), np.int64))}
    ids = {kind: await session.entities.ids_at(kind, rows[kind][1:]) for kind in EntityKind}
    known = {
        kind: NamedRows(
            [id_ for id_ in ids[kind] if id_ is not None],
            np.array([n for n, id_ in enumerate(ids[kind], start=1) if id_ is not None], np.int64),
        )
        for kind in EntityKind
    }
    items = known[EntityKind.ITEM]
    categories = await session.items.categories(items.ids)
    category_rows = await _find(session, EntityKind.CATEGORY, [name for names in categories.values() for name in names])
    fields = None
    if EntityKind.FIELD in layers.model.tables:
        features = await session.features.latest("item", items.ids if schema.of("item") else ())
        columns = await asyncio.to_thread(columns_of_items, schema, items, features, len(rows["item"]))
        value_rows = await _find(session, EntityKind.FIELD, [*columns.names, *names_of_numbers(schema)])
        values = Known.of(*known[EntityKind.FIELD])
        fields = fields_of_snapshot(schema, columns, value_rows, values, layers.numbers)

    def make() -> TrainedModel:
        matrix = _matrix(len(rows["item"]), [(items, categories)], category_rows)
        selection = Selection(rows, torch.empty(0), {name: len(rows[name]) for name in rows})
        statistics, universe = (None, rows["item"]) if layers.statistics is None else layers.statistics_of(selection)
        params = layers.model.shifted(layers.excerpt(selection), state.get("logit_correction", 0.0))
        return TrainedModel(
            model=layers.model,
            params=params,
            users=Known.of(*known[EntityKind.USER]),
            items=Known.of(*items),
            categories=matrix,
            statistics=statistics,
            fields=fields,
            global_rows={**{name: rows[name] for name in layers.model.tables}, "item": universe},
        )

    return await asyncio.to_thread(make)


async def _base(
    session: ReadSession,
    schema: Schema,
    layers: ServedLayers,
    state: Mapping[str, Any],
    new: Mapping[EntityKind, Known],
    beat: Callable[[], None],
) -> TrainedModel:
    """The whole model."""
    allocations: Mapping[str, int] = state["serving_allocations"]
    sizes = layers.part.sizes

    async def known(kind: EntityKind) -> Known:
        added, size = new.get(kind, Known.nothing()), sizes[kind]
        end = int(added.rows.min(initial=size))
        return await _hashed(session.entities.pages(kind, allocations.get(kind, 0), end=end), added)

    count = sizes["item"]
    of_items = [(page, dict(zip(page.item_ids, page.categories, strict=True))) async for page in session.items.pages()]
    names = [name for _, categories in of_items for names in categories.values() for name in names]
    category_rows = _below(sizes.get("category", 0), await _find(session, EntityKind.CATEGORY, names))
    entries = []
    for page, categories in of_items:
        entries.append(
            (NamedRows(page.item_ids, await session.entities.find(EntityKind.ITEM, page.item_ids)), categories)
        )
    fields = None
    if EntityKind.FIELD in sizes:
        features = await session.features.latest("item", None if schema.of("item") else ())
        owners = NamedRows(features.ids, await session.entities.find(EntityKind.ITEM, features.ids))
        columns = await asyncio.to_thread(columns_of_items, schema, owners, features, count)
        value_rows = await _find(session, EntityKind.FIELD, [*columns.names, *names_of_numbers(schema)])
        value_rows = _below(sizes["field"], value_rows)
        fields = fields_of_snapshot(schema, columns, value_rows, await known(EntityKind.FIELD), layers.numbers)
    return TrainedModel(
        model=layers.model,
        params=layers.tables(state.get("logit_correction", 0.0), beat),
        users=await known(EntityKind.USER),
        items=await known(EntityKind.ITEM),
        categories=await asyncio.to_thread(_matrix, count, entries, category_rows),
        statistics=layers.counts,
        fields=fields,
    )


async def _hashed(pages: AsyncIterator[IdRows], added: Known) -> Known:
    """The ids of a table as hashes: those of the pages, and `added` ones."""
    hashes, rows = [], []
    async for page in pages:
        hashes.append(await asyncio.to_thread(hash_ids, page.ids))
        rows.append(page.rows)
    return Known(np.concatenate([*hashes, added.hashes]), np.concatenate([*rows, added.rows]))


async def _find(session: ReadSession, kind: EntityKind, names: Iterable[str]) -> dict[str, int]:
    """Id → its row, for those of these ids that have one."""
    distinct = list(dict.fromkeys(names))
    rows = await session.entities.find(kind, distinct)
    return {name: row for name, row in zip(distinct, rows.tolist(), strict=True) if row != COLD_ROW}


def _below(size: int, rows: Mapping[str, int]) -> dict[str, int]:
    """Those within a table of `size` rows; the others belong to a period that is being learned."""
    return {name: row for name, row in rows.items() if row < size}


def _matrix(
    count: int, entries: Sequence[tuple[NamedRows, Mapping[str, tuple[str, ...]]]], category_rows: Mapping[str, int]
) -> torch.Tensor:
    """The rows of the categories of each item, int32 [count, C]; `NO_CATEGORY` for none."""
    width = max((len(names) for _, categories in entries for names in categories.values()), default=1) or 1
    matrix = np.full((count, width), NO_CATEGORY, np.int32)
    for items, categories in entries:
        for item, row in zip(items.ids, items.rows.tolist(), strict=True):
            if COLD_ROW < row < count and item in categories:
                found = [category_rows[name] for name in categories[item] if name in category_rows]
                matrix[row, : len(found)] = found
    return torch.from_numpy(matrix)
