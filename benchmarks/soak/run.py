"""`asmg bench soak`: a service lives through many small periods; disk, memory and close time have to stay flat."""

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from asmg.datasets.synthetic import DriftConfig
from benchmarks.machine import machine_facts
from benchmarks.options import at_least
from benchmarks.printing import print_line, print_table, progress
from benchmarks.reports import Promise, check_writable, exit_code, promises_json, write_report
from benchmarks.servers import Server
from benchmarks.services import OwnStores, own_service, own_stores
from benchmarks.soak.left import read_left
from benchmarks.soak.measuring import CLOCKS, Gauge
from benchmarks.soak.verdict import FIGURES, Left, course, judge
from service.demo.client import Api, CallFailed
from service.demo.streams import PlayedPeriod, synthetic_stream
from service.limits import KEPT_FOR_TRAINING
from service.processes.stop_request import INTERRUPTED, Interrupted, StopRequest

KEPT = {"keep_versions": 5, "keep_states": 3, "keep_logs": 3, "sample_periods": 5}
HORIZON = 1 + max(KEPT["keep_versions"], KEPT_FOR_TRAINING + KEPT["keep_logs"])
"""The first period after which something of each kind was removed."""
PINNED = 2
"""A version that is pinned, and has to be whole at the end."""

PACE = {"worker_poll_seconds": 0.1, "swap_lead_seconds": 0.1, "connection_seconds": 20}
"""A period takes seconds instead of an hour, so what the service does at intervals is done more often."""

POPULATION = {"users": 60, "items": 40, "categories": 6, "user_turnover": 0.0, "item_turnover": 0.0}
"""Users and items stay the same, so that no table grows with new ids."""
PREDICTIONS = 20
"""Predictions in each period, of ten items each."""
API_WORKERS = 2
MOST_CONNECTIONS = 10 * API_WORKERS + 4 + 1
"""The pools of the api processes and of the worker, and the connection that makes the worker the leader."""

UPDATE_SECONDS = 120.0
"""An update that takes longer has failed."""
SETTLE_SECONDS = 15.0
"""How long the service may take to tidy up after the last period."""
POLL_SECONDS = 0.05
BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 20
"""Bars of a figure."""


@dataclass(frozen=True, kw_only=True)
class SoakOptions:
    """The options of `asmg bench soak`; its help texts say what each means."""

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
        at_least(1, events=self.events)
        at_least(0, seed=self.seed)


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
    settings: dict[str, Any] = {**KEPT, **PACE, "seed": options.seed}
    with StopRequest() as stop:
        try:
            with (
                tempfile.TemporaryDirectory(prefix="asmg-soak-", ignore_cleanup_errors=True) as folder,
                own_stores(Path(folder), **settings) as stores,
                own_service(stores, api_workers=API_WORKERS, worker=True, stop=stop) as server,
            ):
                found = stop.run(_Run(options, stores, server).play)
        except Interrupted:
            print_line("interrupted; everything was stopped and removed")
            return INTERRUPTED
    assert found.left is not None
    promises = judge(
        found.samples,
        found.left,
        expected_left(options.periods),
        most_wal_mb=found.most_wal_mb,
        most_connections=MOST_CONNECTIONS,
    )
    _print(options, found, promises)
    write_report(options.report, _to_json(options, found, promises))
    return exit_code(promises)


def expected_left(periods: int) -> Left:
    """What Postgres should hold after so many periods."""
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
    def __init__(self, options: SoakOptions, stores: OwnStores, server: Server) -> None:
        self._options, self._stores, self._server = options, stores, server
        self._random = random.Random(options.seed)

    async def play(self) -> _Found:
        found, started = _Found(), time.monotonic()
        stream = synthetic_stream(
            DriftConfig(events=self._options.events, **POPULATION),  # type: ignore[arg-type] # whole and other numbers
            self._options.periods,
            self._options.seed,
        )
        api = Api.connect(self._server.url, self._stores.key)
        async with api.http, Gauge(self._stores, self._server) as gauge:
            found.most_wal_mb = await gauge.most_wal_mb()
            for number, period in enumerate(stream.periods, 1):
                progress(f"period {number} of {self._options.periods}")
                seconds = await self._one(api, number, period)
                found.samples.append({"period": number, "close_seconds": seconds, **await gauge.read()})
                if number == PINNED:
                    await api.call("POST", f"/admin/models/{PINNED}/pin", {"reason": "to see that it is kept"})
        found.left = await self._settled()
        found.seconds = time.monotonic() - started
        return found

    async def _one(self, api: Api, number: int, period: PlayedPeriod) -> float:
        """Log a period, predict, close, and wait until its version is served; the seconds from close to version."""
        await api.put_catalogue(period)
        await api.ingest(f"{number}", period)
        for user in self._random.choices(period.user_ids, k=PREDICTIONS):
            await api.call("POST", "/predict", {"user_id": user, "items": self._random.choices(period.item_ids, k=10)})
        await api.call("POST", "/periods/close", {"expected_period": number})
        deadline = time.monotonic() + UPDATE_SECONDS
        while True:
            document = await api.call("GET", f"/periods/{number}")
            if document["status"] == "updated" and await self._serves(api, document["version"]):
                break
            if document["status"] == "failed" or time.monotonic() > deadline:
                raise CallFailed(
                    f"period {number} is {document['status']}, its version not served: {document['error']}"
                )
            await asyncio.sleep(POLL_SECONDS)
        sealed, finished = (datetime.fromisoformat(document[name]) for name in ("sealed_at", "finished_at"))
        return (finished - sealed).total_seconds()

    async def _serves(self, api: Api, version: int) -> bool:
        """Whether this version is served."""
        return bool((await api.call("GET", "/readyz"))["model_version"] == version)

    async def _settled(self) -> Left:
        """What Postgres holds as soon as it is as expected, or after a while."""
        expected, deadline = expected_left(self._options.periods), time.monotonic() + SETTLE_SECONDS
        while True:
            left = await read_left(self._stores.dsn)
            if left == expected or time.monotonic() > deadline:
                return left
            await asyncio.sleep(POLL_SECONDS)


def _print(options: SoakOptions, found: _Found, promises: Sequence[Promise]) -> None:
    print_line(
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
    print_table("", columns, rows)
    for promise in promises:
        print_line(f"{'held  ' if promise.held else 'BROKEN'}  {promise.name}")


def bars(values: Sequence[float], columns: int) -> str:
    """Medians of equal stretches, as bars from zero to the highest of them."""
    ends = [column * len(values) // columns for column in range(columns + 1)]
    medians = [median(values[start:end]) for start, end in pairwise(ends) if end > start]
    top = max(medians)
    return "".join(BARS[min(int(value / top * len(BARS)), len(BARS) - 1)] if top else BARS[0] for value in medians)


def _to_json(options: SoakOptions, found: _Found, promises: Sequence[Promise]) -> dict[str, Any]:
    courses = {figure: course([sample[figure.key] for sample in found.samples]) for figure in FIGURES}
    return {
        "machine": machine_facts(),
        "periods": options.periods,
        "events": options.events,
        "seed": options.seed,
        "kept": KEPT,
        "postgres": CLOCKS,
        "seconds": found.seconds,
        **promises_json(promises),
        "figures": {
            figure.key: {**vars(way), "change": way.change, "tolerance": figure.tolerance}
            for figure, way in courses.items()
        },
        "samples": found.samples,
    }
