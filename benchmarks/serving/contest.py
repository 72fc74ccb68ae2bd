"""Measures all cells of `asmg bench serve`: each variant started, checked and measured in turn, round after round."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.http_load.load import Load
from benchmarks.measuring import in_turn
from benchmarks.printing import progress
from benchmarks.servers import Server, ServerFailed, environment_without_settings, free_port
from benchmarks.services import OwnStores, own_service, own_stores
from benchmarks.serving.answers import WrongAnswers, check_scores, like_ours
from benchmarks.serving.cells import measure
from benchmarks.serving.fields import make_fields
from benchmarks.serving.model import ServedModel, random_statistics
from benchmarks.serving.model_store import Snapshots, remember, store
from benchmarks.serving.options import NOOP, OURS, VARIANTS, Cell, Reads, ServeOptions, Variant
from benchmarks.serving.peers.noop import write_answers
from benchmarks.serving.peers.tutorial import save_model
from benchmarks.serving.publishing import publish
from benchmarks.serving.requests import make_workload
from service.processes.stop_request import StopRequest

POOL = 1_000
"""Distinct requests for each number of candidates."""
CHECKED = 20
"""How many of them have their answers checked before anything is measured."""
WARM_CONNECTIONS = 16
VERSION = 1

CLOSED, OPEN = "closed", "open"

Key = tuple[str, Cell, str]
"""Variant, cell and loop of a measurement."""


@dataclass(frozen=True)
class _Running:
    """A variant that runs."""

    variant: Variant
    server: Server
    requests: dict[int, list[bytes]]
    """Its requests by their number of candidates."""


class Contest:
    """All measurements of the cells.

    Args:
        options: what to measure.
        folder: empty; receives everything that is written.
        stop: ends the measurements.
    """

    def __init__(self, options: ServeOptions, folder: Path, stop: StopRequest) -> None:
        self._options, self._folder, self._stop = options, folder, stop
        self._variants = [VARIANTS[name] for name in options.names]
        self._workload = make_workload(options.sizes, options.seed)
        self._pools = {n: self._workload.requests(n, POOL) for n in options.items}
        self._fields = self._contexts = None
        if options.fields is not None:
            self._fields = make_fields(options.fields, options.sizes.users, options.sizes.items, options.seed)
            self._contexts = self._fields.contexts(POOL)
        self._expected: dict[Reads, dict[int, NDArray[np.float64]]] = {}
        self._samples: dict[int, bytes] = {}
        """By number of candidates, an answer of the real service; the no-op answers with as many bytes."""
        self._stores: dict[str, OwnStores] = {}
        self.raw: dict[Key, list[dict[str, Any]]] = defaultdict(list)
        """What was measured, an entry for each round."""
        self.left_out: dict[str, str] = {
            variant.name: "not installed (pip install 'asmg-service[peers]')"
            for variant in self._variants
            if not variant.installed
        }
        """Why a variant has no figures, or not those of all rounds."""

    def play(self) -> None:
        """Measure everything into `raw` and `left_out`.

        Raises:
            Interrupted: the user wants the program to end.
        """
        options = self._options
        model = ServedModel.random(options.sizes, options.seed)
        save_model(self._folder, model.params, self._workload)
        self._expect((False, False), model)
        with ExitStack() as stack:
            for variant in self._variants:
                if variant.file is None:
                    progress(f"installing the service: {variant.name}")
                    self._stores[variant.name] = stack.enter_context(self._installed(variant))
            for number in range(options.rounds):
                for workers in options.workers:
                    self._play_round(number, workers)

    @contextmanager
    def _installed(self, variant: Variant) -> Iterator[OwnStores]:
        """The stores of a variant of the real service, with its model and its users' clicks."""
        sizes, seed = self._options.sizes, self._options.seed
        statistics = random_statistics(sizes, seed) if variant.statistics else None
        fields = self._fields if variant.fields else None
        model = ServedModel.random(sizes, seed, statistics=statistics, fields=fields)
        self._expect(variant.reads, model)
        (folder := self._folder / f"{self._variants.index(variant)}").mkdir()  # short, for the sockets in it
        with own_stores(folder, schema=None if fields is None else fields.schema) as stores:
            publish(stores.settings, VERSION, store(stores, Snapshots(sizes, folder).make(model)))
            remember(stores, self._workload, fields)
            yield stores

    def _expect(self, reads: Reads, model: ServedModel) -> None:
        contexts = (self._contexts or [])[:CHECKED]
        self._expected[reads] = {n: model.scores(pool.first(CHECKED), contexts) for n, pool in self._pools.items()}

    def _play_round(self, number: int, workers: int) -> None:
        """Light servers run side by side and take turns in each cell; the peers run one after the other."""
        where = f"round {number + 1} of {self._options.rounds}, {workers} workers"
        with ExitStack() as stack:
            light = [variant for variant in self._variants if variant.package is None]
            running = [r for v in light if (r := stack.enter_context(self._started(v, workers, where))) is not None]
            self._measure(running, workers, number, where)
            for one in running:
                if one.variant.name == OURS:
                    self._measure_open(one, workers, number, where)
        for variant in self._variants:
            if variant.package is not None:
                with self._started(variant, workers, where) as peer:
                    if peer is not None:
                        self._measure([peer], workers, number, where)

    def _measure(self, running: Sequence[_Running], workers: int, number: int, where: str) -> None:
        for i, cell in enumerate(self._options.cells(VARIANTS[OURS], workers)):
            for one in in_turn(running, number + i):
                if cell in self._options.cells(one.variant, workers):
                    progress(f"{where}: {one.variant.name}, {cell.n} items, {cell.concurrency} connections")
                    self._measure_one(one, cell, number)

    def _measure_open(self, one: _Running, workers: int, number: int, where: str) -> None:
        """Measure an open loop for each number of candidates, at a share of the round's best closed loop."""
        options = self._options
        for n in options.items:
            rates = [
                entry["rps"]
                for (name, cell, loop), entries in self.raw.items()
                for entry in entries
                if (name, cell.n, cell.workers, loop, entry["round"]) == (OURS, n, workers, CLOSED, number)
            ]
            if rate := options.rate or options.open_loop * max(rates, default=0.0):
                progress(f"{where}: {OURS}, {n} items, open loop of {rate:,.0f} requests a second")
                self._measure_one(one, Cell(n, max(options.concurrency), workers), number, rate)

    def _measure_one(self, one: _Running, cell: Cell, number: int, rate: float | None = None) -> None:
        options, name = self._options, one.variant.name
        if name in self.left_out:
            return
        stores = self._stores[name].processes() if name in self._stores else []
        try:
            entry = measure(one.server, one.requests[cell.n], cell, options, rate=rate, stores=stores)
        except ServerFailed as error:
            self.left_out[name] = str(error)
            return
        self.raw[name, cell, CLOSED if rate is None else OPEN].append({"round": number, **entry})

    # --- starting

    @contextmanager
    def _started(self, variant: Variant, workers: int, where: str) -> Iterator[_Running | None]:
        """The running variant, whose scores are right; None where it has no cells or is left out."""
        if variant.name in self.left_out or not self._options.cells(variant, workers):
            yield None
            return
        progress(f"{where}: starting {variant.name}")
        with ExitStack() as stack:
            try:
                one = self._start(variant, workers, stack)
            except (ServerFailed, WrongAnswers) as error:
                self.left_out[variant.name] = str(error)
                one = None
            yield one

    def _start(self, variant: Variant, workers: int, stack: ExitStack) -> _Running:
        key = next((self._stores[name].key for name in (variant.name, *self._stores) if name in self._stores), "none")
        contexts = self._contexts if variant.fields else None
        requests = {
            n: pool.encode(key, before=variant.before, after=variant.after, contexts=contexts)
            for n, pool in self._pools.items()
        }
        if variant.name in self._stores:
            stores = self._stores[variant.name]
            server = stack.enter_context(
                own_service(stores, api_workers=workers, version=VERSION, stop=self._stop, name=variant.name)
            )
            every_user = self._workload.one_each().encode(key)  # so that no history is looked up for the first time
            seconds, count = self._options.seconds, len(every_user)
            server.ask(Load(requests=every_user, connections=WARM_CONNECTIONS, count=count, seconds=seconds))
        else:
            if variant.name == NOOP:
                write_answers(self._folder, [self._noop_answer(n) for n in self._pools])
            first = requests[self._options.items[0]][0]
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
            stop=self._stop,
        )

    def _check(self, one: _Running) -> None:
        """Compare some answers with the scores of the torch model; keep one of the real service."""
        for n, expected in self._expected[one.variant.reads].items():
            few = one.requests[n][:CHECKED]
            found = one.server.ask(Load(requests=few, connections=1, count=CHECKED, seconds=30.0, keep_bodies=True))
            if found.failed:
                raise WrongAnswers(f"expected an answer to every request for {n} items; received {dict(found.faults)}")
            check_scores(found.bodies, expected)
            if one.variant.name == OURS:
                self._samples[n] = sorted(found.bodies, key=len)[CHECKED // 2]

    def _noop_answer(self, n: int) -> tuple[int, bytes]:
        """The longest body of a request for n candidates, and a response body as long as the real service's."""
        longest = max(len(request.partition(b"\r\n\r\n")[2]) for request in self._pools[n].encode(""))
        return longest, self._samples.get(n) or like_ours(self._expected[False, False][n][0])
