"""Predictions with fields over HTTP: each score is the snapshot's for what was sent and what is stored."""

import threading
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from service.serving.fields import NO_VALUES, FieldReader, FieldValues
from service.serving.snapshot import Snapshot
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import FeatureVersion
from service.storage.redis.histories import HistoryStore
from service.use_cases import predict as predict_use_case
from tests.service.api_support import Api, event, eventually, ingest, publish, running_app, settings_for
from tests.service.serving_support import ITEMS, TOLERANCE
from tests.service.test_forward_fields import NOON, Made

# The model has another: it knows no `campaign` and no `plan`, its `page` is a number, and it has three `likes` at most.
SHOP = """
timezone = "Asia/Tokyo"
[fields.device]
of = "context"
kind = "categorical"
[fields.position]
of = "context"
kind = "categorical"
training_only = true
[fields.page]
of = "context"
kind = "categorical"
[fields.campaign]
of = "context"
kind = "multi"
[fields.age]
of = "user"
kind = "numeric"
[fields.likes]
of = "user"
kind = "multi"
most = 5
[fields.plan]
of = "user"
kind = "categorical"
"""

CANDIDATES = ITEMS[:6]
YOUNG, OLD = {"age": 17, "likes": ["a", "b"]}, {"age": 40}
PHONE, TV = {"device": "phone", "page": 9}, {"device": "tv"}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path, categories=True, statistics=False)


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is noon when predictions are asked for."""
    it_is(NOON, monkeypatch)


def it_is(now_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For predictions."""
    monkeypatch.setattr(predict_use_case, "time", SimpleNamespace(time=lambda: now_ms / 1000))


async def with_model(api: Api, database: Database, made: Made) -> None:
    if not await published(database):
        await publish(database, api.state.artifacts, 1, 0, lead_seconds=0, content=made.encoded())
    await eventually(lambda: api.state.serving.current().version == 1)


async def published(database: Database) -> bool:
    async with database.read() as session:
        return await session.models.get(1) is not None


@pytest.fixture
async def shop(
    postgres_dsn: str, redis_url: str, redis: Redis, database: Database, tmp_path: Path, made: Made
) -> AsyncIterator[Api]:
    """The application with a schema, and a model with another. It remembers users until it is told of a change."""
    file = tmp_path / "features.toml"
    file.write_text(SHOP)
    settings = settings_for(postgres_dsn, redis_url, tmp_path / "shop", features=file, history_cache_seconds=3600)
    async with running_app(settings) as api:
        await with_model(api, database, made)
        yield api


