"""Impressions and clicks become the log of a period: each case by hand, once, despite kills and delays."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from asmg.datasets.synthetic import DriftPeriod
from service.limits import MAX_ID_LENGTH
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import (
    Click,
    EventBatch,
    Impression,
    Interaction,
    PeriodStatus,
    interaction_id,
)
from service.storage.redis.histories import HistoryStore
from service.use_cases.close_period import close_period
from service.use_cases.ingest import ingest, ingest_clicks, ingest_impressions
from service.use_cases.quarantine import skip_period
from service.use_cases.retention import merge_event_ids
from service.use_cases.status import label_totals
from service.use_cases.update.resolve import resolve_labels, resolve_skipped
from tests.conftest import Servers, database_dsn
from tests.service.api_support import running_app
from tests.service.update_support import bench, copies, named, periods, single_thread, stored
from tests.service.worker_processes import worker_process

WINDOW = timedelta(minutes=30)
MS = timedelta(milliseconds=1)


def at(clock: str, plus: timedelta = timedelta()) -> datetime:
    """A time of the day of the example."""
    return datetime.fromisoformat(f"2024-05-01T{clock}:00+00:00") + plus


def shown(request: str, user: str, items: str, when: datetime) -> Impression:
    """Each letter is an item."""
    return Impression(request, user, list(items), None, when)


def clicked(request: str, item: str, when: datetime, event_id: str | None = None) -> Click:
    return Click(event_id or interaction_id(request, item), request, item, when)


class Log:
    """A log whose periods are sealed at times of the example's day."""

    def __init__(self, database: Database, redis: Redis) -> None:
        self.database, self.histories = database, HistoryStore(redis, database)

    async def add(self, *events: Impression | Click | Interaction) -> None:
        """Store them in this order, a call each."""
        for event in events:
            if isinstance(event, Impression):
                await ingest_impressions(self.database, self.histories, [event], WINDOW)
            elif isinstance(event, Click):
                await ingest_clicks(self.database, self.histories, [event], WINDOW)
            else:
                await ingest(self.database, self.histories, EventBatch.of([event]))

    async def seal(self, number: int, when: datetime) -> None:
        await close_period(self.database, expected_period=number, idempotency_key=None, actor="test")
        async with self.database.unit_of_work() as work:
            moment = {"number": number, "moment": when}
            await work.connection.execute(text("UPDATE periods SET sealed_at = :moment WHERE number = :number"), moment)
            await work.commit()

    async def resolve(self, number: int) -> dict[str, Any]:
        """What became of it, but for what is nought."""
        period = await resolve_labels(self.database, self.histories, number, WINDOW)
        assert period.labels is not None and period.labels["window_seconds"] == 1800
        assert period.events == len(await self.interactions(number))
        return {name: n for name, n in period.labels.items() if n and name != "window_seconds"}

    async def interactions(self, number: int) -> list[tuple[Any, ...]]:
        """The period's log in its order: id, user, item, label, time, request."""
        async with self.database.read() as session:
            query = "SELECT event_id, user_id, item_id, label, occurred_at, request_id FROM interactions"
            query += f" WHERE period = {number} ORDER BY occurred_at, event_id"
            return [tuple(row) for row in await session.connection.execute(text(query))]


@pytest.fixture
def log(database: Database, redis: Redis) -> Log:
    return Log(database, redis)


