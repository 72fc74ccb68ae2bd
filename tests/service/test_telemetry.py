"""Metrics of the model, ports for metrics, log lines as JSON, and traces, within the process and sent by OTLP."""

import gzip
import json
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.errors import ConfigurationError
from service.processes.traces import is_wanted, traced_process
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AliasName, Evaluation, ModelKind, ModelVersion
from service.telemetry.log_lines import JsonLines
from service.telemetry.tracing import use_provider
from tests.service.api_support import Api, event, ingest, publish, running_app
from tests.service.programs import program, wait_for

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def sample(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    assert found is not None, series
    return float(found[1])


async def test_metrics_of_the_model_are_those_of_postgres(api: Api, database: Database) -> None:
    await publish(database, api.state.artifacts, 1, 0.3, lead_seconds=0)
    scores = [
        Evaluation(period=1, model="generated", version=1, events=9, auc=0.7, logloss=0.5, calibration=1.25),
        Evaluation(period=1, model="baseline", version=1, events=9, auc=None, logloss=0.6, calibration=None),
    ]
    await ingest(api.client, event(1))
    await api.client.post("/periods/close")
    async with database.unit_of_work() as work:
        first = await work.models.get(1)
        assert first is not None and first.serving_digest is not None
        served = {"serving": {"part": ["a"], "toward": ["b"], "fraction": 0.25}}
        await work.models.insert(
            version(2, ModelKind.GENERATED, served, first.serving_digest, datetime(2020, 1, 1, tzinfo=UTC))
        )
        await work.models.insert(version(3, ModelKind.PREVIOUS, served, first.serving_digest, datetime.now(UTC)))
        await work.models.set_alias(AliasName.CHAMPION, 3, lead_seconds=0, actor="test", reason="test")
        await work.evaluations.put(scores)
        for stage, seconds in (("score", 1.5), ("publish", 0.25)):
            await work.stages.start(1, stage)
            await work.stages.finish(1, stage, seconds, {})
        size = (await work.artifacts.sizes([first.serving_digest]))[first.serving_digest]
        await work.commit()
    text = (await api.client.get("/metrics")).text
    assert sample(text, 'asmg_model_auc{model="generated"}') == 0.7
    assert sample(text, 'asmg_model_auc{model="baseline"}') != sample(text, 'asmg_model_auc{model="baseline"}')  # NaN
    assert sample(text, 'asmg_model_logloss{model="baseline"}') == 0.6
    assert sample(text, 'asmg_model_calibration{model="generated"}') == 1.25
    assert sample(text, "asmg_scored_period") == 1
    assert sample(text, "asmg_generator_trust") == 0.25
    # Version 3 was made just now, and serves what version 2 did.
    assert sample(text, "asmg_model_age_seconds") > 86400
    assert sample(text, 'asmg_snapshot_bytes{part="base"}') == size
    assert sample(text, 'asmg_snapshot_bytes{part="overlay"}') == 0
    assert sample(text, 'asmg_update_stage_seconds{stage="score"}') == 1.5
    assert sample(text, 'asmg_pool_connections{server="postgres",state="most"}') == 10
    assert sample(text, 'asmg_pool_connections{server="redis",state="most"}') == 256
    for server in ("postgres", "redis"):
        assert sample(text, f'asmg_server_seconds_count{{server="{server}"}}') >= 1


def version(number: int, kind: ModelKind, state: dict[str, Any], digest: str, created_at: datetime) -> ModelVersion:
    return ModelVersion(
        version=number,
        period=number,
        kind=kind,
        parent_version=number - 1,
        serving_digest=digest,
        state=state,
        scores={},
        gate={},
        created_by="test",
        created_at=created_at,
    )


def test_a_log_line_as_json_has_an_exception_as_one_field() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        caught = (type(error), error, error.__traceback__)
    record = logging.LogRecord("a.b", logging.WARNING, __file__, 1, "%s of\n%d", ("one", 2), caught)
    record.created, record.request_id = 1_700_000_000.25, "r-1"
    line = JsonLines().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("exception").splitlines()[0] == "Traceback (most recent call last):"
    assert found == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "WARNING",
        "logger": "a.b",
        "message": "one of\n2",
        "request_id": "r-1",
        "process": record.process,
    }


