"""Deletions beside other work: ingestion, closes, updates, a killed process, the worker."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from service import worker
from service.errors import NotReady
from service.storage.backup.journal import read_journal
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import (
    Deletion,
    Deletions,
    EventBatch,
    Interaction,
    Interactions,
)
from service.storage.postgres.repositories.removals import Removals
from service.storage.redis import missed_changes
from service.storage.redis.connection import scan_pages
from service.storage.redis.histories import HistoryStore
from service.use_cases import removal, retention
from service.use_cases.close_period import close_period
from service.use_cases.forget import carry_out, carry_out_pending, request_deletion
from service.use_cases.ingest import ingest
from service.use_cases.retention import drop_old_logs, merge_event_ids
from service.use_cases.update.context import UpdateContext
from service.use_cases.update.resolve import resolve_labels
from service.use_cases.verify import verify
from tests.forked import FORKED
from tests.service.deletion_support import (
    ANN,
    LAMP,
    OF_ANN,
    OF_LAMP,
    START_MS,
    Away,
    delete,
    marked,
)
from tests.service.redis_support import PausedDatabase
from tests.service.update_support import HOUR_MS, Bench, moment, scalar, until_true
from tests.service.worker_processes import forked_worker

pytestmark = pytest.mark.usefixtures("one_thread")


class TestMeanwhile:
    async def test_events_come_and_periods_are_closed_merged_resolved_and_dropped(
        self, full: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """What was stored before is gone, what was acknowledged afterwards is there, and everything is consistent."""
        monkeypatch.setattr(removal, "ROWS_PER_STEP", 20)
        monkeypatch.setattr(retention, "KEPT_FOR_TRAINING", 1)
        async with full.database.unit_of_work() as work:
            await work.periods.set_status(4, "skipped")
            await work.commit()
        sent: dict[str, float] = {}
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        async def send(lane: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                events = [Interaction(f"{lane}-{number}-{k}", ANN, LAMP, k % 2, datetime.now(UTC)) for k in range(3)]
                began = loop.time()
                await ingest(full.database, full.context.histories, EventBatch.of(events))
                sent.update(dict.fromkeys((event.event_id for event in events), began))
                await asyncio.sleep(0.02)

        async def turn() -> None:
            number = 5
            while not stop.is_set():
                await close_period(full.database, expected_period=number, idempotency_key=None, actor="test")
                await merge_event_ids(full.database)
                async with full.database.unit_of_work() as work:
                    await work.periods.set_status(number, "skipped")
                    await work.commit()
                await resolve_labels(full.database, full.context.histories, number, full.settings.attribution_window)
                await drop_old_logs(full.database, full.settings)
                number += 1
                await asyncio.sleep(0.3)

        others = [asyncio.create_task(work) for work in (send(0), send(1), turn())]
        await asyncio.sleep(0.8)
        began = loop.time()
        await delete(full)
        ended = loop.time()
        await asyncio.sleep(0.2)
        stop.set()
        await asyncio.gather(*others)
        async with full.database.read() as session:
            rows = await session.connection.execute(
                text("SELECT event_id FROM interactions WHERE user_id = :a"), {"a": ANN}
            )
            left = set(rows.scalars())
            dropped = await session.connection.scalar(
                text("SELECT max(number) FROM periods WHERE log_dropped_at IS NOT NULL")
            )
        before = {id_ for id_, at in sent.items() if at < began - 0.2}
        after = {id_ for id_, at in sent.items() if at > ended}
        assert before and after and dropped > 2
        assert not left & before
        folded = set(
            await scalar(full.database, "SELECT event_ids FROM user_histories WHERE user_id = :a", a=ANN) or ()
        )
        assert not folded & before
        assert (await verify(full.database, tmp_path)).findings == []

    async def test_an_item_that_was_drawn_as_a_negative_just_before_is_not_stored_again(
        self, full: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The process that resolves the period has drawn the item, and stores it after the deletion has searched that
        log.
        """
        await full.close(5)
        await only_positives(full, 6)
        await full.close(6)
        insert = Interactions.insert_sampled
        deletions: list[asyncio.Task[Deletion]] = []

        async def insert_late(
            log: Interactions, period: int, positives: Any, item_ids: Sequence[str], per_positive: int
        ) -> int:
            assert LAMP in item_ids
            deletions.append(asyncio.create_task(delete(full, "item", LAMP)))
            waits = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ended = "SELECT FROM deletions WHERE finished_at IS NOT NULL"
            await until_true(full.database, f"SELECT EXISTS ({waits}) OR EXISTS ({ended})")
            return await insert(log, period, positives, item_ids, per_positive)

        monkeypatch.setattr(Interactions, "insert_sampled", insert_late)
        await resolve(full, 6)
        assert (await deletions[0]).finished_at is not None
        assert await marked(full.database, LAMP) == set()

    async def test_a_log_that_is_closed_and_resolved_behind_its_back_is_looked_at_again(
        self, full: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Negatives are drawn from the log's own items too."""
        await full.close(5)
        await only_positives(full, 6, LAMP)
        find = Removals.find

        async def find_then_close(removals: Removals, kind: Any, id_: str, rows: str, period: int) -> Sequence[str]:
            keys = await find(removals, kind, id_, rows, period)
            if (rows, period) == ("interactions", 6) and not closed:
                closed.append(await full.close(6))
                await resolve(full, 6)
            return keys

        closed: list[None] = []
        monkeypatch.setattr(Removals, "find", find_then_close)
        deletion = await delete(full, "item", LAMP)
        assert closed and await marked(full.database, LAMP) == set()
        assert deletion.removed["interactions"] > 3 * OF_LAMP + 2 + 1

    @pytest.mark.parametrize("after_an_outage", [False, True])
    async def test_who_has_read_a_history_before_does_not_cache_it_after(
        self, full: Bench, monkeypatch: pytest.MonkeyPatch, after_an_outage: bool
    ) -> None:
        """It reads between the two passes that drop histories and leases."""
        paused = PausedDatabase(full.database)
        store = HistoryStore(full.redis, paused)  # type: ignore[arg-type]

        async def scan_then_fill(redis: Redis, *patterns: str) -> AsyncIterator[list[bytes | str]]:
            for pattern in patterns:
                async for page in scan_pages(redis, pattern):
                    yield page
                paused.go.set()
                await reader

        monkeypatch.setattr(missed_changes, "scan_pages", scan_then_fill)
        reader = asyncio.create_task(store.get(ANN))
        await paused.has_answered()
        if after_an_outage:
            monkeypatch.setattr(missed_changes, "MOST_USERS", 0)
            store.missed.note([ANN])
            await store.missed.remove_outdated()
        else:
            await store.forget_all()
        assert await reader
        assert await full.redis.keys("asmg:past*") == []

    async def test_a_killed_one_is_gone_on_with_by_the_worker(
        self, full: Bench, redis_url: str, tmp_path: Path
    ) -> None:
        deletion = await request_deletion(full.database, "user", ANN, actor="test")
        before = await scalar(full.database, "SELECT count(*) FROM interactions WHERE user_id = :a", a=ANN)
        dsn = full.settings.postgres_dsn
        process = FORKED.Process(target=delete_slowly, args=(dsn, redis_url, tmp_path / "journal"), daemon=True)
        process.start()
        await until_true(full.database, f"SELECT count(*) < {before} FROM interactions WHERE user_id = :a", a=ANN)
        process.kill()
        process.join(20)
        assert 0 < await scalar(full.database, "SELECT count(*) FROM interactions WHERE user_id = :a", a=ANN) < before
        assert (await verify(full.database, tmp_path)).findings == []  # at no moment anything is half done
        async with full.database.unit_of_work() as work:  # it was asked for long ago
            await work.connection.execute(text("UPDATE deletions SET requested_at = now() - interval '1 hour'"))
            await work.periods.set_status(4, "skipped")
            await work.commit()
        with forked_worker(str(dsn), redis_url, tmp_path):
            await until_true(full.database, "SELECT count(*) = 0 FROM deletions WHERE finished_at IS NULL")
        assert await marked(full.database, ANN) == set()
        async with full.database.read() as session:
            finished = await session.deletions.get(deletion.deletion)
        assert finished is not None and finished.removed["interactions"] == 3 * OF_ANN + 2
        (entry,) = read_journal(tmp_path / "data" / "deletions.jsonl")
        assert entry.deletion == deletion.deletion

    async def test_without_redis_or_a_journal_it_waits(
        self, full: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        deletion = await request_deletion(full.database, "user", ANN, actor="test")
        assert (await request_deletion(full.database, "user", ANN, actor="test")).deletion == deletion.deletion
        (tmp_path / "file").write_text("")
        for journal, histories in (
            (tmp_path / "file" / "journal", full.context.histories),
            (full.settings.journal, Away()),
        ):
            with pytest.raises(NotReady):
                await carry_out(full.database, histories, journal, deletion)
        assert await marked(full.database, ANN) == {"deletions"}
        pending = (full.database, full.context.histories, full.settings.journal)
        assert await carry_out_pending(*pending) == (0, 0)
        assert await carry_out_pending(*pending, older_than=timedelta()) == (1, 0)
        assert await marked(full.database, ANN) == set()


async def of_long_ago(b: Bench, *user_ids: str) -> None:
    """Deletions that nobody has carried out."""
    for user_id in user_ids:
        await request_deletion(b.database, "user", user_id, actor="test")
    async with b.database.unit_of_work() as work:
        await work.connection.execute(text("UPDATE deletions SET requested_at = requested_at - interval '1 hour'"))
        await work.commit()


class TestTheWorker:
    @pytest.mark.parametrize("error", [NotReady("Redis does not answer"), RuntimeError("a fault of ours")])
    async def test_one_that_fails_holds_up_neither_the_next_nor_the_worker(
        self, full: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
    ) -> None:
        forget_user, tried = full.context.histories.forget_user, []

        async def fail_for_ann(user_id: str) -> None:
            tried.append(user_id)
            if user_id == ANN:
                raise error
            await forget_user(user_id)

        monkeypatch.setattr(full.context.histories, "forget_user", fail_for_ann)
        await of_long_ago(full, ANN, "user3")
        pending = worker.PendingDeletions(full.context)
        for _ in range(3):  # each attempt is a pass over all logs
            await pending.carry_out()
        assert tried == [ANN, "user3"]
        assert caplog.text.count("is not carried out yet") == 1
        monkeypatch.setattr(worker, "DELETION_PAUSE_SECONDS", 0.0)
        pending = worker.PendingDeletions(full.context)
        for _ in range(2):
            await pending.carry_out()
        assert tried == [ANN, "user3", ANN, ANN]

    async def test_its_heart_beats_with_each_step_and_period(
        self, full: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retention, "KEPT_FOR_TRAINING", 1)
        monkeypatch.setattr(removal, "ROWS_PER_STEP", 1)
        beats = []
        context = replace(full.context, beat=lambda: beats.append(None))

        async def update_period(_: UpdateContext, __: int) -> int:
            return 4

        monkeypatch.setattr(worker, "update_period", update_period)  # which beats by itself
        assert await worker.update_next(context)
        assert len(beats) == 3  # the ids of period 4 are merged, the log of period 3 is dropped, old features too
        beats.clear()
        await of_long_ago(full, ANN)
        await worker.PendingDeletions(context).carry_out()
        assert len(beats) > 3 * OF_ANN


async def only_positives(b: Bench, number: int, *item_ids: str) -> None:
    """Clicks of many on one item, and one on each of these."""
    clicked = ["item1"] * 40 + list(item_ids)
    events = [
        Interaction(f"{number}-{n}", f"user{n}", item, 1, moment(START_MS + number * HOUR_MS + n))
        for n, item in enumerate(clicked)
    ]
    await ingest(b.database, b.context.histories, EventBatch.of(events))


async def resolve(b: Bench, number: int) -> None:
    """With so many negatives that none of the items is missed."""
    window = b.settings.attribution_window
    await resolve_labels(b.database, b.context.histories, number, window, negatives_per_positive=5)


def delete_slowly(dsn: str, redis_url: str, journal: Path) -> None:
    """A process that carries out what is pending, a row at a time."""
    from service.storage.redis.connection import connect
    from service.storage.redis.histories import HistoryStore

    async def run() -> None:
        database = Database(dsn)
        removal.ROWS_PER_STEP = 1
        count = Deletions.count

        async def slowly(*arguments: Any) -> None:
            await count(*arguments)
            await asyncio.sleep(0.02)

        Deletions.count = slowly  # type: ignore[method-assign]
        await carry_out_pending(database, HistoryStore(connect(redis_url), database), journal, older_than=timedelta())

    asyncio.run(run())
