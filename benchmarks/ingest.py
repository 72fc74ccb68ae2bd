"""`asmg bench ingest`: what `POST /interactions` costs beside a bare COPY of the same rows, in one run.

The bare COPY is a binary COPY of the rows of a batch, one transaction each, from as many connections, into a table of
the same columns without any index or constraint, in the same Postgres: no HTTP, no JSON, no check for duplicates.
Rates are events a second, duplicates included on both sides. Event ids ascend, as those do that begin with a time
(UUIDv7).

Postgres is prepared to behave as between two checkpoints of a long run. It has files of its write-ahead log to use
again (otherwise it makes and clears a file every 16 MB, and everything waits meanwhile), and no checkpoint falls into a
measurement (after one, each page that is changed is logged as a whole once).
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import numpy as np
import orjson

from benchmarks.http_load.load import Load, post
from benchmarks.machine import cpu_seconds, machine_facts
from benchmarks.options import at_least, distinct
from benchmarks.printing import print_line, print_table, progress
from benchmarks.reports import check_writable, write_report
from benchmarks.servers import Server
from benchmarks.services import OwnStores, own_service, own_stores
from service.limits import MAX_INTERACTIONS
from service.storage.postgres.database import Database

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
USERS, ITEMS = 50_000, 5_000
CLICK_RATE = 0.1
SECONDS = 30.0
"""Longest duration of one measurement."""

WAL_BYTES = 400
"""Size of the write-ahead log of an event that is stored by both sides."""
WAL_FILE_BYTES = 16 * 1024 * 1024
"""Size of a file of it, by Postgres's default."""
MOST_WAL_FILES = 128
"""Most files that are made beforehand: 2 GB."""
NO_CHECKPOINT = {"checkpoint_timeout": "1h", "max_wal_size": "16GB"}

BARE = """
    CREATE TABLE bare (
        event_id text, period integer, user_id text, item_id text, label smallint, occurred_at timestamptz,
        request_id text, received_at timestamptz DEFAULT now()
    )
"""
COLUMNS = ("event_id", "period", "user_id", "item_id", "label", "occurred_at", "request_id")

Row = tuple[str, int, str, str, int, datetime, str | None]


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """What to measure; the help texts of `asmg bench ingest` say what each option means."""

    batches: tuple[int, ...] = (1, 100, 1000)
    concurrency: tuple[int, ...] = (1, 16)
    duplicates: tuple[int, ...] = (0, 50)
    events: int = 60_000
    rounds: int = 5
    workers: int = 1
    seed: int = 0
    report: Path | None = None

    def __post_init__(self) -> None:
        distinct(batches=self.batches, concurrency=self.concurrency)
        distinct(0, duplicates=self.duplicates)
        if max(self.batches) > MAX_INTERACTIONS:
            raise ValueError(f"batches: expected at most {MAX_INTERACTIONS}; received {max(self.batches)}")
        if max(self.duplicates) > 90:
            raise ValueError(f"duplicates: expected percentages from 0 to 90; received {max(self.duplicates)}")
        at_least(1, events=self.events, rounds=self.rounds, workers=self.workers)


@dataclass(frozen=True)
class Cell:
    """One combination that is measured."""

    batch: int
    """Events of a call."""
    concurrency: int
    """Connections, with one call in flight on each."""
    duplicates: int
    """Percentage of the events that were sent before."""


@dataclass
class Found:
    """The figures of a cell, a number for each round."""

    ours: list[float] = field(default_factory=list)
    """Events a second that the service stores."""
    bare: list[float] = field(default_factory=list)
    """Events a second of the bare COPY."""
    p99_ms: list[float] = field(default_factory=list)
    """99th percentile of the latency of a call."""
    api_cpu_us: list[float] = field(default_factory=list)
    """CPU time of the api processes for an event."""

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios; both sides of a round are measured one after the other."""
        return median(ours / bare for ours, bare in zip(self.ours, self.bare, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Medians and all rounds, as plain JSON values."""
        return {
            "events_per_second": median(self.ours),
            "bare_copy_events_per_second": median(self.bare),
            "ratio": self.ratio,
            "p99_ms": median(self.p99_ms),
            "api_cpu_us_per_event": median(self.api_cpu_us),
            "rounds": {"events_per_second": self.ours, "bare_copy_events_per_second": self.bare},
        }


class WrongAnswer(RuntimeError):
    """The service did not store what it was sent."""


def run_ingest(options: IngestOptions) -> int:
    """Measure, print, write; the exit code."""
    check_writable(options.report)
    cells = [Cell(*c) for c in product(options.batches, options.concurrency, options.duplicates)]
    found = {cell: Found() for cell in cells}
    with (
        tempfile.TemporaryDirectory(prefix="asmg-bench-", ignore_cleanup_errors=True) as folder,
        own_stores(Path(folder)) as stores,
    ):
        asyncio.run(_prepare(stores.driver_dsn, len(cells) * options.rounds * options.events))
        with own_service(stores, api_workers=options.workers) as server:
            for number in range(options.rounds):
                for cell_number, cell in enumerate(cells):
                    progress(f"round {number + 1} of {options.rounds}: {cell}")
                    _measure(cell, found[cell], server, stores, f"{number:03}-{cell_number:03}", options)
    _print(found, options)
    document = {
        "machine": machine_facts(),
        "events": options.events,
        "rounds": options.rounds,
        "workers": options.workers,
        "cells": [{**asdict(cell), **result.to_json()} for cell, result in found.items()],
    }
    write_report(options.report, document)
    return 0


