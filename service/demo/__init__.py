"""`asmg demo`: a whole service in a temporary folder learns from period to period while clients never stop asking."""

import asyncio
import json
import logging
import os
import re
import shlex
import socket
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from asmg.datasets.synthetic import DriftConfig
from service.cli.console import ScoreLines, StageBar, make_console
from service.demo.practitioner import Practitioner
from service.demo.report import API_NAMES, Report
from service.demo.story import Story
from service.demo.streams import BEST, SYNTHETIC_PERIODS, Stream, folder_stream, synthetic_stream
from service.errors import ServiceError
from service.processes.children import INTERRUPTED, Child, Interrupted, StopRequest
from service.processes.supervisor import environment_of, installation
from service.settings import Settings
from service.storage.embedded.servers import EmbeddedServers
from service.storage.postgres.database import Database
from service.use_cases.keys import SCOPES, create_key

__all__ = ["DEMO_DRIFT", "DemoOptions", "run_demo"]

LOOPBACK = "127.0.0.1"
START_SECONDS = 90.0
STOP_SECONDS = 40.0
TICK_SECONDS = 0.1
FEATURES = "features.toml"
"""Name of the file with the schema of the fields."""
LISTENING = re.compile(r"^asmg: listening on (http://\S+)$", re.MULTILINE)

DEMO_DRIFT = DriftConfig(users=1_000, items=300, events=20_000, categories=8, fields=True)
"""Few events for each user and item, so that what the models before this one knew is worth something."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What to play, and how it ends."""

    periods: int | None = None
    """None: 8 of the synthetic stream, all of DIGINETICA, 31 of MovieLens."""
    data: Path | None = None
    """Folder of a public collection, played in place of the synthetic stream."""
    report: Path | None = None
    """File for all numbers, as JSON."""
    exit: bool = False
    """End after the story instead of staying up."""
    seed: int = 0
    """Of the stream, the negatives, the questions and the updates."""
    workers: int = 2
    """Api processes."""
    port: int = 8000
    """Another one that is free is taken where this one is not."""
    drift: DriftConfig = DEMO_DRIFT
    """The synthetic stream."""


def run_demo(options: DemoOptions) -> int:
    """Play the demo; servers and folder are gone when it returns.

    Returns:
        the exit code: 0 where all went as it should, 1 where not, 130 where it was interrupted.

    Raises:
        LogFormatError, OSError: the data folder or the report file cannot be used.
        ServiceError: a part of the service failed.
    """
    # What happens is on the standard output; the log of the service is in a file, shown where it fails.
    logging.getLogger().setLevel(logging.WARNING)
    console = make_console()
    if options.report is not None:
        options.report.open("a").close()  # minutes before there is something to write
    with StopRequest() as stop, tempfile.TemporaryDirectory(prefix="asmg-demo-", ignore_cleanup_errors=True) as folder:
        try:
            return _Demo(options, console, stop, Path(folder)).run()
        except Interrupted:
            console.print("interrupted; everything was stopped and removed")
            return INTERRUPTED


