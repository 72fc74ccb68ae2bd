"""Where a prediction's time goes inside the application, a server's own part left out.

    python -m benchmarks.serving.stages

calls the real application (its Postgres, Redis, key and histories too) in this process as its hot route does, without
a server, and times whole requests and each of their stages; medians of several rounds, one after the other. Everything
is warm here; between requests a server does other things, and the same work takes it longer.
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

from benchmarks.printing import Printer
from benchmarks.serving.fields import make_fields
from benchmarks.serving.ours import Installation, Snapshots
from benchmarks.serving.workload import (
    MODEL,
    WITH_FIELDS,
    WITH_STATISTICS,
    ServingSizes,
    make_workload,
    random_params,
    random_statistics,
)
from service.app import create_app
from service.http.app_state import AppState
from service.http.bodies.predict import quick_question
from service.http.keys import Requires
from service.http.routers.predict import answer_json, post_predict
from service.settings import Settings
from service.use_cases.auth import KeyCache
from service.use_cases.predict import predict, predict_now

__all__ = ["measure_stages"]

POOL = 500
"""Distinct requests; their histories are remembered by the process when timing begins."""
CALLS = 2_000
ROUNDS = 7
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
        folder: empty; Postgres, Redis and the snapshot are put there.
        n: items of a request.
        calls: of each stage in a round.
        rounds: of which the median is taken.
        rate_limit: of the key, requests a second; 0 for none.
        statistics: whether the model is the one that is served by default, with statistics, or the one without.
        fields: of the context, with which that model is asked; None for none.
    """
    sizes = ServingSizes()
    model, known, given, contexts, values = MODEL, None, None, None, 0
    if statistics or fields is not None:
        model, known = WITH_STATISTICS, random_statistics(sizes, 0)
    if fields is not None:
        model, given = WITH_FIELDS, make_fields(fields, sizes.users, sizes.items, 0)
        contexts, values = given.contexts(POOL), given.size
    workload = make_workload(sizes, 0)
    with Installation(folder, given) as installation:
        installation.remember(workload)
        snapshot = Snapshots(sizes, folder).make(random_params(sizes, 0, model, values), known, given)
        installation.publish(1, installation.store(snapshot))
        requests = workload.requests(n, POOL).encode(installation.key, contexts=contexts)
        heads = [request.partition(b"\r\n\r\n") for request in requests]
        found = {name.removeprefix("ASMG_").lower(): v for name, v in installation.environment().items()}
        wanted = ("postgres_dsn", "redis_url", "data_dir", "features")
        places = {name: found[name] for name in wanted if name in found}
        settings = Settings(**places, history_cache_seconds=3600, rate_limit=rate_limit)  # type: ignore[arg-type]  # pydantic converts
        return uvloop.run(_measure(settings, installation.key, [body for _, _, body in heads], calls, rounds))


async def _measure(settings: Settings, key: str, bodies: list[bytes], calls: int, rounds: int) -> dict[str, float]:
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:
        running: AppState = dict(state or {})["app"]
        app_state = replace(running, keys=KeyCache(running.database, ttl_seconds=3600))  # it does not ask again
        headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {key}".encode())]
        headers.append((b"content-type", b"application/json"))
        requires = Requires("predict")
        await requires.key(app_state, {"headers": headers})
        for body in bodies:
            question = quick_question(body, {"headers": headers}, app_state.schema)
            assert question is not None
            await predict(app_state.serving, app_state.histories, question)  # compiled, remembered
        questions = [quick_question(body, {"headers": headers}, app_state.schema) for body in bodies]
        results = [predict_now(app_state.serving, app_state.histories, question) for question in questions if question]
        scope: Scope = {"headers": headers}
        stages: dict[str, Callable[[int], object]] = {
            "key check and rate limit": lambda i: _without_waiting(requires.key(app_state, dict(scope))),
            "parsing and checking the body": lambda i: quick_question(bodies[i], scope, app_state.schema),
            "history and forward pass": lambda i: predict_now(app_state.serving, app_state.histories, questions[i]),  # type: ignore[arg-type]  # checked above
            "writing the answer": lambda i: answer_json(results[i], "0" * 32),  # type: ignore[arg-type]  # they are remembered
            WHOLE: lambda i: _without_waiting(post_predict(app_state, {"headers": headers}, _receiving(bodies[i]))),
            NOTHING: lambda i: None,
        }
        if any(not stage(0) for name, stage in stages.items() if name != NOTHING):
            raise RuntimeError("expected a service that answers; received one that does not")
        found: dict[str, list[float]] = {name: [] for name in stages}
        gc.collect()
        gc.freeze()
        for _ in range(rounds):
            for name, stage in stages.items():
                started = time.perf_counter()
                for call in range(calls):
                    stage(call % len(bodies))
                found[name].append((time.perf_counter() - started) / calls * 1e6)
    medians = {name: median(values) for name, values in found.items()}
    empty = medians.pop(NOTHING)
    return {name: value - empty for name, value in medians.items()}


def _receiving(body: bytes) -> Callable[[], Awaitable[Message]]:
    """ASGI's `receive` of a request with this body."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _without_waiting(call: Awaitable[object]) -> object:
    """What a call returns that has nothing to wait for."""
    steps = call.__await__()
    try:
        next(steps)
    except StopIteration as end:
        return end.value
    raise RuntimeError("expected a call that waits for nothing; received one that does")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.stages", description=__doc__)
    parser.add_argument("--items", default="1,50,500", help="Items of a request.")
    parser.add_argument("--rate-limit", type=float, default=0.0, help="Requests a second of the key; 0 for none.")
    parser.add_argument("--statistics", action="store_true", help="Of a model with statistics, as served by default.")
    parser.add_argument("--fields", type=int, help="Of the context of a request, for that model with fields.")
    options = parser.parse_args()
    numbers = [int(part) for part in options.items.split(",")]
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
    Printer(None).table("Microseconds of one request", ("stage", *(f"{n} items" for n in numbers)), rows)


if __name__ == "__main__":
    main()
