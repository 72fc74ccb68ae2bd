"""Predictions that log impressions: what is acknowledged is stored, and no prediction blocks on Postgres."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from service.errors import NotReady
from service.serving.id_hashes import hash_ids
from service.settings import Settings
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import Impression
from service.use_cases import impressions as impressions_module
from service.use_cases.impressions import ImpressionLog
from service.use_cases.ingest import IngestResult
from service.use_cases.keys import create_key
from tests.conftest import in_thread
from tests.service.api_support import Api, eventually, publish, recorded_histories, running_app, settings_for
from tests.service.programs import program, wait_for
from tests.service.serving_support import ITEMS, random_model


@pytest.fixture
def settings(postgres_dsn: str, redis_url: str, tmp_path: Path) -> Settings:
    """With a deadline that a busy host does not miss."""
    return settings_for(postgres_dsn, redis_url, tmp_path, impression_deadline_seconds=10)


@pytest.fixture
async def learned(api: Api, database: Database) -> Api:
    """The application with a model that tells items apart."""
    content = random_model(31, categories=True).encoded()
    await publish(database, api.state.artifacts, 1, 0, lead_seconds=0, content=content)
    await eventually(lambda: api.state.serving.current().version == 1)
    return api


async def predict(api: Api, *, path: str = "/predict", status: int = 200, key: str = "", **body: Any) -> Any:
    headers = {"X-API-Key": key} if key else {}
    response = await api.client.post(path, json=body, headers=headers)
    assert response.status_code == status, response.text
    return response.json()


async def stored(database: Database) -> dict[str, tuple[str, list[str]]]:
    """User and items of each impression."""
    async with database.read() as session:
        rows = await session.connection.execute(text("SELECT request_id, user_id, item_ids FROM impressions"))
        return {row.request_id: (row.user_id, row.item_ids) for row in rows}


def ranked(items: Sequence[str], scores: Sequence[float]) -> list[str]:
    """Each item once, best first; of equal ones the first."""
    found: list[str] = []
    for _, item in sorted(zip(scores, items, strict=True), key=lambda pair: -pair[0]):
        if item not in found:
            found.append(item)
    return found


class TestAnswers:
    async def test_the_items_are_logged_as_their_scores_rank_them(self, learned: Api, database: Database) -> None:
        items = [*ITEMS[:20], ITEMS[3], "unknown", "é"]
        before = datetime.now(UTC)
        answers = [await predict(learned, user_id="u1", items=items, log_impressions=log) for log in (True, 1000, 7, 1)]
        assert [answer["logged"] for answer in answers] == [True] * 4
        best = ranked(items, answers[0]["scores"])
        assert len(set(answers[0]["scores"])) > 15 and len(best) == 22
        logged = await stored(database)
        assert [logged[answer["request_id"]] for answer in answers] == [
            ("u1", best),
            ("u1", best),
            ("u1", best[:7]),
            ("u1", best[:1]),
        ]
        async with database.read() as session:
            times = (await session.connection.execute(text("SELECT shown_at FROM impressions"))).scalars().all()
        assert all(before <= moment <= datetime.now(UTC) for moment in times)

    async def test_what_is_not_to_be_logged_is_not(self, learned: Api, database: Database) -> None:
        for asked in ({}, {"log_impressions": False}, {"log_impressions": None}):
            assert "logged" not in await predict(learned, user_id="u1", items=["i1"], **asked)
        assert await stored(database) == {}

    async def test_an_impression_is_not_logged_twice(self, learned: Api, database: Database) -> None:
        first = await predict(learned, user_id="u1", items=["i1"], request_id="r", log_impressions=True)
        again = await predict(learned, user_id="u2", items=["i1", "i2"], request_id="r", log_impressions=True)
        assert (first["logged"], again["logged"]) == (True, False)
        assert await stored(database) == {"r": ("u1", ["i1"])}

    async def test_in_a_batch(self, learned: Api, database: Database) -> None:
        requests = [
            {"user_id": "u1", "items": ITEMS[:5], "log_impressions": 2},
            {"user_id": "u2", "items": ["i1"]},
            {"user_id": "u3", "items": ["i2"], "log_impressions": True, "request_id": "mine"},
            {"user_id": "u4", "items": ["i2"], "log_impressions": True, "request_id": "mine"},
        ]
        answers = (await predict(learned, path="/predict/batch", requests=requests))["predictions"]
        assert [answer.get("logged") for answer in answers] == [True, None, True, False]
        assert "logged" not in answers[1]
        best = ranked(ITEMS[:5], answers[0]["scores"])[:2]
        assert await stored(database) == {answers[0]["request_id"]: ("u1", best), "mine": ("u3", ["i2"])}

    @pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
    async def test_the_key_needs_both_scopes(self, api: Api, database: Database, path: str) -> None:
        one = {"user_id": "u", "items": ["a"]}
        plain = one if path == "/predict" else {"requests": [one, one]}
        log = one | {"log_impressions": True}
        logging = log if path == "/predict" else {"requests": [one, log]}
        _, reader = await create_key(database, "reader", ["predict"])
        _, both = await create_key(database, "both", ["predict", "ingest"])
        await predict(api, path=path, key=reader, **plain)
        refused = await predict(api, path=path, status=403, key=reader, **logging)
        assert "'ingest'" in refused["detail"]
        assert await stored(database) == {}
        await predict(api, path=path, key=both, **logging)
        assert len(await stored(database)) == 1

    async def test_a_click_on_it_counts_at_once(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = recorded_histories(monkeypatch)
        answer = await predict(api, user_id="ann", items=["a", "b"], log_impressions=True)
        click = {"request_id": answer["request_id"], "item_id": "b", "timestamp": datetime.now(UTC).isoformat()}
        response = await api.client.post("/clicks", json={"clicks": [click]})
        assert response.json()["accepted"] == 1
        await predict(api, user_id="ann", items=["a"])
        assert seen[-1] == hash_ids(["b"]).tolist()


@asynccontextmanager
async def nothing_can_be_stored(database: Database) -> AsyncIterator[None]:
    """Somebody holds the log, as if Postgres hung."""
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.LOG)
        yield


async def metric(api: Api, name: str) -> float:
    lines = (await api.client.get("/metrics")).text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


class TestOutages:
    async def test_predictions_go_on_without(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path, database: Database
    ) -> None:
        as_shipped = settings_for(postgres_dsn, redis_url, tmp_path)
        async with running_app(as_shipped) as api, nothing_can_be_stored(database):
            started = time.monotonic()
            answers = await asyncio.gather(
                *(predict(api, user_id="u", items=["a"], request_id=f"r{n}", log_impressions=True) for n in range(50))
            )
            assert time.monotonic() - started < 1.0  # far below the deadline of what stores something
            assert {answer["logged"] for answer in answers} == {False}
            assert await metric(api, "asmg_impressions_not_logged_total") == 50
            # By now it is known that the commit takes its time: nobody waits for it.
            await asyncio.sleep(as_shipped.impression_deadline_seconds)
            started = time.monotonic()
            assert not (await predict(api, user_id="u", items=["a"], log_impressions=True))["logged"]
            assert time.monotonic() - started < as_shipped.impression_deadline_seconds

    async def test_what_nobody_waits_for_any_more_is_not_stored(self, api: Api, database: Database) -> None:
        log = ImpressionLog(api.state.impressions._store, seconds=0.1)
        async with nothing_can_be_stored(database):
            first = asyncio.create_task(log.add([impression("first")]))
            await asyncio.sleep(0.01)
            assert await asyncio.gather(log.add([impression("second")]), first) == [[False], [False]]
        await log.settle()
        assert set(await stored(database)) == {"first"}  # whose commit was under way: it came late
        assert await ImpressionLog(api.state.impressions._store, seconds=10).add([impression("third")]) == [True]
        assert set(await stored(database)) == {"first", "third"}


class Store:
    """Stands where Postgres does: keeps groups, and waits before it does."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, shown: Sequence[Impression]) -> IngestResult:
        self.groups.append([impression.request_id for impression in shown])
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return IngestResult(len(shown), 0, [], 1)


