"""`asmg import`, from the file to the exit code: sort the log on disk, start the servers and a worker, store the log.

The log is sorted on disk first, so it may be larger than the memory. Only the database remembers something between two
runs: event ids and the idempotency keys of the closes are made of the file, the options and the place in the log. So a
second run of the same command finds what is stored already, wherever the first one was stopped, and both together have
the outcome of one run.
"""

import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from asmg.datasets.generic import find_form
from service.cli.console import ScoreLines, StageBar, make_console
from service.cli.import_log.backfill import MODELS, Backfill
from service.cli.import_log.options import ImportOptions
from service.cli.import_log.plan import ImportPlan
from service.cli.import_log.sorted_log import SortedLog
from service.cli.import_log.sorting import sort_log
from service.cli.import_log.temporary_database import temporary_database
from service.processes.child import child_command, environment_of
from service.processes.companion import Companion
from service.processes.installation import installation
from service.processes.stop_request import INTERRUPTED, Interrupted, StopRequest
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.redis.connection import connect
from service.storage.redis.histories import HistoryStore
from service.storage.redis.notices import Notices

__all__ = ["run_import"]

STOP_SECONDS = 15.0
"""Seconds that the worker gets to end; after that it is killed, and the next worker repeats the stage."""


def run_import(options: ImportOptions, settings: Settings) -> int:
    """Import the log; progress and scores go to the standard output.

    Returns:
        the exit code: 0, 1 if an update failed, 130 if the import was interrupted.

    Raises:
        LogFormatError, OSError: the file cannot be used.
        ServiceError: Postgres does not answer, the open period holds events of others, or the temporary folder is full.
    """
    logging.getLogger().setLevel(logging.WARNING)  # the standard output says what happens
    console = make_console()
    with StopRequest() as stop, ExitStack() as stack:
        try:
            console.print(f"reading {escape(str(options.file))}", soft_wrap=True)
            digest = options.digest()
            with temporary_database(stop.check) as database:
                log = _read(options, settings, database, console, stop)
                plan = ImportPlan(digest, log, log.cut(options.by, options.size))
                _describe(plan, console)
                running = stack.enter_context(installation(settings))
                stop.check()
                worker = stack.enter_context(_worker(running, stop)) if options.worker else None
                lines = ScoreLines(console, list(MODELS))
                with StageBar(console) as bar:
                    failed = stop.run(lambda: _import(options, running, plan, lines, bar, worker))
            console.print(f"done; {failed} updates failed" if failed else "done", soft_wrap=True)
            return 1 if failed else 0
        except Interrupted:
            console.print("interrupted; the same command goes on from here")
            return INTERRUPTED


def _read(
    options: ImportOptions, settings: Settings, database: sqlite3.Connection, console: Console, stop: StopRequest
) -> SortedLog:
    """Read and sort the file."""
    with StageBar(console) as bar:

        def show(fraction: float) -> None:
            stop.check()
            bar.show(f"reading {options.file.name}", fraction)

        log = sort_log(
            find_form(options.file, replace(options.log, future_seconds=settings.future_tolerance_seconds)),
            options.by,
            database,
            malformed=options.malformed,
            negatives=options.negatives,
            seed=options.seed,
            progress=show,
        )
        stop.check()
    return log


def _describe(plan: ImportPlan, console: Console) -> None:
    """Print what will be imported and what was left out."""
    log = plan.log
    console.print(f"import {plan.digest}: {len(log):,} interactions in {len(plan.pieces):,} periods", soft_wrap=True)
    for reason, count in log.dropped.items():
        console.print(f"left out: {count:,} {escape(reason)}", soft_wrap=True)
    if log.without_negative:
        console.print(f"{log.without_negative:,} positives got no negative: their users know every item")


@contextmanager
def _worker(settings: Settings, stop: StopRequest) -> Iterator[Companion]:
    """A worker of this import's own; if another one leads already, it waits for that one to end.

    Its log is in a file that is shown if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="asmg-import-") as folder:
        environment = {**os.environ, **environment_of(settings)}
        worker = Companion(
            "the worker", child_command("worker"), environment=environment, log=Path(folder) / "worker.log"
        )
        try:
            yield worker
        finally:
            worker.stop(seconds=STOP_SECONDS, hurried=lambda: stop.hurried)


async def _import(
    options: ImportOptions,
    settings: Settings,
    plan: ImportPlan,
    lines: ScoreLines,
    bar: StageBar,
    worker: Companion | None,
) -> int:
    """Import all pieces; return how many updates failed."""
    assert settings.postgres_dsn is not None and settings.redis_url is not None
    database, redis = Database(settings.postgres_dsn, pool_size=4), connect(settings.redis_url)
    try:
        backfill = Backfill(
            plan,
            database,
            HistoryStore(redis, database, length=settings.history_length),
            Notices(redis),
            bar,
            append=options.append,
        )
        running = backfill.run(lines)
        return await (running if worker is None else worker.beside(running))
    finally:
        await redis.aclose()
        await database.close()