def make_batches(cell: Cell, prefix: str, events: int, seed: int) -> list[list[Row]]:
    """Calls of equal size. From the second on, a share of each was in an earlier call, as with clients that retry."""
    rng = np.random.default_rng(seed)
    calls = max(2, min(1000, events // cell.batch))
    again = round(cell.batch * cell.duplicates / 100)
    if cell.batch == 1 and cell.duplicates:
        return _single_events(cell, prefix, calls, rng)
    batches: list[list[Row]] = []
    for call in range(calls):
        old = again if batches else 0
        rows = _rows(prefix, call * cell.batch, cell.batch - old, rng)
        if old:
            earlier = batches[int(rng.integers(len(batches)))]
            rows += [earlier[i] for i in rng.choice(cell.batch, old, replace=False)]
        batches.append(rows)
    return batches


def _single_events(cell: Cell, prefix: str, calls: int, rng: np.random.Generator) -> list[list[Row]]:
    batches = [_rows(prefix, call, 1, rng) for call in range(calls)]
    for call in range(1, calls):
        if rng.random() < cell.duplicates / 100:
            batches[call] = batches[int(rng.integers(call))]
    return batches


def _rows(prefix: str, start: int, count: int, rng: np.random.Generator) -> list[Row]:
    users, items = rng.integers(USERS, size=count).tolist(), rng.integers(ITEMS, size=count).tolist()
    clicks = (rng.random(count) < CLICK_RATE).tolist()
    return [
        (f"{prefix}-{start + n:09}", 1, f"user-{user}", f"item-{item}", int(click), _moment(start + n), None)
        for n, (user, item, click) in enumerate(zip(users, items, clicks, strict=True))
    ]


def _moment(number: int) -> datetime:
    return NOON + timedelta(milliseconds=number)


def encode_call(rows: Sequence[Row], key: str) -> bytes:
    """The request that sends these rows."""
    events = [
        {"event_id": event_id, "user_id": user, "item_id": item, "label": label, "timestamp": moment}
        for event_id, _, user, item, label, moment, _ in rows
    ]
    return post("/interactions", orjson.dumps({"interactions": events}), key)


def _measure(
    cell: Cell, found: Found, server: Server, stores: OwnStores, prefix: str, options: IngestOptions
) -> None:  # fmt: skip
    """Copy the rows of a cell, send them to the service, and add the figures of both to `found`."""
    batches = make_batches(cell, prefix, options.events, options.seed)
    count = sum(map(len, batches))
    found.bare.append(count / asyncio.run(_copy(stores.driver_dsn, batches, cell.concurrency)))
    requests = [encode_call(rows, stores.key) for rows in batches]
    used = cpu_seconds(server.processes())
    load = Load(requests=requests, connections=cell.concurrency, count=len(requests), seconds=SECONDS, keep_bodies=True)
    answers = server.ask(load)
    used = cpu_seconds(server.processes()) - used
    if answers.failed or len(answers.bodies) < len(requests):
        raise WrongAnswer(f"{cell}: expected {len(requests)} answers; received {len(answers.bodies)}, {answers.faults}")
    distinct_events = len({row[0] for rows in batches for row in rows})
    accepted = sum(orjson.loads(body)["accepted"] for body in answers.bodies)

    async def stored(database: Database) -> int:
        async with database.read() as session:
            return await session.interactions.count(1, id_prefix=f"{prefix}-")

    if not accepted == (kept := stores.run(stored)) == distinct_events:
        raise WrongAnswer(f"{cell}: expected {distinct_events} events; {accepted} were accepted, {kept} are stored")
    found.ours.append(count / answers.seconds)
    found.p99_ms.append(float(np.percentile(answers.latencies, 99)) * 1000)
    found.api_cpu_us.append(used / count * 1e6)


async def _copy(dsn: str, batches: Sequence[Sequence[Row]], connections: int) -> float:
    """Seconds that it takes to copy all batches, one transaction each."""
    opened = [await asyncpg.connect(dsn) for _ in range(connections)]
    waiting = iter(batches)

    async def work(connection: "asyncpg.Connection") -> None:
        for rows in waiting:
            await connection.copy_records_to_table("bare", records=rows, columns=COLUMNS)

    try:
        started = time.perf_counter()
        await asyncio.gather(*(work(connection) for connection in opened))
        return time.perf_counter() - started
    finally:
        for connection in opened:
            await connection.close()


async def _prepare(dsn: str, events: int) -> None:
    """Create the table of the bare COPY, and bring Postgres into the state of a long run."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(BARE)
    for name, value in NO_CHECKPOINT.items():
        await connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
    await connection.execute("SELECT pg_reload_conf()")
    for _ in range(min(MOST_WAL_FILES, events * WAL_BYTES // WAL_FILE_BYTES)):
        await connection.execute("SELECT pg_logical_emit_message(false, 'asmg', ''); SELECT pg_switch_wal()")
    await connection.execute("CHECKPOINT")
    await connection.close()


def _print(found: dict[Cell, Found], options: IngestOptions) -> None:
    columns = ("batch", "connections", "duplicates", "events/s", "bare COPY/s", "of it", "p99 ms", "api CPU µs/event")
    rows = [
        (
            f"{cell.batch:,}",
            str(cell.concurrency),
            f"{cell.duplicates} %",
            f"{median(result.ours):,.0f}",
            f"{median(result.bare):,.0f}",
            f"{result.ratio:.0%}",
            f"{median(result.p99_ms):.1f}",
            f"{median(result.api_cpu_us):.0f}",
        )
        for cell, result in found.items()
    ]
    title = f"POST /interactions, {options.workers} api process(es), medians of {options.rounds} rounds"
    print_table(title, columns, rows, words=0)
    print_line(
        "Bare COPY: the same rows, a transaction for each batch, from as many connections, into a table without index "
        "or constraint. Generator, api and Postgres share this machine's processors."
    )
