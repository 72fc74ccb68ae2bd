"""The cells of one run: every variant started, checked and measured in turn, round after round."""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asmg.models import Params
from asmg.statistics import Statistics
from benchmarks.serving.answers import WrongAnswers, check_scores, like_ours
from benchmarks.serving.fields import ServingFields, make_fields
from benchmarks.serving.load import Load
from benchmarks.serving.measuring import measure
from benchmarks.serving.options import NOOP, OURS, VARIANTS, Cell, Model, ServeOptions, Variant
from benchmarks.serving.ours import Installation, Snapshots, served_version
from benchmarks.serving.peers.noop import write_answers
from benchmarks.serving.servers import Server, ServerFailed, environment_without_settings, free_port
from benchmarks.serving.workload import (
    WITH_FIELDS,
    WITH_STATISTICS,
    expected_scores,
    make_workload,
    random_params,
    random_statistics,
    save_model,
)
from service.processes.stop_request import StopRequest

__all__ = ["CLOSED", "OPEN", "Contest", "Key", "service_server", "wait_for_version"]

POOL = 1_000
"""Distinct requests for each number of items."""
CHECKED = 20
"""Of them have their answers checked before anything is measured."""
WARM_CONNECTIONS = 16
VERSION = 1

CLOSED, OPEN = "closed", "open"

Key = tuple[str, Cell, str]
"""Variant, cell and loop of a measurement."""


@dataclass(frozen=True)
class _Running:
    """A variant that has started."""

    variant: Variant
    server: Server
    requests: dict[int, list[bytes]]
    """By their number of items."""