# One day by hand: what comes in each period, when that is sealed, what becomes of it, and its log.
FIRST = (
    shown("r1", "ann", "abcd", at("12:00")),
    clicked("r1", "a", at("12:00")),  # the edges of the window count
    clicked("r1", "b", at("12:30")),
    clicked("r1", "c", at("12:30", MS)),  # late
    clicked("r1", "d", at("12:00", -MS)),  # late: outside the window as well
    clicked("r1", "e", at("12:01")),  # orphan: was not shown
    clicked("r2", "b", at("12:20"), "c1"),  # before its impression comes
    shown("r2", "bob", "ab", at("12:10")),  # its window ends as the period is sealed
    clicked("r2", "b", at("12:21"), "c2"),  # one click is enough
    shown("r3", "cat", "a", at("12:10", MS)),  # waits with its click
    clicked("r3", "a", at("12:15")),
    shown("r4", "dan", "a", at("12:35")),  # waits
    clicked("r5", "a", at("12:35")),  # its impression is to come: waits
    clicked("r6", "a", at("12:10")),  # orphan: nothing came in time
    clicked("r6", "b", at("12:10", MS)),  # waits
)
SECOND = (
    shown("r5", "eve", "ab", at("12:34")),  # waits, and its click for a second time
    clicked("r1", "c", at("12:29"), "c3"),  # late: resolved before
    clicked("r1", "z", at("12:29")),  # orphan: was not shown, as the impression of the first period said
)
THIRD = (clicked("r4", "a", at("13:05")),)  # its impression waits for the second time
EXPECTED = {
    1: (
        {"impressions": 2, "positives": 3, "negatives": 3, "late_clicks": 2, "orphan_clicks": 2}
        | {"moved_impressions": 2, "moved_clicks": 3},
        [
            ("r1/a", "ann", "a", 1, at("12:00"), "r1"),
            ("r1/b", "ann", "b", 1, at("12:00"), "r1"),
            ("r1/c", "ann", "c", 0, at("12:00"), "r1"),
            ("r1/d", "ann", "d", 0, at("12:00"), "r1"),
            ("r2/a", "bob", "a", 0, at("12:10"), "r2"),
            ("r2/b", "bob", "b", 1, at("12:10"), "r2"),
        ],
    ),
    2: (
        {"impressions": 1, "positives": 1, "late_clicks": 1, "orphan_clicks": 2}
        | {"moved_impressions": 2, "moved_clicks": 1},
        [("r3/a", "cat", "a", 1, at("12:10", MS), "r3")],
    ),
    3: (
        {"impressions": 2, "positives": 2, "negatives": 1},
        [
            ("r5/a", "eve", "a", 1, at("12:34"), "r5"),
            ("r5/b", "eve", "b", 0, at("12:34"), "r5"),
            ("r4/a", "dan", "a", 1, at("12:35"), "r4"),
        ],
    ),
}
DAY: Sequence[tuple[int, Sequence[Any], datetime]] = (
    (1, FIRST, at("12:40")),
    (2, SECOND, at("12:50")),
    (3, THIRD, at("13:05")),
)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("worker", ["keeps up", "comes late"])
async def test_a_day_by_hand(log: Log, worker: str, order: int) -> None:
    """The result depends on what the periods held when they were sealed, not on the order of arrival."""
    for number, events, sealed_at in DAY:
        await log.add(*events[::order])
        await log.seal(number, sealed_at)
        if worker == "keeps up":
            assert (await log.resolve(number), await log.interactions(number)) == EXPECTED[number]
    found = {number: (await log.resolve(number), await log.interactions(number)) for number in EXPECTED}
    assert found == EXPECTED
    totals = await label_totals(log.database)
    names = {name for labels, _ in EXPECTED.values() for name in labels}
    sums = {name: sum(labels.get(name, 0) for labels, _ in EXPECTED.values()) for name in names}
    assert totals == {"already_logged": 0, **sums}
    # Each is in the partition of the period that it was resolved in, and so is its id.
    async with log.database.read() as session:
        for table, name, kind in (
            ("impressions", "request_id", 1),
            ("clicks", "event_id", 2),
            ("interactions", "event_id", 0),
        ):
            stored = f"SELECT {name}, period FROM {table} ORDER BY 1"
            ids = f"SELECT event_id, period FROM event_ids WHERE kind = {kind} ORDER BY 1"
            places = [[tuple(row) for row in await session.connection.execute(text(q))] for q in (stored, ids)]
            assert places[0] == places[1]
            if table == "impressions":
                assert dict(places[0]) == {"r1": 1, "r2": 1, "r3": 2, "r4": 3, "r5": 3}


