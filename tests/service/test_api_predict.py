"""Predictions over HTTP: single and in batches, by the short and the long code path, and in threads."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from random import Random
from typing import Any

import httpx
import pytest
from starlette.types import Message

from service.errors import NotReady
from service.http.routers import interactions as interactions_router
from service.http.routers import predict as predict_router
from service.serving.id_hashes import hash_ids
from service.storage.postgres.database import Database
from service.storage.redis.histories import HistoryStore
from service.use_cases import predict as predict_use_case
from service.use_cases.keys import create_key
from tests.service.api_support import Api, event, eventually, ingest, publish, recorded_histories
from tests.service.serving_support import ITEMS, USERS, Made, random_model

HEADERS = {"content-type": "application/json", "x-request-id": "mine"}


@pytest.fixture(scope="module")
def made() -> Made:
    return random_model(31, categories=True)


@pytest.fixture
async def learned(api: Api, database: Database, made: Made) -> Api:
    """The application with a model that tells users and items apart."""
    await publish(database, api.state.artifacts, 1, 0, lead_seconds=0, content=made.encoded())
    await eventually(lambda: api.state.serving.current().version == 1)
    return api


def questions(count: int, *, items: int = 3, seed: int = 1, width: int = 0) -> list[dict[str, Any]]:
    """Of known and unknown users about known and unknown items, with and without a history and a name."""
    random = Random(seed)
    users, pool = [*USERS, "stranger", "日本"], [*ITEMS, "unknown", "é", "😀" * 256]
    made = []
    for number in range(count):
        one: dict[str, Any] = {"user_id": random.choice(users), "items": random.choices(pool, k=items)}
        if width:
            one["items"] = [item.ljust(width, "x") for item in one["items"]]
        if random.random() < 0.6:
            one["history"] = random.choices(pool, k=random.choice([0, 1, 2, 40]))
        if random.random() < 0.5:
            one["request_id"] = f"request {number}"
        made.append(one)
    return made


async def post(client: httpx.AsyncClient, path: str, body: object, **headers: str) -> Any:
    response = await client.post(path, content=json.dumps(body).encode(), headers=HEADERS | headers)
    assert response.status_code == 200, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)
    return response.json()


@pytest.mark.compiles
async def test_scores_are_those_of_the_model(learned: Api, made: Made) -> None:
    for one in questions(30):
        answer = await post(learned.client, "/predict", one)
        expected = made.scores(one["user_id"], one["items"], one.get("history", [])[:30])
        assert answer["scores"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert answer["cold_user"] is (one["user_id"] not in USERS)
        assert answer["cold_items"] == [n for n, item in enumerate(one["items"]) if item not in ITEMS]
        assert (answer["model_version"], answer["period"]) == (1, 1)
        assert answer["request_id"] == one.get("request_id", "mine")


class TestBatch:
    @pytest.mark.parametrize("count, items", [(1, 1), (5, 3), (256, 3), (256, 20)])
    async def test_equals_single_predictions_bit_for_bit(self, learned: Api, count: int, items: int) -> None:
        """Also where it goes through threads: 256 times 20 items of some are parsed, scored and written there."""
        asked = questions(count, items=items)
        answer = await post(learned.client, "/predict/batch", {"requests": asked})
        assert (set(answer), answer["model_version"], answer["period"]) == (
            {"model_version", "period", "predictions"},
            1,
            1,
        )
        assert len(answer["predictions"]) == count
        for number, one in enumerate(asked):
            alone = await post(learned.client, "/predict", one, **{"x-request-id": f"mine-{number}"})
            assert answer["predictions"][number] | {"model_version": 1, "period": 1} == alone

    async def test_names_what_the_client_did_not(self, learned: Api) -> None:
        asked = [{"user_id": "u1", "items": ["i1"]}, {"user_id": "u1", "items": ["i1"], "request_id": "r"}] * 2
        answer = await post(learned.client, "/predict/batch", {"requests": asked})
        assert [one["request_id"] for one in answer["predictions"]] == ["mine-0", "r", "mine-2", "r"]
        response = await learned.client.post("/predict/batch", json={"requests": asked[:1]})
        made_up = response.headers["x-request-id"]
        assert response.json()["predictions"][0]["request_id"] == f"{made_up}-0"

    async def test_is_of_one_version_while_versions_change(self, api: Api, database: Database) -> None:
        """Every score shows which version gave it; large and small batches are sent while five versions take over."""
        ctrs = {0: 0.25, 1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}
        large, small = ({"requests": questions(count, items=20)} for count in (256, 2))
        seen: list[int] = []

        async def ask(body: object) -> None:
            while not seen or seen[-1] < 5:
                answer = await post(api.client, "/predict/batch", body)
                scores = {round(score, 6) for one in answer["predictions"] for score in one["scores"]}
                assert scores == {ctrs[answer["model_version"]]}
                seen.append(answer["model_version"])
                await asyncio.sleep(0)

        asking = [asyncio.create_task(ask(body)) for body in (large, small, large)]
        for version in range(1, 6):
            await publish(database, api.state.artifacts, version, ctrs[version], lead_seconds=0.2)
            await api.state.notices.publish_swap()
            await eventually(lambda version=version: version in seen)  # type: ignore[misc]
        await asyncio.gather(*asking)
        assert set(seen) == set(ctrs)

    async def test_reads_each_history_where_it_is(self, learned: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        clicks = [
            event(n, event_id=f"{user}-{n}", user_id=user, item_id=f"i{n}", label=1, timestamp=1_700_000_000_000 + n)
            for user in ("u1", "u2")
            for n in range(40)
        ]
        await ingest(learned.client, *clicks, event(99, user_id="u3", label=0))
        seen = recorded_histories(monkeypatch)
        long = [f"i{n}" for n in range(50)]
        asked: list[tuple[dict[str, Any], list[str]]] = [
            ({"user_id": "u1"}, [f"i{n}" for n in range(39, 9, -1)]),
            ({"user_id": "u1", "history": ["mine"]}, ["mine"]),
            ({"user_id": "u3"}, []),
            ({"user_id": "u2", "history": []}, []),
            ({"user_id": "u2", "history": None}, [f"i{n}" for n in range(39, 9, -1)]),
            ({"user_id": "stranger", "history": long}, long[:30]),
        ]
        requests = [{"items": ["i1"], **one} for one, _ in asked]
        await post(learned.client, "/predict/batch", {"requests": requests})
        assert seen == [hash_ids(history).tolist() for _, history in asked]
        assert len({tuple(history) for history in seen}) == 4

    async def test_a_click_counts_in_the_next_batch(self, learned: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        body = {"requests": [{"user_id": user, "items": ["i1"]} for user in ("u1", "u2")]}
        seen = recorded_histories(monkeypatch)
        await post(learned.client, "/predict/batch", body)
        await ingest(learned.client, event(1, user_id="u2", item_id="i7", label=1))
        await post(learned.client, "/predict/batch", body)
        assert seen == [[], [], [], hash_ids(["i7"]).tolist()]

    async def test_without_postgres_and_redis_given_histories_do(
        self, learned: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def cached(_: HistoryStore, user_ids: Sequence[str]) -> list[None]:
            return [None] * len(user_ids)

        async def away(*_: object) -> None:
            raise NotReady("away")

        monkeypatch.setattr(HistoryStore, "cached", cached)
        monkeypatch.setattr(HistoryStore, "get", away)
        await post(learned.client, "/predict/batch", {"requests": [questions(1)[0] | {"history": ["i1"]}]})


class TestConnections:
    """Connections that end too early, which the tests' HTTP client cannot produce."""

    QUESTION = b'{"user_id":"u","items":["a"]}'

    async def call(self, api: Api, messages: list[Message], *, fail_at: int = -1) -> list[Message]:
        """What the application sends to one call of /predict, until sending fails."""
        transport: Any = api.client._transport
        sent: list[Message] = []

        async def receive() -> Message:
            return messages.pop(0)

        async def send(message: Message) -> None:
            if len(sent) == fail_at:
                raise OSError("connection reset")
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/predict", "client": ("127.0.0.1", 1), "root_path": ""}
        headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        scope |= {"headers": headers, "query_string": b"", "http_version": "1.1", "scheme": "http"}
        await transport.app(scope, receive, send)
        return sent

    async def counted(self, api: Api, status: int) -> bool:
        line = f'asmg_requests_total{{route="/predict",status="{status}"}} 1.0'
        return line in (await api.client.get("/metrics")).text.splitlines()

    async def test_a_client_that_goes_away_gets_nothing(self, api: Api, caplog: pytest.LogCaptureFixture) -> None:
        part = {"type": "http.request", "body": self.QUESTION[:9], "more_body": True}
        assert await self.call(api, [part, {"type": "http.disconnect"}]) == []
        assert caplog.records == []
        assert await self.counted(api, 499)

    async def test_an_answer_in_pieces_is_one(self, api: Api) -> None:
        parts = [self.QUESTION[:9], b"", self.QUESTION[9:]]
        start, body = await self.call(
            api, [{"type": "http.request", "body": part, "more_body": part != parts[-1]} for part in parts]
        )
        assert start["status"] == 200
        assert dict(start["headers"])[b"x-request-id"] == b"mine"
        assert json.loads(body["body"])["scores"] == [0.25]

    async def test_a_connection_that_breaks_under_the_answer_gets_no_second_one(self, api: Api) -> None:
        with pytest.raises(OSError, match="connection reset"):
            await self.call(api, [{"type": "http.request", "body": self.QUESTION}], fail_at=1)
        assert await self.counted(api, 200)
        assert not await self.counted(api, 500)


