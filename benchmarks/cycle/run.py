"""Measures periods of some events on installations with tables of several sizes, and a first period of many new ids."""

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import asyncpg
import numpy as np

from benchmarks.cycle.first import first_learning
from benchmarks.cycle.growing import grow
from benchmarks.cycle.periods import MEGABYTE, WorkerMemory, close_period, log_interactions, stored_bytes
from benchmarks.servers import Server
from benchmarks.services import OwnStores, own_service, own_stores


@dataclass(frozen=True)
class CycleOptions:
    """What is measured."""

    ids: Sequence[int]
    """Numbers of ids, half of them users."""
    events: int = 1000
    """Interactions of a period."""
    periods: int = 4
    """Periods that are run for each number; the first is not counted."""
    first_learning: Sequence[int] = ()
    """Numbers of new ids, each for the first period of a new installation; where given, nothing else is measured."""
    seed: int = 0
    report: Path | None = None


def run_cycle(options: CycleOptions) -> int:
    """Measure, print and report."""
    report: dict[str, Any] = {"cells": []} if options.first_learning else {"events": options.events, "cells": []}
    for ids in options.first_learning or options.ids:
        cell = first_learning(ids, options.seed) if options.first_learning else _cell(ids, options)
        report["cells"].append(cell)
        print(json.dumps(cell), flush=True)
    if options.report is not None:
        options.report.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _cell(ids: int, options: CycleOptions) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="asmg-cycle-") as folder, own_stores(Path(folder)) as stores:
        traffic = _Traffic(stores.key, options.events, options.seed)
        users = items = options.events
        with own_service(stores, api_workers=1, worker=True) as server:
            traffic.send(server, users, items)
            close_period(server, stores, 1)
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
        log_interactions(server, self._key, events)


def _name(prefix: str, number: int, first: int) -> str:
    """An id: of the first period, or one that `grow` has added."""
    return f"{prefix}{number}" if number <= first else f"{prefix}_{number}"


def _period(
    server: Server, stores: OwnStores, traffic: _Traffic, version: int, users: int, items: int
) -> dict[str, float]:
    before = asyncio.run(stored_bytes(stores.driver_dsn))
    traffic.send(server, users, items)
    with WorkerMemory(server) as memory:
        seconds = close_period(server, stores, version)
    time.sleep(1.0)  # what the worker clears up after an update belongs to it
    after = asyncio.run(stored_bytes(stores.driver_dsn))
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