class Contest:
    """All measurements of the cells.

    Args:
        options: what to measure.
        folder: for everything that is written.
        stop: ends it.
        say: is told what goes on.
    """

    def __init__(self, options: ServeOptions, folder: Path, stop: StopRequest, say: Callable[[str], None]) -> None:
        self._options, self._folder, self._stop, self._say = options, folder, stop, say
        self._variants = [VARIANTS[name] for name in options.names]
        self.raw: dict[Key, list[dict[str, Any]]] = defaultdict(list)
        """What was found, one entry for each round."""
        self.left_out: dict[str, str] = {
            variant.name: "not installed (pip install 'asmg-service[peers]')"
            for variant in self._variants
            if not variant.installed
        }
        """Why a variant has no figures, or not those of all rounds."""

    def play(self) -> None:
        """Measure everything; `raw` and `left_out` have it.

        Raises:
            Interrupted: the user wants the program to end.
        """
        options = self._options
        self._say("making the model and the requests")
        self._workload = make_workload(options.sizes, options.seed)
        params = random_params(options.sizes, options.seed)
        save_model(self._folder, params, self._workload)
        self._pools = {n: self._workload.requests(n, POOL) for n in options.items}
        self._contexts = self._fields = None
        if options.fields is not None:
            self._fields = make_fields(options.fields, options.sizes.users, options.sizes.items, options.seed)
            self._contexts = self._fields.contexts(POOL)
        self._expected: dict[Model, dict[int, NDArray[np.float64]]] = {}
        self._expect((False, False), params, None)
        self._samples: dict[int, bytes] = {}
        self._installations: dict[str, Installation] = {}
        with ExitStack() as stack:
            for variant in self._variants:
                if variant.file is None:
                    self._say(f"installing the service: {variant.name}")
                    self._installations[variant.name] = stack.enter_context(self._installed(variant, params))
            for number in range(options.rounds):
                for workers in options.workers:
                    self._play_round(number, workers)

    @contextmanager
    def _installed(self, variant: Variant, params: Params) -> Iterator[Installation]:
        """The service with the model in its log and its tables."""
        sizes, seed, statistics = self._options.sizes, self._options.seed, None
        fields = self._fields if variant.fields else None
        if variant.statistics:
            model = WITH_STATISTICS if fields is None else WITH_FIELDS
            params = random_params(sizes, seed, model, 0 if fields is None else fields.size)
            statistics = random_statistics(sizes, seed)
            self._expect(variant.model, params, statistics, fields)
        (folder := self._folder / f"{self._variants.index(variant)}").mkdir()  # short, for the sockets in it
        with Installation(folder, fields) as installation:
            snapshot = Snapshots(sizes, folder).make(params, statistics, fields)
            installation.publish(VERSION, installation.store(snapshot))
            installation.remember(self._workload)
            yield installation

    def _expect(
        self, model: Model, params: Params, statistics: Statistics | None, fields: ServingFields | None = None
    ) -> None:
        self._expected[model] = {}
        for n, pool in self._pools.items():
            few, sums = pool.first(CHECKED), None
            if fields is not None and self._contexts is not None:
                sums = fields.sums(params["field"], self._contexts[:CHECKED], few.users, few.items)
            self._expected[model][n] = expected_scores(params, few, statistics, sums)

    def _play_round(self, number: int, workers: int) -> None:
        """Those of no great weight stay up and are measured in turn for each cell, the others one after the other."""
        where = f"round {number + 1} of {self._options.rounds}, {workers} workers"
        with ExitStack() as stack:
            quick = [variant for variant in self._variants if variant.package is None]
            running = [r for v in quick if (r := stack.enter_context(self._started(v, workers, where))) is not None]
            self._measure(running, workers, number, where)
            for one in running:
                if one.variant.name == OURS:
                    self._measure_open(one, workers, number, where)
        for variant in self._variants:
            if variant.package is not None:
                with self._started(variant, workers, where) as one_running:
                    if one_running is not None:
                        self._measure([one_running], workers, number, where)

    def _measure(self, running: Sequence[_Running], workers: int, number: int, where: str) -> None:
        for i, cell in enumerate(self._options.cells(VARIANTS[OURS], workers)):
            turn = (number + i) % max(len(running), 1)
            for one in (*running[turn:], *running[:turn]):  # everyone is first at times
                if cell in self._options.cells(one.variant, workers):
                    self._say(f"{where}: {one.variant.name}, {cell.n} items, {cell.concurrency} connections")
                    self._measure_one(one, cell, number)

    def _measure_open(self, one: _Running, workers: int, number: int, where: str) -> None:
        options = self._options
        if not options.open_loop and options.rate is None:
            return
        for n in options.items:
            found = [
                entry["rps"]
                for (name, cell, loop), entries in self.raw.items()
                for entry in entries
                if (name, cell.n, cell.workers, loop, entry["round"]) == (OURS, n, workers, CLOSED, number)
            ]
            if rate := options.rate or options.open_loop * max(found, default=0.0):
                self._say(f"{where}: {OURS}, {n} items, open loop of {rate:,.0f} requests a second")
                self._measure_one(one, Cell(n, max(options.concurrency), workers), number, rate)

    def _measure_one(self, one: _Running, cell: Cell, number: int, rate: float | None = None) -> None:
        options, name = self._options, one.variant.name
        if name in self.left_out:
            return
        stores = self._installations[name].store_processes() if name in self._installations else []
        try:
            entry = measure(one.server, one.requests[cell.n], cell, options, rate=rate, stores=stores)
        except ServerFailed as error:
            self.left_out[name] = str(error)
            return
        self.raw[name, cell, CLOSED if rate is None else OPEN].append({"round": number, **entry})

    # --- starting

    @contextmanager
    def _started(self, variant: Variant, workers: int, where: str) -> Iterator[_Running | None]:
        """The variant, whose answers are right; None where it has no cells or is left out."""
        if variant.name in self.left_out or not self._options.cells(variant, workers):
            yield None
            return
        self._say(f"{where}: starting {variant.name}")
        with ExitStack() as stack:
            try:
                one = self._start(variant, workers, stack)
            except (ServerFailed, WrongAnswers) as error:
                self.left_out[variant.name] = str(error)
                one = None
            yield one

    def _start(self, variant: Variant, workers: int, stack: ExitStack) -> _Running:
        keys = {name: installation.key for name, installation in self._installations.items()}
        key = keys.get(variant.name, next(iter(keys.values()), "none"))
        around = {"before": variant.before, "after": variant.after}
        contexts = self._contexts if variant.fields else None
        requests = {n: p.encode(key, **around, contexts=contexts) for n, p in self._pools.items()}
        first = requests[self._options.items[0]][0]
        if variant.name in self._installations:
            installation = self._installations[variant.name]
            server = stack.enter_context(service_server(installation, self._folder, workers, self._stop, variant.name))
            wait_for_version(server, VERSION)
            everyone = self._workload.one_each().encode(key)  # so that no history is looked up for the first time
            load = Load(
                requests=everyone, connections=WARM_CONNECTIONS, count=len(everyone), seconds=self._options.seconds
            )
            server.ask(load)
        else:
            if variant.name == NOOP:
                write_answers(self._folder, [self._noop_answer(n) for n in self._pools])
            server = stack.enter_context(self._peer_server(variant, workers))
            server.wait_ready(lambda: server.answers(first) is not None)
        one = _Running(variant, server, requests)
        if variant.name != NOOP:
            self._check(one)
        return one

    def _peer_server(self, variant: Variant, workers: int) -> Server:
        port = free_port()
        options = ["--folder", str(self._folder), "--port", str(port), "--workers", str(workers)]
        command = [sys.executable, "-m", f"benchmarks.serving.peers.{variant.file}", *options]
        return Server(
            variant.name,
            [*command, "--batching"] if variant.batching else command,
            port,
            environment={**environment_without_settings(), "OMP_NUM_THREADS": "1", "TMPDIR": str(self._folder)},
            log=self._folder / f"{variant.name}.log",
            check=self._stop.check,
            hurried=lambda: self._stop.hurried,
        )

    def _check(self, one: _Running) -> None:
        for n, expected in self._expected[one.variant.model].items():
            load = Load(
                requests=one.requests[n][:CHECKED], connections=1, count=CHECKED, seconds=30.0, keep_bodies=True
            )
            found = one.server.ask(load)
            if found.failed:
                raise WrongAnswers(f"expected an answer to every request for {n} items; received {dict(found.faults)}")
            check_scores(found.bodies, expected)
            if one.variant.name == OURS:
                self._samples[n] = sorted(found.bodies, key=len)[CHECKED // 2]

    def _noop_answer(self, n: int) -> tuple[int, bytes]:
        """For requests of up to so many bytes, a body of the length that the real service's have."""
        longest = max(len(request.partition(b"\r\n\r\n")[2]) for request in self._pools[n].encode(""))
        return longest, self._samples.get(n) or like_ours(self._expected[False, False][n][0])


def service_server(
    installation: Installation, folder: Path, workers: int, stop: StopRequest, name: str = OURS
) -> Server:
    """The api processes of an installation."""
    port = free_port()
    return Server(
        name,
        installation.command(workers, port),
        port,
        environment=installation.environment(),
        log=folder / f"{name}.log",
        check=stop.check,
        hurried=lambda: stop.hurried,
    )


def wait_for_version(server: Server, version: int) -> None:
    """Return when the service is ready to answer with a version.

    Raises:
        ServerFailed: it is not in time.
    """
    server.wait_ready(lambda: served_version(server.target.port) == version)