def requests_of_all_kinds(key: str) -> list[tuple[str, bytes, dict[str, str]]]:
    """Good and bad calls of both kinds: path, body, headers."""
    good = {"/predict": questions(1)[0], "/predict/batch": {"requests": questions(3)}}
    with_key = HEADERS | {"x-api-key": key}
    calls = []
    for path, document in good.items():
        body = json.dumps(document).encode()
        calls += [(path, body, headers) for headers in (with_key, HEADERS, HEADERS | {"x-api-key": "wrong"})]
        calls += [(path, body, with_key | {"content-type": kind}) for kind in ("text/plain", "application/json; a=b")]
        calls += [(path, bad, with_key) for bad in (b"", b"{", b"[]", b'{"user_id": ""}', b'{"requests": [{}]}')]
        calls += [(path, body.ljust(5_000_000), with_key)]
    return calls


@pytest.fixture
async def mounted(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    """Calls the application where another one has mounted it under a path."""
    inner: httpx.ASGITransport = api.client._transport  # type: ignore[assignment]
    transport = httpx.ASGITransport(inner.app, client=("127.0.0.1", 50000), root_path="/prefix")
    async with httpx.AsyncClient(transport=transport, base_url="http://asmg/prefix") as client:
        yield client


async def test_a_mounted_application_gives_the_same(
    learned: Api, mounted: httpx.AsyncClient, database: Database
) -> None:
    _, key = await create_key(database, "reader", ["predict"])
    await asyncio.sleep(1.05)  # until then it is believed that there is none
    statuses = set()
    for path, body, headers in requests_of_all_kinds(key):
        plain = await learned.client.post(path, content=body, headers=headers)
        under = await mounted.post(path, content=body, headers=headers)
        assert plain.status_code == under.status_code, (path, body[:100], headers)
        statuses.add(plain.status_code)
        for name in ("content-type", "www-authenticate", "x-request-id"):
            assert plain.headers.get(name) == under.headers.get(name)
        if plain.status_code == 200:
            assert plain.content == under.content
            continue
        documents = [plain.json(), under.json()]
        assert [document.pop("instance") for document in documents] == [path, f"/prefix{path}"]
        assert documents[0] == documents[1]
    assert statuses == {200, 400, 401, 413, 415, 422}


class Threads:
    """Notes which functions ran on the event loop's thread, and which beside it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop = threading.get_ident()
        self._patch = monkeypatch
        self.seen: dict[str, set[str]] = {}

    def watch(self, place: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(place, name)

        def noted(*arguments: Any, **named: Any) -> Any:
            where = "loop" if threading.get_ident() == self._loop else "thread"
            self.seen.setdefault(name, set()).add(where)
            return function(*arguments, **named)

        self._patch.setattr(place, name, noted)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    threads = Threads(monkeypatch)
    for name in ("parse_predict", "parse_batch", "_to_json"):
        threads.watch(predict_router, name)
    threads.watch(predict_use_case, "_score")
    threads.watch(interactions_router, "parse_interactions")
    return threads


class TestTheEventLoop:
    async def test_does_small_work_itself(self, learned: Api, threads: Threads) -> None:
        await post(learned.client, "/predict", questions(1)[0])
        await post(learned.client, "/predict/batch", {"requests": questions(20)})
        await ingest(learned.client, event(1))
        names = ("parse_predict", "parse_batch", "_score", "_to_json", "parse_interactions")
        assert threads.seen == {name: {"loop"} for name in names}

    async def test_leaves_a_big_batch_to_threads(self, learned: Api, threads: Threads) -> None:
        body = {"requests": questions(256, items=10, width=30)}
        assert len(json.dumps(body)) > 64 * 1024
        await post(learned.client, "/predict/batch", body)
        assert threads.seen == {name: {"thread"} for name in ("parse_batch", "_score", "_to_json")}

    async def test_leaves_many_candidates_to_a_thread(self, learned: Api, threads: Threads) -> None:
        """More than two thousand candidates, however short the body is."""
        for count, where in ((10, "loop"), (11, "thread")):
            threads.seen.clear()
            requests = [{"user_id": "u", "items": ["a"] * 200}] * count
            assert len(json.dumps(requests)) < 64 * 1024
            await post(learned.client, "/predict/batch", {"requests": requests})
            assert threads.seen["_score"] == {where}

    async def test_leaves_a_big_single_body_to_a_thread(self, learned: Api, threads: Threads) -> None:
        [one] = questions(1, items=1000, width=100)
        await post(learned.client, "/predict", one)
        assert threads.seen["parse_predict"] == {"thread"}

    async def test_leaves_big_ingestion_to_a_thread(self, learned: Api, threads: Threads) -> None:
        answer = (await ingest(learned.client, *(event(n, item_id="x" * 200) for n in range(400)))).json()
        assert answer["accepted"] == 400
        assert threads.seen == {"parse_interactions": {"thread"}}

    async def test_goes_on_while_a_thread_is_at_work(self, learned: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        score, go = predict_use_case._score, threading.Event()
        await post(learned.client, "/predict", questions(1)[0])  # what the user did last is in memory from here on

        def waiting(*arguments: Any) -> Any:
            assert threading.current_thread() is threading.main_thread() or go.wait(10)
            return score(*arguments)

        monkeypatch.setattr(predict_use_case, "_score", waiting)
        body = {"requests": questions(256, items=10, width=30)}
        big = asyncio.create_task(post(learned.client, "/predict/batch", body))
        for _ in range(5):
            await post(learned.client, "/predict", questions(1)[0])
        assert not big.done()
        go.set()
        assert len((await big)["predictions"]) == 256
