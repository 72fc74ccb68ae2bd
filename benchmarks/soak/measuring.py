"""What a running service takes up: of the disk, of the memory, of Redis."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import psutil
from sqlalchemy import text

from benchmarks.own_service import OwnService, role_of, server_processes
from service.storage.database import Database
from service.storage.redis_state import connect

__all__ = ["Gauge"]

MB = 1e6
BLOCK_BYTES = 512
WAL = "pg_wal"


class Gauge:
    """Reads the figures of a service; the close time alone is not among them.

    Args:
        service: that runs.
    """

    def __init__(self, service: OwnService) -> None:
        assert service.settings.redis_url is not None
        self._service = service
        self._data_dir = service.settings.data_dir.resolve()
        self._database = Database(service.dsn, pool_size=1)
        self._redis = connect(service.settings.redis_url)

    async def __aenter__(self) -> "Gauge":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._redis.aclose()
        await self._database.close()

    async def read(self) -> dict[str, float]:
        """Figures by name."""
        async with self._database.read() as session:
            size = await session.connection.scalar(text("SELECT pg_database_size(current_database())"))
        used = (await self._redis.info("memory"))["used_memory"]
        keys = await self._redis.dbsize()
        here = await asyncio.to_thread(self._of_this_host)
        return {"database_mb": size / MB, **here, "redis_mb": used / MB, "redis_keys": keys}

    def _of_this_host(self) -> dict[str, float]:
        service = self._service.server.processes()
        memory = {
            "api_mb": [process for process in service if role_of(process) == "api"],
            "worker_mb": [process for process in service if role_of(process) == "worker"],
            "postgres_mb": server_processes(self._data_dir / "postgres"),
        }
        files, wal = 0, 0
        for path in self._data_dir.rglob("*"):
            with suppress(FileNotFoundError):
                size = path.lstat().st_blocks * BLOCK_BYTES
                wal, files = (wal + size, files) if WAL in path.parts else (wal, files + size)
        return {
            "files_mb": files / MB,
            "wal_mb": wal / MB,
            **{name: _unique_bytes(processes) / MB for name, processes in memory.items()},
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
