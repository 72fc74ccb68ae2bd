"""`asmg bench serve --during-swap`: versions published one after the other while the service is asked all the time.

The load is an open loop, so that a pause at a swap is charged for every request that became due in it. A version is
published when every connection has been answered by the one before, and some time has passed in which nothing happened:
latencies in that time are what those around a swap are compared with.
"""

import asyncio
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.printing import Printer
from benchmarks.serving.contest import service_server, wait_for_version
from benchmarks.serving.generator import Watched
from benchmarks.serving.load import Answers, Load
from benchmarks.serving.options import ServeOptions
from benchmarks.serving.ours import Installation, Publisher, Snapshots
from benchmarks.serving.servers import Server, ServerFailed, memory_bytes
from benchmarks.serving.verdict import Swap, Verdict, judge
from benchmarks.serving.workload import RequestPool, ServingSizes, expected_scores, make_workload, random_params
from service.processes.stop_request import StopRequest

__all__ = ["measure_swap", "need_room", "print_swap"]

N = 50
CONNECTIONS = 16
POOL = 200
"""Distinct requests, whose scores by every snapshot are known beforehand."""
SNAPSHOTS = 4
"""Distinct ones; version v is the snapshot v % 4."""
CAPACITY_ROUNDS = 3

SETTLE_SECONDS = 2.0
"""Before the first publication."""
AFTER_SECONDS = 1.0
"""What becomes due so long after all workers have switched still counts as during the swap."""
BETWEEN_SECONDS = 2.0
"""Then nothing happens for so long."""
SWITCH_SECONDS = 60.0
"""A version that does not answer on every connection after so long never will."""
POLL_SECONDS = 0.01

