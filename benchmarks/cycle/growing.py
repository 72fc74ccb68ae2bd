"""Gives a small installation as many ids as wanted, as if it had learned them: rows in Postgres, layers and a snapshot."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text

from asmg.layers import MergedTensor, is_layered, merger
from service.files import DigestedFile
from service.serving.tensor_file import Blocks, write_tensors
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

ADD_ROWS = text("""
    INSERT INTO entity_rows (kind, row, id, first_period, allocation)
    SELECT CAST(:kind AS text), n, CAST(:prefix AS text) || '_' || n, 1,
           (SELECT max(allocation) FROM entity_rows WHERE kind = :kind)
    FROM generate_series((SELECT max(row) + 1 FROM entity_rows WHERE kind = :kind), CAST(:last AS integer)) AS n
""")


def grow(settings: Settings, users: int, items: int) -> None:
    """Add users and items until there are so many; version 1 is made again with them.

    The ids are "u_" and "i_" with the number of their row. Nobody else may use the installation meanwhile.
    """
    asyncio.run(_grow(settings, {"user": users, "item": items}))


async def _grow(settings: Settings, counts: dict[str, int]) -> None:
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
            assert alias is not None
            head = await session.models.get(alias.version)
            assert head is not None
        files, sizes = StateFiles(context.artifacts, settings.state_dir), {k: n + 1 for k, n in counts.items()}
        state: dict[str, Any] = dict(head.state)
        made = {}
        for name, value in head.state["parts"].items():
            if is_layered(name):
                layers = [await files.open(digest) for digest in layers_of(value)]
                made[tuple(layers_of(value))] = [await files.write(_writer(layers, sizes), "base")]
        state["parts"] = {name: made.get(tuple(layers_of(v)), v) for name, v in head.state["parts"].items()}
        serving = head.state["serving"]
        state["serving"] = serving | {
            name: made[tuple(serving[name])] for name in ("part", "toward") if serving[name] is not None
        }
        state["serving_statistics"] = made[tuple(head.state["serving_statistics"])]
        state["snapshot"] = [await write_base(context, files, state)]
        grown = replace(head, state=state, serving_digest=state["snapshot"][-1])
        async with database.unit_of_work() as work:
            await work.connection.execute(
                text("UPDATE model_versions SET state = CAST(:state AS jsonb), serving_digest = :digest WHERE version = :v"),
                {"state": _json(state), "digest": grown.serving_digest, "v": head.version},
            )
            await work.commit()
    finally:
        await redis.aclose()
        await database.close()


def _json(state: dict[str, Any]) -> str:
    import json

    return json.dumps(state)


def _writer(layers: list[Any], sizes: dict[str, int]) -> Any:
    merged, rng = merger(layers), np.random.default_rng(0)
    header = dict(merged.header)
    import json

    asmg = json.loads(header["asmg"])
    known = asmg["meta"]["sizes"]
    grown = {name: max(size, sizes.get(name, size)) for name, size in known.items()}
    asmg["meta"]["sizes"] = grown
    header["asmg"] = json.dumps(asmg, sort_keys=True)
    statistics = asmg["kind"] == "statistics"
    step = int(asmg["meta"].get("step", 0))
    more_items = grown.get("item", 0) - known.get("item", 0)

    def table_of(name: str) -> str | None:
        if statistics:
            return "item" if name in ("counts", "counted", "degrees", "paired") else None
        last = name.rpartition(".")[2]
        return last if name in (last, f"first.{last}", f"second.{last}", f"moved.{last}") and last in known else None

    def blocks(name: str, tensor: MergedTensor, more: int) -> Iterator[NDArray[Any]]:
        yield from tensor.blocks()
        for start in range(0, more, BLOCK_ROWS):
            shape = (min(BLOCK_ROWS, more - start), *tensor.shape[1:])
            if name.startswith("moved."):
                yield np.full(shape, step, tensor.dtype)
            elif name in ("counted", "paired"):
                yield np.ones(shape, tensor.dtype)
            elif name.startswith("first."):
                yield np.zeros(shape, tensor.dtype)
            elif name.startswith("second.") or name in ("counts", "degrees"):
                yield rng.random(shape, np.float32) * (1e-4 if name.startswith("second.") else 20)
            else:
                yield rng.standard_normal(shape, np.float32) * 0.05

    def pairs(name: str, tensor: MergedTensor) -> Iterator[NDArray[Any]]:
        yield from tensor.blocks()
        for start in range(0, more_items, BLOCK_ROWS):
            count = min(BLOCK_ROWS, more_items - start)
            if name == "neighbours":
                near = np.sort(rng.integers(1, grown["item"], (count, NEIGHBOURS)), 1)
                yield near.astype(np.int32).ravel()
            else:
                yield rng.random(count * NEIGHBOURS, np.float32) * 5

    tensors: dict[str, Blocks] = {}
    for name, tensor in merged.tensors.items():
        table = table_of(name)
        if statistics and name in ("neighbours", "together", "passed"):
            count = tensor.shape[0] + more_items * NEIGHBOURS
            tensors[name] = Blocks(tensor.dtype, (count,), pairs(name, tensor))
        elif statistics and name == "starts":
            (starts,) = tensor.blocks()
            more = starts[-1] + NEIGHBOURS * np.arange(1, more_items + 1)
            tensors[name] = Blocks(tensor.dtype, (len(starts) + more_items,), [starts, more])
        elif table is not None:
            more_rows = grown[table] - known[table] if tensor.shape[0] == known[table] else 0
            tensors[name] = Blocks(
                tensor.dtype, (tensor.shape[0] + more_rows, *tensor.shape[1:]), blocks(name, tensor, more_rows)
            )
        else:
            tensors[name] = Blocks(tensor.dtype, tensor.shape, tensor.blocks())

    def write(file: DigestedFile) -> None:
        write_tensors(file, header, tensors)

    return write