async def test_many_that_resolve_at_once_are_as_one(log: Log) -> None:
    await log.add(*FIRST)
    await log.seal(1, at("12:40"))
    found = await asyncio.gather(*(log.resolve(1) for _ in range(4)))
    assert found == [EXPECTED[1][0]] * 4
    assert await log.interactions(1) == EXPECTED[1][1]


async def test_ingestion_goes_on_meanwhile(log: Log) -> None:
    """Ids that move and ids that are made are claimed by other calls at the same time, in both orders."""
    requests = [f"r{n:04}" for n in range(1200)]
    many = [shown(name, "ann", "ab", at("12:00") if n % 2 else at("12:30")) for n, name in enumerate(requests)]
    await ingest_impressions(log.database, log.histories, many, WINDOW)
    await log.seal(1, at("12:40"))
    events = [Interaction(f"{name}/b", "ann", "b", 1, at("12:00"), name) for name in requests]
    made, made_backwards = EventBatch.of(events), EventBatch.of(events[::-1])
    results = await asyncio.gather(
        log.resolve(1),
        ingest_impressions(log.database, log.histories, many[::-1], WINDOW),
        ingest(log.database, log.histories, made_backwards),
        ingest_impressions(log.database, log.histories, many, WINDOW),
        ingest(log.database, log.histories, made),
    )
    labels = results[0]
    assert [results[n].accepted for n in (1, 3)] == [0, 0]
    assert labels["impressions"] == labels["moved_impressions"] == 600
    logged = labels.get("already_logged", 0)
    assert labels["negatives"] == 1200 - logged
    assert results[2].accepted + results[4].accepted == 600 + logged
    ids = [event_id for number in (1, 2) for event_id, *_ in await log.interactions(number)]
    assert len(ids) == len(set(ids)) == 600 + 1200


async def test_ingestion_that_did_not_see_the_reserved_ids_is_waited_for(log: Log) -> None:
    """It looked up an id before the id was reserved, and stores it afterwards: the id is stored once all the same."""
    await log.add(shown("r", "ann", "ab", at("12:00")))
    await log.seal(1, at("12:40"))
    async with log.database.unit_of_work() as work:
        await work.lock_shared(Lock.LOG)
        inserted = await work.interactions.insert(
            2, EventBatch.of([Interaction("r/a", "ann", "a", 1, at("12:00"), "r")])
        )
        assert inserted.accepted == [0]
        resolving = asyncio.create_task(log.resolve(1))
        done, _ = await asyncio.wait({resolving}, timeout=0.5)
        assert not done
        await work.commit()
    assert await resolving == {"impressions": 1, "negatives": 1, "already_logged": 1}
    assert [event_id for event_id, *_ in await log.interactions(1)] == ["r/b"]
    assert [event_id for event_id, *_ in await log.interactions(2)] == ["r/a"]


@pytest.mark.parametrize("merged", [False, True])
async def test_an_id_is_in_one_log_whenever_ids_are_merged(log: Log, merged: bool) -> None:
    """Interactions of earlier and later periods, with ids of items that were shown in between."""
    await log.add(Interaction("r/a", "ann", "a", 1, at("11:00")))
    await log.seal(1, at("11:30"))
    await log.add(shown("r", "ann", "abcd", at("12:00")), Interaction("r/b", "ann", "b", 1, at("12:00")))
    await log.seal(2, at("12:40"))
    await log.add(Interaction("r/c", "ann", "c", 1, at("12:50")))
    await log.seal(3, at("13:00"))
    if merged:
        assert await merge_event_ids(log.database) == [1, 2, 3]
    assert await log.resolve(1) == {}
    assert await log.resolve(2) == {"impressions": 1, "negatives": 1, "already_logged": 3}
    assert await log.resolve(3) == {}
    await merge_event_ids(log.database)
    ids = [[event_id for event_id, *_ in await log.interactions(number)] for number in (1, 2, 3)]
    assert ids == [["r/a"], ["r/b", "r/d"], ["r/c"]]
    async with log.database.read() as session:
        noted = await session.connection.execute(text("SELECT event_id, period FROM event_ids WHERE kind = 0"))
        assert {tuple(row) for row in noted} == {("r/a", 1), ("r/b", 2), ("r/d", 2), ("r/c", 3)}