@contextmanager
def recorded(sampler: sampling.Sampler = sampling.DEFAULT_ON) -> Iterator[InMemorySpanExporter]:
    """This process traces; its spans."""
    provider, spans = TracerProvider(sampler=sampler, shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with use_provider(provider):
        yield spans


def of_request(spans: InMemorySpanExporter, route: str) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """The span of the only request of a route, and those of its trace that are within it."""
    finished = spans.get_finished_spans()
    [request] = [span for span in finished if span.name == route]
    return request, [
        span for span in finished if span.context.trace_id == request.context.trace_id and span is not request
    ]


async def test_a_request_is_a_span_with_those_of_postgres_and_redis(settings: Settings) -> None:
    with recorded() as spans:
        async with running_app(settings) as api:
            assert spans.get_finished_spans() == (), "what goes on by itself is not traced"
            headers = {"traceparent": TRACEPARENT, "X-Request-ID": "mine"}
            question = {"user_id": "somebody", "items": ["a"]}
            assert (await api.client.post("/predict", json=question, headers=headers)).status_code == 200
            assert (await ingest(api.client, event(1))).status_code == 200
            assert (await api.client.get("/periods/99")).status_code == 404
            await api.client.post("/periods/close")
            for path in ("/healthz", "/readyz", "/metrics"):
                await api.client.get(path)
            audit = (await api.client.get("/admin/audit")).json()["entries"]
        predict, within = of_request(spans, "POST /predict")
        assert (f"{predict.context.trace_id:032x}", f"{predict.parent.span_id:016x}") == (TRACE, PARENT)
        assert predict.attributes == {
            "http.request.method": "POST",
            "http.route": "/predict",
            "http.response.status_code": 200,
            "asmg.request_id": "mine",
        }
        systems = [str((span.attributes or {})["db.system.name"]) for span in within]
        assert {"redis", "postgresql"} <= set(systems), "a user whose past is not in memory"
        assert "somebody" not in str([span.attributes for span in within])
        stored = of_request(spans, "POST /interactions")[1]
        assert "store events" in {span.name for span in stored}
        missing, selects = of_request(spans, "GET /periods/{number}")
        assert (missing.attributes or {})["http.response.status_code"] == 404
        assert {span.name for span in selects} >= {"SELECT"}
        closing, _ = of_request(spans, "POST /periods/close")
        [closed] = [entry["detail"]["traceparent"] for entry in audit if entry["action"] == "close_period"]
        assert closed.startswith(f"00-{closing.context.trace_id:032x}-{closing.context.span_id:016x}-")
        requests = {span.name for span in spans.get_finished_spans() if span.name.startswith("GET /")}
        assert requests == {"GET /periods/{number}", "GET /admin/audit"}


async def test_what_the_sampler_leaves_out_is_not_recorded(settings: Settings) -> None:
    with recorded(sampling.ParentBased(sampling.ALWAYS_OFF)) as spans:
        async with running_app(settings) as api:
            question = {"user_id": "u", "items": ["a"]}
            assert (await api.client.post("/predict", json=question)).status_code == 200
            assert spans.get_finished_spans() == ()
            await api.client.post("/predict", json=question, headers={"traceparent": TRACEPARENT})
        assert {f"{span.context.trace_id:032x}" for span in spans.get_finished_spans()} == {TRACE}


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
    ],
)
def test_traces_are_on_where_the_standard_variables_say_so(variables: dict[str, str], wanted: bool) -> None:
    assert is_wanted(variables) is wanted


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]
)
def test_what_is_not_supported_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"{name}: expected"), traced_process("asmg-api"):
        pass


