"""Ingestion, closing and watching periods."""

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from service.serving.id_hashes import hash_ids
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import Evaluation, EventBatch, Interaction, PeriodStatus
from service.storage.redis.notices import Notices
from service.use_cases.status import PeriodDocument, get_period
from service.use_cases.watch import PeriodWatch
from tests.service.api_support import (
    Api,
    event,
    eventually,
    ingest,
    recorded_histories,
    running_app,
    served_app,
    settings_for,
)


async def test_events_are_stored_once(api: Api, database: Database) -> None:
    first = await ingest(api.client, event(1), event(2), event(1))
    assert first.json() == {"accepted": 2, "duplicates": 1, "period": 1}
    again = await ingest(api.client, event(1), event(2), event(3))
    assert again.json() == {"accepted": 1, "duplicates": 2, "period": 1}
    async with database.read() as session:
        log = await session.interactions.log(1)
    assert (log.item_ids, log.labels.tolist()) == (["i1", "i2", "i3"], [1, 0, 1])


async def test_a_duplicate_of_an_earlier_period_stays_there(api: Api) -> None:
    await ingest(api.client, event(1))
    await api.client.post("/periods/close")
    answer = await ingest(api.client, event(1), event(2))
    assert answer.json() == {"accepted": 1, "duplicates": 1, "period": 2}


async def test_an_id_with_other_content_is_a_conflict(api: Api, database: Database) -> None:
    first = await ingest(api.client, event(1), event(2), event(1, label=0), event(1))
    assert first.json() == {"accepted": 2, "duplicates": 1, "conflicts": ["e1"], "period": 1}
    await api.client.post("/periods/close")
    others = [
        event(1, user_id="other"),
        event(1, item_id="other"),
        event(1, label=0),
        event(1, timestamp="2024-05-01T12:00:00.000001Z"),
        event(1, request_id="r"),
        event(1, timestamp="2024-05-01T14:00:00+02:00"),  # the same moment
    ]
    again = await ingest(api.client, event(3), *others, event(2, user_id="other"))
    conflicts = ["e1"] * 5 + ["e2"]
    assert again.json() == {"accepted": 1, "duplicates": 1, "conflicts": conflicts, "period": 2}
    async with database.read() as session:
        logs = [await session.interactions.log(number) for number in (1, 2)]
    assert [log.user_ids for log in logs] == [["u1", "u2"], ["u3"]]
    counted = (await api.client.get("/metrics")).text
    assert 'asmg_interactions_total{result="conflict"} 7.0' in counted