async def test_a_period_that_is_skipped_loses_nothing(log: Log) -> None:
    """Its open impressions move on to the next period that is not skipped, and clicks stay in histories."""
    await log.add(*FIRST)
    await log.seal(1, at("12:40"))
    await log.add(*SECOND)
    await log.seal(2, at("12:50"))
    for number in (1, 2):
        await skip_period(log.database, number, reason="test", actor="test")
    assert (await log.histories.get("bob")).items == ["b"]
    await log.add(*THIRD)
    await log.seal(3, at("13:05"))
    await resolve_skipped(log.database, log.histories, WINDOW)
    assert await log.resolve(1) == EXPECTED[1][0]
    assert await log.resolve(2) == {"moved_impressions": 1, "late_clicks": 1, "orphan_clicks": 1}
    assert await log.resolve(3) == {"impressions": 3, "positives": 3, "negatives": 1, "orphan_clicks": 1}
    logs = {number: await log.interactions(number) for number in (1, 2, 3)}
    assert logs[1] == EXPECTED[1][1]
    assert logs[2] == []
    assert logs[3] == [*EXPECTED[2][1], *EXPECTED[3][1]]
    assert (await log.histories.get("bob")).items == ["b"]


async def test_an_interaction_that_is_there_already_stays(log: Log) -> None:
    """A client sent it as an interaction, before or after the impression; a click on it is late."""
    await log.add(Interaction("r/a", "ann", "a", 0, at("11:00")), shown("r", "ann", "ab", at("12:00")))
    await log.seal(1, at("12:40"))
    assert await log.resolve(1) == {"impressions": 1, "negatives": 1, "already_logged": 1}
    assert await log.interactions(1) == [
        ("r/a", "ann", "a", 0, at("11:00"), None),
        ("r/b", "ann", "b", 0, at("12:00"), "r"),
    ]
    # What was made of an impression is recognised.
    again = Interaction("r/b", "ann", "b", 0, at("12:00"), "r")
    assert (await ingest(log.database, log.histories, EventBatch.of([again]))).duplicates == 1


async def test_a_clock_that_is_ahead_keeps_nothing_waiting(log: Log, database: Database) -> None:
    await log.add(shown("r", "ann", "ab", at("12:00") + timedelta(days=3650)))
    await log.add(
        clicked("r", "b", at("12:10") + timedelta(days=3650)), clicked("s", "a", at("12:00") + timedelta(9999))
    )
    async with database.unit_of_work() as work:
        for table in ("impressions", "clicks"):
            await work.connection.execute(text(f"UPDATE {table} SET received_at = '2024-05-01 12:00Z'"))
        await work.commit()
    await log.seal(1, at("12:30"))
    assert await log.resolve(1) == {"impressions": 1, "positives": 1, "negatives": 1, "orphan_clicks": 1}


async def test_ids_are_those_that_clients_would_make(log: Log) -> None:
    """The two implementations of an interaction's id, in Python and in Postgres, agree on the oddest names."""
    names = [
        "r",
        "a/b",
        "%2F",
        "100%",
        "é日😀",
        " ",
        "\x7f",
        "'; --",
        "x" * MAX_ID_LENGTH,
        "😀" * MAX_ID_LENGTH,
        "/" * 90,
    ]
    many = [Impression(name, "ann", names, None, at("12:00")) for name in names]
    await ingest_impressions(log.database, log.histories, many, WINDOW)
    await log.seal(1, at("12:40"))
    await log.resolve(1)
    found = {event_id: (request, item) for event_id, _, item, _, _, request in await log.interactions(1)}
    assert found == {interaction_id(request, item): (request, item) for request in names for item in names}


