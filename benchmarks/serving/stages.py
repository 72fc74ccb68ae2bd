"""Where the time of a prediction goes inside the application, without the work of the HTTP server around it.

    python -m benchmarks.serving.stages

calls the real application, with its Postgres, Redis, key and histories, in this process and without sockets. It times
whole requests and each of their stages, and prints medians of several rounds. Everything is warm here; a server does
other things between requests, so the same work takes longer there.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import uvloop
from starlette.types import Message, Scope

from benchmarks.options import whole_numbers
from benchmarks.printing import print_table
from benchmarks.services import own_stores
from benchmarks.serving.fields import make_fields
from benchmarks.serving.model import ServedModel, random_statistics
from benchmarks.serving.model_store import Snapshots, remember, store
from benchmarks.serving.publishing import publish
from benchmarks.serving.requests import ServingSizes, make_workload
from service.app import create_app
from service.http.app_state import AppState
from service.http.bodies.predict import parse_predict
from service.http.keys import Requires
from service.http.routers.predict import answer_json, post_predict
from service.settings import Settings
from service.use_cases.auth import KeyCache
from service.use_cases.predict import predict

POOL = 500
"""Distinct requests, whose histories the process has cached when timing begins."""
CALLS = 500
"""Calls of a stage that are timed together."""
ROUNDS = 25
"""Medians of so many are robust against the key check in Postgres once a second."""
Stage = Callable[[int], Awaitable[object]]
WHOLE, NOTHING = "all of the application", "nothing"


def measure_stages(
    folder: Path,
    n: int,
    *,
    calls: int = CALLS,
    rounds: int = ROUNDS,
    rate_limit: float = 0.0,
    statistics: bool = False,
    fields: int | None = None,
) -> dict[str, float]:
    """Microseconds of a request with `n` items, by stage, and of all of it.

    Args:
        folder: empty; receives Postgres, Redis and the snapshot.
        n: items of a request.
        calls: how often each stage is called in a round.
        rounds: how many rounds; medians are returned.
        rate_limit: requests a second that the key may send; 0 for no limit.
        statistics: whether the model reads statistics, as the one that is served by default.
        fields: number of context fields of a request, for that model with fields; None for a model without.
    """
    sizes = ServingSizes()
    known = random_statistics(sizes, 0) if statistics or fields is not None else None
    given = None if fields is None else make_fields(fields, sizes.users, sizes.items, 0)
    contexts = None if given is None else given.contexts(POOL)
    workload = make_workload(sizes, 0)
    model = ServedModel.random(sizes, 0, statistics=known, fields=given)
    settings = {"history_cache_seconds": 3600, "rate_limit": rate_limit}
    with own_stores(folder, schema=None if given is None else given.schema, **settings) as stores:
        remember(stores, workload, given)
        publish(stores.settings, 1, store(stores, Snapshots(sizes, folder).make(model)))
        requests = workload.requests(n, POOL).encode(stores.key, contexts=contexts)
        bodies = [request.partition(b"\r\n\r\n")[2] for request in requests]
        return uvloop.run(_measure(stores.settings, stores.key, bodies, calls, rounds))


async def _measure(settings: Settings, key: str, bodies: list[bytes], calls: int, rounds: int) -> dict[str, float]:
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:
        running: AppState = dict(state or {})["app"]
        app_state = replace(running, keys=KeyCache(running.database, ttl_seconds=3600))  # it does not ask again
        headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {key}".encode())]
        headers.append((b"content-type", b"application/json"))
        requires = Requires("predict")
        await requires.key(app_state, {"headers": headers})
        scope: Scope = {"headers": headers}
        questions = [parse_predict(body, scope, app_state.schema) for body in bodies]
        # From here on the code is compiled and the histories are in memory.
        results = [await predict(app_state.serving, app_state.histories, [question]) for question in questions]
        stages: dict[str, Stage] = {
            "key check and rate limit": lambda i: requires.key(app_state, dict(scope)),
            "parsing and checking the body": _at_once(lambda i: parse_predict(bodies[i], scope, app_state.schema)),
            "history and forward pass": lambda i: predict(app_state.serving, app_state.histories, [questions[i]]),
            "writing the answer": _at_once(lambda i: answer_json(results[i], "0" * 32)),
            WHOLE: lambda i: post_predict(app_state, {"headers": headers}, _receiving(bodies[i])),
            NOTHING: _at_once(lambda i: None),
        }
        found: dict[str, list[float]] = {name: [] for name in stages}
        gc.collect()
        gc.freeze()
        for _ in range(rounds):
            for name, stage in stages.items():
                started = time.perf_counter()
                for call in range(calls):
                    await stage(call % len(bodies))
                found[name].append((time.perf_counter() - started) / calls * 1e6)
    medians = {name: median(values) for name, values in found.items()}
    empty = medians.pop(NOTHING)
    return {name: value - empty for name, value in medians.items()}


def _receiving(body: bytes) -> Callable[[], Awaitable[Message]]:
    """ASGI's `receive` of a request with this body."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _at_once(work: Callable[[int], object]) -> Stage:
    """A stage that does not wait, timed like those that can."""

    async def stage(i: int) -> object:
        return work(i)

    return stage


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.stages", description=__doc__)
    parser.add_argument("--items", default="1,50,500", help="Items of a request.")
    parser.add_argument("--rate-limit", type=float, default=0.0, help="Requests a second of the key; 0 for none.")
    parser.add_argument("--statistics", action="store_true", help="Of a model with statistics, as served by default.")
    parser.add_argument("--fields", type=int, help="Of the context of a request, for that model with fields.")
    options = parser.parse_args()
    numbers = whole_numbers("items", options.items)
    columns = []
    for n in numbers:
        with tempfile.TemporaryDirectory(prefix="asmg-stages-", ignore_cleanup_errors=True) as folder:
            columns.append(
                measure_stages(
                    Path(folder), n, rate_limit=options.rate_limit, statistics=options.statistics, fields=options.fields
                )
            )
    rows = []
    for name in columns[0]:
        rows.append((name, *(f"{column[name]:.1f}" for column in columns)))
    whole = [column.pop(WHOLE) for column in columns]
    rest = [total - sum(column.values()) for total, column in zip(whole, columns, strict=True)]
    rows.insert(-1, ("the rest: reading the body, counting, request id", *(f"{value:.1f}" for value in rest)))
    print_table("Microseconds of one request", ("stage", *(f"{n} items" for n in numbers)), rows)


if __name__ == "__main__":
    main()
