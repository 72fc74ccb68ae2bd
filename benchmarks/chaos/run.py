"""One chaos run from its first process to its verdict, and the undisturbed run that it is compared with."""

import asyncio
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from sqlalchemy import select

from benchmarks.chaos.clients import Clients
from benchmarks.chaos.saboteur import Saboteur, restart
from benchmarks.chaos.stream import SCHEMA, Log, make_log
from benchmarks.chaos.verdict import Promise, Record, State, content_of, judge, to_json
from benchmarks.own_service import OwnService, own_service
from service.demo.client import CallFailed
from service.errors import ServiceError
from service.processes.children import INTERRUPTED, Interrupted, StopRequest
from service.storage.postgres import tables
from service.storage.postgres.database import Database
from service.tasks import end_tasks

START_SECONDS = 90.0
SETTLE_SECONDS = 120.0
"""How long updates that are waiting may take after the last close, and for each period `PERIOD_SECONDS` more."""
PERIOD_SECONDS = 10.0
POLL_SECONDS = 0.5
FINISHED = ("updated", "quarantined", "skipped")


@dataclass(frozen=True, kw_only=True)
class ChaosOptions:
    """How long, how often and how random."""

    minutes: float = 10.0
    closes: int = 20
    seed: int = 0
    report: Path | None = None

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"minutes: expected more than 0; received {self.minutes}")
        if self.closes < 1:
            raise ValueError(f"closes: expected at least 1; received {self.closes}")


def run_chaos(options: ChaosOptions) -> int:
    """Run it; all processes and folders are gone when it returns.

    Returns:
        the exit code: 0 where every promise held, 1 where not, 130 where it was interrupted.
    """
    logging.getLogger().setLevel(logging.WARNING)
    console = Console(soft_wrap=True)
    if options.report is not None:
        options.report.open("a").close()
    log = make_log(options.closes, options.seed)
    with StopRequest() as stop:
        try:
            console.print(f"{options.closes} closes in {options.minutes:g} minutes, processes killed and paused")
            record = Record()
            state = _one_run(options, log, record, stop, disturbed=True)
            console.print("the same log undisturbed")
            calm = Record()
            reference = _one_run(options, log, calm, stop, disturbed=False)
        except Interrupted:
            console.print("interrupted; everything was stopped and removed")
            return INTERRUPTED
    promises = judge(record, state, reference if calm.finished else None, options.closes)
    show(console, record, promises)
    if options.report is not None:
        options.report.write_text(json.dumps(to_json(record, promises, options.seed), indent=2) + "\n")
    return exit_code(promises)


def exit_code(promises: list[Promise]) -> int:
    """0 only if all of them held; the reasons go to the standard error."""
    for promise in promises:
        for fault in promise.faults:
            print(f"asmg: {promise.name}: {fault}", file=sys.stderr)
    return 0 if all(promise.held for promise in promises) else 1


def show(console: Console, record: Record, promises: list[Promise]) -> None:
    """The summary."""
    table = Table("promise", "")
    for promise in promises:
        table.add_row(promise.name, "held" if promise.held else "BROKEN")
    console.print(table)
    hits = Counter(f"{hit['victim']} {hit['way']}" for hit in record.sabotage)
    figures = Table("figure", "")
    for name, value in (
        ("seconds", f"{record.seconds:.0f}"),
        ("closes", record.closes),
        ("events acknowledged", len(record.acknowledged)),
        ("batches tried again", record.retried_batches),
        ("batches sent again on purpose", record.resent_batches),
        ("hits", ", ".join(f"{name} {count}" for name, count in sorted(hits.items())) or "none"),
        ("predictions", ", ".join(f"{name} {count}" for name, count in sorted(record.predictions.items()))),
        ("5xx with a snapshot", record.failed_predictions),
        ("5xx before the first snapshot", record.not_loaded),
        ("longest that a write was tried again", f"{max(record.recovery_seconds, default=0.0):.1f} s"),
    ):
        figures.add_row(name, str(value))
    console.print(figures)


