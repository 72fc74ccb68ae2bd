"""Fields as input: contexts, weights and features that are sent, refused, stored, and read as of a moment."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from sqlalchemy import text

from asmg.features import Schema
from service.http.bodies.interactions import parse_interactions
from service.http.bodies.predict import parse_predict
from service.limits import MAX_CONTEXT_BYTES
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EventBatch, FeaturesOf, FeatureVersion, Interaction
from service.use_cases.close_period import close_period
from service.use_cases.fields import cleaned, faults, written
from service.use_cases.ingest import ingest as store
from tests.service.api_support import NOON, Api, event, impression, ingest, running_app, settings_for
from tests.service.copied import copied

SHOP = """
[fields.device]
of = "context"
kind = "categorical"
[fields.pages]
of = "context"
kind = "multi"
most = 3
[fields.scroll]
of = "context"
kind = "numeric"
[fields.position]
of = "context"
kind = "categorical"
training_only = true
[fields.age]
of = "user"
kind = "numeric"
enter = "buckets"
buckets = [18, 35]
[fields.price]
of = "item"
kind = "numeric"
enter = "log"
"""
SCHEMA = Schema.from_toml(SHOP)
SCOPE = {"headers": [(b"content-type", b"application/json")]}
MOMENT = datetime(2024, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)

OF_ANOTHER_NAME = ("a field of the context: device, pages, scroll, position", "a field of another name")

LOGS = {
    "interactions": "event_id, context, weight",
    "impressions": "request_id, item_ids, context, item_contexts",
    "user_features": "user_id, at, features",
    "item_features": "item_id, at, features",
}


@pytest.fixture
async def shop(postgres_dsn: str, redis_url: str, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    """The application with a schema."""
    file = tmp_path / "features.toml"
    file.write_text(SHOP)
    async with running_app(
        settings_for(postgres_dsn, redis_url, tmp_path, features=file, impression_deadline_seconds=10)
    ) as api:
        yield api


async def stored(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """What tables have of fields, in the order of their first columns."""
    async with database.read() as session:
        return {
            table: [
                tuple(row)
                for row in await session.connection.execute(text(f"SELECT {columns} FROM {table} ORDER BY 1, 2"))
            ]
            for table, columns in LOGS.items()
        }


async def refused(api: Api, method: str, path: str, body: Any) -> dict[str, tuple[str, str]]:
    """Path of the field → what was expected and received, of a call that is refused."""
    response = await api.client.request(method, path, json=body)
    assert response.status_code == 422, response.text
    document = response.json()
    assert document["type"] == "urn:asmg:problem:invalid-input"
    return {error["field"]: (error["expected"], error["received"]) for error in document["errors"]}


class TestIngestion:
    """POST /interactions and POST /impressions."""

    async def test_contexts_and_weights_are_stored_as_sent(self, shop: Api, database: Database) -> None:
        """Together with events without them, in one call; missing values and a weight of 1 are not stored."""
        events = [
            event(1, context={"device": "phone", "scroll": 0.5, "pages": ["b", "a"]}, weight=2.5),
            event(2),
            event(3, context={"device": None, "pages": []}, weight=1),
            event(4, weight=3),
            event(5, context={"device": 3, "position": True, "scroll": 10**25}),
        ]
        response = await ingest(shop.client, *events)
        assert response.json() == {"accepted": 5, "duplicates": 0, "period": 1}
        assert (await stored(database))["interactions"] == [
            ("e1", {"device": "phone", "scroll": 0.5, "pages": ["b", "a"]}, 2.5),
            ("e2", None, None),
            ("e3", None, None),
            ("e4", None, 3.0),
            ("e5", {"device": 3, "position": True, "scroll": 1e25}, None),
        ]
        async with database.read() as session:
            log = await session.interactions.log(1)
            pages = [page async for page in session.interactions.contexts(1)]
        assert log.weights.tolist() == [2.5, 1, 1, 3, 1]
        [page] = pages
        assert page.places.tolist() == [0, 4] and page.values[0]["device"] == "phone"

    async def test_what_is_sent_again_is_a_duplicate_and_otherwise_a_conflict(self, shop: Api) -> None:
        sent = event(1, context={"device": "phone", "scroll": 1}, weight=2)
        assert (await ingest(shop.client, sent)).json()["accepted"] == 1
        turned = event(1, context={"scroll": 1, "device": "phone", "position": None}, weight=2)
        assert (await ingest(shop.client, turned)).json() == {"accepted": 0, "duplicates": 1, "period": 1}
        for other in (event(1), event(1, context=sent["context"]), event(1, context={"device": "tv"}, weight=2)):
            assert (await ingest(shop.client, other)).json()["conflicts"] == ["e1"]

    async def test_calls_at_once_with_and_without_fields(self, shop: Api, database: Database) -> None:
        """They share transactions."""
        calls = [
            ingest(shop.client, *(event(n, **({"weight": n + 1} if n % 3 else {})) for n in range(k, k + 10)))
            for k in range(0, 300, 10)
        ]
        for response in await asyncio.gather(*calls):
            assert response.json()["accepted"] == 10
        rows = {id_: weight for id_, _, weight in (await stored(database))["interactions"]}
        assert rows == {f"e{n}": n + 1 if n % 3 else None for n in range(300)}

    async def test_of_impressions_those_of_an_item_count_before_those_of_all(
        self, shop: Api, database: Database
    ) -> None:
        shown = impression("r", "u", "")
        shown |= {"items": ["a", {"id": "b", "context": {"position": 1, "device": "tv"}}, {"id": 7}]}
        plain = impression("s", "u", "ab")
        body = {"impressions": [shown | {"context": {"device": "phone"}}, plain]}
        assert (await shop.client.post("/impressions", json=body)).json()["accepted"] == 2
        assert (await stored(database))["impressions"] == [
            ("r", ["a", "b", "7"], {"device": "phone"}, [None, {"device": "tv", "position": 1}, None]),
            ("s", ["a", "b"], None, None),
        ]
        again = await shop.client.post("/impressions", json=body)
        assert again.json() == {"accepted": 0, "duplicates": 2, "period": 1}
        other = {"impressions": [shown | {"context": {"device": "tv"}}]}
        assert (await shop.client.post("/impressions", json=other)).json()["conflicts"] == ["r"]
        await close_period(database, expected_period=1, idempotency_key=None, actor="test")
        async with database.unit_of_work() as work:
            sealed, window = datetime.now(UTC) + HOUR, timedelta(minutes=1)
            await work.labels.reserve(1, sealed, window)
            assert (await work.labels.resolve(1, 2, (), sealed, window)).negatives == 5
            await work.commit()
        assert (await stored(database))["interactions"] == [
            ("r/7", {"device": "phone"}, None),
            ("r/a", {"device": "phone"}, None),
            ("r/b", {"device": "tv", "position": 1}, None),
            ("s/a", None, None),
            ("s/b", None, None),
        ]

    async def test_an_item_comes_once_with_a_context_or_without(self, shop: Api) -> None:
        shown = impression("r", "u", "") | {"items": ["a", {"id": "a", "context": {"position": 1}}]}
        errors = await refused(shop, "POST", "/impressions", {"impressions": [shown]})
        assert errors == {"impressions[0].items": ("each item once", '"a" twice')}

    @pytest.mark.parametrize(
        ("context", "field", "expected", "received"),
        [
            ({"colour": "red"}, ".colour", *OF_ANOTHER_NAME),
            ({"age": 30}, ".age", *OF_ANOTHER_NAME),
            ({"hour": 3}, ".hour", *OF_ANOTHER_NAME),
            ({"device": ["phone"]}, ".device", "text, a whole number or true/false", "a list"),
            ({"device": 2.5}, ".device", "text, a whole number or true/false", "the number 2.5"),
            ({"device": "x" * 257}, ".device", "at most 256 characters", "257"),
            ({"device": "a\0"}, ".device", "text of Unicode characters, without NUL", "another"),
            ({"pages": "home"}, ".pages", "a list of text, whole numbers or true/false", "text"),
            ({"pages": ["p"] * 10_000}, ".pages", "at most 3 values", "10,000"),
            ({"scroll": "far"}, ".scroll", "a number", "text"),
            ({"scroll": True}, ".scroll", "a number", "true"),
            ({"scroll": 1e31}, ".scroll", "a number from -1e+30 to 1e+30", "1e+31"),
            ({"x" * 1_000_000: 1}, "." + "x" * 100, *OF_ANOTHER_NAME),
            ("phone", "", "an object", '"phone"'),
            ([], "", "an object", "0 items"),
        ],
    )  # fmt: skip
    async def test_what_is_refused(
        self, shop: Api, database: Database, context: Any, field: str, expected: str, received: str
    ) -> None:
        """By each call that takes a context; nothing is stored."""
        fault = (expected, received)
        interactions = {"interactions": [event(1), event(2, context=context)]}
        errors = await refused(shop, "POST", "/interactions", interactions)
        assert errors == {f"interactions[1].context{field}": fault}
        shown = {"impressions": [impression("r", "u", "ab", context=context)]}
        assert await refused(shop, "POST", "/impressions", shown) == {f"impressions[0].context{field}": fault}
        question = {"user_id": "u", "items": ["a"], "context": context, "log_impressions": True}
        assert await refused(shop, "POST", "/predict", question) == {f"context{field}": fault}
        batch = {"requests": [{"items": ["a"]}, question]}
        assert await refused(shop, "POST", "/predict/batch", batch) == {f"requests[1].context{field}": fault}
        if isinstance(context, dict):
            items = ["a", {"id": "b", "context": context}]
            errors = await refused(shop, "POST", "/predict", question | {"items": items, "context": None})
            assert errors == {f"items[1].context{field}": fault}
            shown = {"impressions": [impression("r", "u", "") | {"items": items}]}
            errors = await refused(shop, "POST", "/impressions", shown)
            assert errors == {f"impressions[0].items[1].context{field}": fault}
        assert not any((await stored(database)).values())

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
    async def test_numbers_that_are_none(self, shop: Api, database: Database, number: str) -> None:
        for member, field in (("context", "context.scroll"), ("weight", "weight")):
            value = f'{{"scroll": {number}}}' if member == "context" else number
            body = f'{{"interactions": [{json.dumps(event(1))[:-1]}, "{member}": {value}}}]}}'
            response = await shop.client.post(
                "/interactions", content=body, headers={"content-type": "application/json"}
            )
            assert response.status_code == 422
            assert [error["field"] for error in response.json()["errors"]] == [f"interactions[0].{field}"]
        assert not any((await stored(database)).values())

    @pytest.mark.parametrize("weight", [0, -1, 1e-7, 1000.1, "2", True, [1]])
    async def test_weights_that_are_refused(self, shop: Api, database: Database, weight: Any) -> None:
        errors = await refused(shop, "POST", "/interactions", {"interactions": [event(1, weight=weight)]})
        assert list(errors) == ["interactions[0].weight"]
        assert (await ingest(shop.client, event(1, weight=1000), event(2, weight=1e-6))).json()["accepted"] == 2
        assert [row[2] for row in (await stored(database))["interactions"]] == [1000.0, pytest.approx(1e-6)]

    async def test_a_context_has_8_kib_at_most(self, shop: Api, database: Database) -> None:
        """Counted as JSON, without missing values; the field names of this schema alone do not reach the limit."""
        many = {f"f{n}": "é" * 256 for n in range(20)}
        schema = Schema.from_toml("".join(f'[fields.{name}]\nof = "context"\nkind = "categorical"\n' for name in many))
        fits = dict(list(many.items())[:15])
        assert len(json.dumps(fits, ensure_ascii=False, separators=(",", ":")).encode()) <= MAX_CONTEXT_BYTES
        assert list(faults(schema, "context", fits, "context")) == []
        [fault] = faults(schema, "context", many, "context")
        size = len(json.dumps(many, ensure_ascii=False, separators=(",", ":")).encode())
        assert (fault.field, fault.expected, fault.received) == ("context", "at most 8192 bytes as JSON", str(size))

    async def test_without_a_schema_a_context_is_refused(self, api: Api, database: Database) -> None:
        """A weight is accepted."""
        none = ("no field: the schema has none of the context", "a field of another name")
        body = {"interactions": [event(1, context={"device": "phone"})]}
        assert await refused(api, "POST", "/interactions", body) == {"interactions[0].context.device": none}
        question = {"items": ["a"], "context": {"device": "phone"}}
        assert await refused(api, "POST", "/predict", question) == {"context.device": none}
        assert (await ingest(api.client, event(1, context={}, weight=2))).json()["accepted"] == 1

    def test_the_short_way_is_taken_without_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = json.dumps({"interactions": [event(1)]}).encode()
        monkeypatch.setattr("service.http.bodies.interactions.parse_json", None)
        assert len(parse_interactions(plain, SCOPE, SCHEMA)) == 1


class TestPrediction:
    """POST /predict and POST /predict/batch."""

    async def test_is_made_and_logged_with_the_contexts(self, shop: Api, database: Database) -> None:
        items = ["a", {"id": "b", "context": {"position": 2}}, {"id": "c", "context": None}]
        question = {"user_id": "u", "items": items, "context": {"device": "phone"}, "log_impressions": 2}
        response = await shop.client.post("/predict", json=question | {"request_id": "r"})
        assert response.status_code == 200, response.text
        assert len(response.json()["scores"]) == 3 and response.json()["logged"] is True
        batch = {"requests": [question | {"request_id": "s", "context": None}, {"items": ["a"], "context": {}}]}
        response = await shop.client.post("/predict/batch", json=batch)
        assert [prediction.get("logged") for prediction in response.json()["predictions"]] == [True, None]
        # All scores are equal, so the first two are shown.
        assert (await stored(database))["impressions"] == [
            ("r", ["a", "b"], {"device": "phone"}, [None, {"position": 2}]),
            ("s", ["a", "b"], None, [None, {"position": 2}]),
        ]

    def test_the_question_has_what_was_sent(self) -> None:
        body = {"items": ["a", {"id": 7, "context": {"position": 2, "device": ""}}], "context": {"device": "tv"}}
        question = parse_predict(json.dumps(body).encode(), SCOPE, SCHEMA)
        assert question.context == {"device": "tv"} and question.item_contexts == [{}, {"position": 2}]
        same = parse_predict(b'{"items": ["a", "7"]}', SCOPE, SCHEMA)
        assert question.item_ids == same.item_ids == ["a", "7"]
        assert same.context is None and same.item_contexts is None

    @pytest.mark.parametrize("item", [{}, {"id": ""}, {"id": "a", "colour": 1}, {"id": "a", "context": 3}])
    async def test_items_that_are_none(self, shop: Api, item: Any) -> None:
        errors = await refused(shop, "POST", "/predict", {"items": ["a", item]})
        assert errors == {"items[1]": ("an id, or an object with an id and a context", "an object")}
        errors = await refused(shop, "POST", "/predict", {"items": [["a"]]})
        assert errors == {"items[0]": ("a string or an integer", "1 items")}


class TestFeatures:
    """PUT /users and PUT /items."""

    async def test_versions_are_kept(self, shop: Api, database: Database) -> None:
        async def put(features: Any, at: str | None = None, status: int = 200) -> Any:
            user = {"user_id": "u", "features": features} | ({} if at is None else {"timestamp": at})
            return (await shop.client.put("/users", json={"users": [user]})).json()

        assert await put({"age": 30}, "2024-05-01T12:00:00Z") == {"users": 1, "changed": 1}
        assert await put({"age": 30}, "2024-05-01T13:00:00Z") == {"users": 1, "changed": 0}  # says nothing new
        assert await put({"age": 31}, "2024-05-01T14:00:00Z") == {"users": 1, "changed": 1}
        assert await put({"age": 29}, "2024-05-01T11:00:00Z") == {"users": 1, "changed": 1}  # comes late
        assert await put({"age": 32}, "2024-05-01T14:00:00Z") == {"users": 1, "changed": 1}  # in place of that
        assert await put(None) == {"users": 1, "changed": 1}
        assert await put({"age": None}) == {"users": 1, "changed": 0}
        rows = (await stored(database))["user_features"]
        assert [(at.hour, features) for _, at, features in rows[:3]] == [
            (11, {"age": 29}),
            (12, {"age": 30}),
            (14, {"age": 32}),
        ]
        assert rows[3][2] == {} and abs(rows[3][1] - datetime.now(UTC)) < timedelta(minutes=5)

    async def test_items_keep_what_is_not_sent(self, shop: Api, database: Database) -> None:
        async def put(**more: Any) -> Any:
            item = {"item_id": 7, "categories": ["c"]} | more
            return (await shop.client.put("/items", json={"items": [item]})).json()["changed"]

        assert await put() == 1
        assert await put(features={"price": 3}) == 1
        assert await put(features={"price": 3}) == 0
        assert await put() == 0
        assert await put(categories=["d"], features={"price": 4}) == 1
        assert [(id_, features) for id_, _, features in (await stored(database))["item_features"]] == [
            ("7", {"price": 3}),
            ("7", {"price": 4}),
        ]
        document = (await shop.client.get("/items/7")).json()
        assert document["features"] == {"price": 4} and document["feature_versions"] == 2
        assert document["categories"] == ["d"]

    async def test_what_is_refused(self, shop: Api, database: Database) -> None:
        users = [{"user_id": "u", "features": {"age": 3}}, {"user_id": "v", "features": {"age": "old", "price": 1}}]
        assert await refused(shop, "PUT", "/users", {"users": users}) == {
            "users[1].features.age": ("a number", "text"),
            "users[1].features.price": ("a field of the user: age", "a field of another name"),
        }
        items = [{"item_id": "i", "categories": [], "features": {"age": 3}}]
        assert await refused(shop, "PUT", "/items", {"items": items}) == {
            "items[0].features.age": ("a field of the item: price", "a field of another name")
        }
        ahead = (datetime.now(UTC) + HOUR).isoformat()
        for kind, other in (("user", {}), ("item", {"categories": []})):
            one = {f"{kind}_id": "x", "features": {}, "timestamp": ahead} | other
            assert list(await refused(shop, "PUT", f"/{kind}s", {f"{kind}s": [one]})) == [f"{kind}s[0].timestamp"]
        assert list(await refused(shop, "PUT", "/users", {"users": [{"user_id": "u"}]})) == ["users[0].features"]
        found = await stored(database)
        assert not any(found.values())
        async with database.read() as session:
            assert len(await session.items.catalogue()) == 0

    async def test_what_is_stored_about_a_user_has_them_and_a_deletion_removes_them(
        self, shop: Api, database: Database
    ) -> None:
        for kind, more in (("user", {}), ("item", {"categories": []})):
            for value in (20, 30):
                one = {f"{kind}_id": "gone", "features": {"age" if kind == "user" else "price": value}, **more}
                response = await shop.client.put(f"/{kind}s", json={f"{kind}s": [one, one | {f"{kind}_id": "stays"}]})
                assert response.status_code == 200, response.text
        shown = impression("r", "u", "") | {"items": ["a", {"id": "gone", "context": {"position": 1}}, "b"]}
        shown["items"][2] = {"id": "b", "context": {"position": 2}}
        await shop.client.post("/impressions", json={"impressions": [shown]})
        found = (await shop.client.get("/users/gone")).json()
        assert found["features"] == {"age": 30} and found["feature_versions"] == 2
        for kind in ("user", "item"):
            deletion = (await shop.client.delete(f"/{kind}s/gone")).json()
            assert deletion["status"] == "done" and deletion["removed"]["features"] == 2
            assert (await shop.client.get(f"/{kind}s/gone")).status_code == 404
            async with database.read() as session:
                assert [id_ async for page in session.traces.ids(kind) for id_ in page if id_ == "gone"] == []
        rows = await stored(database)
        assert {row[0] for row in rows["user_features"] + rows["item_features"]} == {"stays"}
        assert rows["impressions"] == [("r", ["a", "b"], None, [None, {"position": 2}])]


def put(*versions: tuple[str, int, int]) -> list[FeatureVersion]:
    """Versions: id, hour, value."""
    return [FeatureVersion(id_, MOMENT + hour * HOUR, {"age": value}) for id_, hour, value in versions]


def happened(*events: tuple[str, int]) -> EventBatch:
    """Interactions: user, hour."""
    return EventBatch.of([Interaction(f"{user}{hour}", user, "i", 0, MOMENT + hour * HOUR) for user, hour in events])


def hour_of(timestamp_ms: int) -> int:
    """Of the example's day, counted from its moment."""
    return int((timestamp_ms // 1000 - MOMENT.timestamp()) // 3600)


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[str, dict[int, int]], list[tuple[str, int]]]:
    """Versions by user and hour, and what is asked for."""
    users, hours = st.sampled_from("abcd"), st.integers(0, 12)
    versions = draw(st.dictionaries(users, st.dictionaries(hours, st.integers(0, 99), max_size=5), max_size=4))
    return versions, draw(st.lists(st.tuples(users, hours), max_size=15))


class TestAsOf:
    """The features that were valid at a moment."""

    @given(histories())
    def test_is_the_latest_at_or_before_it(
        self, found: tuple[dict[str, dict[int, int]], list[tuple[str, int]]]
    ) -> None:
        versions, asked = found
        rows = [(id_, hour, value) for id_ in sorted(versions) for hour, value in sorted(versions[id_].items())]
        features = FeaturesOf(
            [row[0] for row in rows], np.array([row[1] for row in rows], np.int64), [{"age": row[2]} for row in rows]
        )
        places = features.as_of([id_ for id_, _ in asked], np.array([hour for _, hour in asked], np.int64))
        for (id_, hour), place in zip(asked, places.tolist(), strict=True):
            before = [h for h in versions.get(id_, {}) if h <= hour]
            expected = None if not before else versions[id_][max(before)]
            assert (None if place < 0 else features.features[place]["age"]) == expected

    async def test_a_log_has_the_versions_that_it_needs(self, database: Database) -> None:
        """All versions that were valid at one of its interactions, and no others."""
        random = np.random.default_rng(0)
        for _ in range(25):
            versions = {
                user: {int(h): int(h) for h in random.integers(0, 12, random.integers(0, 6))} for user in "abcd"
            }
            asked = [
                (str(user), int(hour))
                for user, hour in zip(random.choice(list("abx"), 6), random.integers(0, 12, 6), strict=True)
            ]
            # Given up at its end: the next case begins with nothing.
            async with database.unit_of_work() as work:
                rows = [(user, hour, value) for user, of in versions.items() for hour, value in of.items()]
                await work.features.put("user", put(*rows))
                await work.interactions.insert(1, happened(*dict.fromkeys(asked)))
                log, found = await work.interactions.log(1), await work.features.of_log("user", 1)
            places = found.as_of(log.user_ids, log.timestamps_ms)
            for user, ms, place in zip(log.user_ids, log.timestamps_ms.tolist(), places.tolist(), strict=True):
                expected = max((h for h in versions.get(user, {}) if h <= hour_of(ms)), default=None)
                assert (None if place < 0 else found.features[place]["age"]) == expected
            hours: dict[str, list[int]] = {}
            for user, hour in asked:
                hours.setdefault(user, []).append(hour)
            needed = {
                (user, h)
                for user, of in hours.items()
                for h in versions.get(user, {})
                if h <= max(of) and not any(h < other <= min(of) for other in versions[user])
            }
            assert set(zip(found.ids, map(hour_of, found.times_ms.tolist()), strict=True)) == needed

    async def test_in_one_call_each_is_compared_with_the_one_before_it(self, database: Database) -> None:
        """That one may be stored already or be in the same call: the result equals sending them one by one."""
        random = np.random.default_rng(1)
        for _ in range(40):
            stored, sent = (
                {int(hour): int(random.integers(0, 3)) for hour in random.integers(0, 9, random.integers(1, 5))}
                for _ in range(2)
            )
            found = []
            for calls in ([sent], [{hour: sent[hour]} for hour in sorted(sent)]):
                async with database.unit_of_work() as work:  # given up at its end
                    for call in ([{hour: stored[hour]} for hour in sorted(stored)]) + calls:
                        versions = [
                            FeatureVersion("a", MOMENT + timedelta(hours=hour), {"age": value} if value else {})
                            for hour, value in call.items()
                        ]
                        await work.features.put("user", versions)
                    of = await work.features.of("user", "a")
                found.append(list(zip(of.times_ms.tolist(), of.features, strict=True)))
            assert found[0] == found[1]

    async def test_latest(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            assert await work.features.put("item", put(("a", 1, 1), ("a", 3, 3), ("b", 2, 2))) == {"a", "b"}
            assert await work.features.put("item", []) == set()
            everything = await work.features.latest("item")
            some = await work.features.latest("item", ["b", "c"])
            assert len(await work.features.latest("user")) == 0
        assert (everything.ids, [values["age"] for values in everything.features]) == (["a", "b"], [3, 2])
        assert (some.ids, some.features) == (["b"], [{"age": 2}])

    async def test_old_versions_go_that_no_log_needs(self, database: Database, redis: Redis) -> None:
        """The newest of each stays, and so does the one that was valid at the first kept moment."""

        class NoPasts:
            async def append(self, happened: Any, /) -> None:
                pass

        versions = put(*(("a", hour, hour) for hour in (1, 3, 5, 7)), ("b", 2, 2), ("c", 1, 1), ("c", 6, 6))
        async with database.unit_of_work() as work:
            assert await work.features.forget_old() == 0
            await work.features.put("user", versions)
            await work.commit()
        await store(database, NoPasts(), happened(("a", 5), ("x", 4)))
        async with database.unit_of_work() as work:
            assert await work.features.forget_old() == 1  # that of hour 1, after which another held at hour 4
            assert (await work.features.latest("user")).ids == ["a", "b", "c"]
            left = await work.features.of("user", "a")
            assert [values["age"] for values in left.features] == [3, 5, 7]
            assert len(await work.features.of("user", "c")) == 2
            await work.commit()


class TestWritten:
    """cleaned and written."""

    def test_leaves_out_what_is_missing(self) -> None:
        values = {"b": None, "c": "", "d": [], "e": 0, "f": False, "g": 2**70, "a": ["x"]}
        assert cleaned(values) == {"e": 0, "f": False, "g": float(2**70), "a": ["x"]}
        assert written(values) == '{"a":["x"],"e":0,"f":false,"g":1.1805916207174113e+21}'
        assert written({"a": None}) is None and written(None) is None and written({}) is None


class TestBatch:
    """EventBatch of events with fields and without."""

    EVENT = st.builds(
        Interaction,
        event_id=st.text("abc", min_size=1, max_size=3),
        user_id=st.sampled_from(["u", "é"]),
        item_id=st.just("i"),
        label=st.sampled_from([0, 1]),
        occurred_at=st.just(MOMENT),
        request_id=st.none() | st.just("r"),
        context=st.none() | st.sampled_from(['{"a":1}', '{"a":"日本"}']),
        weight=st.none() | st.sampled_from([0.5, 2.0, 1000.0]),
    )

    @given(st.lists(st.lists(EVENT, min_size=1, max_size=4), min_size=1, max_size=4))
    def test_what_is_copied_is_what_came(self, parts: list[list[Interaction]]) -> None:
        joined = EventBatch.join([EventBatch.of(part) for part in parts])
        events = [event for part in parts for event in part]
        assert copied(joined) == events
        assert joined.contents == EventBatch.of(events).contents
        contents = {}
        for event_, content in zip(events, joined.contents, strict=True):
            key = (event_.user_id, event_.label, event_.request_id, event_.context, event_.weight)
            assert contents.setdefault(key, content) == content
        assert len(set(contents.values())) == len(contents)


class TestDescription:
    """/openapi.json."""

    async def test_names_the_fields(self, shop: Api, api: Api) -> None:
        def of(api: Api, path: str, method: str = "post") -> Any:
            body = api.app.openapi()["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
            return body["properties"]

        context = of(shop, "/predict")["context"]["anyOf"][0]
        assert list(context["properties"]) == ["device", "pages", "scroll", "position"]
        assert context["additionalProperties"] is False
        assert context["properties"]["pages"]["maxItems"] == 3
        assert of(shop, "/users", "put")["users"]["items"]["properties"]["features"]["anyOf"][0]["properties"] == {
            "age": {"type": ["number", "null"], "minimum": -1e30, "maximum": 1e30}
        }
        assert of(api, "/predict")["context"]["anyOf"][0]["properties"] == {}
        assert "x-fields-of" not in json.dumps(shop.app.openapi())
        assert NOON not in json.dumps(shop.app.openapi())
