"""Closes a period of a running service and tells what that took; the benchmarks of periods share it."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import httpx
import psutil

from benchmarks.servers import Server
from benchmarks.services import OwnStores, processes_of, served_version

__all__ = ["MEGABYTE", "WorkerMemory", "close_period", "log_interactions", "stored_bytes"]

MEGABYTE = 1_000_000
SAMPLE_SECONDS = 0.02
EVENTS_OF_A_CALL = 500
PERIOD_SECONDS = 600.0
"""How long a period may take."""


def log_interactions(server: Server, key: str, events: Sequence[dict[str, Any]]) -> None:
    """Send interactions to the service."""
    with _client(server, key) as client:
        for start in range(0, len(events), EVENTS_OF_A_CALL):
            body = {"interactions": events[start : start + EVENTS_OF_A_CALL]}
            client.post("/interactions", json=body).raise_for_status()


def close_period(server: Server, stores: OwnStores, version: int) -> float:
    """Close the open period, and wait until its version is served; returns the seconds that took."""
    started = time.perf_counter()
    with _client(server, stores.key) as client:
        client.post("/periods/close", json={}).raise_for_status()
    while time.perf_counter() - started < PERIOD_SECONDS:
        with suppress(OSError):
            served = served_version(server.target.port)
            if served is not None and served >= version:
                return time.perf_counter() - started
        time.sleep(SAMPLE_SECONDS)
    raise TimeoutError(f"expected version {version} to be served within {PERIOD_SECONDS:.0f} s")


def _client(server: Server, key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=30, trust_env=False)


class Stored(NamedTuple):
    """What Postgres has written."""

    wal: int
    """Bytes of WAL written so far."""
    artifacts: dict[str, tuple[str, int]]
    """Digest → kind, and bytes that the artifact takes."""

    @property
    def artifact_bytes(self) -> int:
        """Bytes of all artifacts."""
        return sum(size for _, size in self.artifacts.values())


async def stored_bytes(dsn: str) -> Stored:
    """What Postgres has written so far."""
    connection = await asyncpg.connect(dsn)
    try:
        wal = await connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        artifacts = await connection.fetch("""
            SELECT digest, kind, coalesce(sum(length(data)), 0) AS size
            FROM artifacts LEFT JOIN artifact_chunks USING (digest) GROUP BY digest, kind
        """)
        return Stored(int(wal), {row["digest"]: (row["kind"], int(row["size"])) for row in artifacts})
    finally:
        await connection.close()


class WorkerMemory:
    """The most memory of its own that the worker has while the block runs: mapped files do not count."""

    def __init__(self, server: Server) -> None:
        self._server, self._ended = server, threading.Event()
        self.most = 0
        """Bytes."""
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "WorkerMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        workers = processes_of(self._server, "worker")
        while not self._ended.wait(SAMPLE_SECONDS):
            for process in workers:
                with suppress(psutil.NoSuchProcess, FileNotFoundError):
                    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                        if line.startswith("RssAnon:"):
                            self.most = max(self.most, int(line.split()[1]) * 1024)
