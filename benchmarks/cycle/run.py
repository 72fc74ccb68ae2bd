"""Measures periods of some events on installations with tables of several sizes."""

import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import asyncpg
import httpx
import numpy as np
import psutil

from benchmarks.cycle.growing import grow
from benchmarks.servers import Server
from benchmarks.services import OwnStores, own_service, own_stores, served_version

MEGABYTE = 1_000_000
SAMPLE_SECONDS = 0.02
PERIOD_SECONDS = 600.0
"""How long a period may take."""


@dataclass(frozen=True)
class CycleOptions:
    """What is measured."""

    ids: Sequence[int]
    """Numbers of ids, half of them users."""
    events: int = 1000
    """Interactions of a period."""
    periods: int = 4
    """Periods that are run for each number; the first is not counted."""
    seed: int = 0
    report: Path | None = None


def run_cycle(options: CycleOptions) -> int:
    """Measure, print and report."""
    cells = []
    for ids in options.ids:
        with tempfile.TemporaryDirectory(prefix="asmg-cycle-") as folder, own_stores(Path(folder)) as stores:
            cells.append(_cell(stores, ids, options))
        print(json.dumps(cells[-1]), flush=True)
    if options.report is not None:
        options.report.write_text(json.dumps({"events": options.events, "cells": cells}, indent=1) + "\n")
    return 0


def _cell(stores: OwnStores, ids: int, options: CycleOptions) -> dict[str, Any]:
    traffic = _Traffic(stores.key, options.events, options.seed)
    users = items = options.events
    with own_service(stores, api_workers=1, worker=True) as server:
        traffic.send(server, users, items)
        _close(server, stores, 1)
    if ids > 2 * options.events:
        users, items = ids // 2, ids - ids // 2
        grow(stores.settings, users, items)
        asyncio.run(_tidy(stores.driver_dsn))
    measured = []
    with own_service(stores, api_workers=1, worker=True, version=1) as server:
        for number in range(2, options.periods + 2):
            measured.append(_period(server, stores, traffic, number, users, items))
    counted = measured[1:]
    medians = {name: median(m[name] for m in counted) for name in measured[0]}
    # Merges are rare and large: their median would be zero.
    medians["compaction_mb"] = mean(m["compaction_mb"] for m in counted)
    return {"ids": ids, "periods": len(counted)} | {name: round(value, 3) for name, value in medians.items()}


class _Traffic:
    """Interactions of users with items: users uniformly, items with a long tail."""

    def __init__(self, key: str, events: int, seed: int) -> None:
        self._key, self._events, self._rng, self._sent = key, events, np.random.default_rng(seed), 0

    def send(self, server: Server, users: int, items: int) -> None:
        """Log a period's interactions."""
        now = int(time.time() * 1000)
        user = self._rng.integers(1, users + 1, self._events)
        item = np.minimum(np.exp(self._rng.random(self._events) * np.log(items)).astype(np.int64), items)
        label = self._rng.random(self._events) < 0.2
        events = [
            {
                "event_id": f"e{self._sent + n}",
                "user_id": _name("u", user[n], self._events),
                "item_id": _name("i", item[n], self._events),
                "label": int(label[n]),
                "timestamp": now + n,
            }
            for n in range(self._events)
        ]
        self._sent += self._events
        for start in range(0, len(events), 500):
            body = {"interactions": events[start : start + 500]}
            _post(server, self._key, "/interactions", body)


def _name(prefix: str, number: int, first: int) -> str:
    """An id: of the first period, or one that `grow` has added."""
    return f"{prefix}{number}" if number <= first else f"{prefix}_{number}"


def _post(server: Server, key: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = httpx.post(
        f"{server.url}{path}",
        json=body,
        headers={"Authorization": f"Bearer {key}"},
        timeout=30,
        trust_env=False,
    )
    response.raise_for_status()
    return dict(response.json())


def _close(server: Server, stores: OwnStores, version: int) -> float:
    """Close the open period, and wait until its version is served; returns the seconds that took."""
    started = time.perf_counter()
    _post(server, stores.key, "/periods/close", {})
    while time.perf_counter() - started < PERIOD_SECONDS:
        with suppress(OSError):
            served = served_version(server.target.port)
            if served is not None and served >= version:
                return time.perf_counter() - started
        time.sleep(SAMPLE_SECONDS)
    raise TimeoutError(f"expected version {version} to be served within {PERIOD_SECONDS:.0f} s")


def _period(
    server: Server, stores: OwnStores, traffic: _Traffic, version: int, users: int, items: int
) -> dict[str, float]:
    before = asyncio.run(_stored(stores.driver_dsn))
    traffic.send(server, users, items)
    with _Memory(server) as memory:
        seconds = _close(server, stores, version)
    time.sleep(1.0)  # what the worker clears up after an update belongs to it
    after = asyncio.run(_stored(stores.driver_dsn))
    new = [artifact for digest, artifact in after.artifacts.items() if digest not in before.artifacts]
    merged = [size for kind, size in new if kind == "layers"]
    # A version adds one file to the snapshot; a second one is all of it anew.
    merged += sorted(size for kind, size in new if kind == "serving")[1:]
    return {
        "seconds": seconds,
        "wal_mb": (after.wal - before.wal) / MEGABYTE,
        "stored_mb": (sum(size for _, size in new) - sum(merged)) / MEGABYTE,
        "compaction_mb": sum(merged) / MEGABYTE,
        "worker_mb": memory.most / MEGABYTE,
    }


async def _tidy(dsn: str) -> None:
    """Do what Postgres would do in the background after so many new rows, so that no period is charged with it."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("VACUUM (FREEZE, ANALYZE)")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


class _Stored(NamedTuple):
    """What Postgres has written."""

    wal: int
    """Bytes of WAL written so far."""
    artifacts: dict[str, tuple[str, int]]
    """Digest → kind, and bytes that the artifact takes."""


async def _stored(dsn: str) -> _Stored:
    connection = await asyncpg.connect(dsn)
    try:
        wal = await connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        artifacts = await connection.fetch("""
            SELECT digest, kind, coalesce(sum(length(data)), 0) AS size
            FROM artifacts LEFT JOIN artifact_chunks USING (digest) GROUP BY digest, kind
        """)
        return _Stored(int(wal), {row["digest"]: (row["kind"], int(row["size"])) for row in artifacts})
    finally:
        await connection.close()


class _Memory:
    """The most memory of its own that the worker has while the block runs: mapped files do not count."""

    def __init__(self, server: Server) -> None:
        self._server, self._ended = server, threading.Event()
        self.most = 0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        workers = [process for process in self._server.processes() if "worker" in " ".join(process.cmdline())]
        while not self._ended.wait(SAMPLE_SECONDS):
            for process in workers:
                with suppress(psutil.NoSuchProcess, FileNotFoundError):
                    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                        if line.startswith("RssAnon:"):
                            self.most = max(self.most, int(line.split()[1]) * 1024)