async def test_histories_are_told_what_they_missed(log: Log, redis: Redis) -> None:
    """A click and its impression that come at the same moment do not see each other; the stage adds the click once."""
    assert (await log.histories.get("ann")).items == []
    await log.add(shown("r", "ann", "abc", at("12:00")))
    await log.add(clicked("r", "b", at("12:01")), clicked("r", "c", at("12:02")))
    assert (await log.histories.get("ann")).items == ["c", "b"]
    async with log.database.unit_of_work() as work:
        await work.connection.execute(text("DELETE FROM unresolved_positives WHERE item_id = 'b'"))
        await work.commit()
    await redis.flushdb()
    assert (await log.histories.get("ann")).items == ["c"]
    await log.seal(1, at("12:40"))
    for _ in range(2):
        await log.resolve(1)
        assert (await log.histories.get("ann")).items == ["c", "b"]
        async with log.database.read() as session:
            assert [e.item_id for e in await session.past.recent("ann") if e.label] == ["c", "b"]
            assert (await session.connection.execute(text("SELECT * FROM unresolved_positives"))).all() == []


@asynccontextmanager
async def held(database: Database, request_id: str) -> AsyncIterator[None]:
    """Somebody sits on the id of an impression, so that whoever moves it has to wait."""
    async with database.unit_of_work() as work:
        query = "SELECT 1 FROM event_ids WHERE kind = 1 AND event_id = :id FOR UPDATE"
        await work.connection.execute(text(query), {"id": request_id})
        yield


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 60
    while not await condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.05)


async def is_updated(database: Database, number: int) -> bool:
    async with database.read() as session:
        period = await session.periods.get(number)
    return period is not None and period.status == PeriodStatus.UPDATED


async def waits_for_a_lock(database: Database) -> bool:
    async with database.read() as session:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%moved%'"
        return bool(await session.connection.scalar(text(query)))


@pytest.mark.slow
async def test_a_worker_that_is_killed_in_the_middle_has_done_nothing(
    postgres_dsn: str, redis_url: str, database: Database, redis: Redis, tmp_path: Path
) -> None:
    """Really killed, in the middle of its transaction; the next worker's result equals the one worked out by hand."""
    log = Log(database, redis)
    await log.add(*FIRST)
    await log.seal(1, at("12:40"))
    with worker_process(postgres_dsn, redis_url, tmp_path) as worker:
        async with held(database, "r4"):
            await until(lambda: waits_for_a_lock(database))
            worker.kill()
        async with database.read() as session:
            period = await session.periods.get(1)
        assert period is not None and period.labels is None
        assert await log.interactions(1) == []
    with worker_process(postgres_dsn, redis_url, tmp_path):
        await until(lambda: is_updated(database, 1))
    assert (await log.resolve(1), await log.interactions(1)) == EXPECTED[1]


def in_halves(period: DriftPeriod) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """A period's log as impressions of up to three items and their clicks, and as interactions with the same ids."""
    impressions, clicks, whole = [], [], []
    for start in range(0, len(period.user_ids), 3):
        request, user = f"{period.number}-{start:04}", period.user_ids[start]
        shown_at = int(period.timestamps_ms[start])
        labels: dict[str, int] = {}
        for item, label in zip(
            period.item_ids[start : start + 3], period.labels[start : start + 3].tolist(), strict=True
        ):
            labels[item] = max(label, labels.get(item, 0))
        impressions.append({"request_id": request, "user_id": user, "items": list(labels), "timestamp": shown_at})
        for item, label in labels.items():
            event = {"user_id": user, "item_id": item, "label": label, "timestamp": shown_at, "request_id": request}
            whole.append({"event_id": f"{request}/{item}", **event})
            if label:
                clicks.append({"request_id": request, "item_id": item, "timestamp": shown_at + 60_000})
    return impressions, clicks, whole


