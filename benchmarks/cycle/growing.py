"""Gives a small installation as many ids as wanted, as if it had learned them."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text

from asmg.checkpoint import Checkpoint
from asmg.header import make_header, parse_header
from asmg.layers import MergedTensor, is_layered, merger
from asmg.tensor_writer import BFLOAT16, Blocks, write_tensors
from service.files import DigestedFile
from service.settings import Settings
from service.storage.artifacts.state_files import StateFiles
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AliasName
from service.storage.redis.connection import connect
from service.storage.redis.histories import HistoryStore
from service.storage.redis.notices import Notices
from service.use_cases.update.checkpoints import layers_of
from service.use_cases.update.configuration import configured_updater
from service.use_cases.update.context import UpdateContext
from service.use_cases.update.snapshot import write_base

BLOCK_ROWS = 131_072

NEIGHBOURS = 8
"""Items clicked beside each item."""

MOMENTS = ("first", "second", "moved")
BY_ITEM = ("counts", "counted", "degrees", "paired")
BY_PAIR = ("neighbours", "together", "passed")

ADD_ROWS = text("""
    INSERT INTO entity_rows (kind, row, id, first_period, allocation, appended)
    SELECT CAST(:kind AS text), n, CAST(:prefix AS text) || '_' || n, 1, known.allocation, known.appended
    FROM (SELECT max(row) AS row, max(allocation) AS allocation, max(appended) AS appended
          FROM entity_rows WHERE kind = CAST(:kind AS text)) AS known,
         generate_series(known.row + 1, CAST(:last AS integer)) AS n
""")

STORE = text("""
    UPDATE model_versions SET state = CAST(:state AS jsonb), serving_digest = :digest WHERE version = :version
""")


def grow(settings: Settings, users: int, items: int) -> None:
    """Add users and items until there are so many; the newest version is made again with them.

    The ids are "u_" and "i_" with the number of their row. Nobody else may use the installation meanwhile.
    """
    asyncio.run(_grow(settings, {"user": users, "item": items}))


async def _grow(settings: Settings, counts: Mapping[str, int]) -> None:
    assert settings.postgres_dsn is not None and settings.redis_url is not None
    database, redis = Database(settings.postgres_dsn, pool_size=2), connect(settings.redis_url)
    context = UpdateContext(
        settings=settings,
        database=database,
        artifacts=ArtifactStore(database, redis),
        notices=Notices(redis),
        updater=configured_updater(settings),
        histories=HistoryStore(redis, database, length=settings.history_length),
        schema=settings.read_features(),
    )
    try:
        async with database.unit_of_work() as work:
            for kind, last in counts.items():
                await work.connection.execute(ADD_ROWS, {"kind": kind, "prefix": kind[0], "last": last})
            await work.commit()
        async with database.read() as session:
            alias = await session.models.alias(AliasName.HEAD)
            head = None if alias is None else await session.models.get(alias.version)
        assert head is not None, "the first period is learned"
        state = await _with_more_rows(context, dict(head.state), {kind: last + 1 for kind, last in counts.items()})
        async with database.unit_of_work() as work:
            values = {"state": json.dumps(state), "digest": state["snapshot"][-1], "version": head.version}
            await work.connection.execute(STORE, values)
            await work.commit()
    finally:
        await redis.aclose()
        await database.close()


async def _with_more_rows(context: UpdateContext, state: dict[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The state of a version with tables of these sizes, whose further rows are random."""
    files = StateFiles(context.artifacts, context.settings.state_dir)
    made: dict[tuple[str, ...], list[str]] = {}
    for name, value in state["parts"].items():
        if is_layered(name) and (layers := tuple(layers_of(value))) not in made:
            content = _grown([await files.open(digest) for digest in layers], sizes)
            made[layers] = [await files.write(content, "layers")]

    def replaced(value: Any) -> Any:
        return made.get(tuple(value), value) if isinstance(value, list) else value

    state["parts"] = {name: replaced(value) for name, value in state["parts"].items()}
    state["serving"] = {name: replaced(value) for name, value in state["serving"].items()}
    state["serving_statistics"] = replaced(state["serving_statistics"])
    state["snapshot"] = [await write_base(context, files, state)]
    return state


def _grown(layers: Sequence[Checkpoint], wanted: Mapping[str, int]) -> Callable[[DigestedFile], None]:
    """Writes the base that these layers make, with more rows."""
    merged, rng = merger(layers), np.random.default_rng(0)
    kind, meta = parse_header(merged.header, None)
    known: dict[str, int] = meta["sizes"]
    sizes = {name: max(size, wanted.get(name, size)) for name, size in known.items()}
    items, more_items = sizes.get("item", 0), sizes.get("item", 0) - known.get("item", 0)

    def value(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """What further rows have in a tensor."""
        if name == "neighbours":
            return np.sort(rng.integers(1, items, (shape[0] // NEIGHBOURS, NEIGHBOURS)), 1).astype(dtype).ravel()
        if name.startswith("first.") or name.startswith("moved.") or name in ("counted", "paired"):
            return np.full(shape, {"f": 0, "m": meta.get("step", 0)}.get(name[0], 1), dtype)
        if name.startswith("second."):
            numbers = rng.random(shape, np.float32) * np.float32(1e-4)
            return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(dtype) if dtype == BFLOAT16 else numbers
        if name in ("counts", "degrees", "together", "passed"):
            return rng.random(shape, np.float32) * np.float32(10)
        return rng.standard_normal(shape, np.float32) * np.float32(0.05)

    def blocks(name: str, tensor: MergedTensor, more: int, each: int) -> Iterator[NDArray[Any]]:
        yield from tensor.blocks()
        for start in range(0, more, BLOCK_ROWS):
            yield value(name, (min(BLOCK_ROWS, more - start) * each, *tensor.shape[1:]), tensor.dtype)

    tensors: dict[str, Blocks] = {}
    for name, tensor in merged.tensors.items():
        table, each = name.rpartition(".")[2], 1
        if kind == "statistics":
            table, each = ("item", 1) if name in BY_ITEM else ("item", NEIGHBOURS) if name in BY_PAIR else ("", 0)
        more = sizes.get(table, 0) - known.get(table, 0)
        if kind == "statistics" and name == "starts":
            (starts,) = tensor.blocks()
            ends = starts[-1] + NEIGHBOURS * np.arange(1, more_items + 1)
            tensors[name] = Blocks(tensor.dtype, (len(starts) + more_items,), [starts, ends])
        elif each and table in known and name in (table, *(f"{part}.{table}" for part in MOMENTS), *BY_ITEM, *BY_PAIR):
            shape = (tensor.shape[0] + more * each, *tensor.shape[1:])
            tensors[name] = Blocks(tensor.dtype, shape, blocks(name, tensor, more, each))
        else:
            tensors[name] = Blocks(tensor.dtype, tensor.shape, tensor.blocks())
    header = make_header(kind, {**meta, "sizes": sizes})
    return lambda file: write_tensors(file, header, tensors)
