"""What traces cost a prediction whose data is in memory: off, on but not sampled, and sampled.

    python -m benchmarks.serving.tracing

calls three applications, alike but for that, in turn in this process, by ASGI and without sockets, and prints the
microseconds of CPU of a request: the 10 % quantile of the rounds, since other programs can only make them slower. Where
it is sampled, spans are made and queued, and a thread hands them to an exporter that drops them.
"""

import argparse
import tempfile
import time
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from statistics import quantiles
from typing import Any

import uvloop
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from starlette.types import ASGIApp, Message, Scope

from benchmarks.printing import print_table
from benchmarks.services import own_stores
from benchmarks.serving.model import ServedModel
from benchmarks.serving.model_store import Snapshots, remember, store
from benchmarks.serving.publishing import publish
from benchmarks.serving.requests import ServingSizes, make_workload
from service.app import create_app
from service.settings import Settings
from service.telemetry.tracing import use_provider

CALLS, ROUNDS, POOL = 400, 40, 200
"""Calls of an application that are timed together; rounds; distinct requests."""


class Nowhere(SpanExporter):
    """An exporter that drops the spans."""

    def export(self, spans: Any) -> SpanExportResult:
        """Drop them."""
        return SpanExportResult.SUCCESS


def provider(share: float) -> TracerProvider:
    """A provider that samples a share of the traces."""
    made = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)), shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(Nowhere()))
    return made


def measure_tracing(folder: Path, n: int, *, calls: int = CALLS, rounds: int = ROUNDS) -> dict[str, float]:
    """Microseconds of CPU of a request with `n` items, by how it is traced.

    Args:
        folder: empty; receives Postgres, Redis and the snapshot.
        n: items of a request.
        calls: how often each application is called in a round.
        rounds: how many rounds.
    """
    sizes, workload = ServingSizes(), make_workload(ServingSizes(), 0)
    with own_stores(folder, history_cache_seconds=3600) as stores:
        remember(stores, workload, None)
        publish(stores.settings, 1, store(stores, Snapshots(sizes, folder).make(ServedModel.random(sizes, 0))))
        requests = workload.requests(n, POOL).encode(stores.key)
        bodies = [request.partition(b"\r\n\r\n")[2] for request in requests]
        return uvloop.run(_measure(stores.settings, stores.key, bodies, calls, rounds))


async def _measure(settings: Settings, key: str, bodies: list[bytes], calls: int, rounds: int) -> dict[str, float]:
    cases = {"off": None, "on, none sampled": provider(0.0), "on, all sampled": provider(1.0)}
    apps: dict[str, tuple[ASGIApp, dict[str, Any]]] = {}
    found: dict[str, list[float]] = {name: [] for name in cases}
    async with AsyncExitStack() as stack:
        for name, traced in cases.items():
            # Which application traces with what is decided when it is made.
            with nullcontext() if traced is None else use_provider(traced):
                made = create_app(settings)
                state = await stack.enter_async_context(made.router.lifespan_context(made))
            apps[name] = made, dict(state or {})
            await _call(*apps[name], key, bodies)
        for _ in range(rounds):
            for name, (app, state) in apps.items():
                some = (bodies * (calls // len(bodies) + 1))[:calls]
                started = time.process_time()
                await _call(app, state, key, some)
                found[name].append((time.process_time() - started) / calls * 1e6)
    for traced in cases.values():
        if traced is not None:
            traced.shutdown()
    return {name: quantiles(values, n=10)[0] for name, values in found.items()}


async def _call(app: ASGIApp, state: dict[str, Any], key: str, bodies: list[bytes]) -> None:
    headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {key}".encode())]
    headers.append((b"content-type", b"application/json"))
    statuses: set[int] = set()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.add(message["status"])

    for body in bodies:

        async def receive(body: bytes = body) -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        head = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "root_path": ""}
        scope: Scope = {**head, "query_string": b"", "headers": headers, "state": state, "scheme": "http"}
        await app(scope, receive, send)
    assert statuses == {200}, statuses


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.tracing", description=__doc__)
    parser.add_argument("--items", type=int, default=50, help="Items of a request.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asmg-tracing-", ignore_cleanup_errors=True) as folder:
        found = measure_tracing(Path(folder), options.items)
    rows = [(name, f"{value:.1f}", f"{value - found['off']:+.1f}") for name, value in found.items()]
    print_table(f"Microseconds of CPU of a prediction of {options.items} items", ("traces", "µs", "more"), rows)


if __name__ == "__main__":
    main()
