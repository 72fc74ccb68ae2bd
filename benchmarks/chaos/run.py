"""`asmg chaos`: a run under random kills and pauses, and the undisturbed run of the same log it is compared with.

The undisturbed run comes first. Where no machine code is stored yet, it compiles all that the service needs: a worker
does so for minutes at its first updates, and another one begins again when it is killed.
"""

import asyncio
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from benchmarks.chaos.clients import Clients
from benchmarks.chaos.saboteur import Saboteur, restart
from benchmarks.chaos.stream import SCHEMA, Log, make_log
from benchmarks.chaos.verdict import Record, State, as_published, content_of, judge, to_json
from benchmarks.options import at_least, more_than_zero
from benchmarks.printing import print_line, print_table
from benchmarks.reports import Promise, check_writable, exit_code, write_report
from benchmarks.servers import Server
from benchmarks.services import OwnStores, own_service, own_stores
from service.demo.client import CallFailed
from service.errors import ServiceError
from service.processes.stop_request import INTERRUPTED, Interrupted, StopRequest
from service.storage.postgres import tables
from service.storage.postgres.database import Database
from service.tasks import end_tasks

SETTLE_SECONDS = 120.0
"""How long the waiting updates may take after the last close, and `PERIOD_SECONDS` more for each period."""
PERIOD_SECONDS = 10.0
COMPILE_SECONDS = 900.0
"""How much longer those of the undisturbed run may take."""
POLL_SECONDS = 0.5
FINISHED = ("updated", "quarantined", "skipped")
"""States of a period that the worker is done with."""
STATES = select(tables.periods.c.status).where(tables.periods.c.status != "open", tables.periods.c.number > 0)
"""The states of all closed periods."""


@dataclass(frozen=True, kw_only=True)
class ChaosOptions:
    """The options of `asmg chaos`; its help texts say what each means."""

    minutes: float = 10.0
    closes: int = 20
    seed: int = 0
    api_hosts: int = 1
    objects: bool = False
    report: Path | None = None

    def __post_init__(self) -> None:
        more_than_zero(minutes=self.minutes)
        at_least(1, closes=self.closes, api_hosts=self.api_hosts)


def run_chaos(options: ChaosOptions) -> int:
    """`asmg chaos`: an undisturbed run, a disturbed one, the verdict; all processes and folders are gone afterwards.

    Returns:
        the exit code: 0 where every promise held, 1 where not, 130 where it was interrupted.
    """
    check_writable(options.report)
    log, record, undisturbed = make_log(options.closes, options.seed), Record(), Record()
    with StopRequest() as stop:
        try:
            print_line(f"{options.closes} closes, undisturbed")
            reference = _one_run(options, log, undisturbed, stop, disturbed=False)
            print_line(f"the same log in {options.minutes:g} minutes, processes killed and paused")
            state = _one_run(options, log, record, stop, disturbed=True)
        except Interrupted:
            print_line("interrupted; everything was stopped and removed")
            return INTERRUPTED
    promises = judge(
        record, state, reference if undisturbed.finished else None, options.closes, ordered=options.api_hosts > 1
    )
    _print(record, promises)
    write_report(options.report, to_json(record, promises, options.seed))
    return exit_code(promises)


def _print(record: Record, promises: list[Promise]) -> None:
    print_table("", ("promise", ""), [(p.name, "held" if p.held else "BROKEN") for p in promises], words=2)
    hits = Counter(f"{hit['victim']} {hit['way']}" for hit in record.sabotage)
    figures = (
        ("seconds", f"{record.seconds:.0f}"),
        ("closes", str(record.closes)),
        ("events acknowledged", str(len(record.acknowledged))),
        ("batches tried again", str(record.retried_batches)),
        ("batches sent again on purpose", str(record.resent_batches)),
        ("hits", ", ".join(f"{name} {count}" for name, count in sorted(hits.items())) or "none"),
        ("predictions", ", ".join(f"{name} {count}" for name, count in sorted(record.predictions.items()))),
        ("5xx with a snapshot", str(record.failed_predictions)),
        ("5xx before the first snapshot", str(record.not_loaded)),
        ("5xx of processes that might be behind", str(record.may_be_behind)),
        ("versions that went back", str(record.gone_back)),
        ("longest that a write was tried again", f"{max(record.recovery_seconds, default=0.0):.1f} s"),
    )
    print_table("", ("figure", ""), figures, words=2)