def _one_run(options: ChaosOptions, log: Log, record: Record, stop: StopRequest, *, disturbed: bool) -> State:
    """Start everything in a folder of its own, send the log, and read what is stored."""
    settings: dict[str, Any] = {
        "api_workers": 2,
        "seed": options.seed,
        "keep_versions": max(50, options.closes + 2),
        "keep_states": options.closes + 2,
    }
    with tempfile.TemporaryDirectory(prefix="asmg-chaos-") as folder:
        schema = Path(folder) / "features.toml"
        schema.write_text(SCHEMA.to_toml(), encoding="utf-8")
        with own_service("chaos", stop, features=schema, **settings) as service:
            return stop.run(_Run(options, log, record, service, disturbed).play)


@dataclass
class _Run:
    options: ChaosOptions
    log: Log
    record: Record
    service: OwnService
    disturbed: bool

    async def play(self) -> State:
        service, data_dir = self.service, self.service.settings.data_dir
        async with httpx.AsyncClient(base_url=service.url, headers=service.headers, trust_env=False) as http:
            await service.ready(http)
            started = time.monotonic()
            clients = Clients(http, self.log, self.record, seed=self.options.seed)
            seconds = self.options.minutes * 60 if self.disturbed else 0.0
            beside: list[asyncio.Task[None]] = []
            hitting: list[asyncio.Task[None]] = []
            try:
                if self.disturbed:
                    saboteur = Saboteur(data_dir, service.server.processes, self.record, seed=self.options.seed)
                    beside.append(asyncio.create_task(clients.predict()))
                    hitting.append(asyncio.create_task(saboteur.run()))
                await asyncio.wait_for(clients.send(seconds), seconds + SETTLE_SECONDS)
            except TimeoutError:
                self.record.finished = False
            except CallFailed as error:
                self.record.faults.append(str(error))
            except ExceptionGroup as failures:
                self.record.faults += [str(error) for error in failures.exceptions]
            finally:
                self._note_failures(hitting)
                await end_tasks(*hitting)
            try:
                if self.disturbed:
                    await asyncio.to_thread(restart, data_dir)
                await self._settled()
            finally:
                self._note_failures(beside)
                await end_tasks(*beside)
            self.record.seconds = time.monotonic() - started
        return await read_state(service.dsn)

    def _note_failures(self, tasks: list[asyncio.Task[None]]) -> None:
        """What should have gone on until it is cancelled and has ended instead."""
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                self.record.faults.append(f"{type(error).__name__}: {error}")

    async def _settled(self) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS + PERIOD_SECONDS * self.options.closes
        while time.monotonic() < deadline:
            try:
                state = await read_state(self.service.dsn)
            except ServiceError:  # Postgres may still recover
                await asyncio.sleep(POLL_SECONDS)
                continue
            if len(state.periods) >= self.record.closes and all(s in FINISHED for s, *_ in state.periods.values()):
                return
            await asyncio.sleep(POLL_SECONDS)
        self.record.finished = False


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)


async def read_state(dsn: str) -> State:
    """What is stored."""
    database = Database(dsn, pool_size=1)
    events, periods, versions = tables.interactions.c, tables.periods.c, tables.model_versions.c
    try:
        async with database.read() as session:
            connection = session.connection
            logged = select(
                events.event_id,
                events.period,
                events.user_id,
                events.item_id,
                events.label,
                events.occurred_at,
                events.context,
                events.weight,
            ).order_by(events.event_id)
            closed = select(periods.number, periods.status, periods.version, periods.attempts, periods.error)
            made = select(
                versions.version,
                versions.period,
                versions.kind,
                versions.parent_version,
                versions.serving_digest,
                versions.state,
            )
            return State(
                events=[
                    (name, period, user, item, label, _milliseconds(at), content_of(context or {}, weight))
                    for name, period, user, item, label, at, context, weight in await connection.execute(logged)
                ],
                features={
                    (kind, id_, _milliseconds(at)): content_of(values)
                    for kind, table in (("user", tables.user_features), ("item", tables.item_features))
                    for id_, at, values in await connection.execute(
                        select(table.c[f"{kind}_id"], table.c.at, table.c.features)
                    )
                },
                periods={
                    number: (status, version, attempts, error)
                    for number, status, version, attempts, error in await connection.execute(
                        closed.where(periods.status != "open", periods.number > 0)
                    )
                },
                versions={
                    version: {"period": period, "kind": kind, "parent": parent, "serving": serving, "state": state}
                    for version, period, kind, parent, serving, state in await connection.execute(made)
                },
            )
    finally:
        await database.close()
