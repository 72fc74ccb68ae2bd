"""What a prediction costs now, against another checkout of this repository, such as one of an earlier commit.

    git worktree add ../before COMMIT
    python -m benchmarks.serving.against ../before

starts a process for each checkout, and one of this checkout in which a canary runs beside the champion. Each calls the
real application, with a Postgres and a Redis of its own, by ASGI and without sockets; everything is warm. They are
asked in turn, on one core, so that what else the host does hits all of them alike, and the microseconds of CPU of a
prediction are compared round by round, and over several starts. Each process imports its own checkout, so this file is
run by its path.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import IO, Any, cast

CALLS, ROUNDS, POOL = 400, 60, 200
"""Calls that are timed together; rounds; distinct requests."""
STARTS = 7
"""How often the processes are started: where things lie in memory differs each time."""
USERS, ITEMS = 200, 2_000
"""Of the model: few, since where a large one lies in memory makes more of a difference than what is measured."""
CANARY_SHARE = 0.1
"""Share of the users that the canary answers."""
HERE = Path(__file__).resolve()


def measure_against(before: Path, items: Sequence[int], *, rounds: int = ROUNDS) -> list[dict[str, list[float]]]:
    """Microseconds of CPU of a prediction, by process, one value a round: of `before`, `now`, and `canary`, which is
    now with a canary that runs; for each number of items.

    Args:
        before: the other checkout.
        items: candidates of a prediction.
        rounds: how many rounds.
    """
    now = HERE.parents[2]
    with ExitStack() as stack:
        asked = {
            name: stack.enter_context(_started(root, items, canary))
            for name, root, canary in (("before", before, False), ("now", now, False), ("canary", now, True))
        }
        found: list[dict[str, list[float]]] = [{name: [] for name in asked} for _ in items]
        for number in range(rounds):
            for place, of_items in enumerate(found):
                for name in list(asked)[:: 1 if number % 2 else -1]:
                    of_items[name].append(_answer(*asked[name], place))
    return found


@contextmanager
def _started(root: Path, items: Sequence[int], canary: bool) -> Iterator[tuple[IO[str], IO[str]]]:
    """A process of a checkout that is ready: where it is asked, and where it answers."""
    with tempfile.TemporaryDirectory(prefix="asmg-against-", ignore_cleanup_errors=True) as folder:
        asked = ["--measured", folder, "--items", ",".join(map(str, items)), *(["--canary"] if canary else [])]
        process = subprocess.Popen(
            [sys.executable, "-P", HERE, *asked],
            env=os.environ | {"PYTHONPATH": str(root.resolve())},
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == f"{root.resolve()}\n", "it has not imported its own checkout"
            yield process.stdin, process.stdout
        finally:
            process.stdin.close()
            with process.stdout:
                process.wait(60)


def _answer(stdin: IO[str], stdout: IO[str], place: int) -> float:
    stdin.write(f"{place}\n")
    stdin.flush()
    return float(stdout.readline())


def _measured(folder: Path, items: Sequence[int], canary: bool) -> None:
    """Be one of the processes: answer each line, a place in `items`, with the microseconds of a prediction."""
    import uvloop

    import service
    from benchmarks.services import own_stores
    from benchmarks.serving.model import ServedModel, random_statistics
    from benchmarks.serving.model_store import Snapshots, remember, store
    from benchmarks.serving.publishing import publish
    from benchmarks.serving.requests import ServingSizes, make_workload

    sizes = ServingSizes(users=USERS, items=ITEMS)
    workload = make_workload(sizes, 0)
    settings: dict[str, Any] = {"history_cache_seconds": 3600, **({"canary_share": CANARY_SHARE} if canary else {})}
    with own_stores(folder, **settings) as stores:
        remember(stores, workload, None)
        model = ServedModel.random(sizes, 0, statistics=random_statistics(sizes, 0))
        snapshot = store(stores, Snapshots(sizes, folder).make(model))
        for version in (1, 2):
            publish(stores.settings, version, snapshot)
        if canary:
            asyncio.run(_start_canary(stores.settings, 1))
        bodies = [
            [request.partition(b"\r\n\r\n")[2] for request in workload.requests(n, POOL).encode(stores.key)]
            for n in items
        ]
        root = Path(service.__file__).resolve().parents[1]
        uvloop.run(_answer_lines(root, stores.settings, stores.key, bodies, canary))


async def _start_canary(settings: Any, version: int) -> None:
    from service.storage.postgres.database import Database, Lock
    from service.use_cases.guardrails.canary import start_canary

    database = Database(settings.postgres_dsn, pool_size=1)
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        await start_canary(work, version, settings, actor="bench", reason="measured")
        await work.commit()
    await database.close()


async def _answer_lines(root: Path, settings: Any, key: str, bodies: Sequence[Sequence[bytes]], canary: bool) -> None:
    from service.app import create_app

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:
        serving = cast(Any, dict(state or {}))["app"].serving
        await serving.wait_loaded()
        while canary:
            await asyncio.sleep(0.05)
            if serving.canary is not None:
                break
        print(root, flush=True)
        headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {key}".encode())]
        headers.append((b"content-type", b"application/json"))
        while line := await asyncio.to_thread(sys.stdin.readline):
            some = bodies[int(line)]
            started = time.process_time()
            for call in range(CALLS):
                await _call(app, dict(state or {}), headers, some[call % len(some)])
            print((time.process_time() - started) / CALLS * 1e6, flush=True)


async def _call(app: Any, state: dict[str, Any], headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/predict",
        "raw_path": b"/predict",
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": state,
    }
    await app(scope, receive, send)


def main() -> None:
    """Measure and print, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.against", description=__doc__)
    parser.add_argument("before", nargs="?", type=Path, help="The other checkout.")
    parser.add_argument("--items", default="1,50", help="Candidates of a prediction.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="Rounds of a start.")
    parser.add_argument("--starts", type=int, default=STARTS, help="How often the processes are started.")
    parser.add_argument("--measured", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--canary", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    items = [int(number) for number in options.items.split(",")]
    if options.measured is not None:
        _measured(options.measured, items, options.canary)
        return
    from benchmarks.printing import print_table

    found = []
    for _ in range(options.starts):
        found.append(measure_against(options.before, items, rounds=options.rounds))
        for n, of_items in zip(items, found[-1], strict=True):
            print(n, "items:", *(f"{name} {median(values):.1f}" for name, values in of_items.items()), flush=True)
    for place, n in enumerate(items):
        rows = []
        for name in found[0][place]:
            taken = [median(start[place][name]) for start in found]
            more = [_more(start[place], name) for start in found]
            each = ", ".join(f"{value:+.1f}" for value in more)
            rows.append((name, f"{median(taken):.1f}", f"{median(more):+.1f}", each))
        title = f"Microseconds of CPU of a prediction of {n} items, median of the starts"
        print_table(title, ("checkout", "\N{MICRO SIGN}s", "more than before", "of each start"), rows)


def _more(of_items: Mapping[str, Sequence[float]], name: str) -> float:
    """By how much a process needs more than `before`: the median of the rounds."""
    return median(value - before for value, before in zip(of_items[name], of_items["before"], strict=True))


if __name__ == "__main__":
    main()
