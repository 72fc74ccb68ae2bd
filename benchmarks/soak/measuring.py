"""What a running service takes up: of the disk, of the memory, of Redis."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import psutil
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.own_service import OwnService, role_of, server_processes
from benchmarks.serving.servers import cpu_seconds
from service.storage.redis.connection import connect

__all__ = ["CLOCKS", "Gauge"]

KB = 1e3
MB = 1e6
BLOCK_BYTES = 512
WAL = "pg_wal"
RECORDS = ("periods", "period_stages", "model_versions", "evaluations", "audit")
"""Tables that keep for ever what happened in each period."""

CLOCKS = {"autovacuum_naptime": "5s", "checkpoint_timeout": "30s"}
"""How often Postgres tidies up while periods take seconds and not an hour; by itself, each minute and every five."""


class Gauge:
    """Reads the figures of a service; the close time alone is not among them.

    Args:
        service: that runs.
    """

    def __init__(self, service: OwnService) -> None:
        assert service.settings.redis_url is not None
        self._service = service
        self._data_dir = service.settings.data_dir.resolve()
        self._postgres = create_async_engine(service.dsn, isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=0)
        self._redis = connect(service.settings.redis_url)
        self._postmaster = server_processes(self._data_dir / "postgres")[0]
        self._cpu = 0.0

    async def __aenter__(self) -> "Gauge":
        for name, value in CLOCKS.items():
            await self._ask(f"ALTER SYSTEM SET {name} = '{value}'")
        await self._ask("SELECT pg_reload_conf()")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._redis.aclose()
        await self._postgres.dispose()

    async def read(self) -> dict[str, float]:
        """Figures by name; CPU seconds since the last time."""
        database = await self._ask("SELECT pg_database_size(current_database())")
        records = await self._ask(
            f"SELECT sum(pg_total_relation_size(name)) FROM unnest('{{{','.join(RECORDS)}}}'::regclass[]) AS name"
        )
        redis = (await self._redis.info("memory"))["used_memory"]
        keys = await self._redis.dbsize()
        connections = await self._ask("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
        here = await asyncio.to_thread(self._of_this_host)
        return {
            "database_mb": (database - int(records)) / MB,
            "records_kb": int(records) / KB,
            "connections": connections - 1,  # but for this one
            **here,
            "redis_mb": redis / MB,
            "redis_keys": keys,
        }

    async def most_wal_mb(self) -> float:
        """How much WAL the server keeps at most."""
        return float(await self._ask("SELECT pg_size_bytes(current_setting('max_wal_size'))")) / MB

    async def _ask(self, statement: str) -> Any:
        async with self._postgres.connect() as connection:
            result = await connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None

    def _of_this_host(self) -> dict[str, float]:
        service = self._service.server.processes()
        memory = {
            "api_mb": [process for process in service if role_of(process) == "api"],
            "worker_mb": [process for process in service if role_of(process) == "worker"],
        }
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
    """Memory that would be free if they ended: neither pages of shared files nor Postgres's shared buffers, which fill
    up to their size whatever happens.
    """
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().uss
    return total
