"""Unusual but valid client input: integers as ids, seconds, wrong clocks, gzip, visitors without an id."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from starlette.exceptions import HTTPException

from service.errors import BodyTooLarge, NotReady
from service.http.bodies import read as read_module
from service.http.bodies.read import SMALL_BYTES, Bodies, gunzipped, read_body
from service.limits import MAX_BODY_BYTES, MAX_GZIP_MEMBERS, MAX_ID_LENGTH, within_id_length
from service.serving.id_hashes import hash_ids
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EventBatch, Interaction, interaction_id
from service.storage.postgres.repositories.interactions import SAMPLED_ID
from service.storage.postgres.repositories.label_events import INTERACTION_ID
from service.use_cases.ingest import ingest as store
from tests.service.api_support import (
    NOON,
    Api,
    click,
    event,
    eventually,
    impression,
    ingest,
    publish,
    recorded_histories,
    running_app,
    settings_for,
)
from tests.service.serving_support import random_model
from tests.service.test_api_input import fields, problem, stored

JSON = {"content-type": "application/json"}


async def post(client: httpx.AsyncClient, path: str, body: bytes, **headers: str) -> httpx.Response:
    return await client.post(path, content=body, headers=JSON | headers)


async def logged(database: Database) -> list[tuple[str, str, str, str | None]]:
    async with database.read() as session:
        rows = await session.connection.execute(
            text("SELECT event_id, user_id, item_id, request_id FROM interactions ORDER BY event_id")
        )
        return [tuple(row) for row in rows]


class TestIntegersAsIds:
    async def test_an_integer_and_its_text_are_one_id(self, api: Api, database: Database) -> None:
        """In the log, in impressions and clicks, in the catalogue and in predictions."""
        one = {"event_id": 1, "user_id": 42, "item_id": -7, "label": 1, "timestamp": NOON, "request_id": 0}
        as_text = one | {"event_id": "1", "user_id": "42", "item_id": "-7", "request_id": "0"}
        assert (await ingest(api.client, one)).json() == {"accepted": 1, "duplicates": 0, "period": 1}
        assert (await ingest(api.client, as_text, one)).json() == {"accepted": 0, "duplicates": 2, "period": 1}
        assert await logged(database) == [("1", "42", "-7", "0")]

        shown = {"request_id": 9, "user_id": 42, "items": [5, "6"], "timestamp": NOON}
        clicked = {"request_id": "9", "item_id": 5, "timestamp": NOON, "event_id": 3}
        for first, again in (
            (shown, shown | {"items": ["5", 6], "request_id": "9"}),
            (clicked, clicked | {"item_id": "5"}),
        ):
            kind = "impressions" if "items" in first else "clicks"
            answers = [(await api.client.post(f"/{kind}", json={kind: [each]})).json() for each in (first, again)]
            assert [(answer["accepted"], answer["duplicates"]) for answer in answers] == [(1, 0), (0, 1)]

        for item, changed in ((7, 1), ("7", 0)):
            answer = await api.client.put("/items", json={"items": [{"item_id": item, "categories": [1, "2"]}]})
            assert answer.json() == {"items": 1, "changed": changed}
        async with database.read() as session:
            [row] = await session.connection.execute(text("SELECT item_id, categories FROM items"))
        assert (row.item_id, list(row.categories)) == ("7", ["1", "2"])

    async def test_predictions(self, api: Api, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = recorded_histories(monkeypatch)
        assert (await ingest(api.client, event(1, user_id=42, item_id=5, label=1))).is_success
        for user in (42, "42"):
            answer = (await api.client.post("/predict", json={"user_id": user, "items": [5], "request_id": 8})).json()
            assert answer["request_id"] == "8"
        assert seen == [hash_ids(["5"]).tolist()] * 2


class TestTimes:
    async def test_what_is_dated_ahead_is_refused_at_every_entry(self, api: Api, database: Database) -> None:
        """By the short and the long code paths; up to the tolerance it is accepted."""
        before = await stored(database)
        now = datetime.now(UTC)
        soon, late = now + timedelta(seconds=280), now + timedelta(seconds=330)
        for at in (late, datetime(2099, 12, 31, tzinfo=UTC)):
            for moment in (at.isoformat(), round(at.timestamp() * 1000)):
                calls = {
                    "interactions": [event(1), event(2, timestamp=moment)],
                    "interactions ": [event(1, event_id="ä"), event(2, timestamp=moment, user_id=7)],
                    "impressions": [impression("r", "u", "ab"), impression("s", "u", "ab") | {"timestamp": moment}],
                    "clicks": [click("r", "a"), click("r", "b") | {"timestamp": moment}],
                }
                for name, events in calls.items():
                    kind = name.strip()
                    response = await api.client.post(f"/{kind}", json={kind: events})
                    [(field, (expected, received))] = fields(problem(response, 422)).items()
                    assert field == f"{kind}[1].timestamp"
                    assert expected.startswith("a time no later than ") and "300 s ahead" in expected
                    assert abs(datetime.fromisoformat(received) - at) < timedelta(milliseconds=1)
        assert await stored(database) == before
        for kind, events in (
            ("interactions", [event(1, timestamp=soon.isoformat())]),
            ("impressions", [impression("r", "u", "ab", soon)]),
            ("clicks", [click("r", "a", soon)]),
        ):
            assert (await api.client.post(f"/{kind}", json={kind: events})).json()["accepted"] == 1

    async def test_many_that_are_ahead_are_counted(self, api: Api) -> None:
        document = problem(
            await ingest(api.client, *(event(n, timestamp="2099-01-01T00:00:00Z") for n in range(60))), 422
        )
        assert len(document["errors"]) == 50
        assert document["detail"] == "60 fields are not as expected; the first 50 are listed"

    async def test_the_tolerance_is_a_setting(self, postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
        changed = settings_for(postgres_dsn, redis_url, tmp_path, future_tolerance_seconds=3600)
        async with running_app(changed) as api:
            for minutes, status in ((55, 200), (65, 422)):
                at = datetime.now(UTC) + timedelta(minutes=minutes)
                assert (await ingest(api.client, event(minutes, timestamp=at.isoformat()))).status_code == status

    @pytest.mark.parametrize("folded", [False, True])
    async def test_old_clicks_of_the_future_freeze_no_history(
        self, api: Api, database: Database, monkeypatch: pytest.MonkeyPatch, folded: bool
    ) -> None:
        """Such clicks were stored before times ahead were refused: in a log, or in what remains of a dropped log."""
        ahead = datetime(2099, 1, 1, tzinfo=UTC)
        old = [Interaction(f"f{n}", "u", f"later{n}", 1, ahead + timedelta(seconds=n)) for n in range(40)]
        await store(database, api.state.histories, EventBatch.of(old))
        if folded:
            async with database.unit_of_work() as work:
                await work.connection.execute(
                    text(
                        "INSERT INTO user_histories (user_id, item_ids, event_ids, times) SELECT user_id, "
                        "array_agg(item_id ORDER BY occurred_at DESC), array_agg(event_id ORDER BY occurred_at DESC), "
                        "array_agg(occurred_at ORDER BY occurred_at DESC) FROM interactions GROUP BY user_id"
                    )
                )
                await work.connection.execute(text("DELETE FROM interactions"))
                await work.commit()
        seen = recorded_histories(monkeypatch)
        for name in ("first", "second"):
            now = datetime.now(UTC).isoformat()
            assert (
                await ingest(api.client, event(0, event_id=name, user_id="u", item_id=name, label=1, timestamp=now))
            ).is_success
            assert (await api.client.post("/predict", json={"user_id": "u", "items": ["a"]})).is_success
        assert seen == [hash_ids(["first"]).tolist(), hash_ids(["second", "first"]).tolist()]
        async with database.unit_of_work() as work:
            assert await work.past.fold(1)
            kept = (await work.connection.execute(text("SELECT item_ids FROM user_histories"))).scalar_one()
        assert kept == ["second", "first"]


class TestVisitorsWithoutAnId:
    async def test_are_cold_users_with_the_history_given(
        self, api: Api, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = random_model(31, categories=True).encoded()
        await publish(database, api.state.artifacts, 1, 0, lead_seconds=0, content=content)
        await eventually(lambda: api.state.serving.current().version == 1)
        items, history = ["i1", "i2", "i3"], ["i4", "i5"]
        seen = recorded_histories(monkeypatch)
        for past in ({}, {"history": history}):
            stranger = (
                await api.client.post("/predict", json={"user_id": "?", "items": items, "history": [], **past})
            ).json()
            for nobody in ({}, {"user_id": None}):
                one = {**nobody, "items": items, **past}
                answer = (await api.client.post("/predict", json=one)).json()
                assert (answer["cold_user"], answer["history"]) == (True, "used")
                assert answer["scores"] == stranger["scores"] and len(set(answer["scores"])) == 3
                batch = {"requests": [{"user_id": "u1", "items": items}, one, {"user_id": "u2", "items": items}]}
                [_, among, _] = (await api.client.post("/predict/batch", json=batch)).json()["predictions"]
                assert among["scores"] == stranger["scores"] and among["cold_user"]
        assert hash_ids(history).tolist() in seen

    async def test_nothing_of_them_is_logged(self, api: Api, database: Database) -> None:
        before = await stored(database)
        one = {"items": ["a"], "log_impressions": True}
        assert set(fields(problem(await api.client.post("/predict", json=one), 422))) == {"log_impressions"}
        batch = {"requests": [{"user_id": "u", "items": ["a"]}, one]}
        found = fields(problem(await api.client.post("/predict/batch", json=batch), 422))
        assert set(found) == {"requests[1].log_impressions"}
        assert (await api.client.post("/predict", json=one | {"log_impressions": False})).status_code == 200
        assert await stored(database) == before


LONG = "é" * MAX_ID_LENGTH
INGESTION: dict[str, tuple[str, str, Any]] = {
    "interactions": ("POST", "/interactions", {"interactions": [event(1)]}),
    "impressions": ("POST", "/impressions", {"impressions": [impression("r", "u", "ab")]}),
    "clicks": ("POST", "/clicks", {"clicks": [click("r", "a")]}),
    "items": ("PUT", "/items", {"items": [{"item_id": "a", "categories": ["b"]}]}),
}


class TestGzip:
    async def test_calls_that_store_take_it(self, api: Api, database: Database) -> None:
        for method, path, document in INGESTION.values():
            whole = json.dumps(document).encode()
            halves = gzip.compress(whole[:9]) + gzip.compress(whole[9:])
            for coding, body in (("gzip", gzip.compress(whole)), ("X-GZip", halves)):
                headers = JSON | {"content-encoding": coding}
                response = await api.client.request(method, path, content=body, headers=headers)
                assert response.status_code == 200, response.text
            for bad in (whole, halves[:-1], halves + b"\0", gzip.compress(whole)[:-8] + bytes(8), b""):
                response = await api.client.request(
                    method, path, content=bad, headers=JSON | {"content-encoding": "gzip"}
                )
                assert "gzip stream" in problem(response, 400)["detail"]
            for coding in ("br", "deflate", "gzip, gzip", "identity, gzip"):
                headers = JSON | {"content-encoding": coding}
                response = await api.client.request(method, path, content=whole, headers=headers)
                assert "expected gzip, or none" in problem(response, 415)["detail"]
                assert response.headers["accept-encoding"] == "gzip"
        found = await stored(database)
        assert [found[name] for name in INGESTION] == [1, 1, 1, 1]

    async def test_other_calls_do_not(self, api: Api) -> None:
        body = gzip.compress(b'{"user_id": "u", "items": ["a"]}')
        for path in ("/predict", "/predict/batch", "/periods/close", "/admin/rollback", "/admin/models/0/pin"):
            response = await post(api.client, path, body, **{"content-encoding": "gzip"})
            assert "expected none as Content-Encoding; received gzip" in problem(response, 415)["detail"]
            assert response.headers["accept-encoding"] == "identity"

    async def test_a_bomb_is_refused_at_the_limit(self, api: Api, database: Database) -> None:
        before = await stored(database)
        bomb = gzip.compress(b" " * (64 * 1024 * 1024), 9)
        assert len(bomb) < SMALL_BYTES
        for method, path, _ in INGESTION.values():
            response = await api.client.request(method, path, content=bomb, headers=JSON | {"content-encoding": "gzip"})
            assert (
                problem(response, 413)["detail"] == f"expected a body of at most {MAX_BODY_BYTES} bytes; received more"
            )
        assert await stored(database) == before
        whole = json.dumps(INGESTION["interactions"][2]).encode()
        for length, status in ((MAX_BODY_BYTES, 200), (MAX_BODY_BYTES + 1, 413)):
            body = gzip.compress(whole.ljust(length))
            assert (await post(api.client, "/interactions", body, **{"content-encoding": "gzip"})).status_code == status

    async def test_what_it_becomes_counts_with_the_bodies_of_all_calls(self) -> None:
        """And only while the call lasts."""
        body = gzip.compress(bytes(SMALL_BYTES * 4))
        scope = {"headers": [(b"content-encoding", b"gzip")]}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        for most, fits in ((len(body) + 4 * SMALL_BYTES, True), (len(body) + 4 * SMALL_BYTES - 1, False)):
            bodies = Bodies(most)
            for _ in range(2):
                with bodies.counted(scope, receive, MAX_BODY_BYTES) as counted:
                    if fits:
                        assert len(await read_body(scope, counted, MAX_BODY_BYTES, gzip=True)) == 4 * SMALL_BYTES
                    else:
                        with pytest.raises(NotReady):
                            await read_body(scope, counted, MAX_BODY_BYTES, gzip=True)
                assert bodies._bytes == 0

    async def test_only_small_bodies_are_inflated_on_the_event_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        in_threads: list[int] = []
        to_thread = read_module.asyncio.to_thread

        async def noted(function: Callable[..., Any], *arguments: Any) -> Any:
            piece = await to_thread(function, *arguments)
            in_threads.append(len(piece or b""))
            return piece

        monkeypatch.setattr(read_module.asyncio, "to_thread", noted)
        scope = {"headers": [(b"content-encoding", b"gzip")]}
        for length, expected in ((1000, 0), (SMALL_BYTES, 0), (5 * SMALL_BYTES, 4 * SMALL_BYTES)):
            in_threads.clear()
            body = gzip.compress(bytes(length))

            async def receive(body: bytes = body) -> dict[str, Any]:
                return {"type": "http.request", "body": body}

            assert await read_body(scope, receive, MAX_BODY_BYTES, gzip=True) == bytes(length)
            assert sum(in_threads) == expected
        with pytest.raises(BodyTooLarge):
            await read_body(scope, receive, 4 * SMALL_BYTES, gzip=True)

    @settings(deadline=None)
    @given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.integers(0, 9), st.data())
    def test_members_and_damage(self, parts: list[bytes], level: int, data: st.DataObject) -> None:
        """Whole streams give back what was compressed; others are reported incomplete, and no data is invented."""
        stream = b"".join(gzip.compress(part, level) for part in parts)
        assert b"".join(gunzipped(stream)) == b"".join(parts)
        ends = {len(b"".join(gzip.compress(part, level) for part in parts[:n])) for n in range(1, len(parts))}
        cut = data.draw(st.integers(0, len(stream) - 1).filter(lambda cut: cut not in ends))
        with pytest.raises(HTTPException) as raised:
            list(gunzipped(stream[:cut]))
        assert raised.value.status_code == 400
        with pytest.raises(HTTPException):
            list(gunzipped(stream + data.draw(st.binary(min_size=1, max_size=20).filter(lambda b: b[:1] != b"\x1f"))))

    def test_large_streams_are_the_same_in_pieces(self) -> None:
        noise = zlib.compress(bytes(range(256)) * 4000) * 50
        whole = noise + bytes(3_000_000) + noise
        pieces = list(gunzipped(gzip.compress(whole)))
        assert b"".join(pieces) == whole and max(map(len, pieces)) <= SMALL_BYTES

    def test_members_are_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A body can have 400,000 of them, and each costs an allocation and a copy."""
        empty = gzip.compress(b"")
        assert list(gunzipped(empty * MAX_GZIP_MEMBERS)) == []
        made: list[int] = []
        decompressobj = zlib.decompressobj
        monkeypatch.setattr(zlib, "decompressobj", lambda window: made.append(window) or decompressobj(window))
        with pytest.raises(HTTPException, match=f"at most {MAX_GZIP_MEMBERS} members"):
            list(gunzipped(empty * (MAX_BODY_BYTES // len(empty))))
        assert len(made) == MAX_GZIP_MEMBERS


NUMBERS = [
    "9" * 10,
    "9" * 11,
    "9" * 19,
    str(2**63),
    "9" * 5000,
    "0" * 5000 + "1",
    "-1",
    "1e3",
    "1.5",
    "%D9%A1",
    "%00",
    " ",
]


def numbers_of(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], str, Any]]:
    """Method, path and description of each numeric parameter in the path or the query of a call, what else the query
    must have, and the body.
    """
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            for parameter in described.get("parameters", ()):
                schema = parameter["schema"]
                kinds = [schema, *schema.get("anyOf", ())]
                if parameter["in"] in ("path", "query") and any(
                    kind.get("type") in ("integer", "number") for kind in kinds
                ):
                    others = (
                        f"&{other['name']}=0"
                        for other in described["parameters"]
                        if other["in"] == "query" and other.get("required") and other is not parameter
                    )
                    body = {"reason": "r"} if "'reason'" in str(described.get("requestBody")) else None
                    yield method.upper(), path, parameter, "".join(others), body


async def test_numbers_in_paths_and_queries_are_bounded(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """For every call in the description and any number the answer is 404 or 422, and nothing fails."""
    found = list(numbers_of(api.app.openapi()))
    assert {parameter["name"] for _, _, parameter, _, _ in found} >= {"number", "version", "limit", "before"}
    assert len(found) >= 10
    for method, path, parameter, others, body in found:
        [kind] = [k for k in (parameter["schema"], *parameter["schema"].get("anyOf", ())) if k.get("type") == "integer"]
        assert {"minimum", "maximum"} <= set(kind), (method, path, parameter)
        for number in NUMBERS:
            if parameter["in"] == "path":
                url = path.replace(f"{{{parameter['name']}}}", number)
            else:
                url = f"{re.sub('{.*?}', '0', path)}?{parameter['name']}={number}{others}"
            response = await api.client.request(method, url, json=body)
            if parameter["in"] == "query" and number.isascii() and number.isdigit():
                allowed = kind["minimum"] <= int(number.lstrip("0")[:100]) <= kind["maximum"]
                # Nothing is stored about an id of that name, and there need not be a version with that number.
                answers = {200, 404} if "{" in path else {200, 404} if parameter.get("required") else {200}
                assert response.status_code in (answers if allowed else {422}), (method, url[:100])
            else:
                problem(response, 404 if parameter["in"] == "path" else 422)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=MAX_ID_LENGTH)


class TestIdsMadeOfIds:
    async def test_those_of_a_batch_fit_where_clicks_refer_to_them(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path
    ) -> None:
        async with running_app(settings_for(postgres_dsn, redis_url, tmp_path, impression_deadline_seconds=10)) as api:
            one = {"user_id": "u", "items": ["a"], "log_impressions": True}
            for length in (MAX_ID_LENGTH - 2, MAX_ID_LENGTH - 1, MAX_ID_LENGTH):
                headers = {"x-request-id": "x" * length}
                answer = await api.client.post("/predict/batch", json={"requests": [one] * 12}, headers=headers)
                found = answer.json()["predictions"]
                assert [each["logged"] for each in found] == [True] * 12
                ids = [each["request_id"] for each in found]
                assert len(set(ids)) == 12 and all(len(id_) <= MAX_ID_LENGTH for id_ in ids)
                assert ids[0] == (
                    "x" * length + "-0" if length <= MAX_ID_LENGTH - 2 else within_id_length("x" * length + "-0")
                )
                at = datetime.now(UTC)
                answer = await api.client.post("/clicks", json={"clicks": [click(id_, "a", at) for id_ in ids]})
                assert answer.json()["accepted"] == 12

    async def test_those_that_sql_makes_are_the_same_and_fit(self, database: Database) -> None:
        """For an impression's item and for a sampled negative: ids of the maximal length, made in SQL and in Python."""
        pairs = [
            *(("r" * n, "i" * m) for n in (1, 127, 128, 255, 256) for m in (1, 127, 128, 255, 256)),
            *((LONG, "/%"), ("/%" * 128, LONG), ("%" * 85, "i"), ("%" * 84, "abc"), ("😀" * 256, "😀" * 256)),
        ]
        values = {"requests": [request for request, _ in pairs], "items": [item for _, item in pairs]}
        of_items = f"""
            SELECT {INTERACTION_ID} FROM unnest(CAST(:requests AS text[]), CAST(:items AS text[]))
                WITH ORDINALITY AS one (request_id, item_id, n) ORDER BY n
        """
        sampled = f"""
            SELECT CASE WHEN length({SAMPLED_ID}) <= {MAX_ID_LENGTH} THEN {SAMPLED_ID}
                        ELSE encode(sha256(convert_to({SAMPLED_ID}, 'UTF8')), 'hex') END
            FROM unnest(CAST(:requests AS text[])) WITH ORDINALITY AS numbered (event_id, k) ORDER BY k
        """
        async with database.read() as session:
            made = list((await session.connection.execute(text(of_items), values)).scalars())
            negatives = list(
                (await session.connection.execute(text(sampled), {"requests": values["requests"]})).scalars()
            )
        assert made == [interaction_id(*pair) for pair in pairs]
        assert negatives == [within_id_length(f"{id_}~sampled{k}") for k, id_ in enumerate(values["requests"], start=1)]
        for ids in (made, negatives):
            assert len(set(ids)) == len(ids) and all(0 < len(id_) <= MAX_ID_LENGTH for id_ in ids)

    @settings(deadline=None)
    @given(st.lists(st.tuples(IDS, IDS), min_size=2, max_size=2, unique=True))
    def test_no_two_items_of_impressions_have_one(self, pairs: list[tuple[str, str]]) -> None:
        first, second = (interaction_id(*pair) for pair in pairs)
        assert first != second and max(len(first), len(second)) <= MAX_ID_LENGTH


async def test_null_categories_are_none(api: Api, database: Database) -> None:
    for categories in (["a"], None, []):
        body = {"items": [{"item_id": "i", "categories": categories}]}
        changed = (await api.client.put("/items", json=body)).json()["changed"]
        assert changed == (0 if categories == [] else 1)
    async with database.read() as session:
        found = (await session.connection.execute(text("SELECT categories FROM items"))).scalar_one()
    assert list(found) == []