DISK_BYTES = 800
"""For each table row: four snapshots in Postgres, what it logs of them, and the files that the api processes map."""
MEMORY_BYTES = 300
"""For each table row: making a snapshot, and the hot copies in Redis."""

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
    options: ServeOptions, folder: Path, stop: StopRequest, say: Callable[[str], None]
) -> dict[str, Any]:  # fmt: skip
    """Publish versions under load; what came of it, as plain JSON values.

    Args:
        options: how many, how large, and how much load.
        folder: empty; everything is written there.
        stop: ends it.
        say: is told what goes on.

    Raises:
        Interrupted: the user wants the program to end.
        ServerFailed: the service did not start, or a version never answered.
    """
    sizes = ServingSizes(users=options.rows // 2, items=options.rows - options.rows // 2)
    workload = make_workload(sizes, options.seed, active=POOL)
    pool, workers = workload.requests(N, POOL), options.workers[0]
    say("swap: installing the service")
    with Installation(folder) as installation:
        installation.remember(workload)
        made = _make_snapshots(installation, folder, sizes, pool, options, stop, say)
        installation.publish(1, made.digests[1 % SNAPSHOTS])
        say("swap: starting the service")
        with service_server(installation, folder, workers, stop) as server, Publisher(installation) as publisher:
            wait_for_version(server, 1)
            requests = pool.encode(installation.key)
            capacity = _capacity(server, requests, options)
            rate = options.rate or options.open_loop * capacity
            say(f"swap: {options.versions} versions at {rate:,.0f} requests a second")
            course = _Course(publisher, made.digests, options.versions, say)
            load = _endless(requests, rate, options.versions)
            answers = server.ask(load, beside=course.run)
            memory = memory_bytes(server.processes())
        say(f"swap: checking {len(answers.bodies):,} answers")
        verdict = judge(answers, course.swaps, made.expected, course.settled, AFTER_SECONDS, stop.check)
    return {
        **_document(answers, verdict),
        "rows": options.rows,
        "fetched": options.fetch,
        "snapshot_mb": made.bytes / 1e6,
        "n": N,
        "concurrency": CONNECTIONS,
        "workers": workers,
        "capacity_rps": capacity,
        "rate": rate,
        "memory_mb": memory / 1e6,
    }


@dataclass
class _Made:
    """The snapshots that were stored."""

    digests: list[str] = field(default_factory=list)
    expected: list[NDArray[np.float64]] = field(default_factory=list)
    """The scores of the pool by each, [R, n]."""
    bytes: int = 0
    """Of the largest."""


def _make_snapshots(
    installation: Installation,
    folder: Path,
    sizes: ServingSizes,
    pool: RequestPool,
    options: ServeOptions,
    stop: StopRequest,
    say: Callable[[str], None],
) -> _Made:
    made = _Made()
    snapshots = Snapshots(sizes, folder)
    for number in range(SNAPSHOTS):
        stop.check()
        say(f"swap: making snapshot {number + 1} of {SNAPSHOTS}")
        params = random_params(sizes, SNAPSHOTS * options.seed + number)
        made.expected.append(expected_scores(params, pool))
        snapshot = snapshots.make(params)
        made.bytes = max(made.bytes, snapshot.size)
        made.digests.append(installation.store(snapshot, here=not options.fetch))
    return made


def _capacity(server: Server, requests: list[bytes], options: ServeOptions) -> float:
    """Requests a second of a closed loop, the median of some tries after the first."""
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
    """A load that goes on for as long as the versions can take."""
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

    def __init__(
        self, publisher: Publisher, digests: list[str], versions: int, say: Callable[[str], None]
    ) -> None:  # fmt: skip
        self._publisher, self._digests, self._versions, self._say = publisher, digests, versions, say
        self.settled = 0.0
        """From when on latencies count."""
        self.swaps: list[Swap] = []

    async def run(self, watched: Watched) -> None:
        """Publish version 2 and those that follow."""
        await asyncio.sleep(SETTLE_SECONDS / 2)
        self.settled = time.perf_counter()
        await asyncio.sleep(SETTLE_SECONDS / 2)
        for version in range(2, self._versions + 2):
            published = time.perf_counter()
            self._publisher.publish(version, self._digests[version % len(self._digests)])
            await self._until(self._publisher.published, published, f"version {version} was not published")
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
    """Whether the last answer on every connection is of this version: then every worker that has any serves it."""
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


def print_swap(printer: Printer, found: dict[str, Any]) -> None:
    """The findings in words."""

    def ms(name: str) -> str:
        return "-" if found[name] is None else f"{found[name]:.2f}"

    printer.table(
        f"{found['versions']} versions of {found['rows']:,} rows ({found['snapshot_mb']:,.0f} MB) under load, "
        f"{'fetched from Postgres' if found['fetched'] else 'left by a worker of this host'}",
        ("requests due", "count", "p50 ms", "p99", "max"),
        [
            (f"{when} swaps", f"{found[f'requests_{when}']:,}", *(ms(f"{q}_{when}_ms") for q in ("p50", "p99", "max")))
            for when in ("during", "between")
        ],
    )
    ratio = "-" if found["p99_ratio"] is None else f"{found['p99_ratio']:.2f}"
    printer.line(
        f"p99 during swaps / between: {ratio}. {found['failed']:,} failed, {found['mixed']:,} mixed of "
        f"{found['requests']:,} requests: {found['n']} items, {found['concurrency']} connections, {found['workers']} "
        f"workers, {found['rate']:,.0f} a second of a capacity of {found['capacity_rps']:,.0f}."
    )
    if found["switch_seconds"]:
        printer.line(
            f"From a publication until the last answer of the version before: median "
            f"{median(found['last_old_seconds']):.2f} s, at most {max(found['last_old_seconds']):.2f} s; all processes "
            f"of the service had {found['memory_mb']:,.0f} MB in the end. During: due from a publication until "
            f"{AFTER_SECONDS:g} s after every connection had been answered by the new version."
        )
    for what, faults in (("failed", found["faults"]), ("mixed", found["mixed_faults"])):
        for fault, count in faults.items():
            printer.line(f"{what}: {count:,} × {fault}")
