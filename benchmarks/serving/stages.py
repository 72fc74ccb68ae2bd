"""Where a prediction's time goes inside the application, a server's own part left out.

    python -m benchmarks.serving.stages

calls the real application (its Postgres, Redis, key and histories too) in this process as a server would, without
sockets, and times whole requests and each of their stages; medians of several rounds, one after the other.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from starlette.types import Message, Receive, Scope

from benchmarks.printing import Printer
from benchmarks.serving.ours import Installation, Snapshots
from benchmarks.serving.workload import ServingSizes, make_workload, random_params
from service.app import create_app
from service.bodies import parse_predict
from service.dependencies import Parts, Requires
from service.routers.predict import answer_json
from service.settings import Settings
from service.use_cases.predict import predict

__all__ = ["measure_stages"]

POOL = 500
"""Distinct requests; their histories are remembered by the process when timing begins."""
CALLS = 2_000
ROUNDS = 7


def measure_stages(folder: Path, n: int, *, calls: int = CALLS, rounds: int = ROUNDS) -> dict[str, float]:
    """Microseconds of a request with `n` items, by stage, and of all of it.

    Args:
        folder: empty; Postgres, Redis and the snapshot are put there.
        n: items of a request.
        calls: of each stage in a round.
        rounds: of which the median is taken.
    """
    sizes = ServingSizes()
    workload = make_workload(sizes, 0)
    with Installation(folder) as installation:
        installation.remember(workload)
        installation.publish(1, installation.store(Snapshots(sizes, folder).make(random_params(sizes, 0))))
        heads = [request.partition(b"\r\n\r\n") for request in workload.requests(n, POOL).encode(installation.key)]
        values = {name.removeprefix("ASMG_").lower(): v for name, v in installation.environment().items()}
        places = {name: values[name] for name in ("postgres_dsn", "redis_url", "data_dir")}
        settings = Settings(**places, history_cache_seconds=3600)  # type: ignore[arg-type]  # pydantic converts
        return uvloop.run(_measure(settings, installation.key, [body for _, _, body in heads], calls, rounds))


async def _measure(settings: Settings, key: str, bodies: list[bytes], calls: int, rounds: int) -> dict[str, float]:
    app = create_app(settings)
    async with app.router.lifespan_context(app) as yielded:
        state = dict(yielded or {})
        parts: Parts = state["parts"]
        scopes, fresh = [_scope(state, key) for _ in bodies], _scope(state, key)  # what is read of a head is kept in it
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        receives = [_receive(body) for body in bodies]
        for scope, receive in zip(scopes, receives, strict=True):  # compiled, remembered
            await app(scope, receive, send)
        if any(message.get("status", 200) != 200 for message in sent):
            raise RuntimeError(f"expected answers with status 200; received {sent[:2]}")
        questions = [parse_predict(body, scope) for body, scope in zip(bodies, scopes, strict=True)]
        results = [await predict(parts.serving, parts.histories, question) for question in questions]
        requires = Requires("predict")

        async def whole(i: int) -> None:
            sent.clear()
            await app({**fresh, "state": state}, receives[i], send)

        async def key_check(i: int) -> None:
            await requires.key(parts.keys, scopes[i])

        async def parsing(i: int) -> None:
            parse_predict(bodies[i], scopes[i])

        async def scoring(i: int) -> None:
            await predict(parts.serving, parts.histories, questions[i])

        async def writing(i: int) -> None:
            answer_json(results[i], "0" * 32)

        async def nothing(i: int) -> None:
            pass

        stages: dict[str, Callable[[int], Awaitable[None]]] = {
            "key check": key_check,
            "parsing and checking the body": parsing,
            "history and forward pass": scoring,
            "writing the answer": writing,
            "all of the application": whole,
            "nothing": nothing,
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
    empty = medians.pop("nothing")
    return {name: value - empty for name, value in medians.items()}


def _scope(state: Mapping[str, Any], key: str) -> Scope:
    headers = [
        (b"host", b"127.0.0.1"),
        (b"authorization", f"Bearer {key}".encode()),
        (b"content-type", b"application/json"),
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 50_000),
        "root_path": "",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "headers": headers,
        "state": state,
    }


def _receive(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.stages", description=__doc__)
    parser.add_argument("--items", default="1,50,500", help="Items of a request.")
    numbers = [int(part) for part in parser.parse_args().items.split(",")]
    columns = []
    for n in numbers:
        with tempfile.TemporaryDirectory(prefix="asmg-stages-", ignore_cleanup_errors=True) as folder:
            columns.append(measure_stages(Path(folder), n))
    rows = []
    for name in columns[0]:
        rows.append((name, *(f"{column[name]:.1f}" for column in columns)))
    whole = [column.pop("all of the application") for column in columns]
    rest = [total - sum(column.values()) for total, column in zip(whole, columns, strict=True)]
    rows.insert(-1, ("the rest: counting, timing, limits, request id", *(f"{value:.1f}" for value in rest)))
    Printer(None).table("Microseconds of one request", ("stage", *(f"{n} items" for n in numbers)), rows)


if __name__ == "__main__":
    main()