async def call(api: Api, method: str, path: str, body: Any = None) -> Any:
    response = await api.client.request(method, path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def put(api: Api, **features: dict[str, Any] | None) -> None:
    users = [{"user_id": user, "features": values} for user, values in features.items()]
    await call(api, "PUT", "/users", {"users": users})


async def scores(api: Api, user: str | None = "ann", **question: Any) -> list[float]:
    body = {"items": CANDIDATES, **({} if user is None else {"user_id": user}), **question}
    answer = await call(api, "POST", "/predict", body)
    assert (answer["model_version"], answer["history"]) == (1, "used")
    return list(answer["scores"])


def expected(
    made: Made,
    features: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None,
    contexts: Sequence[dict[str, Any] | None] = (),
    *,
    user: str = "ann",
    history: Sequence[str] = (),
    at: int = NOON,
) -> Any:
    """What the snapshot says to this."""
    assert made.snapshot.fields is not None
    values = made.snapshot.fields.read(context or {}, features or {}, contexts, timestamp_ms=at)
    said = made.snapshot.predict(user, CANDIDATES, history, values=values).scores
    return pytest.approx(said.tolist(), abs=TOLERANCE)


def test_the_fields_of_these_tests_make_a_difference(made: Made) -> None:
    """Otherwise none of the tests could fail."""
    said = [expected(made, *asked) for asked in (({},), (YOUNG,), (OLD,), ({}, PHONE), ({}, TV), (YOUNG, TV))]
    said.append(made.snapshot.predict("ann", CANDIDATES, [], values=NO_VALUES).scores.tolist())
    found = np.array([one if isinstance(one, list) else one.expected for one in said])
    apart = np.abs(found[:, None] - found[None]).max(-1) + np.eye(len(found))
    assert apart.min() > 100 * TOLERANCE


class TestUsers:
    """Features of users, which PUT /users sets."""

    async def test_count_in_the_next_prediction(self, shop: Api, made: Made) -> None:
        assert await scores(shop) == expected(made)
        for features in (YOUNG, OLD, {"plan": "gold"}, YOUNG, {}, OLD):
            await put(shop, ann=features, bob={"age": 25})
            assert await scores(shop) == expected(made, features)
            assert await scores(shop) == expected(made, features)  # as it is remembered
        await put(shop, ann=None)
        assert await scores(shop) == expected(made)
        assert await scores(shop, "bob") == expected(made, {"age": 25}, user="bob")

    async def test_stay_with_a_history_that_is_stored_or_sent(self, shop: Api, made: Made) -> None:
        await put(shop, ann=YOUNG)
        await scores(shop)
        await ingest(shop.client, event(1, user_id="ann", item_id="i9"))
        assert await scores(shop) == expected(made, YOUNG, history=["i9"])
        assert await scores(shop, history=["i7"]) == expected(made, YOUNG, history=["i7"])

    async def test_that_the_model_cannot_read_are_missing(self, shop: Api, made: Made) -> None:
        await put(shop, ann={"age": 17, "likes": ["a", "b", "c", "d"], "plan": "gold"})
        assert await scores(shop) == expected(made, {"age": 17})

    async def test_count_in_every_process(
        self, shop: Api, made: Made, postgres_dsn: str, redis_url: str, database: Database, tmp_path: Path
    ) -> None:
        """As soon as Redis has notified it; this process would otherwise cache the old ones for an hour."""
        settings = settings_for(postgres_dsn, redis_url, tmp_path / "other", history_cache_seconds=3600)
        async with running_app(settings) as other:
            await with_model(other, database, made)
            for features in (YOUNG, OLD):
                await scores(other)
                await eventually(lambda: other.state.histories.known("ann") is not None)
                await put(shop, ann=features)
                await eventually(lambda: other.state.histories.known("ann") is None)
                assert await scores(other) == expected(made, features)

    async def test_are_there_again_when_redis_has_lost_them(self, shop: Api, made: Made, redis: Redis) -> None:
        await put(shop, ann=YOUNG)
        for lose in (redis.flushdb, lambda: redis.delete("asmg:features:ann"), lambda: redis.delete("asmg:past:ann")):
            assert await scores(shop) == expected(made, YOUNG)
            assert await redis.exists("asmg:features:ann", "asmg:past:ann") == 2
            await lose()
            shop.state.histories.drop_all()

    async def test_hold_from_their_time_on(self, shop: Api, made: Made) -> None:
        now = datetime.now(UTC)
        for seconds, features in ((-200, YOUNG), (-300, OLD), (200, OLD)):  # what comes late, and what is ahead
            at = (now + timedelta(seconds=seconds)).isoformat()
            user = {"user_id": "ann", "features": features, "timestamp": at}
            await call(shop, "PUT", "/users", {"users": [user]})
            assert await scores(shop) == expected(made, YOUNG)

    async def test_of_who_is_deleted_are_gone(self, shop: Api, made: Made, redis: Redis) -> None:
        await put(shop, ann=YOUNG, bob=OLD)
        assert await scores(shop) == expected(made, YOUNG)
        assert await scores(shop, "bob") == expected(made, OLD, user="bob")
        assert (await call(shop, "DELETE", "/users/ann"))["status"] == "done"
        assert await redis.keys("asmg:*:ann") == []
        assert await scores(shop) == expected(made)
        assert await redis.get("asmg:features:ann") == b"{}"
        assert await scores(shop, "bob") == expected(made, OLD, user="bob")
        assert (await call(shop, "DELETE", f"/items/{CANDIDATES[0]}"))["status"] == "done"  # all pasts are read again
        assert await redis.keys("asmg:features:*") == []
        assert await scores(shop, "bob") == expected(made, OLD, user="bob")

    async def test_without_redis_come_from_postgres(
        self, database: Database, postgres_dsn: str, tmp_path: Path, made: Made
    ) -> None:
        file = tmp_path / "features.toml"
        file.write_text(SHOP)
        away = f"unix://{tmp_path}/no.sock"
        async with running_app(settings_for(postgres_dsn, away, tmp_path / "shop", features=file)) as api:
            await with_model(api, database, made)
            for features in (YOUNG, OLD):
                await put(api, ann=features)
                assert await scores(api) == expected(made, features)


class TestContexts:
    """Contexts of a request and of its items."""

    async def test_of_all_items(self, shop: Api, made: Made) -> None:
        await put(shop, ann=YOUNG)
        for context in (PHONE, TV, {}, {"device": "never heard of"}):
            assert await scores(shop, context=context) == expected(made, YOUNG, context)
        assert await scores(shop, None, context=TV) == expected(made, {}, TV, user="")  # a visitor without an id

    async def test_of_some_items(self, shop: Api, made: Made) -> None:
        own: list[dict[str, Any]] = [{}, TV, {"page": 2}, {}, {}, {"device": "tv", "page": 4}]
        items = [{"id": item, "context": context} for item, context in zip(CANDIDATES, own, strict=True)]
        items[3:5] = [CANDIDATES[3], {"id": CANDIDATES[4], "context": {"device": None}}]  # type: ignore[list-item]
        for context in ({}, PHONE):
            said = await scores(shop, items=items, context=context)
            assert said == expected(made, {}, context, own)
            # Each as if all had its context.
            for n, of_one in enumerate(own):
                assert said[n] == pytest.approx(expected(made, {}, context | of_one).expected[n], abs=TOLERANCE)

    async def test_what_the_model_cannot_read_is_missing(self, shop: Api, made: Made) -> None:
        """The model uses its own schema, whatever the schema of the process accepts."""
        context = {"page": "front", "campaign": ["spring"], "device": "tv", "position": 1}
        items = [{"id": item, "context": {"page": "back", "position": n}} for n, item in enumerate(CANDIDATES)]
        assert await scores(shop, context=context) == expected(made, {}, TV)
        assert await scores(shop, context=PHONE, items=items) == expected(made, {}, {"device": "phone"})

    async def test_hour_and_weekday_are_those_of_the_moment(
        self, shop: Api, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the time zone of the model."""
        said = []
        for at in (NOON, NOON - 5 * 3_600_000):  # 14 and 9 o'clock
            it_is(at, monkeypatch)
            said.append(await scores(shop))
            assert said[-1] == expected(made, at=at)
        assert np.abs(np.subtract(*said)).max() > 100 * TOLERANCE

    async def test_the_moment_is_now(self, shop: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        moments, read = [], FieldReader.read

        def noted(*arguments: Any, timestamp_ms: int) -> FieldValues:
            moments.append(timestamp_ms)
            return read(*arguments, timestamp_ms=timestamp_ms)

        monkeypatch.setattr(FieldReader, "read", noted)
        await scores(shop)
        assert abs(moments[-1] / 1000 - time.time()) < 60


class TestBatches:
    """POST /predict/batch."""

    async def test_each_question_has_its_own_fields(
        self, shop: Api, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await put(shop, ann=YOUNG, bob=OLD)
        trips: list[Sequence[str]] = []
        cached = HistoryStore.cached

        async def noted(store: HistoryStore, user_ids: Sequence[str]) -> Any:
            trips.append(user_ids)
            return await cached(store, user_ids)

        monkeypatch.setattr(HistoryStore, "cached", noted)
        of_each = [None, TV, None, PHONE, None, None]
        items = [{"id": item, "context": own} for item, own in zip(CANDIDATES, of_each, strict=True)]
        asked: list[tuple[dict[str, Any], Any]] = [
            ({"user_id": "ann"}, expected(made, YOUNG)),
            ({"user_id": "bob", "context": TV}, expected(made, OLD, TV, user="bob")),
            ({"user_id": "ann", "context": PHONE, "items": items}, expected(made, YOUNG, PHONE, of_each)),
            ({"user_id": "new", "history": ["i7"]}, expected(made, user="new", history=["i7"])),
            ({"context": TV}, expected(made, {}, TV, user="")),
        ]
        requests = [{"items": CANDIDATES, **question} for question, _ in asked]
        for _ in range(2):
            answer = await call(shop, "POST", "/predict/batch", {"requests": requests})
            for one, (_, said) in zip(answer["predictions"], asked, strict=True):
                assert one["scores"] == said
            assert trips == [["ann", "bob", "new"]]

    async def test_with_contexts_of_many_items_go_to_a_thread(
        self, shop: Api, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They take longer than items without contexts; they are scored all the same."""
        threads: list[int] = []
        score = Snapshot.score

        def noted(*arguments: Any) -> Any:
            threads.append(threading.get_ident())
            return score(*arguments)

        monkeypatch.setattr(Snapshot, "score", noted)
        await put(shop, ann=OLD)
        for count, own, on_the_loop in ((396, TV, True), (402, TV, False), (402, None, True)):
            items = CANDIDATES * (count // 6)
            said = await scores(shop, items=[{"id": item, "context": own} for item in items] if own else items)
            assert (threads.pop() == threading.get_ident()) == on_the_loop
            assert said[:6] == expected(made, OLD, own)
            assert len(said) == count


async def test_a_model_without_fields_takes_no_notice(
    postgres_dsn: str, redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    file = tmp_path / "features.toml"
    file.write_text(SHOP)
    async with running_app(settings_for(postgres_dsn, redis_url, tmp_path / "shop", features=file)) as api:
        await put(api, ann=YOUNG)
        answer = await call(api, "POST", "/predict", {"user_id": "ann", "items": CANDIDATES, "context": PHONE})
        assert answer["scores"] == [0.25] * 6


async def test_of_a_version_that_holds_at_a_time(database: Database) -> None:
    """`of_user_at`, and when the next version begins."""
    first = datetime(2024, 5, 1, 12, tzinfo=UTC)
    ms = int(first.timestamp() * 1000)
    async with database.unit_of_work() as work:
        versions = [FeatureVersion("u", first + timedelta(milliseconds=n), {"age": n}) for n in (0, 7, 9)]
        await work.features.put("user", [*versions, FeatureVersion("v", first, {"age": 70})])
        found = [await work.features.of_user_at("u", ms + n) for n in (-1, 0, 6, 7, 8, 9, 10**9)]
        stranger = await work.features.of_user_at("w", ms)
    assert found == [
        ({}, ms), ({"age": 0}, ms + 7), ({"age": 0}, ms + 7), ({"age": 7}, ms + 9), ({"age": 7}, ms + 9),
        ({"age": 9}, None), ({"age": 9}, None),
    ]  # fmt: skip
    assert stranger == ({}, None)
