"""One soak from its first process to its verdict."""

import asyncio
import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rich.text import Text
from sqlalchemy import text

from asmg.datasets.synthetic import DriftConfig
from benchmarks.chaos.run import exit_code
from benchmarks.chaos.verdict import Promise
from benchmarks.own_service import OwnService, own_service
from benchmarks.printing import Printer, check_writable
from benchmarks.soak.measuring import CLOCKS, Gauge
from benchmarks.soak.verdict import FIGURES, Left, course, judge
from benchmarks.timing import machine_facts
from service.demo.client import Api, CallFailed
from service.demo.streams import PlayedPeriod, synthetic_stream
from service.limits import KEPT_FOR_TRAINING
from service.processes.children import INTERRUPTED, Interrupted, StopRequest
from service.storage.postgres.database import Database

KEPT = {"keep_versions": 5, "keep_states": 3, "keep_logs": 3}
HORIZON = 1 + max(KEPT["keep_versions"], KEPT_FOR_TRAINING + KEPT["keep_logs"])
"""The first period after which something of each kind was let go of."""
PINNED = 2
"""A version that is pinned, and must be whole at the end."""

PACE = {"worker_poll_seconds": 0.1, "swap_lead_seconds": 0.1, "connection_seconds": 20}
"""A period takes seconds and not an hour, so what happens every so often happens more often."""

POPULATION = {"users": 60, "items": 40, "categories": 6, "user_turnover": 0.0, "item_turnover": 0.0}
"""It stays the same: a table that grows with its ids is another matter."""
PREDICTIONS = 20
"""In each period, of ten items each."""
API_WORKERS = 2
MOST_CONNECTIONS = 10 * API_WORKERS + 4 + 1
"""The pools of the api processes and of the worker, and the one that makes it the leader."""

UPDATE_SECONDS = 120.0
SETTLE_SECONDS = 15.0
POLL_SECONDS = 0.05
BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 20


@dataclass(frozen=True, kw_only=True)
class SoakOptions:
    """How long, and how much in each period."""

    periods: int = 200
    events: int = 200
    seed: int = 0
    report: Path | None = None

    def __post_init__(self) -> None:
        if self.periods < 4 * HORIZON:
            raise ValueError(
                f"periods: expected at least {4 * HORIZON}, so that the second quarter begins when the first logs are "
                f"dropped; received {self.periods}"
            )
        if self.events < 1:
            raise ValueError(f"events: expected at least 1; received {self.events}")
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0; received {self.seed}")


@dataclass
class _Found:
    samples: list[dict[str, float]] = field(default_factory=list)
    left: Left | None = None
    most_wal_mb: float = 0.0
    seconds: float = 0.0


def run_soak(options: SoakOptions) -> int:
    """`asmg bench soak`: play, measure, print, write; all processes and folders are gone when it returns.

    Returns:
        the exit code: 0 where everything stayed flat and was kept, 1 where not, 130 where it was interrupted.
    """
    check_writable(options.report)
    logging.getLogger().setLevel(logging.WARNING)
    printer = Printer(None)
    with StopRequest() as stop:
        try:
            settings = {**KEPT, **PACE, "api_workers": API_WORKERS, "seed": options.seed}
            with own_service("soak", stop, **settings) as service, printer.busy() as say:
                found = stop.run(_Run(options, service, say).play)
        except Interrupted:
            printer.line("interrupted; everything was stopped and removed")
            return INTERRUPTED
    assert found.left is not None
    promises = judge(
        found.samples,
        found.left,
        expected_left(options.periods),
        most_wal_mb=found.most_wal_mb,
        most_connections=MOST_CONNECTIONS,
    )
    _print(printer, options, found, promises)
    if options.report is not None:
        options.report.write_text(json.dumps(_to_json(options, found, promises), indent=2) + "\n", encoding="utf-8")
    return exit_code(promises)


def expected_left(periods: int) -> Left:
    """What has to be left after so many periods."""
    baseline = 1
    newest = range(max(1, periods - KEPT["keep_versions"] + 1), periods + 1)
    first_log = max(1, periods - KEPT_FOR_TRAINING - KEPT["keep_logs"] + 1)
    return Left(
        versions=periods,
        whole=frozenset({0, baseline, PINNED, *newest}),
        logs=frozenset(range(first_log, periods + 2)),
        forgotten_events=0,
        unnamed_artifacts=0,
    )