class Receiver:
    """A server that takes traces by OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        """Name of the service, and a span as it was sent."""
        received = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    [name] = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                    received.extend((name, span) for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Receiver":
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def named(self, name: str) -> list[tuple[str, Any]]:
        return [(service, span) for service, span in list(self.spans) if span.name == name]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
def test_the_whole_service_tells_of_itself(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    """`asmg serve` with two api processes and a worker: metrics on ports of their own, JSON lines, traces by OTLP."""
    ports = {"ASMG_METRICS_PORT": free_port(), "ASMG_WORKER_METRICS_PORT": free_port()}
    servers = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path / "data")}
    with Receiver() as receiver:
        traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        given = {**servers, **ports, **traces, "ASMG_LOG_FORMAT": "json", "ASMG_LOG_LEVEL": "info"}
        with program(tmp_path, "--workers", "2", "--worker", **given) as running:
            with httpx.Client(base_url=running.url, timeout=30) as client:
                events = [event(n, label=int(n % 3 == 0)) for n in range(60)]
                assert client.post("/interactions", json={"interactions": events}).is_success
                assert client.post("/periods/close").status_code == 202
                wait_for(lambda: client.get("/periods/1").json()["status"] == "updated", 120)
                assert client.get("/metrics").status_code == 404

                def shown(name: str) -> str:
                    return httpx.get(f"http://127.0.0.1:{ports[name]}/metrics", timeout=30).text

                api, worker = shown("ASMG_METRICS_PORT"), shown("ASMG_WORKER_METRICS_PORT")
                assert httpx.get(f"http://127.0.0.1:{ports['ASMG_METRICS_PORT']}/readyz").status_code == 404
            assert sample(api, 'asmg_requests_total{route="/periods/close",status="202"}') == 1
            assert sample(api, 'asmg_pool_connections{server="postgres",state="most"}') == 20, "of both processes"
            assert sample(api, 'asmg_update_stage_seconds{stage="publish"}') > 0
            assert sample(worker, 'asmg_worker_periods_total{result="updated"}') == 1
            assert sample(worker, 'asmg_worker_stage_seconds_count{stage="score"}') == 1
            assert sample(worker, "asmg_worker_leading") == 1
            assert sample(worker, "asmg_worker_progress_age_seconds") < 300
            wait_for(lambda: receiver.named("update period"), 20)
    check_lines(running.err)
    check_spans(receiver)


def check_lines(written: str) -> None:
    """All of the standard error is JSON, but what is said to the person who starts the program."""
    lines = [json.loads(line) for line in written.splitlines() if not line.startswith("asmg: ")]
    assert {"service.processes.supervisor", "service.worker", "uvicorn.error"} <= {line["logger"] for line in lines}
    fields = {"time", "level", "logger", "message", "request_id", "process"}
    assert all(fields <= set(line) <= fields | {"exception", "trace_id"} for line in lines)
    assert len({line["process"] for line in lines}) == 4


def check_spans(receiver: Receiver) -> None:
    """One trace of the update with a span for each stage, linked to the call that closed the period."""
    [(service, update)] = receiver.named("update period")
    [(api, closing)] = receiver.named("POST /periods/close")
    assert (service, api) == ("asmg-worker", "asmg-api")
    [link] = update.links
    assert (link.trace_id, link.span_id) == (closing.trace_id, closing.span_id)
    assert update.trace_id != closing.trace_id
    stages = {span.name: span for _, span in receiver.spans if span.parent_span_id == update.span_id}
    assert {"resolve", "prepare", "score", "train_generator", "update_base", "generate", "gate", "publish"} <= set(
        stages
    )
    resolved = {attribute.key: attribute.value for attribute in stages["resolve"].attributes}
    assert resolved["asmg.resolve.events"].int_value == 60
    below = [span for _, span in receiver.spans if span.parent_span_id == stages["publish"].span_id]
    assert any(span.name == "INSERT" for span in below)
