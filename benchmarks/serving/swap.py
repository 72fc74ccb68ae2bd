"""`asmg bench serve --during-swap`: versions published one after the other under load.

The load is an open loop, so that a pause at a swap is charged for every request that became due in it. A version is
published once every connection has been answered by the one before and some time has passed without a swap. Latencies
around the swaps are compared with those of that time.
"""

import asyncio
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.http_load.generator import Watched
from benchmarks.http_load.load import Answers, Load
from benchmarks.machine import MB, memory_bytes
from benchmarks.printing import print_line, print_table, progress
from benchmarks.servers import Server, ServerFailed
from benchmarks.services import OwnStores, own_service, own_stores
from benchmarks.serving.model import ServedModel
from benchmarks.serving.model_store import Snapshots, StoredSnapshot, remember, store
from benchmarks.serving.options import ServeOptions
from benchmarks.serving.publishing import publish, publishing_process
from benchmarks.serving.requests import RequestPool, ServingSizes, make_workload
from benchmarks.serving.swap_verdict import Swap, Verdict, judge
from service.processes.stop_request import StopRequest

N = 50
CONNECTIONS = 16
POOL = 200
"""Distinct requests. Their scores by every snapshot are computed beforehand."""
SNAPSHOTS = 4
"""Distinct snapshots; version v is snapshot v % 4."""
CAPACITY_ROUNDS = 3
"""Closed loops, after a first one, whose median rate is the capacity."""

SETTLE_SECONDS = 2.0
"""Seconds before the first publication; the latencies of the first half do not count."""
AFTER_SECONDS = 1.0
"""Requests that become due up to so long after all workers have switched still count as during the swap."""
BETWEEN_SECONDS = 2.0
"""Seconds without a swap that follow."""
SWITCH_SECONDS = 60.0
"""A version that does not answer on every connection after so long has failed."""
POLL_SECONDS = 0.01

DISK_BYTES = 800
"""Disk for each table row: four snapshots in Postgres and in its write-ahead log, and files of the api processes."""
MEMORY_BYTES = 300
"""Memory for each table row: making a snapshot, and the copies in Redis."""

Publish = Callable[[int, StoredSnapshot], "Future[None]"]
"""Begins to publish a snapshot as a version."""

VERSION = re.compile(rb'"model_version":\s*(\d+)')


def need_room(options: ServeOptions, folder: Path) -> None:
    """Raise ValueError where there is too little disk or memory for versions of so many rows."""
    rooms = (
        ("disk", DISK_BYTES, shutil.disk_usage(folder).free),
        ("memory", MEMORY_BYTES, psutil.virtual_memory().available),
    )
    for what, each, free in rooms:
        if (needed := each * options.rows) > free:
            raise ValueError(
                f"rows: expected versions that fit; {options.rows:,} rows need about {needed / 1e9:.1f} GB of {what} "
                f"and {free / 1e9:.1f} GB are free"
            )


