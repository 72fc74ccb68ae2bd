"""`asmg bench serve --during-swap`: versions published one after the other under load.

With `--deltas` they are published as the service does it: a version adds a delta to the one before, and after some of
them the base is written anew, so that the present version is served from another file.

The load is an open loop, so that a pause at a swap is charged for every request that became due in it. A version is
published once every connection has been answered by the one before and some time has passed without a swap. Latencies
around the swaps are compared with those of that time.
"""

import asyncio
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.http_load.generator import Watched
from benchmarks.http_load.load import Answers, Load
from benchmarks.machine import MB, memory_bytes
from benchmarks.printing import print_line, print_table, progress
from benchmarks.servers import Server, ServerFailed
from benchmarks.services import own_service, own_stores
from benchmarks.serving.model_store import remember
from benchmarks.serving.options import ServeOptions
from benchmarks.serving.publishing import publish, publishing_process, renew
from benchmarks.serving.requests import ServingSizes, make_workload
from benchmarks.serving.swap_plan import Planner, Publication
from benchmarks.serving.swap_verdict import Swap, Verdict, judge
from service.processes.stop_request import StopRequest

N = 50
CONNECTIONS = 16
POOL = 200
"""Distinct requests. Their scores by every snapshot are computed beforehand."""
CAPACITY_ROUNDS = 3
"""Closed loops, after a first one, whose median rate is the capacity."""

SETTLE_SECONDS = 2.0
"""Seconds before the first publication; the latencies of the first half do not count."""
AFTER_SECONDS = 1.0
"""Requests that become due up to so long after all workers have switched still count as during the swap."""
BETWEEN_SECONDS = 4.0
"""Seconds without a swap that follow."""
SWITCH_SECONDS = 600.0
"""A version that does not answer on every connection after so long has failed."""
POLL_SECONDS = 0.01

DISK_BYTES = 800
"""Disk for each table row: four snapshots in Postgres and in its write-ahead log, and files of the api processes."""
MEMORY_BYTES = 300
"""Memory for each table row: making a snapshot, and the copies in Redis."""