def impression(name: str, items: int = 1) -> Impression:
    return Impression(name, "u", [f"i{n}" for n in range(items)], None, datetime.now(UTC))


class TestImpressionLog:
    async def test_what_comes_during_a_commit_shares_the_next(self) -> None:
        store = Store()
        log = ImpressionLog(store, seconds=5)
        adding = [asyncio.create_task(log.add([impression(f"{n}")])) for n in range(100)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        later = [asyncio.create_task(log.add([impression(f"later {n}")])) for n in range(100)]
        await asyncio.sleep(0.01)
        store.go.set()
        assert await asyncio.gather(*adding, *later) == [[True]] * 200
        assert len(store.groups) <= 3
        assert sorted(name for group in store.groups for name in group) == sorted(
            [f"{n}" for n in range(100)] + [f"later {n}" for n in range(100)]
        )
        assert log.waiting_items == 0

    async def test_two_with_one_name_are_of_two_commits(self) -> None:
        store = Store()
        store.go.set()
        log = ImpressionLog(store, seconds=5)
        await asyncio.gather(
            *(log.add([impression("same"), impression("same"), impression("other")]) for _ in range(3))
        )
        assert all(len(group) == len(set(group)) for group in store.groups)
        assert sum(group.count("same") for group in store.groups) == 6

    async def test_what_waits_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(impressions_module, "MOST_ITEMS", 25)
        store = Store()
        log = ImpressionLog(store, seconds=0.3)
        first = asyncio.create_task(log.add([impression("first", 10)]))
        await asyncio.sleep(0.01)  # under way, and not waiting any more
        results = await asyncio.gather(*(log.add([impression(f"{n}", 10)]) for n in range(5)), first)
        assert results == [[False]] * 6
        assert store.groups == [["first"]]
        assert log.waiting_items == 0
        store.go.set()
        await log.settle()
        assert store.groups == [["first"]]  # what nobody waited for any more was not stored
        many = await log.add([impression(f"{n}", 10) for n in range(5)])
        assert many == [True, True, False, False, False]

    async def test_commits_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(impressions_module, "ITEMS_OF_A_COMMIT", 25)
        store = Store()
        store.go.set()
        assert all(await ImpressionLog(store, seconds=5).add([impression(f"{n}", 10) for n in range(10)]))
        assert [len(group) for group in store.groups] == [2, 2, 2, 2, 2]

    @pytest.mark.parametrize("error", [NotReady("away"), RuntimeError("a bug")])
    async def test_what_cannot_be_stored_is_said(self, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
        store = Store()
        store.error = error
        store.go.set()
        log = ImpressionLog(store, seconds=5)
        assert await log.add([impression("a"), impression("b")]) == [False, False]
        assert ("were not logged" in caplog.text) is isinstance(error, RuntimeError)
        store.error = None
        assert await log.add([impression("c")]) == [True]

    async def test_a_caller_that_goes_away_takes_its_impression_along(self) -> None:
        store = Store()
        log = ImpressionLog(store, seconds=5)
        first, second = (asyncio.create_task(log.add([impression(name)])) for name in ("first", "second"))
        await asyncio.sleep(0.01)
        gone = asyncio.create_task(log.add([impression("gone")]))
        await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        store.go.set()
        assert await asyncio.gather(first, second) == [[True], [True]]
        assert "gone" not in [name for group in store.groups for name in group]
        await log.close()


@pytest.mark.slow
def test_what_was_acknowledged_is_stored_though_the_process_is_killed(
    postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    """`kill -9` of the api under load, twice: each `"logged": true` that a client has seen is in Postgres."""
    places = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}
    logged: list[set[str]] = [set() for _ in range(8)]
    stop = Event()

    with program(tmp_path, "--no-worker", **places, ASMG_IMPRESSION_DEADLINE_SECONDS="1") as served:

        def ask(client_number: int) -> None:
            number = 0
            while not stop.is_set():
                try:
                    with httpx.Client(base_url=served.url, timeout=10) as client:
                        while not stop.is_set():
                            number += 1
                            name = f"{client_number}-{number}"
                            body = {"user_id": "u", "items": ["a", "b"], "request_id": name, "log_impressions": True}
                            response = client.post("/predict", json=body)
                            if response.status_code == 200 and response.json()["logged"]:
                                logged[client_number].add(name)
                except httpx.TransportError:
                    time.sleep(0.05)

        with ThreadPoolExecutor(len(logged)) as pool:
            asking = [pool.submit(ask, n) for n in range(len(logged))]
            for _ in range(2):
                before = sum(map(len, logged))
                wait_for(lambda before=before: sum(map(len, logged)) > before + 100)
                victim = served.children()[0]
                victim.send_signal(signal.SIGKILL)
                wait_for(lambda victim=victim: served.children() and victim not in served.children())
            stop.set()
            for task in asking:
                task.result()

    async def read() -> set[str]:
        database = Database(postgres_dsn)
        found = set(await stored(database))
        await database.close()
        return found

    found = in_thread(asyncio.run, read())
    acknowledged = set().union(*logged)
    assert len(acknowledged) > 200
    assert acknowledged <= found
