"""What storing the log costs: `POST /interactions` beside a bare COPY of the same rows, in one run.

The ceiling is a binary COPY of the rows of a batch, a transaction each, from as many connections, into a table of the
same columns without any index or constraint, in the same Postgres: no HTTP, no JSON, nothing recognised, nothing
promised but durability. Rates are events a second, duplicates included on both sides. Event ids ascend, as those do
that begin with a time (UUIDv7).

Postgres is as one that has run for a while, between two checkpoints: it has files of its write-ahead log to use again
(a new one makes and clears one every 16 MB, during which everything waits), and no measurement has a checkpoint in it,
after which each page that is changed is logged as a whole once.
"""

import asyncio
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import numpy as np
import orjson

from benchmarks.printing import Printer, check_writable
from benchmarks.serving.load import Load
from benchmarks.serving.servers import Server, cpu_seconds, environment_without_settings, free_port
from benchmarks.timing import machine_facts
from service.limits import MAX_INTERACTIONS
from service.storage.embedded.servers import EmbeddedServers
from service.storage.postgres.database import Database
from service.storage.postgres.migrate import migrate
from service.use_cases.keys import create_key

__all__ = ["IngestOptions", "run_ingest"]

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
USERS, ITEMS = 50_000, 5_000
CLICK_RATE = 0.1
SECONDS = 30.0
"""Of one measurement, at most."""

WAL_BYTES = 400
"""Of the write-ahead log, for an event that is stored and copied."""
WAL_FILE_BYTES = 16 * 1024 * 1024
MOST_WAL_FILES = 128
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
    """What `asmg bench ingest` measures."""

    batches: tuple[int, ...] = (1, 100, 1000)
    """Events of a call."""
    concurrency: tuple[int, ...] = (1, 16)
    """Connections, with one call in flight on each."""
    duplicates: tuple[int, ...] = (0, 50)
    """Percent of the events that were sent before."""
    events: int = 60_000
    """Of each measurement; 1,000 calls at most."""
    rounds: int = 5
    workers: int = 1
    """Api processes."""
    seed: int = 0
    report: Path | None = None

    def __post_init__(self) -> None:
        for name in ("batches", "concurrency", "duplicates"):
            if not (values := getattr(self, name)) or len(set(values)) < len(values):
                raise ValueError(f"{name}: expected distinct numbers; received {values}")
        if min(self.batches) < 1 or max(self.batches) > MAX_INTERACTIONS:
            raise ValueError(f"batches: expected numbers from 1 to {MAX_INTERACTIONS}; received {self.batches}")
        if min(self.duplicates) < 0 or max(self.duplicates) > 90:
            raise ValueError(f"duplicates: expected percentages from 0 to 90; received {self.duplicates}")
        for name in ("concurrency", "events", "rounds", "workers"):
            value = getattr(self, name)
            if (min(value) if isinstance(value, tuple) else value) < 1:
                raise ValueError(f"{name}: expected at least 1; received {value}")


@dataclass(frozen=True)
class Cell:
    """One way to send events."""

    batch: int
    concurrency: int
    duplicates: int


