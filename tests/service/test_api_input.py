"""Bad input gets a problem document that names the field, and nothing of a rejected call is stored."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from service.limits import MAX_BATCH_BYTES, MAX_BODY_BYTES, MAX_PREDICT_BYTES
from service.storage.postgres.database import Database
from tests.service.api_support import NOON, Api, event, ingest, served_app, settings_for

LONG = "x" * 257


async def stored(database: Database) -> dict[str, int]:
    """Rows of everything that a call can write."""
    async with database.read() as session:
        return {
            table: (await session.connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()
            for table in (
                "interactions",
                "impressions",
                "clicks",
                "event_ids",
                "items",
                "periods",
                "audit",
                "model_versions",
            )
        }


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    document = response.json()
    assert document["status"] == status
    assert document["instance"] == response.request.url.path
    assert document["type"] and document["title"] and document["detail"]
    return document


def fields(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {error["field"]: (error["expected"], error["received"]) for error in document["errors"]}


A_TIME = "a time from 1990 to 2099: RFC 3339 with an offset, or integer epoch milliseconds"
MILLISECONDS = "epoch milliseconds, or a time in RFC 3339 with an offset; an integer below 1e11 is none"
AN_ID = "a string or an integer"
AN_INTEGER = "an integer from -9223372036854775808 to 9223372036854775807, or a string"


OF_SOMEBODY = "false, or absent, where there is no user_id to log impressions of"
SERVED = "null, or absent, where impressions are logged: they were served"
LOG = "true, false or an integer from 1 to 1000"
BAD_PREDICTIONS = [
    ({"user_id": "u"}, "items", "a value", "nothing"),
    ({"user_id": 4.2, "items": ["a"]}, "user_id", AN_ID, "4.2"),
    ({"user_id": 1e3, "items": ["a"]}, "user_id", AN_ID, "1000.0"),
    ({"user_id": False, "items": ["a"]}, "user_id", AN_ID, "false"),
    ({"user_id": 2**63, "items": ["a"]}, "user_id", AN_INTEGER, "9223372036854775808"),
    ({"user_id": "u", "items": [1, -(2**63) - 1]}, "items[1]", AN_INTEGER, "-9223372036854775809"),
    ({"user_id": "u", "items": ["a"], "history": [[7]]}, "history[0]", AN_ID, "1 items"),
    ({"user_id": "u", "items": ["a"], "request_id": 1.5}, "request_id", AN_ID, "1.5"),
    *(
        ({**user, "items": ["a"], "log_impressions": 1}, "log_impressions", OF_SOMEBODY, "1")
        for user in ({}, {"user_id": None})
    ),
    ({"user_id": "", "items": ["a"]}, "user_id", "at least 1 character", '""'),
    ({"user_id": "u", "items": ["a"], "colour": 1}, "colour", "no field of this name", "1"),
    ({"user_id": "u", "items": []}, "items", "at least 1 item", "0 items"),
    ({"user_id": "u", "items": ["a"] * 1001}, "items", "at most 1000 items", "1001 items"),
    ({"user_id": "u", "items": "a"}, "items", "an array", '"a"'),
    ({"user_id": "u", "items": ["a", LONG]}, "items[1]", "at most 256 characters", '"' + "x" * 98 + "…"),
    ({"user_id": "u", "items": ["a\0"]}, "items[0]", "no NUL character", '"a\\u0000"'),
    ({"user_id": "u", "items": ["a"], "history": ["b"] * 1001}, "history", "at most 1000 items", "1001 items"),
    ({"user_id": "u", "items": ["a"], "request_id": ""}, "request_id", "at least 1 character", '""'),
    *(
        ({"user_id": "u", "items": ["a"], "log_impressions": value}, "log_impressions", LOG, received)
        for value, received in ((0, "0"), (-1, "-1"), (1001, "1001"), (1.0, "1.0"), ("yes", '"yes"'), ([], "0 items"))
    ),
]
BAD_VERSIONS = [
    *(
        ({"user_id": "u", "items": ["a"], "model_version": 0, "log_impressions": log}, "model_version", SERVED, "0")
        for log in (True, 1)
    ),
    ({"user_id": "u", "items": ["a"], "model_version": -1}, "model_version", "at least 0", "-1"),
]


async def test_predict_rejects(api: Api) -> None:
    for body, field, expected, received in (*BAD_PREDICTIONS, *BAD_VERSIONS):
        document = problem(await api.client.post("/predict", json=body), 422)
        assert fields(document) == {field: (expected, received)}


GOOD = {"user_id": "u", "items": ["a"]}
PREDICTIONS = {"/predict": GOOD, "/predict/batch": {"requests": [GOOD]}}
BAD_BATCHES = [
    ({}, "requests", "a value", "nothing"),
    ({"requests": []}, "requests", "at least 1 item", "0 items"),
    ({"requests": [GOOD] * 257}, "requests", "at most 256 items", "257 items"),
    ({"requests": GOOD}, "requests", "an array", "an object"),
    ({"requests": None}, "requests", "an array", "null"),
    ({"requests": [GOOD], "user_id": "u"}, "user_id", "no field of this name", '"u"'),
    ({"requests": [GOOD, 7]}, "requests[1]", "an object", "7"),
    ({"requests": [GOOD, None]}, "requests[1]", "an object", "null"),
    ({"requests": [GOOD, [GOOD]]}, "requests[1]", "an object", "1 items"),
    (GOOD | {"requests": [GOOD]}, None, None, None),
]


async def test_batches_are_rejected_as_a_whole(api: Api) -> None:
    """Each request of a batch is checked like a single request, and errors name its position."""
    for body, field, expected, received in BAD_BATCHES:
        found = fields(problem(await api.client.post("/predict/batch", json=body), 422))
        if field is None:
            assert set(found) == {"user_id", "items"}
        else:
            assert found == {field: (expected, received)}
    for one, field, expected, received in BAD_PREDICTIONS:
        body = {"requests": [GOOD, GOOD, GOOD, one, GOOD]}
        found = fields(problem(await api.client.post("/predict/batch", json=body), 422))
        assert found == {f"requests[3].{field}": (expected, received)}
    assert (await api.client.post("/predict/batch", json={"requests": [GOOD] * 256})).status_code == 200


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
    ({"timestamp": "2100-01-01T00:00:00Z"}, "timestamp", A_TIME, '"2100-01-01T00:00:00Z"'),
    ({"timestamp": "1989-12-31T23:59:59Z"}, "timestamp", A_TIME, '"1989-12-31T23:59:59Z"'),
    ({"timestamp": 1795928400}, "timestamp", MILLISECONDS, "1795928400, which looks like epoch seconds"),
    ({"timestamp": 10**11 - 1}, "timestamp", MILLISECONDS, "99999999999, which looks like epoch seconds"),
    ({"timestamp": 10**11}, "timestamp", A_TIME, "100000000000"),
    ({"timestamp": 1795928400000000}, "timestamp", A_TIME, "1795928400000000"),
    ({"timestamp": -1}, "timestamp", A_TIME, "-1"),
    ({"timestamp": 10**30}, "timestamp", A_TIME, str(10**30)),
    ({"timestamp": True}, "timestamp", A_TIME, "true"),
    ({"timestamp": 1.5}, "timestamp", A_TIME, "1.5"),
    ({"event_id": ""}, "event_id", "at least 1 character", '""'),
    ({"item_id": LONG}, "item_id", "at most 256 characters", '"' + "x" * 98 + "…"),
    ({"item_id": {"a": 1}}, "item_id", AN_ID, "an object"),
    ({"item_id": 4.2}, "item_id", AN_ID, "4.2"),
    ({"user_id": True}, "user_id", AN_ID, "true"),
    ({"user_id": None}, "user_id", AN_ID, "null"),
    ({"event_id": 2**63}, "event_id", AN_INTEGER, "9223372036854775808"),
    ({"colour": 1}, "colour", "no field of this name", "1"),
]


async def test_interactions_reject_and_store_nothing(api: Api, database: Database) -> None:
    before = await stored(database)
    for change, field, expected, received in BAD_INTERACTIONS:
        document = problem(await ingest(api.client, event(1), event(2), event(3, **change)), 422)
        assert fields(document) == {f"interactions[2].{field}": (expected, received)}
    assert await stored(database) == before


BAD_IMPRESSIONS = [
    ({"request_id": ""}, "request_id", "at least 1 character", '""'),
    ({"request_id": None}, "request_id", AN_ID, "null"),
    ({"timestamp": 1795928400}, "timestamp", MILLISECONDS, "1795928400, which looks like epoch seconds"),
    ({"user_id": "u\0"}, "user_id", "no NUL character", '"u\\u0000"'),
    ({"items": []}, "items", "at least 1 item", "0 items"),
    ({"items": [str(n) for n in range(1001)]}, "items", "at most 1000 items", "1001 items"),
    ({"items": "a"}, "items", "an array", '"a"'),
    ({"items": ["a", 7.0]}, "items[1]", AN_ID, "7.0"),
    ({"items": ["a", "b", "c", "b"]}, "items", "each item once", '"b" twice'),
    ({"items": [42, "b", "42"]}, "items", "each item once", '"42" twice'),
    ({"positions": []}, "positions", "as many positions as items: 2", "0 items"),
    ({"positions": [0, 1, 2]}, "positions", "as many positions as items: 2", "3 items"),
    ({"positions": [0, -1]}, "positions[1]", "at least 0", "-1"),
    ({"positions": [2**31, 0]}, "positions[0]", "at most 2147483647", "2147483648"),
    ({"positions": [0, 1.0]}, "positions[1]", "an integer", "1.0"),
    ({"positions": [True, 0]}, "positions[0]", "an integer", "true"),
    ({"timestamp": "2024-05-01T12:00:00"}, "timestamp", A_TIME, '"2024-05-01T12:00:00"'),
    ({"item_id": "a"}, "item_id", "no field of this name", '"a"'),
]
BAD_CLICKS = [
    ({"event_id": ""}, "event_id", "at least 1 character", '""'),
    ({"request_id": LONG}, "request_id", "at most 256 characters", '"' + "x" * 98 + "…"),
    ({"item_id": 7.5}, "item_id", AN_ID, "7.5"),
    ({"timestamp": 0}, "timestamp", MILLISECONDS, "0, which looks like epoch seconds"),
    ({"timestamp": None}, "timestamp", A_TIME, "null"),
    ({"user_id": "u"}, "user_id", "no field of this name", '"u"'),
    ({"label": 1}, "label", "no field of this name", "1"),
]
IMPRESSION = {"request_id": "r", "user_id": "u", "items": ["a", "b"], "timestamp": NOON}
CLICK = {"request_id": "r", "item_id": "a", "timestamp": NOON}
HALVES = [("impressions", IMPRESSION, BAD_IMPRESSIONS), ("clicks", CLICK, BAD_CLICKS)]


@pytest.mark.parametrize(("kind", "good", "bad"), HALVES, ids=["impressions", "clicks"])
async def test_impressions_and_clicks_reject_and_store_nothing(
    api: Api, database: Database, kind: str, good: dict[str, Any], bad: list[Any]
) -> None:
    before = await stored(database)
    for change, field, expected, received in bad:
        response = await api.client.post(f"/{kind}", json={kind: [good, {**good, **change}]})
        assert fields(problem(response, 422)) == {f"{kind}[1].{field}": (expected, received)}
    for missing in good:
        one = {name: value for name, value in good.items() if name != missing}
        response = await api.client.post(f"/{kind}", json={kind: [one]})
        assert fields(problem(response, 422)) == {f"{kind}[0].{missing}": ("a value", "nothing")}
    for events, expected in (([], "at least 1 item"), ([good] * 10_001, "at most 10000 items")):
        document = problem(await api.client.post(f"/{kind}", json={kind: events}), 422)
        assert fields(document) == {kind: (expected, f"{len(events)} items")}
    headers = {"content-type": "application/json"}
    problem(await api.client.post(f"/{kind}", content=b" " * (MAX_BODY_BYTES + 1), headers=headers), 413)
    problem(await api.client.post(f"/{kind}", content=b"{", headers=headers), 400)
    problem(await api.client.post(f"/{kind}", content=b"{}"), 415)
    assert await stored(database) == before


async def test_too_many_interactions_store_nothing(api: Api, database: Database) -> None:
    before = await stored(database)
    document = problem(await ingest(api.client, *(event(number) for number in range(10_001))), 422)
    assert fields(document) == {"interactions": ("at most 10000 items", "10001 items")}
    document = problem(await ingest(api.client), 422)
    assert fields(document) == {"interactions": ("at least 1 item", "0 items")}
    assert await stored(database) == before


async def test_all_wrong_fields_are_named_up_to_a_limit(api: Api) -> None:
    document = problem(await ingest(api.client, event(1, label=2, user_id=""), event(2, item_id=0.5)), 422)
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
    ({"items": [{"item_id": "a", "categories": [None]}]}, "items[0].categories[0]"),
    ({"items": [{"item_id": 1.5, "categories": None}]}, "items[0].item_id"),
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
    b'{"requests": [{"user_id": "\xff", "items": ["a"]}]}',
    b'{"user_id": "u", "items": ["a"]}}',
    b'{"requests": [{"user_id": "u", "items": ["a"]}]} {',
    b'{"requests": [{"user_id": "u", "items": ["a"}]}',
    b"[" * 9999,
]


async def test_what_is_no_json_is_400(api: Api) -> None:
    for body in NO_JSON:
        headers = {"content-type": "application/json"}
        for path in PREDICTIONS:
            problem(await api.client.post(path, content=body, headers=headers), 400)


NO_OBJECT = [b"[]", b'"text"', b"null", b"3"]


async def test_json_that_is_no_object_is_422(api: Api) -> None:
    for body in NO_OBJECT:
        headers = {"content-type": "application/json"}
        for path in PREDICTIONS:
            document = problem(await api.client.post(path, content=body, headers=headers), 422)
            assert document["errors"][0]["expected"] == "an object"


WRONG_MEDIA_TYPES = [
    None,
    "text/plain",
    "application/x-www-form-urlencoded",
    "application/jsonp",
    "application/json; charset=utf-16",
]


async def test_what_is_not_said_to_be_json_is_415(api: Api) -> None:
    for content_type in WRONG_MEDIA_TYPES:
        headers = {} if content_type is None else {"content-type": content_type}
        for path, document in PREDICTIONS.items():
            problem(await api.client.post(path, content=json.dumps(document).encode(), headers=headers), 415)


JSON_MEDIA_TYPES = ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/vnd.a+json"]


async def test_json_media_types(api: Api) -> None:
    for content_type in JSON_MEDIA_TYPES:
        for path, document in PREDICTIONS.items():
            body, headers = json.dumps(document).encode(), {"content-type": content_type}
            assert (await api.client.post(path, content=body, headers=headers)).status_code == 200


async def test_a_body_over_the_limit_is_413(api: Api, database: Database) -> None:
    before = await stored(database)
    too_large = b" " * (MAX_BODY_BYTES + 1)

    headers = {"content-type": "application/json"}
    for body in (too_large, in_pieces(too_large)):  # with a declared length, and without
        document = problem(await api.client.post("/interactions", content=body, headers=headers), 413)
        assert str(MAX_BODY_BYTES) in document["detail"]
    assert await stored(database) == before


async def test_a_body_at_the_limit_is_read(api: Api) -> None:
    body = json.dumps({"interactions": [event(1)]}).encode().ljust(MAX_BODY_BYTES)
    response = await api.client.post("/interactions", content=body, headers={"content-type": "application/json"})
    assert response.json() == {"accepted": 1, "duplicates": 0, "period": 1}


LIMITS = [
    ("/predict", GOOD, MAX_PREDICT_BYTES, 1024 * 1024),
    ("/predict/batch", {"requests": [GOOD]}, MAX_BATCH_BYTES, 4 * 1024 * 1024),
]


async def test_predictions_have_limits_of_their_own(api: Api) -> None:
    headers = {"content-type": "application/json"}
    for path, document, limit, expected in LIMITS:
        assert limit == expected
        body = json.dumps(document).encode()
        response = await api.client.post(path, content=body.ljust(limit), headers=headers)
        assert response.status_code == 200
        for content in (body.ljust(limit + 1), in_pieces(body.ljust(limit + 1))):
            document = problem(await api.client.post(path, content=content, headers=headers), 413)
            assert document["detail"] == f"expected a body of at most {limit} bytes; received more"


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    """Without a declared length."""
    for start in range(0, len(body), 65536):
        yield body[start : start + 65536]


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
async def test_no_request_of_a_batch_is_longer_than_one_may_be_alone(api: Api, content_type: str) -> None:
    headers = {"content-type": content_type}
    long = "😀" * 250  # a thousand bytes
    one = {"user_id": "u", "items": [long] * 1000, "history": [long] * 50}

    def body(document: object) -> bytes:
        return json.dumps(document, ensure_ascii=False).encode()

    allowed = {**one, "history": []}
    assert len(body(allowed)) < MAX_PREDICT_BYTES < len(body(one)) < MAX_BATCH_BYTES
    for path, content in (("/predict", body(one)), ("/predict/batch", body({"requests": [GOOD, one]}))):
        document = problem(await api.client.post(path, content=content, headers=headers), 413)
        assert str(MAX_PREDICT_BYTES) in document["detail"]
    response = await api.client.post("/predict/batch", content=body({"requests": [allowed] * 3}), headers=headers)
    assert response.status_code == 200
    assert len(response.json()["predictions"][2]["scores"]) == 1000


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
    ("GET", f"/admin/models?limit={'9' * 5000}", 422),
]


async def test_what_does_not_exist(api: Api) -> None:
    for method, path, status in NOT_THERE:
        document = problem(await api.client.request(method, path), status)
        if status == 422:
            assert document["errors"][0]["field"] in ("limit", "before")
            expected = {"0": "at least 1", "201": "at most 200"}.get(path.partition("=")[2], "an integer")
            assert document["errors"][0]["expected"] == expected


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
    (631152000000, 631152000000),
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

    monkeypatch.setattr(type(api.state.serving), "current", fail)
    response = await api.client.post("/predict", json={"user_id": "u", "items": ["a"]})
    assert "secret" not in str(problem(response, 500))


async def test_a_large_body_on_a_real_connection_gets_its_answer(
    postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    """The answer comes while the client still sends; the connection has to stay open until the client has read it."""

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b" " * 65536

    with served_app(settings_for(postgres_dsn, redis_url, tmp_path)) as url:
        async with httpx.AsyncClient(base_url=url, headers={"content-type": "application/json"}) as client:
            for _ in range(3):
                for body in (b" " * 200 * 65536, stream()):
                    problem(await client.post("/interactions", content=body), 413)
                assert (await client.get("/healthz")).status_code == 200