async def test_a_late_event_lands_in_the_open_period(
    api: Api, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ingest(api.client, event(1, user_id="u", label=1, timestamp="2024-05-01T12:00:02Z"))
    await api.client.post("/periods/close")
    late = event(2, user_id="u", label=1, timestamp="2024-05-01T12:00:01Z")
    assert (await ingest(api.client, late)).json() == {"accepted": 1, "duplicates": 0, "period": 2}
    seen = recorded_histories(monkeypatch)
    await api.client.post("/predict", json={"user_id": "u", "items": ["i"]})
    assert seen == [hash_ids(["i1", "i2"]).tolist()]


async def test_clicks_are_the_history_that_predictions_use(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recorded_histories(monkeypatch)
    question = {"user_id": "u", "items": ["a"]}
    await api.client.post("/predict", json=question)
    clicks = [event(n, user_id="u", item_id=f"i{n}", label=1, timestamp=1_700_000_000_000 + n) for n in range(40)]
    await ingest(api.client, *clicks, event(99, user_id="u", item_id="seen only", label=0))
    await api.client.post("/predict", json=question)
    await api.client.post("/predict", json=question | {"history": ["mine"]})
    await api.client.post("/predict", json=question | {"history": []})
    await api.client.post("/predict", json=question | {"history": [f"h{n}" for n in range(1000)]})
    expected: list[list[str]] = [[], [f"i{n}" for n in range(39, 9, -1)], ["mine"], [], [f"h{n}" for n in range(30)]]
    assert seen == [hash_ids(history).tolist() for history in expected]


async def test_the_catalogue_keeps_what_came_last(api: Api, database: Database) -> None:
    async def put(*items: tuple[str, list[str]]) -> Any:
        body = {"items": [{"item_id": item, "categories": names} for item, names in items]}
        return (await api.client.put("/items", json=body)).json()

    assert await put(("a", ["x"]), ("b", []), ("a", ["x", "y", "x"])) == {"items": 2, "changed": 2}
    assert await put(("a", ["x", "y"]), ("b", ["z"])) == {"items": 2, "changed": 1}
    async with database.read() as session:
        assert await session.items.categories(["a", "b", "c"]) == {"a": ("x", "y"), "b": ("z",)}


async def test_a_close_seals_the_period_and_opens_the_next(api: Api) -> None:
    await ingest(api.client, event(1), event(2))
    response = await api.client.post("/periods/close", json={"expected_period": 1})
    assert response.status_code == 202
    assert response.json() == {"period": 1, "status": "sealed", "status_url": "/periods/1"}
    assert response.headers["location"] == "/periods/1"
    sealed = (await api.client.get(response.json()["status_url"])).json()
    assert (sealed["status"], sealed["events"], sealed["stages"], sealed["scores"]) == ("sealed", 2, [], {})
    opened = (await api.client.get("/periods/2")).json()
    assert (opened["status"], opened["events"], opened["sealed_at"], opened["stage"]) == ("open", 0, None, None)
    await ingest(api.client, event(3))
    assert (await api.client.get("/periods/2")).json()["events"] == 1


async def test_a_close_may_be_sent_again(api: Api) -> None:
    headers = {"Idempotency-Key": "tuesday"}
    await ingest(api.client, event(1))
    first = await api.client.post("/periods/close", headers=headers)
    await ingest(api.client, event(2))
    again = await api.client.post("/periods/close", headers=headers)
    assert (again.status_code, again.json()) == (202, first.json())
    assert (await api.client.get("/periods/2")).json()["status"] == "open"
    other = await api.client.post("/periods/close", headers=headers, json={"expected_period": 2})
    assert (other.status_code, other.json()["title"]) == (422, "Idempotency key reused")
    assert (await api.client.post("/periods/close")).json()["period"] == 2


async def test_a_rejected_close_does_not_use_up_its_key(api: Api) -> None:
    headers = {"Idempotency-Key": "early"}
    assert (await api.client.post("/periods/close", headers=headers)).status_code == 409
    await ingest(api.client, event(1))
    assert (await api.client.post("/periods/close", headers=headers)).json()["period"] == 1


async def test_of_many_closes_at_once_one_counts(api: Api) -> None:
    await ingest(api.client, event(1))
    closes = (api.client.post("/periods/close", json={"expected_period": 1}) for _ in range(8))
    assert sorted(response.status_code for response in await asyncio.gather(*closes)) == [202] + [409] * 7
    await ingest(api.client, event(2))
    same = (api.client.post("/periods/close", headers={"Idempotency-Key": "k"}) for _ in range(8))
    assert {(r.status_code, r.json()["period"]) for r in await asyncio.gather(*same)} == {(202, 2)}


async def test_no_event_lands_in_a_sealed_period(api: Api, database: Database) -> None:
    sealed: dict[int, int] = {}
    told: dict[int, int] = {}
    done = asyncio.Event()

    async def send(sender: int) -> None:
        for batch in range(25):
            events = (event(n, event_id=f"{sender}-{batch}-{n}") for n in range(20))
            answer = (await ingest(api.client, *events)).json()
            told[answer["period"]] = told.get(answer["period"], 0) + answer["accepted"]

    async def close() -> None:
        while not done.is_set():
            response = await api.client.post("/periods/close")
            if response.status_code == 202:
                number = response.json()["period"]
                sealed[number] = (await api.client.get(f"/periods/{number}")).json()["events"]
            await asyncio.sleep(0.01)

    closer = asyncio.create_task(close())
    await asyncio.gather(*(send(sender) for sender in range(6)))
    done.set()
    await closer
    assert len(sealed) > 3
    async with database.read() as session:
        stored = {number: await session.interactions.count(number) for number in sealed}
        everything = [await session.interactions.count(number) for number in range(1, max(sealed) + 2)]
    assert stored == sealed  # counted when sealed, and not one more since
    assert {number: told[number] for number in sealed} == sealed
    assert sum(everything) == 6 * 25 * 20


async def test_periods_are_listed_newest_first_in_pages(api: Api) -> None:
    for number in range(1, 6):
        await ingest(api.client, event(number))
        await api.client.post("/periods/close")
    page = (await api.client.get("/periods", params={"limit": 4})).json()
    assert ([period["period"] for period in page["periods"]], page["next"]) == ([6, 5, 4, 3], 3)
    page = (await api.client.get("/periods", params={"limit": 4, "before": page["next"]})).json()
    assert ([period["period"] for period in page["periods"]], page["next"]) == ([2, 1], None)
    assert page["periods"][1] == (await api.client.get("/periods/1")).json()
    everything = (await api.client.get("/periods", params={"before": 10**12})).json()
    assert len(everything["periods"]) == 6


async def test_the_document_of_an_update(api: Api, database: Database) -> None:
    await ingest(api.client, event(1))
    await api.client.post("/periods/close")
    async with database.unit_of_work() as work:
        await work.periods.set_status(1, PeriodStatus.UPDATING, attempts=1)
        await work.stages.start(1, "score")
        await work.stages.finish(1, "score", 0.5, {"inner": "matter"})
        await work.stages.start(1, "generate")
        score = Evaluation(period=1, model="baseline", version=3, events=1, auc=None, logloss=0.7, calibration=1.5)
        await work.evaluations.put([score])
        await work.commit()
    await api.state.notices.publish_progress(1, {"stage": "generate", "progress": 0.25})
    document = (await api.client.get("/periods/1")).json()
    assert (document["status"], document["stage"], document["progress"], document["attempts"]) == (
        "updating",
        "generate",
        0.25,
        1,
    )
    assert [(stage["stage"], stage["status"], stage["seconds"]) for stage in document["stages"]] == [
        ("score", "done", 0.5),
        ("generate", "running", None),
    ]
    assert all(
        set(stage) == {"stage", "status", "started_at", "finished_at", "seconds"} for stage in document["stages"]
    )
    scores = {"version": 3, "events": 1, "auc": None, "logloss": 0.7, "calibration": 1.5}
    assert document["scores"] == {"baseline": scores}


class Stream:
    """Server-sent events, read in a thread of their own."""

    def __init__(self, url: str) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.comments = 0
        self.ended = threading.Event()
        self.closing = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url,))
        self._thread.start()

    def _read(self, url: str) -> None:
        with httpx.stream("GET", url, timeout=10) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            name = ""
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    self.events.append((name, json.loads(value)))
                elif line.startswith(":"):
                    self.comments += 1
                if self.closing.is_set():
                    break
        self.ended.set()

    async def until(self, count: int) -> None:
        await eventually(lambda: len(self.events) >= count)

    async def join(self) -> None:
        await asyncio.to_thread(self._thread.join, 10)
        assert not self._thread.is_alive()


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    with served_app(settings) as url:
        yield url