def measure_swap(
    options: ServeOptions, folder: Path, stop: StopRequest
) -> dict[str, Any]:  # fmt: skip
    """Publish versions under load; the figures, as plain JSON values.

    Args:
        options: number and size of the versions, and the load.
        folder: empty; receives everything that is written.
        stop: ends the measurement.

    Raises:
        Interrupted: the user wants the program to end.
        ServerFailed: the service did not start, or a version never answered.
    """
    sizes = ServingSizes(users=options.rows // 2, items=options.rows - options.rows // 2)
    workload = make_workload(sizes, options.seed, active=POOL)
    pool, workers = workload.requests(N, POOL), options.workers[0]
    progress("swap: installing the service")
    with own_stores(folder) as stores:
        remember(stores, workload)
        made = _make_snapshots(stores, sizes, pool, options, stop)
        publish(stores.settings, 1, made.stored[1 % SNAPSHOTS])
        progress("swap: starting the service")
        with own_service(stores, api_workers=workers, version=1, stop=stop) as server, publishing_process() as process:
            process.submit(int).result()  # started, so that no publication waits for that
            requests = pool.encode(stores.key)
            capacity = _capacity(server, requests, options)
            rate = options.rate or options.open_loop * capacity
            progress(f"swap: {options.versions} versions at {rate:,.0f} requests a second")
            course = _Course(
                lambda *given: process.submit(publish, stores.settings, *given), made.stored, options.versions
            )
            load = _endless(requests, rate, options.versions)
            answers = server.ask(load, beside=course.run)
            memory = memory_bytes(server.processes())
        progress(f"swap: checking {len(answers.bodies):,} answers")
        verdict = judge(answers, course.swaps, made.expected, course.settled, AFTER_SECONDS, stop.check)
    return {
        **_document(answers, verdict),
        "rows": options.rows,
        "fetched": options.fetch,
        "snapshot_mb": made.bytes / MB,
        "n": N,
        "concurrency": CONNECTIONS,
        "workers": workers,
        "capacity_rps": capacity,
        "rate": rate,
        "memory_mb": memory / MB,
    }


@dataclass
class _Made:
    """The snapshots that were stored."""

    stored: list[StoredSnapshot] = field(default_factory=list)
    expected: list[NDArray[np.float64]] = field(default_factory=list)
    """The scores of the requests by each, [R, n]."""
    bytes: int = 0
    """Size of the largest."""


def _make_snapshots(
    stores: OwnStores,
    sizes: ServingSizes,
    pool: RequestPool,
    options: ServeOptions,
    stop: StopRequest,
) -> _Made:
    made = _Made()
    snapshots = Snapshots(sizes, stores.folder)
    for number in range(SNAPSHOTS):
        stop.check()
        progress(f"swap: making snapshot {number + 1} of {SNAPSHOTS}")
        model = ServedModel.random(sizes, SNAPSHOTS * options.seed + number)
        made.expected.append(model.scores(pool))
        snapshot = snapshots.make(model)
        made.bytes = max(made.bytes, snapshot.size)
        made.stored.append(store(stores, snapshot, here=not options.fetch))
    return made


def _capacity(server: Server, requests: list[bytes], options: ServeOptions) -> float:
    """Requests a second of a closed loop: the median of several loops after a first one."""
    found = []
    for _ in range(1 + CAPACITY_ROUNDS):
        load = Load(
            requests=requests, connections=CONNECTIONS, count=max(options.requests, POOL), seconds=options.seconds
        )
        answers = server.ask(load)
        if answers.failed or not answers.seconds:
            raise ServerFailed(f"the service failed before anything was swapped: {dict(answers.faults)}")
        found.append(len(answers.done) / answers.seconds)
    return median(found[1:])


def _endless(requests: list[bytes], rate: float, versions: int) -> Load:
    """A load that lasts longer than all publications can take."""
    seconds = SETTLE_SECONDS + versions * (2 * SWITCH_SECONDS)
    return Load(
        requests=requests,
        connections=CONNECTIONS,
        count=int(rate * seconds) + 1,
        seconds=seconds,
        rate=rate,
        keep_bodies=True,
    )


class _Course:
    """Publishes one version after the other beside a load."""

    def __init__(self, publish: Publish, snapshots: list[StoredSnapshot], versions: int) -> None:
        self._publish, self._snapshots, self._versions = publish, snapshots, versions
        self.settled = 0.0
        """From this moment on latencies count."""
        self.swaps: list[Swap] = []

    async def run(self, watched: Watched) -> None:
        """Publish version 2 and the following ones."""
        await asyncio.sleep(SETTLE_SECONDS / 2)
        self.settled = time.perf_counter()
        await asyncio.sleep(SETTLE_SECONDS / 2)
        for version in range(2, self._versions + 2):
            published = time.perf_counter()
            publication = self._publish(version, self._snapshots[version % len(self._snapshots)])
            await self._until(publication.done, published, f"version {version} was not published")
            publication.result()
            await self._until(
                lambda version=version: _all_serve(watched, version),  # type: ignore[misc]
                published,
                f"version {version} was published, but not every connection is answered by it",
            )
            self.swaps.append(Swap(version, published, time.perf_counter()))
            await asyncio.sleep(AFTER_SECONDS + BETWEEN_SECONDS)

    async def _until(self, condition: Callable[[], bool], since: float, otherwise: str) -> None:
        while not condition():
            if time.perf_counter() > since + SWITCH_SECONDS:
                raise ServerFailed(f"{otherwise} {SWITCH_SECONDS:.0f} s later")
            await asyncio.sleep(POLL_SECONDS)


def _all_serve(watched: Watched, version: int) -> bool:
    """Whether the last answer on every connection is of this version: then each worker with a connection serves it."""
    for body in watched.latest():
        match = VERSION.search(body) if body is not None else None
        if match is None or int(match[1]) < version:
            return False
    return True


def _document(answers: Answers, verdict: Verdict) -> dict[str, Any]:
    during, between = verdict.during, verdict.between
    return {
        "versions": len(verdict.swaps),
        "requests": len(answers.done) + answers.failed,
        "failed": answers.failed,
        "faults": dict(answers.faults),
        "mixed": verdict.mixed,
        "mixed_faults": dict(verdict.faults),
        "went_back": verdict.went_back,
        "p99_ratio": during.p99_ms / between.p99_ms if during.p99_ms and between.p99_ms else None,
        **{f"{name}_during_ms": getattr(during, f"{name}_ms") for name in ("p50", "p99", "max")},
        **{f"{name}_between_ms": getattr(between, f"{name}_ms") for name in ("p50", "p99", "max")},
        "requests_during": during.requests,
        "requests_between": between.requests,
        "waited_p99_ms": verdict.waited_p99_ms,
        "generator_late_p99_ms": verdict.late_p99_ms,
        "switch_seconds": [swap.switched - swap.published for swap in verdict.swaps],
        "last_old_seconds": verdict.last_old,
    }


def print_swap(found: dict[str, Any]) -> None:
    """Print the figures."""

    def ms(name: str) -> str:
        return "-" if found[name] is None else f"{found[name]:.2f}"

    print_table(
        f"{found['versions']} versions of {found['rows']:,} rows ({found['snapshot_mb']:,.0f} MB) under load, "
        f"{'fetched from Postgres' if found['fetched'] else 'left by a worker of this host'}",
        ("requests due", "count", "p50 ms", "p99", "max"),
        [
            (f"{when} swaps", f"{found[f'requests_{when}']:,}", *(ms(f"{q}_{when}_ms") for q in ("p50", "p99", "max")))
            for when in ("during", "between")
        ],
    )
    ratio = "-" if found["p99_ratio"] is None else f"{found['p99_ratio']:.2f}"
    print_line(
        f"p99 during swaps / between: {ratio}. {found['failed']:,} failed, {found['mixed']:,} mixed of "
        f"{found['requests']:,} requests: {found['n']} items, {found['concurrency']} connections, {found['workers']} "
        f"workers, {found['rate']:,.0f} a second of a capacity of {found['capacity_rps']:,.0f}."
    )
    if found["switch_seconds"]:
        print_line(
            f"From a publication until the last answer of the version before: median "
            f"{median(found['last_old_seconds']):.2f} s, at most {max(found['last_old_seconds']):.2f} s; all processes "
            f"of the service had {found['memory_mb']:,.0f} MB in the end. During: due from a publication until "
            f"{AFTER_SECONDS:g} s after every connection had been answered by the new version."
        )
    for what, faults in (("failed", found["faults"]), ("mixed", found["mixed_faults"])):
        for fault, count in faults.items():
            print_line(f"{what}: {count:,} × {fault}")
