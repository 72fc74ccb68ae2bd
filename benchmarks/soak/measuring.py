"""Measures how much disk, memory and Redis a running service uses."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import asyncpg
import psutil

from benchmarks.machine import MB, cpu_seconds
from benchmarks.servers import Server
from benchmarks.services import OwnStores, processes_of, server_processes
from service.storage.redis.connection import connect

KB = 1e3
BLOCK_BYTES = 512
"""Unit of `st_blocks`."""
WAL = "pg_wal"
"""Folder of the write-ahead log."""
RECORDS = ("periods", "period_stages", "model_versions", "evaluations", "period_samples", "audit")
"""Tables that keep some rows of each period for ever."""

FIGURES = f"""
    SELECT pg_database_size(current_database()),
        (SELECT sum(pg_total_relation_size(name))::bigint FROM unnest('{{{",".join(RECORDS)}}}'::regclass[]) AS name),
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
"""

CLOCKS = {"autovacuum_naptime": "5s", "checkpoint_timeout": "30s"}
"""How often Postgres tidies up while a period takes seconds instead of an hour. Its defaults are 1 and 5 minutes."""


class Gauge:
    """Reads all figures of a running service but the close time.

    Args:
        stores: Postgres and Redis of the service.
        server: its processes.
    """

    def __init__(self, stores: OwnStores, server: Server) -> None:
        self._stores, self._server = stores, server
        self._data_dir = stores.settings.data_dir.resolve()
        self._redis = connect(stores.redis_url)
        self._postmaster = server_processes(self._data_dir / "postgres")[0]
        self._cpu = 0.0

    async def __aenter__(self) -> "Gauge":
        self._postgres = await asyncpg.connect(self._stores.driver_dsn)
        for name, value in CLOCKS.items():
            await self._postgres.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        await self._postgres.execute("SELECT pg_reload_conf()")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._redis.aclose()
        await self._postgres.close()

    async def read(self) -> dict[str, float]:
        """The figures by name; CPU seconds are those since the last call."""
        database, records, connections = await self._postgres.fetchrow(FIGURES)
        return {
            "database_mb": (database - records) / MB,
            "records_kb": records / KB,
            "connections": connections - 1,  # without this one
            **await asyncio.to_thread(self._of_this_host),
            "redis_mb": (await self._redis.info("memory"))["used_memory"] / MB,
            "redis_keys": await self._redis.dbsize(),
        }

    async def most_wal_mb(self) -> float:
        """How much write-ahead log the server keeps at most."""
        return float(await self._postgres.fetchval("SELECT pg_size_bytes(current_setting('max_wal_size'))")) / MB

    def _of_this_host(self) -> dict[str, float]:
        memory = {f"{role}_mb": processes_of(self._server, role) for role in ("api", "worker")}
        postgres = [self._postmaster, *self._postmaster.children(recursive=True)]
        before, self._cpu = self._cpu, cpu_seconds(memory["worker_mb"])
        files, wal = 0, 0
        for path in self._data_dir.rglob("*"):
            with suppress(FileNotFoundError):
                size = path.lstat().st_blocks * BLOCK_BYTES
                wal, files = (wal + size, files) if WAL in path.parts else (wal, files + size)
        return {
            "files_mb": files / MB,
            "wal_mb": wal / MB,
            "cpu_seconds": self._cpu - before,
            **{name: _unique_bytes(processes) / MB for name, processes in memory.items()},
            "postgres_mb": _unique_bytes(postgres) / MB / len(postgres),
        }


def _unique_bytes(processes: Iterable[psutil.Process]) -> int:
    """Memory that would be free if the processes ended: without pages of shared files, and without the shared buffers
    of Postgres, which fill up to their size in any case.
    """
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().uss
    return total