async def move(database: Database, number: int, status: PeriodStatus) -> None:
    async with database.unit_of_work() as work:
        await work.periods.set_status(number, status)
        await work.commit()


async def test_a_period_is_watched_to_its_end(url: str, database: Database, redis: Redis) -> None:
    notices = Notices(redis)
    async with httpx.AsyncClient(base_url=url) as client:
        await ingest(client, event(1))
        await client.post("/periods/close")
        stream = Stream(f"{url}/periods/1/events")
        await stream.until(1)
        await move(database, 1, PeriodStatus.UPDATING)
        await notices.publish_progress(1, {"stage": "score", "progress": 0.1})
        await stream.until(2)
        await notices.publish_progress(1, {"stage": "score", "progress": 0.9})
        await stream.until(3)
        await move(database, 1, PeriodStatus.UPDATED)
        await notices.publish_progress(1, {})
        await stream.join()
        final = (await client.get("/periods/1")).json()
    assert [name for name, _ in stream.events] == ["status", "status", "status", "status", "end"]
    documents = [document for _, document in stream.events]
    assert [document["status"] for document in documents[:4]] == ["sealed", "updating", "updating", "updated"]
    assert [document["progress"] for document in documents[1:3]] == [0.1, 0.9]
    assert documents[3] == final


async def test_watching_works_without_redis(postgres_dsn: str, tmp_path: Path, database: Database) -> None:
    settings = settings_for(postgres_dsn, f"unix://{tmp_path}/nobody.sock", tmp_path)
    with served_app(settings) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            await ingest(client, event(1))
            await client.post("/periods/close")
            stream = Stream(f"{url}/periods/1/events")
            await stream.until(1)
            await move(database, 1, PeriodStatus.QUARANTINED)
            await stream.join()
    assert [(name, document.get("status")) for name, document in stream.events] == [
        ("status", "sealed"),
        ("status", "quarantined"),
        ("end", None),
    ]


async def test_an_idle_stream_sends_heartbeats(url: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)
    stream = Stream(f"{url}/periods/1/events")
    await eventually(lambda: stream.comments >= 3)
    stream.closing.set()
    await stream.join()
    assert [name for name, _ in stream.events] == ["status"]


