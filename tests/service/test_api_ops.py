"""Liveness, readiness, metrics, request ids and the description of the API."""

import asyncio
import re
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import PeriodStatus
from tests.service.api_support import Api, event, ingest, running_app, settings_for


async def test_a_new_service_is_alive_and_ready_with_the_prior(api: Api) -> None:
    assert (await api.client.get("/healthz")).json() == {"status": "ok"}
    ready = await api.client.get("/readyz")
    checks = {"model": "ok", "swap": "ok", "postgres": "ok", "redis": "ok"}
    assert ready.json() == {"status": "ready", "model_version": 0, "period": 0, "checks": checks}
    answer = await api.client.post("/predict", json={"user_id": "u", "items": ["a", "b"], "request_id": "r7"})
    assert answer.json() == {
        "model_version": 0,
        "period": 0,
        "scores": pytest.approx([0.25, 0.25]),
        "cold_user": True,
        "cold_items": [0, 1],
        "history": "used",
        "request_id": "r7",
    }
    answer = await api.client.post("/predict", json={"user_id": "u", "items": ["a"]})
    assert re.fullmatch("[0-9a-f]{32}", answer.json()["request_id"])


async def test_readiness_answers_while_postgres_hangs(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(_: object) -> None:
        for _ in range(5):  # like a driver that waits for its server although it was cancelled
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                continue

    monkeypatch.setattr(type(api.state.database), "ping", hang)
    started = time.monotonic()
    response = await api.client.get("/readyz")
    assert time.monotonic() - started < 2
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.headers["content-type"] == "application/problem+json"
    assert (await api.client.get("/healthz")).status_code == 200


async def test_without_redis_it_is_ready(postgres_dsn: str, tmp_path: Path) -> None:
    settings = settings_for(postgres_dsn, f"unix://{tmp_path}/nobody.sock", tmp_path)
    async with running_app(settings) as api:
        ready = await api.client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["checks"]["redis"].startswith("no answer")
        assert (await ingest(api.client, event(1))).status_code == 200
        assert (await api.client.post("/predict", json={"user_id": "u1", "items": ["a"]})).status_code == 200
        failures = r'^asmg_server_failures_total\{server="redis"\} [1-9]'
        for _ in range(200):
            if counted := re.search(failures, (await api.client.get("/metrics")).text, re.MULTILINE):
                break
            await asyncio.sleep(0.05)
        assert counted is not None


async def test_without_postgres_it_starts_and_is_not_ready(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.http.running_state.START_SECONDS", 0.1)
    async with running_app(settings_for("postgresql://127.0.0.1:1/none", redis_url, tmp_path)) as api:
        assert (await api.client.get("/healthz")).status_code == 200
        for response in (await api.client.get("/readyz"), await ingest(api.client, event(1))):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"


async def test_request_ids(api: Api) -> None:
    for path in ("/healthz", "/nothing", "/periods/77"):
        echoed = await api.client.get(path, headers={"X-Request-ID": "mine-1"})
        assert echoed.headers.get_list("x-request-id") == ["mine-1"]
        made = [(await api.client.get(path)).headers["x-request-id"] for _ in range(2)]
        assert made[0] != made[1]
        longest = "".join(chr(32 + n % 94 + 1) for n in range(256))
        assert (await api.client.get(path, headers={"X-Request-ID": longest})).headers["x-request-id"] == longest
        for wrong in (b"", longest.encode() + b"x", b"with space", b"\xc3\xa9", b"tab\there"):
            refused = await api.client.get(path, headers={"X-Request-ID": wrong})
            assert re.fullmatch("[0-9a-f]{32}", refused.headers["x-request-id"])


async def test_the_worker_is_told_of_a_closed_period(api: Api) -> None:
    assert (await ingest(api.client, event(1))).is_success
    async with asyncio.timeout(10), aclosing(api.state.notices.sealed_notices()) as heard:
        await anext(heard)  # the subscription itself
        assert (await api.client.post("/periods/close")).status_code == 202
        await anext(heard)


async def test_metrics_tell_of_periods_in_quarantine(api: Api, database: Database) -> None:
    async def told() -> dict[str, float]:
        text = (await api.client.get("/metrics")).text
        return {name: float(count) for name, count in re.findall(r'asmg_periods\{status="(\w+)"\} (\S+)', text)}

    assert (await ingest(api.client, event(1))).is_success
    assert (await api.client.post("/periods/close")).status_code == 202
    nothing = dict.fromkeys(map(str, PeriodStatus), 0.0)
    assert await told() == {**nothing, "open": 1.0, "sealed": 1.0}
    for status in (PeriodStatus.QUARANTINED, PeriodStatus.SKIPPED):  # and an alert ends again
        async with database.unit_of_work() as work:
            await work.periods.set_status(1, status)
            await work.commit()
        assert await told() == {**nothing, "open": 1.0, str(status): 1.0}


async def test_every_problem_names_its_request(api: Api) -> None:
    for method, path, content, status in (
        ("GET", "/nothing", b"", 404),
        ("GET", "/periods/77", b"", 404),
        ("PATCH", "/healthz", b"", 405),
        ("POST", "/predict", b"{", 400),
        ("POST", "/predict/batch", b"{}", 422),
        ("POST", "/periods/close", b"{}", 409),
        ("POST", "/predict", b" " * 2_000_000, 413),
        ("PUT", "/items", b" " * 9_000_000, 413),
        ("GET", "/admin/audit?limit=0", b"", 422),
    ):
        headers = {"Content-Type": "application/json", "X-Request-ID": f"{method}-{status}"}
        response = await api.client.request(method, path, content=content, headers=headers)
        assert response.status_code == status, (path, response.text)
        assert response.json()["request_id"] == response.headers["x-request-id"] == f"{method}-{status}"
        made = await api.client.request(method, path, content=content, headers={"Content-Type": "application/json"})
        assert re.fullmatch("[0-9a-f]{32}", made.json()["request_id"])
        assert made.json()["request_id"] == made.headers["x-request-id"]


async def test_metrics(api: Api) -> None:
    await ingest(api.client, event(1), event(2), event(1))
    await api.client.post("/predict", json={"user_id": "u", "items": ["a", "b", "c"]})
    questions = [{"user_id": "u", "items": ["a", "b"]}, {"user_id": "v", "items": ["c"]}]
    await api.client.post("/predict/batch", json={"requests": questions})
    await api.client.post("/predict/batch", json={"requests": []})
    await api.client.post("/predict", content=b"{", headers={"content-type": "application/json"})
    await api.client.get("/predict")
    await api.client.get("/periods/1")
    await api.client.get("/periods/99")
    await api.client.get("/somewhere/else")
    response = await api.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = response.text.splitlines()
    for line in (
        'asmg_requests_total{route="/interactions",status="200"} 1.0',
        'asmg_requests_total{route="/periods/{number}",status="200"} 1.0',
        'asmg_requests_total{route="/periods/{number}",status="404"} 1.0',
        'asmg_requests_total{route="unmatched",status="404"} 1.0',
        'asmg_requests_total{route="/predict",status="200"} 1.0',
        'asmg_requests_total{route="/predict",status="400"} 1.0',
        'asmg_requests_total{route="/predict",status="405"} 1.0',
        'asmg_requests_total{route="/predict/batch",status="200"} 1.0',
        'asmg_requests_total{route="/predict/batch",status="422"} 1.0',
        'asmg_request_seconds_count{route="/predict"} 3.0',
        "asmg_predicted_items_total 6.0",
        'asmg_interactions_total{result="accepted"} 2.0',
        'asmg_interactions_total{result="duplicate"} 1.0',
        "asmg_model_version 0.0",
        "asmg_swaps_total 1.0",
        "asmg_swap_failures_total 0.0",
        "asmg_history_fallbacks_total 0.0",
    ):
        assert line in lines, line


async def test_the_documented_metrics_are_those_that_are_offered(api: Api) -> None:
    """By name and labels."""
    await ingest(api.client, event(1))
    await api.client.post("/predict", json={"user_id": "u", "items": ["a"]})
    text = (await api.client.get("/metrics")).text
    offered = {
        name if kind != "counter" else name.removesuffix("_total") + "_total"
        for name, kind in re.findall(r"^# TYPE (asmg_\w+?) (\w+)$", text, re.MULTILINE)
        if not name.endswith("_created")
    }
    document = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    table = document.partition("| metric | labels |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `asmg_")]
    labels = {name: set(re.findall(r"`(\w+)`", cell)) for names, cell in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(labels) == offered
    for name, expected in labels.items():
        shown = re.findall(rf"^{name}(?:_count)?(?:\{{([^}}]*)\}})? ", text, re.MULTILINE)
        for sample in shown:
            assert set(re.findall(r"(\w+)=", sample)) == expected, name


async def test_the_description_names_bodies_and_problems(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    assert {"/predict", "/periods/close", "/admin/rollback", "/metrics"} < set(document["paths"])
    body = document["paths"]["/interactions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    event_schema = body["properties"]["interactions"]["items"]["properties"]
    assert event_schema["label"]["enum"] == [0, 1]
    assert {choice["type"] for choice in event_schema["timestamp"]["anyOf"]} == {"string", "integer"}
    assert "$ref" not in str(body)
    for path, answer in (("/predict", "PredictResponse"), ("/predict/batch", "BatchResponse")):
        call = document["paths"][path]["post"]
        assert call["security"] == [{"API key": []}]
        schema = call["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{answer}"}
        assert "$ref" not in str(call["requestBody"])
    batch = document["paths"]["/predict/batch"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    one = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    requests = batch["properties"]["requests"]
    assert (requests["minItems"], requests["maxItems"]) == (1, 256)
    assert set(requests["items"]["properties"]) == set(one["properties"]) - {"model_version"}  # the batch has one
    assert "model_version" in batch["properties"]
    assert "security" not in document["paths"]["/healthz"]["get"]
    assert "Problem" in document["components"]["schemas"]


def test_the_app_needs_servers(tmp_path: Path) -> None:
    from service.app import create_app

    with pytest.raises(ConfigurationError, match="ASMG_POSTGRES_DSN"):
        create_app(Settings(data_dir=tmp_path))