@dataclass
class Found:
    """What was measured of a cell, a number for each round."""

    ours: list[float] = field(default_factory=list)
    """Events a second."""
    bare: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    """Of one call."""
    api_cpu_us: list[float] = field(default_factory=list)
    """CPU time of the api processes for one event."""

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: both sides of each were measured one after the other."""
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
    """Measure and print; the exit code."""
    logging.getLogger().setLevel(logging.WARNING)  # the embedded servers tell how they start
    check_writable(options.report)
    printer = Printer(None)
    cells = [Cell(*c) for c in product(options.batches, options.concurrency, options.duplicates)]
    found = {cell: Found() for cell in cells}
    with tempfile.TemporaryDirectory(prefix="asmg-bench-", ignore_cleanup_errors=True) as name, printer.busy() as busy:
        folder = Path(name)
        with EmbeddedServers(folder / "data") as servers:
            migrate(servers.postgres_dsn)
            key = asyncio.run(_prepare(servers.postgres_dsn, len(cells) * options.rounds * options.events))
            with _server(servers, folder, options.workers) as server:
                server.wait_ready(lambda: server.answers(_get("/readyz")) is not None)
                for round_ in range(options.rounds):
                    for number, cell in enumerate(cells):
                        busy(f"round {round_ + 1} of {options.rounds}: {cell}")
                        prefix = f"{round_:03}-{number:03}"
                        _measure(cell, found[cell], server, servers.postgres_dsn, key, prefix, options)
    _print(printer, found, options)
    if options.report is not None:
        document = {
            "machine": machine_facts(),
            "events": options.events,
            "rounds": options.rounds,
            "workers": options.workers,
            "cells": [{**cell.__dict__, **result.to_json()} for cell, result in found.items()],
        }
        options.report.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def make_batches(cell: Cell, prefix: str, events: int, seed: int) -> list[list[Row]]:
    """Calls of equal size; from the second on, a share of each was in an earlier one, as clients that retry send it."""
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
    body = orjson.dumps({"interactions": events})
    head = (
        "POST /interactions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _measure(cell: Cell, found: Found, server: Server, dsn: str, key: str, prefix: str, options: IngestOptions) -> None:
    batches = make_batches(cell, prefix, options.events, options.seed)
    count = sum(map(len, batches))
    found.bare.append(count / asyncio.run(_copy(dsn, batches, cell.concurrency)))
    requests = [encode_call(rows, key) for rows in batches]
    used = cpu_seconds(server.processes())
    load = Load(requests=requests, connections=cell.concurrency, count=len(requests), seconds=SECONDS, keep_bodies=True)
    answers = server.ask(load)
    used = cpu_seconds(server.processes()) - used
    if answers.failed or len(answers.bodies) < len(requests):
        raise WrongAnswer(f"{cell}: expected {len(requests)} answers; received {len(answers.bodies)}, {answers.faults}")
    distinct = len({row[0] for rows in batches for row in rows})
    accepted = sum(orjson.loads(body)["accepted"] for body in answers.bodies)
    stored = asyncio.run(_stored(dsn, prefix))
    if not accepted == stored == distinct:
        raise WrongAnswer(f"{cell}: expected {distinct} events; {accepted} were accepted, {stored} are stored")
    found.ours.append(count / answers.seconds)
    found.p99_ms.append(float(np.percentile(answers.latencies, 99)) * 1000)
    found.api_cpu_us.append(used / count * 1e6)


async def _copy(dsn: str, batches: Sequence[Sequence[Row]], connections: int) -> float:
    """Seconds that it takes to copy all batches, a transaction each."""
    opened = [await asyncpg.connect(_plain(dsn)) for _ in range(connections)]
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


async def _stored(dsn: str, prefix: str) -> int:
    database = Database(dsn, pool_size=1)
    async with database.read() as session:
        stored = await session.interactions.count(1, id_prefix=f"{prefix}-")
    await database.close()
    return stored


async def _prepare(dsn: str, events: int) -> str:
    """Make what is needed; the key of the client."""
    connection = await asyncpg.connect(_plain(dsn))
    await connection.execute(BARE)
    for name, value in NO_CHECKPOINT.items():
        await connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
    await connection.execute("SELECT pg_reload_conf()")
    for _ in range(min(MOST_WAL_FILES, events * WAL_BYTES // WAL_FILE_BYTES)):
        await connection.execute("SELECT pg_logical_emit_message(false, 'asmg', ''); SELECT pg_switch_wal()")
    await connection.execute("CHECKPOINT")
    await connection.close()
    database = Database(dsn, pool_size=1)
    _, key = await create_key(database, "bench", ("ingest",))
    await database.close()
    return key


def _plain(dsn: str) -> str:
    return dsn.replace("postgresql+asyncpg://", "postgresql://")


def _server(servers: EmbeddedServers, folder: Path, workers: int) -> Server:
    port = free_port()
    options = ["--no-worker", "--workers", str(workers), "--port", str(port)]
    environment = {
        **environment_without_settings(),
        "ASMG_POSTGRES_DSN": servers.postgres_dsn,
        "ASMG_REDIS_URL": servers.redis_url,
        "ASMG_DATA_DIR": str(folder / "data"),
    }
    command = [sys.executable, "-m", "service.cli", "serve", *options]
    return Server("asmg serve", command, port, environment=environment, log=folder / "server.log")


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def _print(printer: Printer, found: dict[Cell, Found], options: IngestOptions) -> None:
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
    printer.table(title, columns, rows, words=0)
    printer.line(
        "Bare COPY: the same rows, a transaction for each batch, from as many connections, into a table without index "
        "or constraint. Generator, api and Postgres share this machine's processors."
    )