class _Run:
    def __init__(self, options: SoakOptions, service: OwnService, say: Any) -> None:
        self._options, self._service, self._say = options, service, say
        self._random = random.Random(options.seed)

    async def play(self) -> _Found:
        found, started = _Found(), time.monotonic()
        stream = synthetic_stream(
            DriftConfig(events=self._options.events, **POPULATION),  # type: ignore[arg-type] # whole and other numbers
            self._options.periods,
            self._options.seed,
        )
        api = Api.connect(self._service.url, self._service.key)
        async with api.http, Gauge(self._service) as gauge:
            await self._service.ready(api.http)
            found.most_wal_mb = await gauge.most_wal_mb()
            for number, period in enumerate(stream.periods, 1):
                self._say(f"period {number} of {self._options.periods}")
                seconds = await self._one(api, number, period)
                found.samples.append({"period": number, "close_seconds": seconds, **await gauge.read()})
                if number == PINNED:
                    await api.call("POST", f"/admin/models/{PINNED}/pin", {"reason": "to see that it is kept"})
        found.left = await self._settled()
        found.seconds = time.monotonic() - started
        return found

    async def _one(self, api: Api, number: int, period: PlayedPeriod) -> float:
        """Log a period, ask, close, and wait until its version is served; the seconds from the close to the version."""
        await api.put_catalogue(period)
        await api.ingest(f"{number}", period)
        for user in self._random.choices(period.user_ids, k=PREDICTIONS):
            await api.call("POST", "/predict", {"user_id": user, "items": self._random.choices(period.item_ids, k=10)})
        await api.call("POST", "/periods/close", {"expected_period": number})
        deadline = time.monotonic() + UPDATE_SECONDS
        while True:
            document = await api.call("GET", f"/periods/{number}")
            served = (await api.call("GET", "/readyz"))["model_version"]
            if document["status"] == "updated" and served == document["version"]:
                break
            if document["status"] == "failed" or time.monotonic() > deadline:
                raise CallFailed(
                    f"period {number} is {document['status']}, version {served} served: {document['error']}"
                )
            await asyncio.sleep(POLL_SECONDS)
        sealed, finished = (datetime.fromisoformat(document[name]) for name in ("sealed_at", "finished_at"))
        return (finished - sealed).total_seconds()

    async def _settled(self) -> Left:
        """What is left as soon as the last period's work has ended, or after a while."""
        expected, deadline = expected_left(self._options.periods), time.monotonic() + SETTLE_SECONDS
        while True:
            left = await read_left(self._service.dsn)
            if left == expected or time.monotonic() > deadline:
                return left
            await asyncio.sleep(POLL_SECONDS)


VERSIONS = """
    SELECT count(*) FROM model_versions
    WHERE period > 0 AND gate <> '{}' AND (scores <> '{}' OR period = 1)  -- before the first there was none to score
"""
WHOLE = """
    SELECT version FROM model_versions
    WHERE EXISTS (SELECT FROM artifact_chunks WHERE digest = serving_digest)
"""
LOGS = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'interactions'::regclass"
FORGOTTEN = "SELECT count(*) FROM event_ids JOIN periods ON number = period WHERE log_dropped_at IS NOT NULL"
UNNAMED = """
    SELECT count(*) FROM artifacts
    WHERE NOT EXISTS (SELECT FROM model_versions WHERE serving_digest = digest OR strpos(state::text, digest) > 0)
"""


async def read_left(dsn: str) -> Left:
    """What Postgres holds."""
    database = Database(dsn, pool_size=1)
    try:
        async with database.read() as session:
            versions, whole, logs, forgotten, unnamed = [
                (await session.connection.execute(text(query))).scalars().all()
                for query in (VERSIONS, WHOLE, LOGS, FORGOTTEN, UNNAMED)
            ]
    finally:
        await database.close()
    return Left(
        versions=versions[0],
        whole=frozenset(whole),
        logs=frozenset(int(name.rpartition("_p")[2]) for name in logs),
        forgotten_events=forgotten[0],
        unnamed_artifacts=unnamed[0],
    )


def _print(printer: Printer, options: SoakOptions, found: _Found, promises: Sequence[Promise]) -> None:
    printer.line(
        f"{options.periods} periods of {options.events} events in {found.seconds:.0f} s. Kept: {KEPT['keep_versions']} "
        f"snapshots, {KEPT['keep_states']} training states, logs of {KEPT_FOR_TRAINING + KEPT['keep_logs']} learned "
        f"periods. Medians of the second and the last quarter; of memory what is the processes' alone."
    )
    rows = []
    for figure in FIGURES:
        values = [sample[figure.key] for sample in found.samples]
        way = course(values)
        allowed = "" if figure.tolerance is None else f"{figure.tolerance:+.0%}"
        rows.append(
            (figure.name, f"{way.early:.4g}", f"{way.late:.4g}", f"{way.change:+.1%}", allowed,
             f"{way.per_period:+.2g}", bars(values, COLUMNS))
        )  # fmt: skip
    columns = ("figure", "2nd quarter", "last quarter", "change", "allowed", "a period", "all periods")
    printer.table("", columns, rows)
    for promise in promises:
        printer.console.print(Text(f"{'held  ' if promise.held else 'BROKEN'}  {promise.name}"))


def bars(values: Sequence[float], columns: int) -> str:
    """Medians of equal stretches, as bars from zero to the highest of them."""
    ends = [column * len(values) // columns for column in range(columns + 1)]
    medians = [median(values[start:end]) for start, end in pairwise(ends) if end > start]
    top = max(medians)
    return "".join(BARS[min(int(value / top * len(BARS)), len(BARS) - 1)] if top else BARS[0] for value in medians)


def _to_json(options: SoakOptions, found: _Found, promises: Sequence[Promise]) -> dict[str, Any]:
    def figures() -> Iterator[tuple[str, dict[str, float | None]]]:
        for figure in FIGURES:
            way = course([sample[figure.key] for sample in found.samples])
            yield figure.key, {**vars(way), "change": way.change, "tolerance": figure.tolerance}

    return {
        "machine": machine_facts(),
        "periods": options.periods,
        "events": options.events,
        "seed": options.seed,
        "kept": KEPT,
        "postgres": CLOCKS,
        "seconds": found.seconds,
        "held": all(promise.held for promise in promises),
        "promises": [{"name": p.name, "held": p.held, "faults": list(p.faults)} for p in promises],
        "figures": dict(figures()),
        "samples": found.samples,
    }