class TestVersions:
    """The versions that updates make from resolved impressions."""

    @pytest.fixture(autouse=True)
    def one_thread(self) -> Iterator[None]:
        with single_thread():
            yield

    async def test_they_are_those_of_the_same_interactions(
        self, servers: Servers, migrated_template: str, database_numbers: Iterator[int], redis_url: str, tmp_path: Path
    ) -> None:
        """Over HTTP, one service gets impressions and clicks, another the interactions: the versions are equal by
        digest.
        """
        outcomes = []
        with copies(servers, migrated_template, database_numbers) as copy:
            for halves in (True, False):
                async with (
                    bench(database_dsn(servers, copy()), redis_url, tmp_path) as b,
                    running_app(b.settings) as api,
                ):
                    for period in periods(2):
                        impressions, clicks, whole = in_halves(period)
                        sent = {"clicks": clicks, "impressions": impressions} if halves else {"interactions": whole}
                        for kind, events in sent.items():
                            response = await api.client.post(f"/{kind}", json={kind: events})
                            assert response.json()["accepted"] == len(events)
                        assert (await api.client.post("/periods/close")).status_code == 202
                        assert await b.update(period.number) == period.number
                        document = (await api.client.get(f"/periods/{period.number}")).json()
                        assert document["events"] == len(whole)
                        assert document["labels"]["positives"] == (len(clicks) if halves else 0)
                        assert document["labels"]["negatives"] == (len(whole) - len(clicks) if halves else 0)
                    outcomes.append(await b.outcome())
                    metrics = (await api.client.get("/metrics")).text.splitlines()
                    assert f'asmg_labels{{result="impressions"}} {2.0 * len(impressions) * halves}' in metrics
        assert len(outcomes[0]["versions"]) == 3
        assert outcomes[0] == outcomes[1]

    async def test_a_period_in_which_all_waits_changes_nothing(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path
    ) -> None:
        """It still has its version, which serves the same model; the next period learns the waiting impressions."""
        async with bench(postgres_dsn, redis_url, tmp_path) as b:
            log = Log(b.database, b.redis)
            for number in (1, 3):  # before there is a model, and when there is one
                await log.add(*(shown(f"{number}-{n}", f"u{n}", "ab", at("12:00")) for n in range(40)))
                await log.add(*(clicked(f"{number}-{n}", "a", at("12:01")) for n in range(20)))
                await log.seal(number, at("12:10"))
                assert await b.update(number) == number
                found = await b.outcome()
                version, before = (found["versions"][n] for n in (number, number - 1))
                assert version["kind"] == version["gate"]["decision"] == "previous"
                assert version["serving"] == before["serving"] and version["scores"] == {}
                assert version["state"].get("parts", {}) == before["state"].get("parts", {})
                assert found["periods"][number] == ("updated", number, 0, None)
                async with b.database.read() as session:
                    stages = [stage.stage for stage in await session.stages.list(number)]
                    period = await session.periods.get(number)
                assert stages == ["resolve", "publish"]
                assert period is not None and period.events == 0
                await log.add(Interaction(f"other {number}", "u1", "c", 0, at("12:20")))
                await log.seal(number + 1, at("12:40"))
                assert await b.update(number + 1) == number + 1
                found = await b.outcome()
                assert found["versions"][number + 1]["kind"] == "generated"
                assert found["versions"][number + 1]["parent"] == number
                assert len(await log.interactions(number + 1)) == 81
                assert named(found) <= await stored(b.database)
        assert found["aliases"] == {"champion": 4, "head": 4, "baseline": 2}
        assert {(e.period, e.model) for e in found["evaluations"]} == {
            (4, name) for name in ("generated", "incremental", "previous", "baseline")
        }
