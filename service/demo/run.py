"""`asmg demo`, from its options to its exit code: start a service, play the scenario, print the results."""

import json
import logging
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
from service.demo.comparison import ComparisonModels
from service.demo.local_service import LocalService, local_service
from service.demo.report import API_NAMES, Report
from service.demo.scenario import Scenario
from service.demo.streams import BEST, SYNTHETIC_PERIODS, Stream, folder_stream, synthetic_stream
from service.errors import ServiceError
from service.processes.stop_request import INTERRUPTED, Interrupted, StopRequest
from service.settings import Settings

__all__ = ["DEMO_DRIFT", "DemoOptions", "run_demo"]

LOOPBACK = "127.0.0.1"

TICK_SECONDS = 0.1
"""Seconds between two looks at the service while the demo stays up."""

FEATURES = "features.toml"
"""Name of the file with the schema of the fields, in the temporary folder."""

DEMO_DRIFT = DriftConfig(users=1_000, items=300, events=20_000, categories=8, fields=True)
"""The synthetic stream; few events for each user and item, so that past models know something that one period lacks."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What to play, and how the demo ends."""

    periods: int | None = None
    """Number of periods; None for 8 of the synthetic stream, all of DIGINETICA, 31 of MovieLens."""
    data: Path | None = None
    """Folder of a public collection to play; None for the synthetic stream."""
    report: Path | None = None
    """File for all numbers, as JSON."""
    exit: bool = False
    """End after the last period instead of staying up."""
    seed: int = 0
    """Seed of the stream, the negatives, the requests and the updates."""
    workers: int = 2
    """Number of api processes."""
    port: int = 8000
    """Port of the service; if it is in use, a free one is taken."""
    drift: DriftConfig = DEMO_DRIFT
    """The synthetic stream."""


def run_demo(options: DemoOptions) -> int:
    """Play the demo; its servers and its folder are gone when it returns.

    Returns:
        the exit code: 0 if all went well, 1 if not, 130 if the demo was interrupted.

    Raises:
        LogFormatError, OSError: the data folder or the report file cannot be used.
        ServiceError: a part of the service failed.
    """
    logging.getLogger().setLevel(logging.WARNING)  # the standard output says what happens
    console = make_console()
    if options.report is not None:
        options.report.open("a").close()  # fails now if it cannot be written, not minutes later
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
        self._print("starting Postgres, Redis, the api and the worker in a temporary folder")
        with local_service(self._settings, self._folder / "serve.log", self._stop) as service:
            try:
                seconds = time.monotonic() - started
                self._print(f"[bold]{service.url}[/] answers after {seconds:.0f} s; playing {stream.name}")
                report, example = self._play(stream, service)
                self._print_summary(report, time.monotonic() - started)
                if self._options.report is not None:
                    self._options.report.write_text(json.dumps(report.to_json(), indent=2) + "\n")
                if not self._options.exit:
                    self._stay_up(service, report.periods[-1].period, example)
            except ServiceError:
                service.process.check()  # if the service has ended, that is the error to report
                raise
            finally:
                self._print("stopping")
        for problem in report.problems:
            print(f"asmg: {problem}", file=sys.stderr)
        return 1 if report.problems else 0

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _free_port(self) -> int:
        """The port asked for, or 0 if another program has it."""
        with suppress(OSError), socket.create_server((LOOPBACK, self._options.port)):
            return self._options.port
        self._print(f"port {self._options.port} is taken; another one is used")
        return 0

    def _stream(self) -> Stream:
        options = self._options
        if options.data is None:
            return synthetic_stream(options.drift, options.periods or SYNTHETIC_PERIODS, options.seed)
        self._print(f"reading {escape(str(options.data))}")
        stream = folder_stream(options.data, options.periods, options.seed)
        self._stop.check()
        return stream

    def _play(self, stream: Stream, service: LocalService) -> tuple[Report, dict[str, Any]]:
        """Play the stream; return the report, and an example of a prediction request."""
        comparison = ComparisonModels(stream.schema, self._options.seed)
        models = [*API_NAMES, comparison.name, *([BEST] if stream.name == "synthetic" else [])]
        lines = ScoreLines(self._console, models, requests=True)
        self._print("")
        lines.header()
        with StageBar(self._console) as bar:
            scenario = Scenario(service.url, service.key, bar, self._options.seed, comparison)
            report = self._stop.run(
                lambda: service.process.beside(
                    scenario.play(stream, self._options.seed, lambda period: lines.period(period.line()))
                )
            )
        means = report.to_json()["means"]
        if means["periods"]:
            first, last = means["periods"][0], means["periods"][-1]
            lines.means(f"mean of {first}-{last}", means["auc"], means["logloss"])
        for line in report.value_of_fields():
            self._print(f"{'':4}{line}")
        return report, scenario.example

    def _print_summary(self, report: Report, seconds: float) -> None:
        """Print the rollback and the totals; `seconds` is how long the demo has run."""
        self._print("")
        if (rollback := report.rollback) is not None:
            back, forward = (
                "[green]exactly the scores it gave before[/]" if same else "[bold red]not the scores it gave before[/]"
                for same in (rollback.restored, rollback.forward_restored)
            )
            self._print(
                f"rolled back from version {rollback.from_version} to {rollback.to_version}: {back} "
                f"(the two differ by up to {rollback.largest_change:.3f})"
            )
            self._print(
                f"rolled forward to version {rollback.from_version}: {forward}; meanwhile "
                f"{rollback.requests.served:,} predictions served, {rollback.requests.failed} failed"
            )
        p50, p99 = (report.requests.quantile_ms(fraction) or 0.0 for fraction in (0.5, 0.99))
        self._print(
            f"in all {seconds:.0f} s, {report.requests.served:,} predictions served, {report.requests.failed} failed; "
            f"p50 {p50:.0f} ms, p99 {p99:.0f} ms with updates and clients beside them"
        )
        if self._options.report is not None:
            self._print(f"report: {escape(str(self._options.report))}")

    def _stay_up(self, service: LocalService, last: int, example: dict[str, Any]) -> None:
        """Print how to call the service, and return after a signal; `last` is the last period."""
        url, key = service.url, service.key
        lines = [
            "",
            f"console:  [bold]{url}/console[/]",
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
            self._print(line)
        while not self._stop.requested:
            service.process.check()
            time.sleep(TICK_SECONDS)