Publish = Callable[[Publication], "Future[None]"]
"""Begins to publish."""

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
        planner = Planner(stores, sizes, pool, options, stop)
        plan = planner.deltas() if options.deltas else planner.bases()
        publish(stores.settings, 1, plan.first)
        progress("swap: starting the service")
        with own_service(stores, api_workers=workers, version=1, stop=stop) as server, publishing_process() as process:
            requests = pool.encode(stores.key)
            capacity = _capacity(server, requests, options)
            rate = options.rate or options.open_loop * capacity
            progress(f"swap: {options.versions} versions at {rate:,.0f} requests a second")
            course = _Course(
                lambda what: process.submit(
                    renew if what.renewal else publish, stores.settings, what.version, what.snapshot
                ),
                plan.publications,
                server.log,
                workers,
            )
            load = _endless(requests, rate, len(plan.publications))
            answers = server.ask(load, beside=course.run)
            memory = memory_bytes(server.processes())
        progress(f"swap: checking {len(answers.bodies):,} answers")
        verdict = judge(answers, course.swaps, plan.expected, course.settled, AFTER_SECONDS, stop.check)
    return {
        **_document(answers, verdict),
        "rows": options.rows,
        "fetched": options.fetch,
        "deltas": options.deltas,
        "snapshot_mb": plan.base_bytes / MB,
        "delta_mb": plan.delta_bytes / MB,
        "n": N,
        "concurrency": CONNECTIONS,
        "workers": workers,
        "capacity_rps": capacity,
        "rate": rate,
        "memory_mb": memory / MB,
    }


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
    """Publishes one after the other beside a load.

    Args:
        publish: begins a publication.
        publications: what to publish.
        log: output of the service, in which each process says what it begins to serve.
        workers: api processes.
    """

    def __init__(self, publish: Publish, publications: Sequence[Publication], log: Path, workers: int) -> None:
        self._publish, self._publications, self._log, self._workers = publish, publications, log, workers
        self.settled = 0.0
        """From this moment on latencies count."""
        self.swaps: list[Swap] = []

    async def run(self, watched: Watched) -> None:
        """Publish version 2 and the following ones."""
        await asyncio.sleep(SETTLE_SECONDS / 2)
        self.settled = time.perf_counter()
        await asyncio.sleep(SETTLE_SECONDS / 2)
        for one in self._publications:
            before, published = self._begun(one.version), time.perf_counter()
            publication = self._publish(one)
            what = f"the base of version {one.version}" if one.renewal else f"version {one.version}"
            await self._until(publication.done, published, f"{what} was not published")
            publication.result()
            taken_over = partial(self._all_begun, one.version, before + self._workers)
            if not one.renewal:
                taken_over = partial(_all_serve, watched, one.version)
            otherwise = f"{what} was published, but has not taken over everywhere"
            await self._until(taken_over, published, otherwise)
            self.swaps.append(Swap(one.version, published, time.perf_counter(), one.renewal))
            await asyncio.sleep(AFTER_SECONDS + BETWEEN_SECONDS)

    def _begun(self, version: int) -> int:
        """How often a process has begun to serve a version, from whatever files."""
        return self._log.read_text(encoding="utf-8").count(f"serving model version {version}\n")

    def _all_begun(self, version: int, count: int) -> bool:
        return self._begun(version) >= count

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
    parts = {"during": verdict.during, "renewing": verdict.renewing, "between": verdict.between}
    kinds = {"": False, "_renewing": True}
    of_kind = {
        name: [(s, r) for s, r in zip(verdict.swaps, verdict.ratios, strict=True) if s.renewal == renewal]
        for name, renewal in kinds.items()
    }
    return {
        "versions": len(of_kind[""]),
        "renewals": len(of_kind["_renewing"]),
        "requests": len(answers.done) + answers.failed,
        "failed": answers.failed,
        "faults": dict(answers.faults),
        "mixed": verdict.mixed,
        "mixed_faults": dict(verdict.faults),
        "went_back": verdict.went_back,
        "p99_ratio": _ratio(verdict.during.p99_ms, verdict.between.p99_ms),
        "p99_ratio_renewing": _ratio(verdict.renewing.p99_ms, verdict.between.p99_ms),
        **{f"p99_ratios{name}": [ratio for _, ratio in swaps] for name, swaps in of_kind.items()},
        **{f"{q}_{name}_ms": getattr(part, f"{q}_ms") for name, part in parts.items() for q in ("p50", "p99", "max")},
        **{f"requests_{name}": part.requests for name, part in parts.items()},
        "waited_p99_ms": verdict.waited_p99_ms,
        "generator_late_p99_ms": verdict.late_p99_ms,
        **{
            f"switch_seconds{name}": [swap.switched - swap.published for swap, _ in swaps]
            for name, swaps in of_kind.items()
        },
        "last_old_seconds": verdict.last_old,
    }


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def print_swap(found: dict[str, Any]) -> None:
    """Print the figures."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    kind = f"deltas of at most {found['delta_mb']:.1f} MB to a base" if found["deltas"] else "versions"
    print_table(
        f"{found['versions']} {kind} of {found['rows']:,} rows ({found['snapshot_mb']:,.0f} MB) under load, "
        f"{'fetched from Postgres' if found['fetched'] else 'left by a worker of this host'}",
        ("requests due", "count", "p50 ms", "p99", "max"),
        [
            (
                what,
                f"{found[f'requests_{when}']:,}",
                *(number(found[f"{q}_{when}_ms"]) for q in ("p50", "p99", "max")),
            )
            for what, when in (
                ("during swaps", "during"),
                ("while a new base came", "renewing"),
                ("between", "between"),
            )
            if found[f"requests_{when}"]
        ],
    )
    print_line(
        f"p99 during swaps / between: {number(found['p99_ratio'])}. {found['failed']:,} failed, {found['mixed']:,} "
        f"mixed of {found['requests']:,} requests: {found['n']} items, {found['concurrency']} connections, "
        f"{found['workers']} workers, {found['rate']:,.0f} a second of a capacity of {found['capacity_rps']:,.0f}."
    )
    for name, what in (("", "versions"), ("_renewing", "new bases")):
        seconds, ratios = found[f"switch_seconds{name}"], [r for r in found[f"p99_ratios{name}"] if r is not None]
        if seconds and ratios:
            print_line(
                f"{what}: taken over after {median(seconds):.2f} s in the median, {max(seconds):.2f} s at most; p99 "
                f"during one / from then until the next: {median(ratios):.2f} in the median, {min(ratios):.2f} to "
                f"{max(ratios):.2f}."
            )
    if found["last_old_seconds"]:
        print_line(
            f"From a publication until the last answer of the version before: median "
            f"{median(found['last_old_seconds']):.2f} s, at most {max(found['last_old_seconds']):.2f} s; all processes "
            f"of the service had {found['memory_mb']:,.0f} MB in the end. During: due from a publication until "
            f"{AFTER_SECONDS:g} s after every connection had been answered by the new version."
        )
    for what, faults in (("failed", found["faults"]), ("mixed", found["mixed_faults"])):
        for fault, count in faults.items():
            print_line(f"{what}: {count:,} × {fault}")
