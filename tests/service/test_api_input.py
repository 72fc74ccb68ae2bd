"""Bad input gets a problem document that names the field, and nothing of a rejected call is stored."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from service.limits import MAX_BODY_BYTES
from service.storage.database import Database
from tests.service.api_support import NOON, Api, event, ingest, served_app, settings_for

LONG = "x" * 257


async def stored(database: Database) -> dict[str, int]:
    """Rows of everything that a call can write."""
    async with database.read() as session:
        return {
            table: (await session.connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()
            for table in ("interactions", "items", "periods", "audit", "model_versions")
        }


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    document = response.json()
    assert document["status"] == status
    assert document["instance"] == response.request.url.path
    assert document["type"] and document["title"] and document["detail"]
    return document


def fields(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {error["field"]: (error["expected"], error["received"]) for error in document["errors"]}


A_TIME = "a time from 1970 to 2199: RFC 3339 with an offset, or integer epoch milliseconds"


BAD_PREDICTIONS = [
    ({"items": ["a"]}, "user_id", "a value", "nothing"),
    ({"user_id": 3, "items": ["a"]}, "user_id", "a string", "3"),
    ({"user_id": "", "items": ["a"]}, "user_id", "at least 1 character", '""'),
    ({"user_id": "u", "items": ["a"], "colour": 1}, "colour", "no field of this name", "1"),
    ({"user_id": "u", "items": []}, "items", "at least 1 item", "0 items"),
    ({"user_id": "u", "items": ["a"] * 1001}, "items", "at most 1000 items", "1001 items"),
    ({"user_id": "u", "items": "a"}, "items", "an array", '"a"'),
    ({"user_id": "u", "items": ["a", LONG]}, "items[1]", "at most 256 characters", '"' + "x" * 98 + "…"),
    ({"user_id": "u", "items": ["a\0"]}, "items[0]", "no NUL character", '"a\\u0000"'),
    ({"user_id": "u", "items": ["a"], "history": ["b"] * 1001}, "history", "at most 1000 items", "1001 items"),
    ({"user_id": "u", "items": ["a"], "request_id": ""}, "request_id", "at least 1 character", '""'),
]


async def test_predict_rejects(api: Api) -> None:
    for body, field, expected, received in BAD_PREDICTIONS:
        document = problem(await api.client.post("/predict", json=body), 422)
        assert fields(document) == {field: (expected, received)}


BAD_INTERACTIONS = [
    ({"label": 2}, "label", "0 or 1", "2"),
    ({"label": -1}, "label", "0 or 1", "-1"),
    ({"label": "1"}, "label", "0 or 1", '"1"'),
    ({"label": True}, "label", "0 or 1", "true"),
    ({"label": 1.0}, "label", "0 or 1", "1.0"),
    ({"label": None}, "label", "0 or 1", "null"),
    ({"timestamp": "yesterday"}, "timestamp", A_TIME, '"yesterday"'),
    ({"timestamp": "2024-05-01T12:00:00"}, "timestamp", A_TIME, '"2024-05-01T12:00:00"'),
    ({"timestamp": "2024-05-01"}, "timestamp", A_TIME, '"2024-05-01"'),
    ({"timestamp": "2024-02-30T12:00:00Z"}, "timestamp", A_TIME, '"2024-02-30T12:00:00Z"'),
    ({"timestamp": "2024-05-01T12:00:00+25:00"}, "timestamp", A_TIME, '"2024-05-01T12:00:00+25:00"'),
    ({"timestamp": "2200-01-01T00:00:00Z"}, "timestamp", A_TIME, '"2200-01-01T00:00:00Z"'),
    ({"timestamp": -1}, "timestamp", A_TIME, "-1"),
    ({"timestamp": 10**30}, "timestamp", A_TIME, str(10**30)),
    ({"timestamp": True}, "timestamp", A_TIME, "true"),
    ({"timestamp": 1.5}, "timestamp", A_TIME, "1.5"),
    ({"event_id": ""}, "event_id", "at least 1 character", '""'),
    ({"item_id": LONG}, "item_id", "at most 256 characters", '"' + "x" * 98 + "…"),
    ({"item_id": {"a": 1}}, "item_id", "a string", "an object"),
    ({"weight": 1}, "weight", "no field of this name", "1"),
]


async def test_interactions_reject_and_store_nothing(api: Api, database: Database) -> None:
    before = await stored(database)
    for change, field, expected, received in BAD_INTERACTIONS:
        document = problem(await ingest(api.client, event(1), event(2), event(3, **change)), 422)
        assert fields(document) == {f"interactions[2].{field}": (expected, received)}
    assert await stored(database) == before


async def test_too_many_interactions_store_nothing(api: Api, database: Database) -> None:
    before = await stored(database)
    document = problem(await ingest(api.client, *(event(number) for number in range(10_001))), 422)
    assert fields(document) == {"interactions": ("at most 10000 items", "10001 items")}
    document = problem(await ingest(api.client), 422)
    assert fields(document) == {"interactions": ("at least 1 item", "0 items")}
    assert await stored(database) == before


async def test_all_wrong_fields_are_named_up_to_a_limit(api: Api) -> None:
    document = problem(await ingest(api.client, event(1, label=2, user_id=""), event(2, item_id=5)), 422)
    assert set(fields(document)) == {"interactions[0].label", "interactions[0].user_id", "interactions[1].item_id"}
    document = problem(await ingest(api.client, *(event(number, label=7) for number in range(500))), 422)
    assert len(document["errors"]) == 50
    assert document["detail"] == "500 fields are not as expected; the first 50 are listed"


BAD_ITEMS = [
    ({"items": []}, "items"),
    ({"items": [{"item_id": "a", "categories": ["c"] * 17}]}, "items[0].categories"),
    ({"items": [{"item_id": "a", "categories": [""]}]}, "items[0].categories[0]"),
    ({"items": [{"item_id": "a"}]}, "items[0].categories"),
    ({"items": [{"item_id": "a", "categories": [], "price": 3}]}, "items[0].price"),
    ({"items": [{"item_id": "a", "categories": []}] * 10_001}, "items"),
]


async def test_items_reject_and_store_nothing(api: Api, database: Database) -> None:
    before = await stored(database)
    for body, field in BAD_ITEMS:
        assert set(fields(problem(await api.client.put("/items", json=body), 422))) == {field}
        assert await stored(database) == before


BAD_ROLLBACKS = [
    ({"to_version": "1", "sequence": "keep", "reason": "r"}, "to_version"),
    ({"to_version": 0, "sequence": "drop", "reason": "r"}, "sequence"),
    ({"to_version": 0, "sequence": "keep", "reason": ""}, "reason"),
    ({"to_version": 0, "sequence": "keep", "reason": "r" * 1001}, "reason"),
    ({"to_version": 0, "sequence": "keep"}, "reason"),
]


async def test_rollback_rejects(api: Api, database: Database) -> None:
    before = await stored(database)
    for body, field in BAD_ROLLBACKS:
        assert set(fields(problem(await api.client.post("/admin/rollback", json=body), 422))) == {field}
        assert await stored(database) == before


NO_JSON = [
    b"",
    b"{",
    b"nothing",
    b'{"user_id": "\\ud800", "items": ["a"]}',
    b'{"user_id": "\xff", "items": ["a"]}',
    b"[" * 9999,
]


async def test_what_is_no_json_is_400(api: Api) -> None:
    for body in NO_JSON:
        headers = {"content-type": "application/json"}
        problem(await api.client.post("/predict", content=body, headers=headers), 400)


NO_OBJECT = [b"[]", b'"text"', b"null", b"3"]


async def test_json_that_is_no_object_is_422(api: Api) -> None:
    for body in NO_OBJECT:
        headers = {"content-type": "application/json"}
        document = problem(await api.client.post("/predict", content=body, headers=headers), 422)
        assert document["errors"][0]["expected"] == "an object"


WRONG_MEDIA_TYPES = [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"]


async def test_what_is_not_said_to_be_json_is_415(api: Api) -> None:
    for content_type in WRONG_MEDIA_TYPES:
        headers = {} if content_type is None else {"content-type": content_type}
        body = json.dumps({"user_id": "u", "items": ["a"]}).encode()
        problem(await api.client.post("/predict", content=body, headers=headers), 415)


JSON_MEDIA_TYPES = ["application/json; charset=utf-8", "Application/JSON", "application/vnd.a+json"]


async def test_json_media_types(api: Api) -> None:
    for content_type in JSON_MEDIA_TYPES:
        body = json.dumps({"user_id": "u", "items": ["a"]}).encode()
        response = await api.client.post("/predict", content=body, headers={"content-type": content_type})
        assert response.status_code == 200


async def test_a_body_over_the_limit_is_413(api: Api, database: Database) -> None:
    before = await stored(database)
    too_large = b" " * (MAX_BODY_BYTES + 1)

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(too_large), 65536):
            yield too_large[start : start + 65536]

    headers = {"content-type": "application/json"}
    for body in (too_large, stream()):  # with a declared length, and without
        document = problem(await api.client.post("/interactions", content=body, headers=headers), 413)
        assert str(MAX_BODY_BYTES) in document["detail"]
    assert await stored(database) == before


async def test_a_body_at_the_limit_is_read(api: Api) -> None:
    body = json.dumps({"interactions": [event(1)]}).encode().ljust(MAX_BODY_BYTES)
    response = await api.client.post("/interactions", content=body, headers={"content-type": "application/json"})
    assert response.json() == {"accepted": 1, "duplicates": 0, "period": 1}


NOT_THERE = [
    ("GET", "/nothing", 404),
    ("GET", "/periods/", 404),
    ("GET", "/periods/one", 404),
    ("GET", "/periods/0", 404),
    ("GET", "/periods/2", 404),
    ("GET", "/periods/99999999999999999999", 404),
    ("GET", "/periods/2/events", 404),
    ("GET", "/admin/models/1", 404),
    ("GET", "/admin/models/99999999999", 404),
    ("GET", "/predict", 405),
    ("GET", "/periods/close", 405),
    ("DELETE", "/items", 405),
    ("GET", "/periods?limit=0", 422),
    ("GET", "/periods?limit=201", 422),
    ("GET", "/periods?before=x", 422),
    ("GET", "/admin/models?limit=many", 422),
]


async def test_what_does_not_exist(api: Api) -> None:
    for method, path, status in NOT_THERE:
        document = problem(await api.client.request(method, path), status)
        if status == 422:
            assert document["errors"][0]["field"] in ("limit", "before")


NO_VERSIONS = [1, -1, 2**31, 10**30]


async def test_rollback_to_a_version_that_does_not_exist_is_404(api: Api, database: Database) -> None:
    before = await stored(database)
    for version in NO_VERSIONS:
        body = {"to_version": version, "sequence": "excise", "reason": "why not"}
        problem(await api.client.post("/admin/rollback", json=body), 404)
        assert await stored(database) == before


async def test_closing_what_cannot_be_closed_is_409(api: Api, database: Database) -> None:
    before = await stored(database)
    document = problem(await api.client.post("/periods/close"), 409)
    assert document["type"].endswith("empty-period")
    await ingest(api.client, event(1))
    before = await stored(database)
    for wrong in (2, 0, -5, 10**30):
        document = problem(await api.client.post("/periods/close", json={"expected_period": wrong}), 409)
        assert document["type"].endswith("period-conflict")
    problem(await api.client.post("/periods/close", json={"expected_period": "1"}), 422)
    problem(await api.client.post("/periods/close", json={"period": 1}), 422)
    problem(await api.client.post("/periods/close", headers={"Idempotency-Key": "k" * 257}), 422)
    assert await stored(database) == before


TIMES = [
    (NOON, 1714564800000),
    ("2024-05-01t14:00:00.123456789+02:00", 1714564800123),
    ("2024-05-01 06:30:00-05:30", 1714564800000),
    (1714564800001, 1714564800001),
    (0, 0),
]


async def test_timestamps_are_understood(api: Api, database: Database) -> None:
    for number, (timestamp, _) in enumerate(TIMES):
        assert (await ingest(api.client, event(number, timestamp=timestamp))).status_code == 200
    async with database.read() as session:
        log = await session.interactions.log(1)
    assert log.timestamps_ms.tolist() == sorted(milliseconds for _, milliseconds in TIMES)


async def test_an_unexpected_failure_tells_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(type(api.parts.serving), "current", fail)
    response = await api.client.post("/predict", json={"user_id": "u", "items": ["a"]})
    assert "secret" not in str(problem(response, 500))


async def test_a_large_body_on_a_real_connection_gets_its_answer(
    postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    """The answer comes while the client still sends; the connection has to live until the client has read it."""

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b" " * 65536

    with served_app(settings_for(postgres_dsn, redis_url, tmp_path)) as url:
        async with httpx.AsyncClient(base_url=url, headers={"content-type": "application/json"}) as client:
            for _ in range(3):
                for body in (b" " * 200 * 65536, stream()):
                    problem(await client.post("/interactions", content=body), 413)
                assert (await client.get("/healthz")).status_code == 200