async def test_nobody_is_watching_after_the_client_left(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []

    async def get_and_count(database: Database, notices: Notices, number: int) -> PeriodDocument:
        looked_at.append(number)
        return await get_period(database, notices, number)

    monkeypatch.setattr("service.use_cases.watch.get_period", get_and_count)
    stream = Stream(f"{url}/periods/1/events")
    await eventually(lambda: len(looked_at) >= 2)
    stream.closing.set()
    async with database.unit_of_work() as work:  # a change, for a stream notices that it is closed when it is written
        await work.interactions.insert(
            1, EventBatch.of([Interaction("e", "u", "i", 1, datetime(2024, 5, 1, tzinfo=UTC))])
        )
        await work.commit()
    await stream.join()
    await asyncio.sleep(0.2)
    until_then = len(looked_at)
    await asyncio.sleep(1.5)  # the poll is every second
    assert len(looked_at) == until_then


async def test_streams_end_when_the_server_does(settings: Settings, database: Database) -> None:
    with served_app(settings) as url:
        stream = Stream(f"{url}/periods/1/events")
        await stream.until(1)
    # The server waited for the stream, less than until its time for slow requests (5 s) was over.
    assert stream.ended.wait(1)
    await stream.join()


async def open_stream(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """A stream of period 1, read up to its head alone."""
    host = httpx.URL(url)
    reader, writer = await asyncio.open_connection(host.host, host.port)
    writer.write(b"GET /periods/1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return reader, writer, await reader.readuntil(b"\r\n\r\n")


async def first_event(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"data: ") + await reader.readline()


async def test_hundreds_of_streams_cost_one_subscription_and_one_look_up_a_change(
    settings: Settings, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []

    async def get_and_count(database: Database, notices: Notices, number: int) -> PeriodDocument:
        looked_at.append(number)
        return await get_period(database, notices, number)

    monkeypatch.setattr("service.use_cases.watch.get_period", get_and_count)
    own = len(await redis.client_list())
    with served_app(settings) as url:
        streams = [await open_stream(url) for _ in range(300)]
        try:
            assert {head.split(b"\r\n")[0] for *_, head in streams} == {b"HTTP/1.1 200 OK"}
            events = await asyncio.gather(*(first_event(reader) for reader, *_ in streams))
            assert len(set(events)) == 1
            assert len(await redis.client_list()) - own < 12
            async with httpx.AsyncClient(base_url=url) as client:
                for _ in range(20):
                    answer = await client.post("/predict", json={"user_id": "u", "items": ["a"]})
                    assert answer.status_code == 200
                assert (await client.get("/readyz")).json()["checks"]["redis"] == "ok"
                await ingest(client, event(1))
                await client.post("/periods/close")
            events = await asyncio.gather(*(first_event(reader) for reader, *_ in streams))
            assert len(set(events)) == 1
            # One a second, and one for each change: not one for each of 300 streams, nor 300 a second.
            assert len(looked_at) < 100
        finally:
            for _, writer, _ in streams:
                writer.close()


async def test_there_is_room_for_so_many_streams(
    postgres_dsn: str, redis_url: str, tmp_path: Path, database: Database
) -> None:
    """Streams get half of the connections; the other half is for requests."""
    with served_app(settings_for(postgres_dsn, redis_url, tmp_path, max_connections=8)) as url:
        streams = [await open_stream(url) for _ in range(4)]
        async with httpx.AsyncClient(base_url=url) as client:
            refused = await client.get("/periods/1/events")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "4 streams of events" in refused.json()["detail"]
            assert (await client.get("/periods/1")).status_code == 200
            for _, writer, _ in streams:
                writer.close()
            await ingest(client, event(1))  # a change: a stream notices that its client left when it is written to

            async def room() -> bool:
                async with client.stream("GET", "/periods/1/events") as response:
                    return response.status_code == 200

            for _ in range(200):
                if await room():
                    break
                await asyncio.sleep(0.1)
            else:
                pytest.fail("there never was room again")


async def test_there_is_room_for_one_however_few_connections_there_are(settings: Settings) -> None:
    async with (
        running_app(settings.model_copy(update={"max_connections": 1})) as api,
        api.state.periods.watch(1) as documents,
    ):
        assert (await anext(documents)).period == 1


async def test_who_does_not_read_gets_the_newest_and_keeps_nothing_waiting(database: Database, redis: Redis) -> None:
    async with database.unit_of_work() as work:
        await work.periods.set_status(1, PeriodStatus.UPDATING)
        await work.commit()
    notices = Notices(redis)
    watch = PeriodWatch(database, notices, poll_seconds=0.01)
    async with watch.watch(1) as slow, watch.watch(1) as quick:
        assert (await anext(slow)).progress is None
        seen = []
        for number in range(1, 6):
            await notices.publish_progress(1, {"progress": number / 10})
            while not seen or seen[-1] != number / 10:
                seen.append((await anext(quick)).progress)
        assert (await anext(slow)).progress == 0.5
    assert watch._watched == {}


async def test_a_period_that_does_not_exist_is_not_watched(url: str, database: Database) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        for number in (0, 77, 2**31):
            assert (await client.get(f"/periods/{number}/events")).status_code == 404