def _one_run(options: ChaosOptions, log: Log, record: Record, stop: StopRequest, *, disturbed: bool) -> State:
    """Start everything in a new folder, send the log, and read what is stored."""
    settings: dict[str, Any] = {
        "seed": options.seed,
        "keep_versions": max(50, options.closes + 2),
        "keep_states": options.closes + 2,
    }
    if options.api_hosts > 1:
        settings |= {"swap_laggards": "refuse", "swap_lead_seconds": 2.0}
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="asmg-chaos-", ignore_cleanup_errors=True))
        )
        if options.objects:
            settings["artifacts_url"] = f"file://{folder}/objects"
        stores = stack.enter_context(own_stores(folder, schema=SCHEMA, **settings))
        servers = [stack.enter_context(own_service(stores, api_workers=2, worker=True, stop=stop))]
        for number in range(2, options.api_hosts + 1):
            name, data_dir = f"asmg serve {number}", folder / f"host-{number}"
            further = own_service(stores, api_workers=1, stop=stop, name=name, data_dir=data_dir)
            servers.append(stack.enter_context(further))
        return stop.run(_Run(options, log, record, stores, servers, disturbed).play)


@dataclass
class _Run:
    options: ChaosOptions
    log: Log
    record: Record
    stores: OwnStores
    servers: list[Server]
    disturbed: bool

    async def play(self) -> State:
        data_dir = self.stores.settings.data_dir
        started = time.monotonic()
        headers = {"Authorization": f"Bearer {self.stores.key}"}
        async with AsyncExitStack() as stack:
            hosts = [
                await stack.enter_async_context(
                    httpx.AsyncClient(base_url=server.url, headers=headers, trust_env=False)
                )
                for server in self.servers
            ]
            clients = Clients(hosts, self.log, self.record, seed=self.options.seed)
            seconds = self.options.minutes * 60 if self.disturbed else 0.0
            beside: list[asyncio.Task[None]] = []
            hitting: list[asyncio.Task[None]] = []
            try:
                if self.disturbed:
                    saboteur = Saboteur(data_dir, self.servers, self.record, seed=self.options.seed)
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
        return await read_state(self.stores.dsn)

    def _note_failures(self, tasks: list[asyncio.Task[None]]) -> None:
        """Record the errors of tasks that have ended by themselves instead of running until they are cancelled."""
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                self.record.faults.append(f"{type(error).__name__}: {error}")

    async def _settled(self) -> None:
        """Return when the worker is done with all closed periods, or after a while."""
        seconds = SETTLE_SECONDS + PERIOD_SECONDS * self.options.closes + (0 if self.disturbed else COMPILE_SECONDS)
        deadline = time.monotonic() + seconds
        database = Database(self.stores.dsn, pool_size=1)
        try:
            while time.monotonic() < deadline:
                with suppress(ServiceError):  # Postgres may still recover
                    async with database.read() as session:
                        states = (await session.connection.execute(STATES)).scalars().all()
                    if len(states) >= self.record.closes and all(state in FINISHED for state in states):
                        return
                await asyncio.sleep(POLL_SECONDS)
        finally:
            await database.close()
        self.record.finished = False


async def read_state(dsn: str) -> State:
    """Read what is stored."""
    stored = (tables.interactions, tables.periods, tables.model_versions, tables.user_features, tables.item_features)
    database = Database(dsn, pool_size=1)
    try:
        async with database.read() as session:
            events, periods, versions, users, items = [
                (await session.connection.execute(select(table))).all() for table in stored
            ]
    finally:
        await database.close()
    return State(
        events=[
            (
                e.event_id,
                e.period,
                e.user_id,
                e.item_id,
                e.label,
                _ms(e.occurred_at),
                content_of(e.context or {}, e.weight),
            )
            for e in events
        ],
        features={("user", u.user_id, _ms(u.at)): content_of(u.features) for u in users}
        | {("item", i.item_id, _ms(i.at)): content_of(i.features) for i in items},
        periods={
            p.number: (p.status, p.version, p.attempts, p.error) for p in periods if p.status != "open" and p.number > 0
        },
        versions={
            v.version: {
                "period": v.period,
                "kind": v.kind,
                "parent": v.parent_version,
                **as_published(v.serving_digest, v.state),
            }
            for v in versions
        },
    )


def _ms(at: datetime) -> int:
    """Milliseconds since 1970."""
    return round(at.timestamp() * 1000)