class _Demo:
    def __init__(self, options: DemoOptions, console: Console, stop: StopRequest, folder: Path) -> None:
        self._options, self._console, self._stop, self._folder = options, console, stop, folder
        self._settings = Settings(
            data_dir=folder / "data",
            postgres_dsn=None,
            redis_url=None,
            host=LOOPBACK,
            port=self._free_port(),
            api_workers=options.workers,
            seed=options.seed,
            features=folder / FEATURES,
        )

    def run(self) -> int:
        started = time.monotonic()
        stream = self._stream()
        (self._folder / FEATURES).write_text(stream.schema.to_toml(), encoding="utf-8")
        self._say("starting Postgres, Redis, the api and the worker in a temporary folder")
        key, server = self._start()
        try:
            url = self._wait_until_listening(server)
            self._say(f"[bold]{url}[/] answers after {time.monotonic() - started:.0f} s; playing {stream.name}")
            report, example = self._play(stream, url, key, server)
            self._show_end(report, time.monotonic() - started)
            if self._options.report is not None:
                self._options.report.write_text(json.dumps(report.to_json(), indent=2) + "\n")
            if not self._options.exit:
                self._stay(url, key, report.periods[-1].period, example, server)
        except ServiceError:
            server.check()  # where the server has ended, that is the news
            raise
        finally:
            self._say("stopping")
            self._end(server)
        for problem in report.problems:
            print(f"asmg: {problem}", file=sys.stderr)
        return 1 if report.problems else 0

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _free_port(self) -> int:
        """The port asked for, or 0 where another program has it."""
        with suppress(OSError), socket.create_server((LOOPBACK, self._options.port)):
            return self._options.port
        self._say(f"port {self._options.port} is taken; another one is used")
        return 0

    def _stream(self) -> Stream:
        options = self._options
        if options.data is None:
            return synthetic_stream(options.drift, options.periods or SYNTHETIC_PERIODS, options.seed)
        self._say(f"reading {escape(str(options.data))}")
        stream = folder_stream(options.data, options.periods, options.seed)
        self._stop.check()
        return stream

    def _start(self) -> tuple[str, Child]:
        """A key and a running `asmg serve`. The key comes first: with one, every call has to show it."""
        environment = {name: value for name, value in os.environ.items() if name not in _PLACES}
        environment |= environment_of(self._settings)
        command = [sys.executable, "-m", "service.cli", "serve"]
        with installation(self._settings) as running:
            assert running.postgres_dsn is not None
            key = asyncio.run(_create_key(running.postgres_dsn))
            self._stop.check()
            server = Child("asmg serve", command, environment=environment, log=self._folder / "serve.log")
            try:
                # The servers go on for as long as somebody uses them: from here on that is the child.
                self._wait_until_listening(server)
            except BaseException:
                self._end(server)
                raise
        return key, server

    def _end(self, server: Child) -> None:
        if server.stop(seconds=STOP_SECONDS, hurried=lambda: self._stop.hurried) != 0:
            # It did not stop Postgres and Redis, for it was killed: whoever used them last does.
            with suppress(ServiceError), EmbeddedServers(self._settings.data_dir):
                pass

    def _wait_until_listening(self, server: Child) -> str:
        deadline = time.monotonic() + START_SECONDS
        while (match := LISTENING.search(server.output)) is None:
            self._stop.check()
            server.check()
            if time.monotonic() > deadline:
                raise ServiceError(f"the service was not ready within {START_SECONDS:.0f} s:\n{server.output}")
            time.sleep(TICK_SECONDS)
        return match[1]

    def _play(self, stream: Stream, url: str, key: str, server: Child) -> tuple[Report, dict[str, Any]]:
        """The report, and a question to ask the service with."""
        practitioner = Practitioner(stream.schema, self._options.seed)
        models = [*API_NAMES, practitioner.name, *([BEST] if stream.name == "synthetic" else [])]
        lines = ScoreLines(self._console, models, requests=True)
        self._say("")
        lines.header()
        with StageBar(self._console) as bar:
            story = Story(url, key, bar, self._options.seed, practitioner)
            report = self._stop.run(
                lambda: server.beside(
                    story.play(stream, self._options.seed, lambda period: lines.period(period.line()))
                )
            )
        means = report.to_json()["means"]
        if means["periods"]:
            first, last = means["periods"][0], means["periods"][-1]
            lines.means(f"mean of {first}-{last}", means["auc"], means["logloss"])
        for line in report.worth_of_fields():
            self._say(f"{'':4}{line}")
        return report, story.example

    def _show_end(self, report: Report, seconds: float) -> None:
        self._say("")
        if (rollback := report.rollback) is not None:
            back, forward = (
                "[green]exactly the scores it gave before[/]" if same else "[bold red]not the scores it gave before[/]"
                for same in (rollback.restored, rollback.forward_restored)
            )
            self._say(
                f"rolled back from version {rollback.from_version} to {rollback.to_version}: {back} "
                f"(the two differ by up to {rollback.largest_change:.3f})"
            )
            self._say(
                f"rolled forward to version {rollback.from_version}: {forward}; meanwhile "
                f"{rollback.requests.served:,} predictions served, {rollback.requests.failed} failed"
            )
        p50, p99 = (report.requests.quantile_ms(fraction) or 0.0 for fraction in (0.5, 0.99))
        self._say(
            f"in all {seconds:.0f} s, {report.requests.served:,} predictions served, {report.requests.failed} failed; "
            f"p50 {p50:.0f} ms, p99 {p99:.0f} ms with updates and clients beside them"
        )
        if self._options.report is not None:
            self._say(f"report: {escape(str(self._options.report))}")

    def _stay(self, url: str, key: str, last: int, example: dict[str, Any], server: Child) -> None:
        lines = [
            "",
            f"API docs: [bold]{url}/docs[/]",
            f"key:      [bold]{key}[/] (all scopes)",
            "",
            f"KEY={key}",
            f'curl -s {url}/predict -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \\',
            f"     -d {escape(shlex.quote(json.dumps(example)))}",
            f'curl -s {url}/periods/{last} -H "Authorization: Bearer $KEY"',
            f'curl -s {url}/admin/models -H "Authorization: Bearer $KEY"',
            "",
            "The service stays up until Ctrl-C; its folder is removed then.",
        ]
        for line in lines:
            self._say(line)
        while not self._stop.requested:
            server.check()
            time.sleep(TICK_SECONDS)


_PLACES = ("ASMG_POSTGRES_DSN", "ASMG_REDIS_URL")


async def _create_key(dsn: str) -> str:
    database = Database(dsn, pool_size=1)
    try:
        _, key = await create_key(database, "demo", SCOPES)
    finally:
        await database.close()
    return key
