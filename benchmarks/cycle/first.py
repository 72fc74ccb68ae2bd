"""Measures a first period that names many new ids, which all are learned at once."""

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import psutil

from benchmarks.cycle.periods import MEGABYTE, WorkerMemory, close_period, log_interactions, stored_bytes
from benchmarks.servers import Server
from benchmarks.services import OwnStores, own_service, own_stores, processes_of

__all__ = ["first_learning"]

SAMPLE_SECONDS = 0.05
CLEARING_UP_SECONDS = 120
"""Longest wait for what the worker does after an update."""

BEFORE, AFTER = "before", "after"
"""What is done before the first stage, such as merging event ids, and after the last, such as the swap."""

NOW = """
    SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS wal,
           (SELECT stage FROM period_stages WHERE period = 1 ORDER BY started_at DESC LIMIT 1) AS stage,
           (SELECT finished_at IS NOT NULL FROM periods WHERE number = 1) AS finished
"""

SECONDS = "SELECT stage, seconds FROM period_stages WHERE period = 1"
MERGED = "SELECT ids_merged_at < now() - interval '1 second' FROM periods WHERE number = 1"
UPDATED = "SELECT extract(epoch FROM finished_at - sealed_at) FROM periods WHERE number = 1"


def first_learning(ids: int, seed: int) -> dict[str, Any]:
    """Let a new installation learn `ids` ids in one period, half of them users; return what that took.

    Each id is in one interaction, so there are half as many interactions.
    """
    with (
        tempfile.TemporaryDirectory(prefix="asmg-cycle-") as folder,
        own_stores(Path(folder)) as stores,
        own_service(stores, api_workers=1, worker=True) as server,
    ):
        log_interactions(server, stores.key, _interactions(ids, seed))
        before, cpu = asyncio.run(stored_bytes(stores.driver_dsn)), _cpu_seconds(server, stores)
        with WorkerMemory(server) as memory, _wal_by_stage(stores.driver_dsn) as wal:
            seconds = close_period(server, stores, 1)
            asyncio.run(_cleared_up(stores.driver_dsn))
        cpu = _cpu_seconds(server, stores) - cpu
        after = asyncio.run(stored_bytes(stores.driver_dsn))
        updated, stages = asyncio.run(_times(stores.driver_dsn))
    return {
        "new_ids": ids,
        "seconds": round(seconds, 3),
        "updated_seconds": updated,
        "cpu_seconds": round(cpu, 3),
        "wal_mb": round((after.wal - before.wal) / MEGABYTE, 3),
        "stored_mb": round((after.artifact_bytes - before.artifact_bytes) / MEGABYTE, 3),
        "worker_mb": round(memory.most / MEGABYTE, 3),
        "stages": {
            name: {"seconds": stages.get(name), "wal_mb": round(wal.get(name, 0) / MEGABYTE, 3)}
            for name in (BEFORE, *stages, AFTER)
        },
    }


def _cpu_seconds(server: Server, stores: OwnStores) -> float:
    """What the worker, Postgres and Redis have used of the processors so far; a busy host changes it less than time."""
    used = 0.0
    for process in [*processes_of(server, "worker"), *stores.processes()]:
        with suppress(psutil.NoSuchProcess):
            used += sum(process.cpu_times()[:4])  # with those of processes that have ended, which it had started
    return used


def _interactions(ids: int, seed: int) -> list[dict[str, Any]]:
    """Each id in one interaction."""
    began, clicked = int(time.time() * 1000) - ids // 2, np.random.default_rng(seed).random(ids // 2) < 0.2
    return [
        {"event_id": f"e{n}", "user_id": f"u{n}", "item_id": f"i{n}", "label": int(label), "timestamp": began + n}
        for n, label in enumerate(clicked)
    ]


async def _cleared_up(dsn: str) -> None:
    """Wait until the worker has noted the event ids and has cleared up, which belongs to the update."""
    connection = await asyncpg.connect(dsn)
    try:
        for _ in range(CLEARING_UP_SECONDS):
            await asyncio.sleep(1.0)
            if await connection.fetchval(MERGED):
                break
    finally:
        await connection.close()


async def _times(dsn: str) -> tuple[float, dict[str, float]]:
    """Seconds from sealed to updated, and those of each stage."""
    connection = await asyncpg.connect(dsn)
    try:
        updated = round(float(await connection.fetchval(UPDATED)), 3)
        return updated, {row["stage"]: round(row["seconds"], 3) for row in await connection.fetch(SECONDS)}
    finally:
        await connection.close()


@contextmanager
def _wal_by_stage(dsn: str) -> Iterator[dict[str, int]]:
    """Bytes of WAL that are written while each stage of the first period runs; complete when the block has ended."""
    written: dict[str, int] = {}
    ended = threading.Event()

    async def watch() -> None:
        connection = await asyncpg.connect(dsn)
        known, stage = int((await connection.fetchrow(NOW))["wal"]), BEFORE
        while not ended.is_set():
            now = await connection.fetchrow(NOW)
            written[stage] = written.get(stage, 0) + int(now["wal"]) - known
            known, stage = int(now["wal"]), AFTER if now["finished"] else now["stage"] or BEFORE
            await asyncio.sleep(SAMPLE_SECONDS)
        await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(watch()))
    thread.start()
    try:
        yield written
    finally:
        ended.set()
        thread.join()
