"""Every repository against a real Postgres, with concurrent callers where they share one."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random

import numpy as np
import pytest
from asyncpg import CheckViolationError
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from service.errors import NotReady, PeriodNotFound
from service.storage.postgres import tables
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import (
    AliasName,
    ApiKey,
    Catalogue,
    Click,
    Earlier,
    EntityKind,
    Evaluation,
    EventBatch,
    FeatureVersion,
    Impression,
    Interaction,
    ModelKind,
    ModelVersion,
    PastEvent,
    PeriodStatus,
    Raced,
    entities,
    items,
    log_columns,
    past,
)
from service.use_cases.catalogue import put_items

START = datetime(2024, 5, 1, 12, tzinfo=UTC)


def to_ms(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def event(event_id: str, user_id: str = "u", item_id: str = "i", label: int = 1, seconds: float = 0) -> Interaction:
    return Interaction(event_id, user_id, item_id, label, START + timedelta(seconds=seconds))


async def insert(database: Database, events: list[Interaction], period: int = 1) -> set[str]:
    return {events[n].event_id for n in (await insert_all(database, events, period))[0]}


async def insert_all(database: Database, events: list[Interaction], period: int = 1) -> tuple[list[int], list[str]]:
    """The events that were stored, and the ids of those that conflict.

    As ingestion does it: begun anew where another batch has just stored one of the ids.
    """
    while True:
        try:
            async with database.unit_of_work() as uow:
                _, unmerged = await uow.period_logs.unmerged()
                inserted = await uow.interactions.insert(period, EventBatch.of(events), unmerged)
                await uow.commit()
                return inserted.accepted, [events[n].event_id for n in inserted.conflicts]
        except Raced:
            continue


async def merge(database: Database, *periods: int) -> None:
    for period in periods:
        async with database.unit_of_work() as uow:
            await uow.interactions.merge_ids(period)
            await uow.commit()


async def open_next(database: Database, number: int) -> None:
    async with database.unit_of_work() as uow:
        await uow.periods.seal(number - 1, 0)
        await uow.periods.create(number)
        await uow.commit()


class TestPeriods:
    async def test_the_migration_opens_period_1(self, database: Database) -> None:
        async with database.read() as session:
            period = await session.periods.open()
        assert (period.number, period.status, period.attempts) == (1, PeriodStatus.OPEN, 0)
        assert period.opened_at.utcoffset() == timedelta(0)

    async def test_life_of_a_period(self, database: Database) -> None:
        async with database.unit_of_work() as uow:
            assert await uow.periods.next_sealed() is None
            sealed = await uow.periods.seal(1, 42, "key", "print")
            assert (sealed.status, sealed.events) == (PeriodStatus.SEALED, 42)
            assert sealed.sealed_at is not None
            assert (await uow.periods.create(2)).status is PeriodStatus.OPEN
            assert await uow.periods.by_idempotency_key("key") == sealed
            assert await uow.periods.by_idempotency_key("other") is None
            assert await uow.periods.next_sealed() == sealed

            failed_once = await uow.periods.set_status(1, PeriodStatus.UPDATING, error="lost", attempts=1)
            assert (failed_once.error, failed_once.attempts, failed_once.finished_at) == ("lost", 1, None)
            assert await uow.periods.next_sealed() == failed_once

            updated = await uow.periods.set_status(1, PeriodStatus.UPDATED, version=7)
            assert (updated.error, updated.attempts, updated.version) == (None, 1, 7)
            assert updated.finished_at is not None
            assert await uow.periods.next_sealed() is None
            assert (await uow.periods.open()).number == 2

    async def test_who_is_at_a_period(self, database: Database) -> None:
        async with database.unit_of_work() as uow:
            assert await uow.periods.take(1, "a") is None  # it is open
            await uow.periods.seal(1, 1)
            await uow.periods.create(2)
            taken = await uow.periods.take(1, "a")
            assert taken is not None
            assert (taken.status, taken.worker, taken.crashes) == (PeriodStatus.UPDATING, "a", 0)
            assert await uow.periods.take(1, "a") == taken  # it was cut off for a while, and lives
            crashes = []
            for worker in ("b", "c"):
                taken = await uow.periods.take(1, worker)
                assert taken is not None
                crashes.append(taken.crashes)
            assert crashes == [1, 2]
            # What is noted is noted by the last one alone.
            assert await uow.periods.hold(1, "b", crashes=0, error="stale") is None
            assert await uow.periods.hold(1, "c") == taken
            held = await uow.periods.hold(1, "c", crashes=0, error="waits")
            assert held is not None
            assert (held.crashes, held.error) == (0, "waits")
            # Who lets go has not died.
            await uow.periods.release("c")
            assert await uow.periods.hold(1, "c") is None
            taken = await uow.periods.take(1, "d")
            assert taken is not None
            assert (taken.crashes, taken.error) == (0, None)
            ended = await uow.periods.set_status(1, PeriodStatus.QUARANTINED, error="why")
            assert (ended.worker, ended.error) == (None, "why")
            assert await uow.periods.take(1, "d") is None

    async def test_list_pages_from_the_newest(self, database: Database) -> None:
        for number in (2, 3, 4):
            await open_next(database, number)
        async with database.read() as session:
            assert [period.number for period in await session.periods.list(2)] == [4, 3]
            assert [period.number for period in await session.periods.list(2, before=3)] == [2, 1]
            sealed = await session.periods.list(9, statuses=[PeriodStatus.SEALED])
            assert [period.number for period in sealed] == [3, 2, 1]
            assert await session.periods.get(5) is None

    async def test_only_the_open_period_can_be_sealed(self, database: Database) -> None:
        async with database.unit_of_work() as uow:
            with pytest.raises(PeriodNotFound):
                await uow.periods.seal(2, 1)
            await uow.periods.seal(1, 1)
            with pytest.raises(PeriodNotFound):
                await uow.periods.seal(1, 1)
            with pytest.raises(NotReady):
                await uow.periods.open()

    async def test_two_periods_are_never_open(self, database: Database) -> None:
        async with database.unit_of_work() as uow:
            with pytest.raises(IntegrityError, match="uq_periods_open"):
                await uow.periods.create(2)

    async def test_stages(self, database: Database) -> None:
        async with database.unit_of_work() as uow:
            await uow.stages.start(1, "score")
            running = await uow.stages.get(1, "score")
            assert running is not None
            assert (running.status, running.finished_at, running.result) == ("running", None, None)
            await uow.stages.finish(1, "score", 1.5, {"auc": np.float32(0.75), "nan": float("nan")})
            await uow.stages.start(1, "train")
            score, train = await uow.stages.list(1)
            assert (score.status, score.seconds, score.result) == ("done", 1.5, {"auc": 0.75, "nan": None})
            assert train.stage == "train"

            await uow.stages.start(1, "score")  # from the beginning
            again = await uow.stages.get(1, "score")
            assert again is not None
            assert (again.status, again.seconds, again.result) == ("running", None, None)
            assert again.started_at > score.started_at
            assert await uow.stages.get(1, "gate") is None


class TestInteractions:
    async def test_a_duplicate_is_left_out_within_a_batch_between_batches_and_between_periods(
        self, database: Database
    ) -> None:
        assert await insert(database, [event("a", item_id="first"), event("b"), event("a", item_id="second")]) == {
            "a",
            "b",
        }
        assert await insert(database, [event("b"), event("c")]) == {"c"}
        await open_next(database, 2)
        assert await insert(database, [event("a"), event("d")], period=2) == {"d"}
        assert await insert(database, [], period=2) == set()
        async with database.read() as session:
            assert (await session.interactions.log(1)).item_ids.count("first") == 1
            assert await session.interactions.count(1) == 3
            assert await session.interactions.count(2) == 1

    async def test_eight_overlapping_batches_at_once_store_each_event_once(self, database: Database) -> None:
        ids = [f"e{number}" for number in range(600)]
        batches = []
        for seed in range(8):
            chosen = Random(seed).sample(ids, 400)
            batches.append([event(event_id) for event_id in chosen])
        expected = {one.event_id for batch in batches for one in batch}
        for run in range(3):
            named = [[event(f"{run}-{one.event_id}") for one in batch] for batch in batches]
            accepted = await asyncio.gather(*(insert(database, batch) for batch in named))
            times = Counter(event_id for ids_of_one in accepted for event_id in ids_of_one)
            assert times == {f"{run}-{event_id}": 1 for event_id in expected}
            async with database.read() as session:
                assert await session.interactions.count(1) == (run + 1) * len(expected)

    async def test_values_come_back_as_they_went_in(self, database: Database) -> None:
        odd = Interaction("é\u2028'\"\\", "ü{,}", "日本", 0, datetime(1969, 12, 31, 23, 59, 59, 999_500, UTC), None)
        await insert(database, [odd])
        async with database.read() as session:
            log = await session.interactions.log(1)
        assert (log.user_ids, log.item_ids, log.labels.tolist()) == (["ü{,}"], ["日本"], [0])
        assert log.timestamps_ms.tolist() == [-1]

    async def test_a_rejected_batch_leaves_nothing(self, database: Database) -> None:
        with pytest.raises(CheckViolationError, match="ck_interactions_label"):
            await insert(database, [event("a"), event("b", label=2)])
        async with database.read() as session:
            assert await session.interactions.count(1) == 0

    @pytest.mark.parametrize("page", [1, 7, 200_000])
    async def test_log_is_in_order_whatever_the_page(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, page: int
    ) -> None:
        monkeypatch.setattr(log_columns, "ROWS_OF_A_PAGE", page)
        random = Random(0)
        events = [event(f"e{n:03}", f"u{n}", f"i{n}", n % 2, random.randrange(10)) for n in range(50)]
        await insert(database, events[25:])
        await insert(database, events[:25])
        expected = sorted(events, key=lambda e: (e.occurred_at, e.event_id))
        async with database.read() as session:
            log = await session.interactions.log(1)
            empty = await session.interactions.log(2)
        assert log.user_ids == [e.user_id for e in expected]
        assert log.item_ids == [e.item_id for e in expected]
        assert log.labels.tolist() == [e.label for e in expected]
        assert log.timestamps_ms.tolist() == [to_ms(e.occurred_at) for e in expected]
        assert (log.labels.dtype, log.timestamps_ms.dtype) == (np.int8, np.int64)
        assert (len(log), len(empty), empty.labels.dtype) == (50, 0, np.int8)

    @pytest.mark.parametrize("page", [1, 20_000])
    async def test_earlier(self, database: Database, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
        monkeypatch.setattr(past, "USERS_OF_A_PAGE", page)
        monkeypatch.setattr(past, "KEPT", 4)
        await insert(database, [event(f"a{n}", "ann", f"i{n}", 1, n) for n in range(5)])
        await insert(database, [event(f"a-no{n}", "ann", "no", 0, 0.5 * n) for n in range(8)])
        await insert(database, [event("z", "zed", "z", 1, 1)])
        await open_next(database, 2)
        await insert(database, [event("a5", "ann", "i5", 1, 2.5), event("b5", "bob", "x", 1, 0)], period=2)
        await open_next(database, 3)
        now = [event("n1", "ann", "now", 1, 50), event("n2", "bob", "now", 0, 50), event("n3", "new", "now", 1, 50)]
        await insert(database, now, period=3)
        async with database.read() as session:
            found = await session.past.earlier(3, length=3)
        # By hand. Ann's newest four clicks of periods 1 and 2 are i4 (4 s), i3 (3 s), i5 (2.5 s) and i2 (2 s), of which
        # a history takes three; her newest four passes are of 3.5, 3, 2.5 and 2 s. Of equal times the larger event id
        # is newer: a… < a-no… does not hold. Zed is not in period 3; new has no past.
        assert [(user, label, ms - to_ms(START)) for user, label, ms in zip(
            found.users.tolist(), found.labels.tolist(), found.timestamps_ms.tolist(), strict=True
        )] == [
            (0, 1, 4000), (0, 0, 3500), (0, 1, 3000), (0, 0, 3000), (0, 1, 2500), (0, 0, 2500), (0, 1, 2000),
            (0, 0, 2000), (1, 1, 0),
        ]  # fmt: skip
        assert found.item_ids == ["i4", "i3", "i5", "x"]
        assert np.flatnonzero(found.in_history).tolist() == [0, 2, 4, 8]
        assert not found.behind.any()

    async def test_earlier_says_where_an_event_is_among_those_of_its_moment(self, database: Database) -> None:
        """A late event of the period also has all events that came after it."""
        before = [event(f"b{n}", "ann", f"i{n}", n % 2, 5) for n in range(4)]
        await insert(database, [*before, *(event(f"c{n:02}", "ann", "later", 0, 6 + n) for n in range(40))])
        await open_next(database, 2)
        now = [event("a", "ann", "now", 1, 5), event("b1x", "ann", "now", 0, 5), event("b2x", "bob", "now", 0, 5)]
        await insert(database, [*now, event("a~", "ann", "now", 0, 5)], period=2)
        async with database.unit_of_work() as work:  # it counts for nobody
            await work.connection.execute(text("UPDATE interactions SET sampled = true WHERE event_id = 'a~'"))
            await work.commit()
        async with database.read() as session:
            found = await session.past.earlier(2)
        assert len(found) == 44  # all: the forty do not count towards the thirty
        # By hand: of the moment 5 s there are a < b0 < b1 < b1x < b2 < b3.
        assert found.timestamps_ms[-4:].tolist() == [to_ms(START) + 5000] * 4
        assert found.behind.tolist() == [0] * 40 + [2, 2, 1, 1]
        assert found.labels[-4:].tolist() == [1, 0, 1, 0]
        assert found.item_ids == ["i3", "i1"]

    async def test_a_conflict_with_a_batch_under_way_is_found(self, database: Database) -> None:
        """The other batch has claimed the id, and is not committed yet."""
        async with database.unit_of_work() as first:
            await first.interactions.insert(1, EventBatch.of([event("a", item_id="first")]))
            second = asyncio.create_task(insert_all(database, [event("a", item_id="second"), event("b")]))
            await asyncio.sleep(0.1)
            assert not second.done()
            await first.commit()
        assert await second == ([1], ["a"])

    async def test_a_dropped_log_leaves_histories(self, database: Database) -> None:
        number = 0
        clicks = [event(f"e{n:02}", "u", f"i{n}", 1, n) for n in range(70)]
        for period in (1, 2, 3):
            end = number + 25 if period < 3 else 70
            await insert(database, [*clicks[number:end], event(f"none{period}", "v", "i", 0, period)], period=period)
            number = end
            await open_next(database, period + 1)
        await insert(database, [event("now", "u", "now", 1, 100), event("v", "v", "now", 1, 100)], period=4)

        async def seen() -> tuple[list[PastEvent], list[PastEvent], Earlier]:
            """What can count of what u and v did: all that is asked for, and it may be more that is known."""
            async with database.read() as session:
                recent = [await session.past.recent(user) for user in ("u", "v")]
                clicks = [event for event in recent[0] if event.label][:30]
                return clicks, recent[1][:30], await session.past.earlier(4, 30)

        await merge(database, 1, 2, 3)
        before = await seen()
        # v has passed by three times before, and clicks now.
        assert [len(part) for part in before] == [30, 4, 33]

        async def unchanged() -> None:
            after = await seen()
            assert after[:2] == before[:2]
            for name in Earlier.__dataclass_fields__:
                assert list(getattr(after[2], name)) == list(getattr(before[2], name)), name

        for period in (1, 2):
            async with database.unit_of_work() as uow:
                assert await uow.past.fold(period)
                await uow.commit()
            await unchanged()  # the same clicks are in both, and are seen once
            async with database.unit_of_work() as uow:
                assert not await uow.past.fold(period)
                await uow.interactions.drop(period, lock_seconds=5)
                await uow.commit()
            await unchanged()
        async with database.unit_of_work() as uow:
            await uow.interactions.forget_dropped_ids()
            await uow.commit()
        async with database.read() as session:
            assert [await session.interactions.count(n) for n in (1, 2, 3, 4)] == [0, 0, 21, 2]
            dropped = [await session.periods.get(n) for n in (1, 2, 3)]
            left = (await session.connection.execute(select(tables.event_ids.c.period).distinct())).scalars().all()
        assert [period is not None and period.log_dropped_at is not None for period in dropped] == [True, True, False]
        assert sorted(left) == [3]
        # Its ids are forgotten, as is documented; those of the others are not.
        assert await insert(database, [clicks[0], clicks[69]], period=4) == {"e00"}

    async def test_an_id_is_known_before_and_after_its_period_is_merged(self, database: Database) -> None:
        await insert(database, [event("a"), event("b")])
        await open_next(database, 2)
        again = [event("a"), event("b", item_id="other"), event("c")]
        assert await insert_all(database, again, 2) == ([2], ["b"])
        async with database.read() as session:
            assert await session.period_logs.unmerged() == (2, [1])
        await merge(database, 1)
        async with database.read() as session:
            assert await session.period_logs.unmerged() == (2, [])
        assert await insert_all(database, [*again, event("d")], 2) == ([3], ["b"])
        await merge(database, 1)  # a second time changes nothing
        assert await insert_all(database, again, 2) == ([], ["b"])

    async def test_a_drop_does_not_hold_up_ingestion(self, database: Database) -> None:
        await open_next(database, 2)
        async with database.read() as reader:
            await reader.interactions.log(1)
            async with database.unit_of_work() as uow:
                with pytest.raises(DBAPIError, match="lock timeout"):
                    await uow.interactions.drop(1, lock_seconds=0.05)
            assert await insert(database, [event("a")], period=2) == {"a"}
        async with database.read() as session:
            assert await session.interactions.count(1) == 0  # its partition is there

    async def test_recent(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(past, "KEPT", 3)
        await insert(database, [event(f"e{n}", "u", f"i{n}", n % 2, n) for n in range(10)])
        await open_next(database, 2)
        late = [event("late", "u", "i-late", 1, 6.5), event("e7x", "u", "same", 0, 7), event("other", "v", "i", 1, 99)]
        await insert(database, late, period=2)
        async with database.unit_of_work() as work:
            await work.connection.execute(text("UPDATE interactions SET sampled = true WHERE event_id = 'e8'"))
            await work.commit()
        async with database.read() as session:
            assert await session.past.recent("u") == [
                PastEvent(1, "i9", "e9", to_ms(START) + 9000),
                PastEvent(0, "same", "e7x", to_ms(START) + 7000),
                PastEvent(1, "i7", "e7", to_ms(START) + 7000),
                PastEvent(1, "i-late", "late", to_ms(START) + 6500),
                PastEvent(0, "i6", "e6", to_ms(START) + 6000),
                PastEvent(0, "i4", "e4", to_ms(START) + 4000),
            ]
            assert await session.past.recent("nobody") == []

    async def test_what_was_shown_is_recent_until_it_is_something_else(self, database: Database) -> None:
        """Whether it is clicked, resolved, or also stored as an interaction."""

        async def recent(user: str = "u") -> list[tuple[str, int]]:
            async with database.read() as session:
                return [(event.event_id, event.label) for event in await session.past.recent(user)]

        shown = [
            Impression("r2", "u", ["b", "a"], None, START + timedelta(seconds=2)),
            Impression("r1", "u", ["c"], None, START + timedelta(seconds=1)),
            Impression("r3", "v", [f"i{n:02}" for n in range(40)], None, START),
            Impression("r4", "v", ["x"], None, START - timedelta(seconds=1)),
        ]
        clicked = Click("r2/b", "r2", "b", START + timedelta(seconds=5))
        async with database.unit_of_work() as work:
            await work.labels.insert_impressions(1, shown)
            await work.commit()
        assert await recent() == [("r2/b", 0), ("r2/a", 0), ("r1/c", 0)]
        # The newest impression is enough, and is there as a whole: its items are of one moment.
        assert await recent("v") == [(f"r3/i{n:02}", 0) for n in range(39, -1, -1)]
        async with database.unit_of_work() as work:
            await work.labels.insert_clicks(1, [clicked])
            await work.labels.note_clicks(1, [clicked], timedelta(minutes=1))
            await work.commit()
        assert await recent() == [("r2/b", 1), ("r2/a", 0), ("r1/c", 0)]
        await insert(database, [event("r1/c", "u", "c", 1, 3)])
        assert await recent() == [("r1/c", 1), ("r2/b", 1), ("r2/a", 0)]


class TestCatalogue:
    async def test_upsert_counts_what_changed(self, database: Database) -> None:
        async with database.unit_of_work() as uow:
            assert await uow.items.upsert({"i1": ["a", "b"], "i2": [], "i3": ['q"\\,{é']}) == {"i1", "i2", "i3"}
            assert await uow.items.upsert({"i1": ["a", "b"], "i2": ["c"]}) == {"i2"}
            assert await uow.items.upsert({}) == set()
            assert await uow.items.categories(["i3", "i1", "none"]) == {"i1": ("a", "b"), "i3": ('q"\\,{é',)}
            catalogue = await uow.items.catalogue()
        assert catalogue.item_ids == ["i1", "i2", "i3"]
        assert catalogue.categories == [("a", "b"), ("c",), ('q"\\,{é',)]

    async def test_what_was_put_since_a_period_is_all_that_a_reader_lacks(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A changed entry too, and one that begins to be stored before a period is sealed and is committed after."""
        monkeypatch.setattr(items, "ITEMS_PER_PAGE", 2)
        await put_items(database, {f"i{n}": ("c",) for n in range(5)}, [FeatureVersion("i1", START, {"a": 1})])
        async with database.unit_of_work() as slow:
            await slow.lock_shared(Lock.CATALOGUE)
            await slow.items.upsert({"slow": ["c"]})
            await open_next(database, 2)
            await put_items(database, {"i3": ("d",), "i4": ("c",), "new": ()}, [FeatureVersion("i2", START, {"a": 2})])

            async def read_when_all_is_committed() -> list[str]:
                async with database.unit_of_work() as work:
                    await work.lock_exclusive(Lock.CATALOGUE)
                    return (await work.items.put_since(1)).item_ids

            reading = asyncio.create_task(read_when_all_is_committed())
            await asyncio.sleep(0.05)
            await slow.commit()
        assert await reading == ["i0", "i1", "i2", "i3", "i4", "new", "slow"]
        async with database.read() as session:
            assert await session.items.put_since(2) == Catalogue(["i3", "new"], [("d",), ()], [2, 2])
            assert await session.features.items_put_since(1) == ["i1", "i2"]
            assert await session.features.items_put_since(2) == ["i2"]
            pages = [page.item_ids async for page in session.items.pages()]
            features = [page.ids async for page in session.features.pages("item")]
        assert pages == [["i0", "i1"], ["i2", "i3"], ["i4", "new"], ["slow"]]
        assert features == [["i1", "i2"]]

    async def test_rows_come_in_pages(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ids of several pages, with whatever stands between them in a page; freed rows are given again."""
        monkeypatch.setattr(entities, "IDS_PER_PAGE", 3)
        ids = ["a\x1fb", "é", 'q"\\,{}', "d", "NULL", "f\tg", "h"]
        async with database.unit_of_work() as work:
            assert (await work.entities.allocate(EntityKind.USER, ids, 1)).tolist() == list(range(1, 8))
            await work.entities.see(EntityKind.USER, ["d"], 2)
            assert await work.entities.evict(EntityKind.USER, 2, 1) == 6
            given = await work.entities.allocate(EntityKind.USER, ["n1", "n2", "d", "n3", "n4", "h", "n1"], 2)
            assert given.tolist() == [1, 2, 4, 3, 5, 6, 1]
            rows = np.array([9, 7, 4, 1, 6])
            assert await work.entities.ids_at(EntityKind.USER, rows) == [None, None, "d", "n1", "h"]
            pages = [page async for page in work.entities.pages(EntityKind.USER, size=4)]
            assert [page.ids for page in pages] == [["n1", "n2", "n3", "d"], ["n4", "h"]]
            assert [page.rows.tolist() for page in pages] == [[1, 2, 3, 4], [5, 6]]
            assert [page.ids async for page in work.entities.pages(EntityKind.USER, 1)] == [["d"]]

    async def test_rows_follow_the_first_appearance(self, database: Database) -> None:
        async with database.unit_of_work() as uow:
            rows = await uow.entities.allocate(EntityKind.USER, ["z", "a", "z", "m"], 1)
            assert rows.tolist() == [1, 2, 1, 3]
            assert (await uow.entities.allocate(EntityKind.USER, ["new", "a", "z"], 2)).tolist() == [4, 2, 1]
            assert (await uow.entities.allocate(EntityKind.ITEM, ["z"], 2)).tolist() == [1]
            assert (await uow.entities.allocate(EntityKind.USER, [], 2)).shape == (0,)
            ids, rows = await uow.entities.rows(EntityKind.USER)
            assert (ids, rows.tolist()) == (["z", "a", "m", "new"], [1, 2, 3, 4])
            assert await uow.entities.extent(EntityKind.USER) == (4, 2)
            assert await uow.entities.extent(EntityKind.CATEGORY) == (0, 0)

    async def test_transactions_that_allocate_the_same_ids_agree(self, database: Database) -> None:
        async def allocate(seed: int) -> dict[str, int]:
            ids = [f"id{number}" for number in range(300)]
            Random(seed).shuffle(ids)
            ids = ids[:200]
            async with database.unit_of_work() as uow:
                rows = await uow.entities.allocate(EntityKind.ITEM, ids, 1)
                await asyncio.sleep(0.01)
                await uow.commit()
            return dict(zip(ids, rows.tolist(), strict=True))

        together: dict[str, int] = {}
        for rows in await asyncio.gather(*(allocate(seed) for seed in range(6))):
            for entity, row in rows.items():
                assert together.setdefault(entity, row) == row
        assert sorted(together.values()) == list(range(1, len(together) + 1))

    async def test_rows_of_a_transaction_that_was_rolled_back_are_given_again(self, database: Database) -> None:
        async with database.unit_of_work() as uow:
            await uow.entities.allocate(EntityKind.USER, ["lost"], 1)
        async with database.unit_of_work() as uow:
            assert (await uow.entities.allocate(EntityKind.USER, ["kept"], 1)).tolist() == [1]


class TestModels:
    async def test_versions(self, database: Database) -> None:
        async with database.unit_of_work() as uow:
            assert await uow.models.latest_version() is None
            digest = await uow.artifacts.put(b"model", "serving")
            versions = [
                ModelVersion(
                    version=number,
                    period=number,
                    kind=ModelKind.GENERATED if number else ModelKind.PRIOR,
                    parent_version=number - 1 if number else None,
                    serving_digest=digest,
                    state={"h": digest, "lr": 0.1},
                    scores={"generated": {"auc": 0.7}},
                    gate={"choice": "generated"},
                    created_by="worker",
                )
                for number in range(3)
            ]
            for version in versions:
                await uow.models.insert(version)
            await uow.commit()
        async with database.read() as session:
            assert await session.models.get(2) == versions[2]
            assert await session.models.get(3) is None
            assert await session.models.by_period(1) == versions[1]
            assert await session.models.latest_version() == 2
            assert list(await session.models.list(2)) == [versions[2], versions[1]]
            assert list(await session.models.list(2, before=1)) == [versions[0]]

    async def test_a_version_needs_its_artifact_and_its_own_period(self, database: Database) -> None:
        def version(number: int, period: int, digest: str) -> ModelVersion:
            return ModelVersion(
                version=number,
                period=period,
                kind=ModelKind.PRIOR,
                parent_version=None,
                serving_digest=digest,
                state={},
                scores={},
                gate={},
                created_by="t",
            )

        async with database.unit_of_work() as uow:
            with pytest.raises(IntegrityError, match="fk_model_versions_serving_digest_artifacts"):
                await uow.models.insert(version(0, 0, "absent"))
        async with database.unit_of_work() as uow:
            digest = await uow.artifacts.put(b"m", "serving")
            await uow.models.insert(version(0, 0, digest))
            with pytest.raises(IntegrityError, match="uq_model_versions_period"):
                await uow.models.insert(version(1, 0, digest))

    async def test_an_alias_moves_with_a_lead(self, database: Database) -> None:
        async with database.unit_of_work() as uow:
            digest = await uow.artifacts.put(b"m", "serving")
            for number in (0, 1):
                await uow.models.insert(
                    ModelVersion(
                        version=number,
                        period=number,
                        kind=ModelKind.PRIOR,
                        parent_version=None,
                        serving_digest=digest,
                        state={},
                        scores={},
                        gate={},
                        created_by="t",
                    )
                )
            assert await uow.models.alias(AliasName.CHAMPION) is None
            await uow.models.set_alias(AliasName.CHAMPION, 0, lead_seconds=0, actor="a", reason="start")
            moved = await uow.models.set_alias(AliasName.CHAMPION, 1, lead_seconds=2.5, actor="b", reason="publish")
            assert await uow.models.alias(AliasName.CHAMPION) == moved
            assert (moved.version, moved.updated_by, moved.reason) == (1, "b", "publish")
            assert moved.active_from - moved.updated_at == pytest.approx(
                timedelta(seconds=2.5), abs=timedelta(seconds=0.1)
            )
            assert moved.previous_version == 0
            again = await uow.models.set_alias(AliasName.CHAMPION, 1, lead_seconds=0, actor="a", reason="again")
            assert again.previous_version == 0  # it has not moved
            with pytest.raises(IntegrityError):
                await uow.models.set_alias(AliasName.HEAD, 9, lead_seconds=0, actor="a", reason="no such version")

    async def test_evaluations_are_replaced(self, database: Database) -> None:
        first = Evaluation(
            period=1, model="generated", version=3, events=10, auc=None, logloss=0.5, calibration=float("inf")
        )
        async with database.unit_of_work() as uow:
            await uow.evaluations.put([])
            await uow.evaluations.put([first])
            better = Evaluation(
                period=1, model="generated", version=3, events=10, auc=0.8, logloss=0.4, calibration=1.0
            )
            other = Evaluation(
                period=1, model="baseline", version=None, events=10, auc=0.6, logloss=0.6, calibration=None
            )
            await uow.evaluations.put([better, other])
            assert list(await uow.evaluations.list(1)) == [other, better]
            assert list(await uow.evaluations.list(2)) == []

    async def test_the_newest_breakdowns_are_kept(self, database: Database) -> None:
        async with database.unit_of_work() as uow:
            await uow.connection.execute(
                text("INSERT INTO periods (number, status) SELECT n, 'updated' FROM generate_series(2, 5) AS n")
            )
            for period in (2, 3, 5):
                scored = Evaluation(
                    period=period, model="generated", version=3, events=10, auc=None, logloss=0.5, calibration=None
                )
                await uow.evaluations.put([scored])
                await uow.breakdowns.put(period, {"rows": 1})
            await uow.breakdowns.put(3, {"rows": period})
            await uow.breakdowns.release(3)
            assert list(await uow.breakdowns.of_version(3)) == [2, 3, 5]
            assert list(await uow.breakdowns.of_version(2)) == []
            await uow.breakdowns.release(2)
            assert list(await uow.breakdowns.of_version(3)) == [3, 5]
            assert await uow.breakdowns.get(3) == {"rows": 5}
            await uow.breakdowns.clear(3)
            assert await uow.breakdowns.get(3) is None


class TestAccess:
    async def test_keys(self, database: Database) -> None:
        key = ApiKey(key_id="k1", name="shop", secret_hash="ab" * 32, scopes=("predict", "ingest"))
        assert "ab" not in repr(key)
        async with database.unit_of_work() as uow:
            assert not await uow.keys.any_ever()
            await uow.keys.insert(key)
            assert await uow.keys.get("k1") == key
            assert await uow.keys.get("k2") is None
            assert list(await uow.keys.list()) == [key]
            assert await uow.keys.revoke("k1")
            assert not await uow.keys.revoke("k1")
            assert not await uow.keys.revoke("k2")
            revoked = await uow.keys.get("k1")
            assert revoked is not None
            assert revoked.revoked_at is not None
            assert await uow.keys.any_ever()

    async def test_audit(self, database: Database) -> None:
        async with database.unit_of_work() as uow:
            for number in range(3):
                await uow.audit.add("operator", "rollback", {"to": number})
            newest, middle = await uow.audit.list(2)
            assert (newest.actor, newest.action, newest.detail) == ("operator", "rollback", {"to": 2})
            assert [entry.detail for entry in await uow.audit.list(5, before=middle.id)] == [{"to": 0}]
