"""Deletions: nothing that is stored about an id stays, whatever goes on meanwhile, and no old copy brings it back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from click.testing import Result
from redis.asyncio import Redis
from sqlalchemy import text
from typer.testing import CliRunner

from asmg.checkpoint import Checkpoint
from service import worker
from service.cli import app as cli
from service.errors import BackupError, NotReady
from service.serving.snapshot import Snapshot
from service.storage.backup.journal import read_journal
from service.storage.backup.manifest import read_backup
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import (
    Click,
    EntityKind,
    EventBatch,
    Impression,
    Interaction,
    Interactions,
    Items,
)
from service.storage.postgres.repositories.traces import Traces
from service.storage.postgres.structure import stored_tables
from service.storage.redis import missed_changes
from service.storage.redis.connection import scan_pages
from service.storage.redis.histories import HistoryStore
from service.use_cases import forget, retention
from service.use_cases.backup import back_up, restore
from service.use_cases.close_period import close_period
from service.use_cases.forget import carry_out, carry_out_pending, request_deletion
from service.use_cases.ingest import ingest, ingest_clicks, ingest_impressions
from service.use_cases.retention import drop_old_logs, merge_event_ids, prune
from service.use_cases.rollback import rollback
from service.use_cases.update import update_model
from service.use_cases.update.update_model import PeriodUpdate, Superseded
from service.use_cases.verify import verify
from tests.conftest import Servers, database_dsn, in_thread
from tests.service.api_support import running_app, settings_for
from tests.service.backup_support import opened
from tests.service.programs import FORKED
from tests.service.redis_support import PausedDatabase
from tests.service.update_support import Bench, bench, copies, moment, single_thread
from tests.service.worker_processes import forked_worker

ANN = "ann/gone é%"
"""A user of all logs. Nothing else that is stored has `gone` in it."""
LAMP = "lamp gone?"
"""An item of all logs."""
NOBODY = "nobody at all"
MARK = "gone"
HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000
CHANGES: dict[str, Any] = {"keep_logs": 0, "swap_lead_seconds": 0.0, "attribution_window_seconds": 3600.0}

Make = Callable[..., str]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


# --- a past


def log_of(number: int) -> list[Interaction]:
    """Interactions of a period: of Ann on every item, of others on the lamp too, and some that are about neither."""
    rows = [(f"user{n % 4}", f"item{n % 5}", n % 3 == 0) for n in range(30)]
    rows += [(ANN, f"item{n % 5}", n % 2 == 0) for n in range(6)] + [(ANN, LAMP, True)]
    rows += [(f"user{n}", LAMP, n == 1) for n in range(3)]
    return [
        Interaction(f"{number}-{n}-{user}-{item}", user, item, int(label), moment(START_MS + number * HOUR_MS + n))
        for n, (user, item, label) in enumerate(rows)
    ]


OF_ANN, OF_LAMP = 7, 4
"""Interactions of a period."""


async def show(b: Bench, number: int, at: datetime) -> None:
    """Impressions and clicks: of Ann, of another with the lamp among the items, and of the lamp alone."""
    names = [f"{who} {number}" for who in (f"shown-{MARK}", "shown-other", f"shown-lamp-{MARK}")]
    shown = [
        Impression(names[0], ANN, ["item1", "item2"], None, at),
        Impression(names[1], "user1", ["item1", LAMP, "item2"], [5, 6, 7] if number % 2 else None, at),
        Impression(names[2], "user2", [LAMP], None, at),
    ]
    clicks = [
        Click(f"click-{MARK} {number}", names[0], "item2", at),
        Click(f"click-lamp-{MARK} {number}", names[1], LAMP, at),
        Click(f"click-other {number}", names[1], "item2", at),
    ]
    window = b.settings.attribution_window
    await ingest_impressions(b.database, b.workshop.histories, shown, window)
    await ingest_clicks(b.database, b.workshop.histories, clicks, window)


async def live(b: Bench) -> None:
    """Three periods learned, the logs of two dropped, one sealed with what waits for clicks, one open."""
    catalogue = {f"item{n}": [f"c{n % 2}"] for n in range(5)} | {LAMP: ["c0", "c1"]}
    async with b.database.unit_of_work() as work:
        await work.items.upsert(catalogue)
        await work.commit()
    for number in range(1, 4):
        await ingest(b.database, b.workshop.histories, EventBatch.of(log_of(number)))
        await show(b, number, moment(START_MS + number * HOUR_MS))
        await b.close(number)
        await merge_event_ids(b.database)
        await b.update(number)
        await prune(b.database, number, b.settings)
        await drop_old_logs(b.database, b.settings)
    for number in (4, 5):
        await ingest(b.database, b.workshop.histories, EventBatch.of(log_of(number)))
        await show(b, number, datetime.now(UTC))  # its window is open
        if number == 4:
            await b.close(number)


@pytest.fixture(scope="module")
def lived(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Name of a database with that past."""

    async def make(dsn: str) -> None:
        async with bench(dsn, servers.redis_url, tmp_path_factory.mktemp("lived"), **CHANGES) as b:
            await live(b)

    with copies(servers, migrated_template, database_numbers) as copy, pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "KEPT_FOR_TRAINING", 1)
        name = copy()
        in_thread(asyncio.run, make(database_dsn(servers, name)))
        yield name


@pytest.fixture
def copy(servers: Servers, migrated_template: str, database_numbers: Iterator[int]) -> Iterator[Make]:
    """DSN of a new database: migrated, or a copy of the one named."""
    with copies(servers, migrated_template, database_numbers) as make:
        yield lambda *name: database_dsn(servers, make(*name))


@pytest.fixture
async def past(copy: Make, lived: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench on a copy of it."""
    async with bench(copy(lived), redis_url, tmp_path, **CHANGES) as b:
        yield b


async def delete(b: Bench, kind: Any = "user", id_: str = ANN) -> forget.Deletion:
    """From beginning to end."""
    deletion = await request_deletion(b.database, kind, id_, actor="test")
    return await carry_out(b.database, b.workshop.histories, b.settings.journal, deletion)


async def marked(database: Database, mark: str) -> set[str]:
    """The tables in which any row has this text in any column."""
    found = set()
    async with database.read() as session:
        for table in await stored_tables(session.connection):
            query = text(f"SELECT count(*) FROM {table.name} AS entry WHERE strpos(entry::text, :mark) > 0")
            if await session.connection.scalar(query, {"mark": mark}):
                found.add(table.name)
    return found


async def named_in_files(b: Bench) -> list[str]:
    """The artifacts, and the files of serving, whose bytes have an id of the past in them."""
    async with b.database.read() as session:
        content = {digest: await session.artifacts.get(digest) for digest in await session.artifacts.sizes()}
    assert content
    content |= {path.name: path.read_bytes() for path in b.settings.serving_dir.rglob("*") if path.is_file()}
    return [name for name, data in content.items() if b"ann/gone" in data or b"lamp gone" in data]


async def scalar(database: Database, query: str, **values: object) -> Any:
    async with database.read() as session:
        return await session.connection.scalar(text(query), values)


async def until(database: Database, query: str, **values: object) -> None:
    """Wait for a query to say yes."""
    for _ in range(3000):
        if await scalar(database, query, **values):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came to that")


async def served(b: Bench, version: int, folder: Path) -> Snapshot:
    digest = (await b.outcome())["versions"][version]["serving"]
    path = await b.workshop.artifacts.fetch_file(digest, folder / str(version))
    return Snapshot.open(path, version, version)


LOGS = ("interactions", "impressions", "clicks")
EVERYWHERE = {f"{table}_p{n}" for table in LOGS for n in range(3, 6)} | {
    "event_ids",
    "unresolved_positives",
    "user_histories",
    "user_passes",
    "entity_rows",
}
"""Where the past has something about Ann, and something about the lamp."""


# --- what is removed


class TestNothingStays:
    async def test_of_a_user(self, past: Bench, tmp_path: Path) -> None:
        assert await marked(past.database, ANN) >= {name for name in EVERYWHERE if not name.startswith("clicks")}
        others = await scalar(past.database, "SELECT count(*) FROM interactions WHERE user_id <> :ann", ann=ANN)
        deletion = await delete(past)
        assert await marked(past.database, ANN) == set()
        # Of her events nothing is left either, such as the clicks, which do not name her.
        left = "SELECT count(*) FROM {} WHERE strpos(request_id, 'shown-gone') > 0"
        for table in ("impressions", "clicks"):
            assert await scalar(past.database, left.format(table)) == 0
        assert deletion.id is None
        assert deletion.removed == {
            "rows": 1,
            "interactions": 3 * OF_ANN + 2,  # of the period that is resolved, two items that were shown
            "impressions": 3,
            "clicks": 3,
            "unresolved": 2,
            "histories": 1,
            "passes": 1,
        }
        assert await scalar(past.database, "SELECT count(*) FROM interactions WHERE user_id <> :ann", ann=ANN) == others
        assert (await verify(past.database, tmp_path)).findings == []

    async def test_of_an_item(self, past: Bench, tmp_path: Path) -> None:
        assert await marked(past.database, LAMP) >= {*EVERYWHERE, "items"}
        deletion = await delete(past, "item", LAMP)
        assert await marked(past.database, LAMP) == set()
        assert deletion.removed["catalogue"] == deletion.removed["rows"] == 1
        assert deletion.removed["impressions"] == 2 * 3
        # What else was shown stays where it was; what showed nothing else is gone.
        query = (
            "SELECT array_agg(ROW(item_ids, positions)::text ORDER BY request_id) FROM impressions WHERE period = {}"
        )
        rest = {5: "{5,7}", 4: "{0,2}"}
        for number, positions in rest.items():
            found = await scalar(past.database, query.format(number))
            assert found == ['("{item1,item2}",)', f'("{{item1,item2}}","{positions}")']
        assert (await verify(past.database, tmp_path)).findings == []
        # Ann's other clicks are in her history yet.
        async with past.database.read() as session:
            history = [event.item_id for event in await session.past.recent(ANN)]
        assert LAMP not in history and history

    async def test_again_it_changes_nothing_but_what_came_since(self, past: Bench) -> None:
        first = await delete(past)
        assert (await carry_out(past.database, past.workshop.histories, past.settings.journal, first)) == first
        second = await delete(past)
        assert second.removed == {} and second.deletion != first.deletion
        # An event that is sent again is about a stranger: it is stored, and can be deleted.
        again = EventBatch.of([event for event in log_of(3) if event.user_id == ANN])
        assert (await ingest(past.database, past.workshop.histories, again)).accepted == OF_ANN
        assert (await delete(past)).removed == {"interactions": OF_ANN}

    async def test_what_an_impression_would_have_become_is_not_reserved_any_more(
        self, past: Bench, tmp_path: Path
    ) -> None:
        """Its ids are taken a moment before the interactions are made, and a worker may die in between."""
        async with past.database.unit_of_work() as work:
            later = datetime.now(UTC) + timedelta(days=1)
            assert await work.labels.reserve(4, later, past.settings.attribution_window) == 2 + 3 + 1
            await work.commit()
        reserved = "SELECT count(*) FROM event_ids WHERE kind = 0 AND period = 4 AND strpos(event_id, 'shown') > 0"
        assert await scalar(past.database, reserved) == 6
        await delete(past)
        assert await scalar(past.database, reserved) == 4
        await delete(past, "item", LAMP)
        assert await scalar(past.database, reserved) == 2
        assert await marked(past.database, MARK) == set()
        assert (await verify(past.database, tmp_path)).findings == []

    async def test_closed_and_learned_after_it_all_is_whole(self, past: Bench, tmp_path: Path) -> None:
        before = {n: (await scalar(past.database, f"SELECT events FROM periods WHERE number = {n}")) for n in (2, 3)}
        await delete(past)
        await delete(past, "item", LAMP)
        # Snapshots and states of before stay, and name nobody.
        assert await named_in_files(past) == []
        for number in (4, 5):
            if number == 5:
                await past.close(5)
            await past.update(number)
            await merge_event_ids(past.database)
            await drop_old_logs(past.database, past.settings)
        assert (await verify(past.database, tmp_path)).findings == []
        assert await marked(past.database, MARK) == set()
        assert any(past.settings.serving_dir.iterdir()) and await named_in_files(past) == []
        for n in (2, 3):  # what was counted once stays
            assert await scalar(past.database, f"SELECT events FROM periods WHERE number = {n}") == before[n]

    async def test_a_period_of_which_nothing_is_left_is_no_failure(self, past: Bench) -> None:
        """Neither where it was deleted before its update, nor in the midst."""
        await past.update(4)
        await past.close(5)
        await past.update(5)
        for number in (6, 7):
            events = [Interaction(f"{number}-{n}", ANN, "item1", n % 2, datetime.now(UTC)) for n in range(4)]
            await ingest(past.database, past.workshop.histories, EventBatch.of(events))
            await past.close(number)
            if number == 7:
                async with past.database.unit_of_work() as work:
                    await work.stages.start(7, "resolve")
                    await work.stages.finish(7, "resolve", 0.0, {"events": 4, "sampling": None})
                    await work.periods.set_labels(7, {}, 4)
                    await work.commit()
            await delete(past)
            await past.update(number)
            version = (await past.outcome())["versions"][number]
            assert version["kind"] == "previous"


# --- models


def single(number: int, *, ann: bool = True, events: int = 40) -> EventBatch:
    """A period in which nobody is new after the first."""
    users = [ANN, *(f"user{n}" for n in range(4))] if ann else [f"user{n}" for n in range(4)]
    items = [LAMP, *(f"item{n}" for n in range(4))] if ann else [f"item{n}" for n in range(4)]
    rng = np.random.default_rng(number)
    rows = [
        (users[n % len(users)], items[int(rng.integers(len(items)))], int(rng.random() < 0.4)) for n in range(events)
    ]
    return EventBatch.of(
        [
            Interaction(f"{number}-{n:03}", user, item, label, moment(START_MS + number * HOUR_MS + n))
            for n, (user, item, label) in enumerate(rows)
        ]
    )


async def learn(b: Bench, number: int, **options: Any) -> int:
    await ingest(b.database, b.workshop.histories, single(number, **options))
    await b.close(number)
    return await b.update(number)


async def tensors(b: Bench, digest: str) -> dict[str, torch.Tensor]:
    return dict(Checkpoint.from_bytes(await b.workshop.artifacts.get(digest)).tensors)


async def counted_of(b: Bench, parts: dict[str, str], item: int) -> set[str]:
    """Where the statistics of a training state have anything about an item, by its row."""
    found = await tensors(b, parts["statistics"])
    of_item = {name: found[name][item] for name in ("counts", "counted", "degrees", "paired")}
    of_item |= {"starts": found["starts"].diff()[item], "neighbours": found["neighbours"] == item}
    return {name for name, values in of_item.items() if bool(values.any())}


class TestTheNextModel:
    @pytest.mark.parametrize("updater", ["asmg-gru-multi", "asmg-gru-full", "iu", "bu-3"])
    async def test_knows_nothing_of_whom_was_deleted(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path, updater: str
    ) -> None:
        """It says of them, to the bit, what it says of who was never there; and in the state their rows are what the
        cold row was when the update began, without moments.
        """
        async with bench(postgres_dsn, redis_url, tmp_path, updater=updater, **CHANGES) as b:
            for number in range(1, 4):
                await learn(b, number)
            rows = {
                "user": await scalar(b.database, "SELECT row FROM entity_rows WHERE id = :id", id=ANN),
                "item": await scalar(b.database, "SELECT row FROM entity_rows WHERE id = :id", id=LAMP),
            }
            before = await served(b, 3, tmp_path)
            parts = (await b.outcome())["versions"][3]["state"]["parts"]
            base_before = await tensors(b, parts["base"])
            assert await counted_of(b, parts, rows["item"]) == {
                "counts",
                "counted",
                "degrees",
                "paired",
                "starts",
                "neighbours",
            }
            assert not before.predict(ANN, [LAMP], []).cold_user
            await delete(b)
            await delete(b, "item", LAMP)
            await learn(b, 4, ann=False)
            after = await served(b, 4, tmp_path)
            found = after.predict(ANN, [LAMP, "item1"], [LAMP, "item2"])
            assert found.cold_user and found.cold_items.tolist() == [0]
            stranger = after.predict(NOBODY, [NOBODY, "item1"], [NOBODY, "item2"])
            assert found.scores.tolist() == stranger.scores.tolist()
            parts = (await b.outcome())["versions"][4]["state"]["parts"]
            base, optimizer = await tensors(b, parts["base"]), await tensors(b, parts["optimizer"])
            for kind, row in rows.items():
                assert torch.equal(base[kind][row], base_before[kind][0])
                assert not torch.equal(base[kind][row], base_before[kind][row])
                moments = [
                    tensor for name, tensor in optimizer.items() if name.split(".")[-1] == kind and tensor.ndim > 1
                ]
                assert moments and not any(tensor[row].any() for tensor in moments)
            assert await counted_of(b, parts, rows["item"]) == set()
            # An older version, which one can go back to until it is let go of, has an index of its own.
            assert not before.predict(ANN, ["item1"], []).cold_user

    async def test_goes_on_from_an_older_one_and_forgets_as_well(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path
    ) -> None:
        async with bench(postgres_dsn, redis_url, tmp_path, updater="iu", **CHANGES) as b:
            for number in (1, 2):
                await learn(b, number)
            await delete(b)
            await learn(b, 3, ann=False)
            back: dict[str, Any] = {"reason": "test", "actor": "test", "lead_seconds": 0.0}
            await rollback(b.database, b.workshop.notices, to_version=1, sequence="excise", **back)
            version = await learn(b, 4, ann=False)
            after = await served(b, version, tmp_path)
            assert after.predict(ANN, ["item1"], []).cold_user
            scores = [after.predict(who, ["item1"], ["item2"]).scores.tolist() for who in (ANN, NOBODY)]
            assert scores[0] == scores[1]

    async def test_who_comes_again_is_new(self, postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
        """To the bit as if the same events had come of somebody who was never there."""
        states = []
        for name in (ANN, NOBODY):
            async with bench(postgres_dsn, redis_url, tmp_path, updater="iu", **CHANGES) as b:
                if not states:
                    for number in (1, 2):
                        await learn(b, number)
                    await delete(b)
                period = 2 + len(states) + 1
                event = Interaction(f"{period} again", name, "item1", 1, moment(START_MS + 9 * HOUR_MS))
                # With others, for of a single event the gate may make anything.
                for batch in (EventBatch.of([event]), single(period, ann=False)):
                    await ingest(b.database, b.workshop.histories, batch)
                await b.close(period)
                if states:
                    back: dict[str, Any] = {"reason": "test", "actor": "test", "lead_seconds": 0.0}
                    await rollback(b.database, b.workshop.notices, to_version=2, sequence="excise", **back)
                states.append(await b.update(period))
                async with b.database.read() as session:
                    ids, _ = await session.entities.rows(EntityKind.USER)
                assert name in ids
                await delete(b, id_=name)

    async def test_an_update_that_read_the_log_before_gives_no_row_again(
        self, past: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = Items.catalogue
        read_again = 0

        async def delete_then_read(items: Items) -> Any:
            nonlocal read_again
            read_again += 1
            if read_again == 1:
                await delete(past)
                await delete(past, "item", LAMP)
            return await read(items)

        monkeypatch.setattr(Items, "catalogue", delete_then_read)
        await past.update(4)
        assert read_again == 2
        assert await marked(past.database, MARK) == set()

    async def test_a_snapshot_that_was_written_before_is_not_published(
        self, past: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        put = PeriodUpdate._put_snapshot

        async def put_then_delete(update: PeriodUpdate, *arguments: Any) -> str:
            digest = await put(update, *arguments)
            await delete(past)
            return digest

        with monkeypatch.context() as patch:
            patch.setattr(PeriodUpdate, "_put_snapshot", put_then_delete)
            with pytest.raises(Superseded, match="somebody was deleted"):
                await past.update(4)
        assert "may know somebody who was deleted" in caplog.text
        version = await past.update(4)
        assert (await served(past, version, tmp_path)).predict(ANN, ["item1"], []).cold_user

    async def test_deletions_that_free_no_row_hold_up_no_publication(
        self, past: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of who was never there, and of who came since the log was read."""
        put, removed = PeriodUpdate._put_snapshot, []

        async def put_then_delete(update: PeriodUpdate, *arguments: Any) -> str:
            digest = await put(update, *arguments)
            event = Interaction("of a new user", "new user", "item1", 1, datetime.now(UTC))
            await ingest(past.database, past.workshop.histories, EventBatch.of([event]))
            removed.extend([(await delete(past, "user", id_)).removed for id_ in (NOBODY, "new user")])
            return digest

        read, reads = Items.catalogue, 0

        async def delete_then_read(items: Items) -> Any:
            nonlocal reads
            reads += 1
            if reads == 1:
                await delete(past, "user", NOBODY)
            return await read(items)

        monkeypatch.setattr(PeriodUpdate, "_put_snapshot", put_then_delete)
        monkeypatch.setattr(Items, "catalogue", delete_then_read)
        await past.update(4)
        assert removed == [{}, {"interactions": 1}]
        assert reads == 1


# --- while others are at work


class TestMeanwhile:
    async def test_events_come_and_periods_are_closed_merged_resolved_and_dropped(
        self, past: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """What was stored before is gone, what was answered after is there, and all is whole."""
        monkeypatch.setattr(forget, "ROWS_OF_A_STEP", 20)
        monkeypatch.setattr(retention, "KEPT_FOR_TRAINING", 1)
        async with past.database.unit_of_work() as work:
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
                await ingest(past.database, past.workshop.histories, EventBatch.of(events))
                sent.update(dict.fromkeys((event.event_id for event in events), began))
                await asyncio.sleep(0.02)

        async def turn() -> None:
            number = 5
            while not stop.is_set():
                await close_period(past.database, expected_period=number, idempotency_key=None, actor="test")
                await merge_event_ids(past.database)
                async with past.database.unit_of_work() as work:
                    await work.periods.set_status(number, "skipped")
                    await work.commit()
                await update_model.resolve_labels(
                    past.database, past.workshop.histories, number, past.settings.attribution_window
                )
                await drop_old_logs(past.database, past.settings)
                number += 1
                await asyncio.sleep(0.3)

        others = [asyncio.create_task(work) for work in (send(0), send(1), turn())]
        await asyncio.sleep(0.8)
        began = loop.time()
        await delete(past)
        ended = loop.time()
        await asyncio.sleep(0.2)
        stop.set()
        await asyncio.gather(*others)
        async with past.database.read() as session:
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
            await scalar(past.database, "SELECT event_ids FROM user_histories WHERE user_id = :a", a=ANN) or ()
        )
        assert not folded & before
        assert (await verify(past.database, tmp_path)).findings == []

    async def test_an_item_that_was_drawn_as_a_negative_just_before_is_not_stored_again(
        self, past: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever resolves the period has drawn it, and stores it when the deletion has been at that log."""
        await past.close(5)
        await only_positives(past, 6)
        await past.close(6)
        insert = Interactions.insert_sampled
        deletions: list[asyncio.Task[forget.Deletion]] = []

        async def insert_late(
            log: Interactions, period: int, positives: Any, item_ids: Sequence[str], per_positive: int
        ) -> int:
            assert LAMP in item_ids
            deletions.append(asyncio.create_task(delete(past, "item", LAMP)))
            waits = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ended = "SELECT FROM deletions WHERE finished_at IS NOT NULL"
            await until(past.database, f"SELECT EXISTS ({waits}) OR EXISTS ({ended})")
            return await insert(log, period, positives, item_ids, per_positive)

        monkeypatch.setattr(Interactions, "insert_sampled", insert_late)
        await resolve(past, 6)
        assert (await deletions[0]).finished_at is not None
        assert await marked(past.database, LAMP) == set()

    async def test_a_log_that_is_closed_and_resolved_behind_its_back_is_looked_at_again(
        self, past: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Negatives are drawn from the log's own items too."""
        await past.close(5)
        await only_positives(past, 6, LAMP)
        find = Traces.find

        async def find_then_close(traces: Traces, kind: Any, id_: str, rows: str, period: int) -> Sequence[str]:
            keys = await find(traces, kind, id_, rows, period)
            if (rows, period) == ("interactions", 6) and not closed:
                closed.append(await past.close(6))
                await resolve(past, 6)
            return keys

        closed: list[None] = []
        monkeypatch.setattr(Traces, "find", find_then_close)
        deletion = await delete(past, "item", LAMP)
        assert closed and await marked(past.database, LAMP) == set()
        assert deletion.removed["interactions"] > 3 * OF_LAMP + 2 + 1

    @pytest.mark.parametrize("after_an_outage", [False, True])
    async def test_who_has_read_a_history_before_does_not_cache_it_after(
        self, past: Bench, monkeypatch: pytest.MonkeyPatch, after_an_outage: bool
    ) -> None:
        """Between the two passes that drop histories and leases."""
        paused = PausedDatabase(past.database)
        store = HistoryStore(past.redis, paused)  # type: ignore[arg-type]

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
        assert await past.redis.keys("asmg:past*") == []

    async def test_a_killed_one_is_gone_on_with_by_the_worker(
        self, past: Bench, redis_url: str, tmp_path: Path
    ) -> None:
        deletion = await request_deletion(past.database, "user", ANN, actor="test")
        before = await scalar(past.database, "SELECT count(*) FROM interactions WHERE user_id = :a", a=ANN)
        dsn = past.settings.postgres_dsn
        process = FORKED.Process(target=delete_slowly, args=(dsn, redis_url, tmp_path / "journal"), daemon=True)
        process.start()
        await until(past.database, f"SELECT count(*) < {before} FROM interactions WHERE user_id = :a", a=ANN)
        process.kill()
        process.join(20)
        assert 0 < await scalar(past.database, "SELECT count(*) FROM interactions WHERE user_id = :a", a=ANN) < before
        assert (await verify(past.database, tmp_path)).findings == []  # at no moment anything is half done
        async with past.database.unit_of_work() as work:  # it was asked for long ago
            await work.connection.execute(text("UPDATE deletions SET requested_at = now() - interval '1 hour'"))
            await work.periods.set_status(4, "skipped")
            await work.commit()
        with forked_worker(str(dsn), redis_url, tmp_path):
            await until(past.database, "SELECT count(*) = 0 FROM deletions WHERE finished_at IS NULL")
        assert await marked(past.database, ANN) == set()
        async with past.database.read() as session:
            finished = await session.deletions.get(deletion.deletion)
        assert finished is not None and finished.removed["interactions"] == 3 * OF_ANN + 2
        (entry,) = read_journal(tmp_path / "data" / "deletions.jsonl")
        assert entry.deletion == deletion.deletion

    async def test_without_redis_or_a_journal_it_waits(
        self, past: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        deletion = await request_deletion(past.database, "user", ANN, actor="test")
        assert (await request_deletion(past.database, "user", ANN, actor="test")).deletion == deletion.deletion
        (tmp_path / "file").write_text("")
        for journal, histories in (
            (tmp_path / "file" / "journal", past.workshop.histories),
            (past.settings.journal, Away()),
        ):
            with pytest.raises(NotReady):
                await carry_out(past.database, histories, journal, deletion)
        assert await marked(past.database, ANN) == {"deletions"}
        pending = (past.database, past.workshop.histories, past.settings.journal)
        assert await carry_out_pending(*pending) == (0, 0)
        assert await carry_out_pending(*pending, older_than=timedelta()) == (1, 0)
        assert await marked(past.database, ANN) == set()


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
        self, past: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
    ) -> None:
        forget_user, tried = past.workshop.histories.forget_user, []

        async def fail_for_ann(user_id: str) -> None:
            tried.append(user_id)
            if user_id == ANN:
                raise error
            await forget_user(user_id)

        monkeypatch.setattr(past.workshop.histories, "forget_user", fail_for_ann)
        await of_long_ago(past, ANN, "user3")
        leftovers = worker._Leftovers(past.workshop)
        for _ in range(3):  # each attempt is a pass over all logs
            await leftovers.carry_out()
        assert tried == [ANN, "user3"]
        assert caplog.text.count("is not carried out yet") == 1
        monkeypatch.setattr(worker, "DELETION_PAUSE_SECONDS", 0.0)
        leftovers = worker._Leftovers(past.workshop)
        for _ in range(2):
            await leftovers.carry_out()
        assert tried == [ANN, "user3", ANN, ANN]

    async def test_its_heart_beats_with_each_step_and_period(
        self, past: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retention, "KEPT_FOR_TRAINING", 1)
        monkeypatch.setattr(forget, "ROWS_OF_A_STEP", 1)
        beats = []
        workshop = replace(past.workshop, beat=lambda: beats.append(None))

        async def run(_: PeriodUpdate) -> int:
            return 4

        monkeypatch.setattr(PeriodUpdate, "run", run)  # which beats by itself
        assert await worker._update_next(workshop)
        assert len(beats) == 3  # the ids of period 4 are merged, the log of period 3 is dropped, old features too
        beats.clear()
        await of_long_ago(past, ANN)
        await worker._Leftovers(workshop).carry_out()
        assert len(beats) > 3 * OF_ANN


async def only_positives(b: Bench, number: int, *item_ids: str) -> None:
    """Clicks of many on one item, and one on each of these."""
    clicked = ["item1"] * 40 + list(item_ids)
    events = [
        Interaction(f"{number}-{n}", f"user{n}", item, 1, moment(START_MS + number * HOUR_MS + n))
        for n, item in enumerate(clicked)
    ]
    await ingest(b.database, b.workshop.histories, EventBatch.of(events))


async def resolve(b: Bench, number: int) -> None:
    """With so many negatives that none of the items is missed."""
    window = b.settings.attribution_window
    await update_model.resolve_labels(b.database, b.workshop.histories, number, window, negatives_per_positive=5)


class Away:
    """Histories in a Redis that does not answer."""

    async def forget_user(self, user_id: str) -> None:
        raise NotReady("Redis does not answer")

    async def forget_all(self) -> None:
        raise NotReady("Redis does not answer")


def delete_slowly(dsn: str, redis_url: str, journal: Path) -> None:
    """A process that carries out what is pending, a row at a time."""
    from service.storage.redis.connection import connect
    from service.storage.redis.histories import HistoryStore

    async def run() -> None:
        database = Database(dsn)
        forget.ROWS_OF_A_STEP = 1
        remove = forget._count

        async def slowly(*arguments: Any) -> None:
            await remove(*arguments)
            await asyncio.sleep(0.02)

        forget._count = slowly
        await carry_out_pending(database, HistoryStore(connect(redis_url), database), journal, older_than=timedelta())

    asyncio.run(run())


# --- an old copy


def command(*arguments: str, **environment: str) -> Result:
    """A command in a thread of this process: as a program of its own it would take seconds to start."""
    result = in_thread(lambda: CliRunner().invoke(cli, arguments, env=environment))
    assert result.exit_code == 0, result.output
    return result


class TestRestored:
    async def test_who_was_deleted_since_is_deleted_again(
        self, past: Bench, copy: Make, redis: Redis, tmp_path: Path
    ) -> None:
        """And nobody else: neither whose deletion the backup knows, nor who has the id of one whom it knows."""
        await delete(past, "item", LAMP)
        lamp = Interaction("a new lamp", "user1", LAMP, 1, datetime.now(UTC))
        await ingest(past.database, past.workshop.histories, EventBatch.of([lamp]))
        pending = await request_deletion(past.database, "user", "user3", actor="test")
        folder = tmp_path / "backup"
        await back_up(past.database, folder, past.settings.journal)
        assert read_backup(folder).journal == str(past.settings.journal)
        await delete(past)
        await carry_out(past.database, past.workshop.histories, past.settings.journal, pending)
        journal = read_journal(past.settings.journal)
        assert len(journal) == 3
        content = past.settings.journal.read_text()
        assert not any(id_ in content for id_ in (ANN, LAMP, "user3", MARK))
        async with opened(copy()) as database:
            deletions: dict[str, Any] = {"actor": "test", "deletions": journal}
            assert await restore(database, redis, folder, read_backup(folder), **deletions) == 2
            assert await marked(database, ANN) == set()
            assert await scalar(database, "SELECT count(*) FROM interactions WHERE user_id = 'user3'") == 0
            assert await scalar(database, "SELECT count(*) FROM interactions WHERE item_id = :i", i=LAMP) == 1
            assert (await verify(database, tmp_path)).findings == []
            async with database.read() as session:
                known = [deletion.deletion for deletion in await session.deletions.list()]
                (entry,) = await session.audit.list(1)
            assert sorted(known) == sorted(entry.deletion for entry in journal)
            assert (entry.action, entry.detail["deletions_read"], entry.detail["deleted"]) == ("restore", 3, 2)

    async def test_the_commands_find_the_journal_by_themselves(
        self, past: Bench, copy: Make, redis_url: str, tmp_path: Path
    ) -> None:
        """On an empty server with a data folder of its own; the one that was backed up is on this host."""
        servers = {"ASMG_REDIS_URL": redis_url, "ASMG_POSTGRES_DSN": str(past.settings.postgres_dsn)}
        await back_up(past.database, tmp_path / "backup", past.settings.journal)
        await delete(past)
        command("deletions", "export", str(tmp_path / "exported"), ASMG_DATA_DIR=str(tmp_path / "two"), **servers)
        assert read_journal(tmp_path / "exported") == read_journal(past.settings.journal)
        servers["ASMG_POSTGRES_DSN"] = empty = copy()
        result = command("restore", str(tmp_path / "backup"), ASMG_DATA_DIR=str(tmp_path / "two"), **servers)
        assert "deleted 1 users and items again" in result.stdout and "all is well" in result.stdout
        assert read_journal(tmp_path / "two" / "deletions.jsonl") == read_journal(past.settings.journal)
        # Without it, it says so; and what was exported does as well later.
        past.settings.journal.unlink()
        servers["ASMG_POSTGRES_DSN"] = other = copy()
        result = command("restore", str(tmp_path / "backup"), ASMG_DATA_DIR=str(tmp_path / "three"), **servers)
        assert "found no journal of deletions" in result.stderr
        async with opened(empty) as database, opened(other) as other_database:
            assert await marked(database, ANN) == set()
            assert await marked(other_database, ANN) != set()
            for found in (1, 0):  # the second time it is known
                replayed = command(
                    "deletions", "replay", str(tmp_path / "exported"), ASMG_DATA_DIR=str(tmp_path / "three"), **servers
                )
                assert f"deleted {found} users" in replayed.stdout
            assert await marked(other_database, ANN) == set()

    async def test_a_journal_that_is_cut_off_or_damaged(self, past: Bench, tmp_path: Path) -> None:
        journal = past.settings.journal
        await delete(past)
        whole = journal.read_bytes()
        assert journal.stat().st_mode & 0o777 == 0o600
        (entry,) = read_journal(journal)
        journal.write_bytes(whole + whole[: len(whole) // 2] + whole)
        assert read_journal(journal) == [entry]
        for damage in (
            whole.replace(b"user", b"usar"),
            whole + b"\nnonsense",
            whole.replace(entry.key[:4].encode(), b"x"),
        ):
            journal.write_bytes(damage)
            with pytest.raises(BackupError, match="expected a deletion in line"):
                read_journal(journal)
        with pytest.raises(BackupError, match="No such file"):
            read_journal(tmp_path / "elsewhere")


# --- the calls

ONLY_FOLDED = "INSERT INTO {} VALUES ('old user', '{{{},item1}}', '{{e1,e2}}', ARRAY[now(), now()])"
ONLY_WAITING = """
    INSERT INTO unresolved_positives (interaction_id, period, user_id, item_id, shown_at)
    VALUES ('i', 5, 'old user', 'waiting', now())
"""


class TestCalls:
    async def test_what_is_stored_is_told_and_then_nothing_is(
        self, past: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        user, item = f"/users/{quote(ANN, safe='')}", f"/items/{quote(LAMP, safe='')}"
        async with running_app(past.settings) as one, running_app(past.settings) as two:
            found = (await one.client.get(user)).json()
            assert found["user_id"] == ANN and found["known_to_model"] and found["row"] >= 1
            assert LAMP in found["history"] and len(found["history"]) <= 30
            assert found["recent"]["interactions"] == 30 > found["recent"]["clicks"] > 0
            log = found["log"]
            assert [period["period"] for period in log["periods"]] == [5, 4, 3]
            assert (log["interactions"], log["impressions"], log["clicks"]) == (3 * OF_ANN + 2, 3, 3)
            assert [period["interactions"] for period in log["periods"]] == [OF_ANN, OF_ANN, OF_ANN + 2]
            page = (await one.client.get(f"{user}?limit=1&before=5")).json()["log"]
            assert ([period["period"] for period in page["periods"]], page["next"]) == ([4], 4)
            found = (await one.client.get(item)).json()
            assert (found["item_id"], found["categories"], found["known_to_model"]) == (LAMP, ["c0", "c1"], True)
            assert found["log"]["impressions"] == 6 and found["log"]["clicks"] == 3
            assert found["histories"] >= 2 and found["unresolved"] == 2  # Ann and user1; periods 4 and 5
            for app in (one, two):  # both remember the history
                question = {"user_id": ANN, "items": ["item1"]}
                assert (await app.client.post("/predict", json=question)).status_code == 200
                assert app.parts.histories.known(ANN) is not None
            for path, kind in ((user, "user"), (item, "item")):
                answer = await one.client.delete(path)
                assert (answer.status_code, answer.json()["status"]) == (200, "done"), answer.text
                assert answer.json()["removed"]["interactions"] > 0
                again = await one.client.delete(path)
                assert (again.status_code, again.json()["status"], again.json()["removed"]) == (200, "done", {})
                entries = (await one.client.get("/admin/audit?limit=4")).json()["entries"]
                assert {entry["action"] for entry in entries} == {f"delete_{kind}", f"deleted_{kind}"}
                assert MARK not in str(entries)
            assert (await past.redis.keys("asmg:past*")) == []
            for _ in range(100):
                if two.parts.histories.known(ANN) is None:
                    break
                await asyncio.sleep(0.02)
            for app in (one, two):
                assert app.parts.histories.known(ANN) is None
            await past.update(4)
            await one.parts.serving.refresh()
            for path in (user, item):
                answer = await one.client.get(path)
                assert (answer.status_code, answer.json()["title"]) == (404, "Nothing stored")
            async with past.database.unit_of_work() as work:  # what is nowhere else
                await work.connection.execute(text(ONLY_FOLDED.format("user_histories", "folded")))
                await work.connection.execute(text(ONLY_FOLDED.format("user_passes", "passed")))
                await work.connection.execute(text(ONLY_WAITING))
                await work.commit()
            for path, counts in (
                ("/items/folded", (1, 0, 0)),
                ("/items/passed", (0, 1, 0)),
                ("/items/waiting", (0, 0, 1)),
            ):
                found = (await one.client.get(path)).json()
                assert (found["histories"], found["passes"], found["unresolved"]) == counts
                assert (await one.client.delete(path)).json()["status"] == "done"
                assert (await one.client.get(path)).status_code == 404

    async def test_where_it_cannot_be_done_now_it_is_noted(
        self, past: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with running_app(past.settings) as api:
            with monkeypatch.context() as patch:
                patch.setattr(api.parts.histories, "forget_user", Away().forget_user)
                answer = await api.client.delete(f"/users/{quote(ANN, safe='')}")
                assert (answer.status_code, answer.json()["status"]) == (202, "pending")
            (record,) = [each for each in caplog.records if "not carried out yet" in each.getMessage()]
            assert record.levelname == "WARNING" and "Redis does not answer" in record.getMessage()
            assert answer.json()["deletion"] in record.getMessage() and MARK not in record.getMessage()
            again = await api.client.delete(f"/users/{quote(ANN, safe='')}")
            assert (again.status_code, again.json()["deletion"]) == (200, answer.json()["deletion"])

    async def test_ids_in_paths(self, postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
        ids = ["a/b", "/a//b/", "ü 漢", "100%", "%2F", "q?x=1#f", "a+b", "..a", "\ufffd", "x" * 256, "é" * 256]
        async with running_app(settings_for(postgres_dsn, redis_url, tmp_path)) as api:
            for kind in ("user", "item"):
                for n, id_ in enumerate(ids):
                    event = {"event_id": f"{kind}{n}", "user_id": "u", "item_id": "i", "label": 0}
                    body = {"interactions": [{**event, f"{kind}_id": id_, "timestamp": "2024-05-01T12:00:00Z"}]}
                    assert (await api.client.post("/interactions", json=body)).json()["accepted"] == 1
                    path = f"/{kind}s/{quote(id_, safe='')}"
                    found = await api.client.get(path)
                    assert (found.status_code, found.json().get(f"{kind}_id")) == (200, id_), found.text
                    assert (await api.client.delete(path)).json()["removed"] == {"interactions": 1}
                for wrong in ("%00", "a%00b", "x" * 257, "%ff", "a%C3", "", "%EF%BF%BD%ff"):
                    for method in ("GET", "DELETE"):
                        answer = await api.client.request(method, f"/{kind}s/{wrong}")
                        assert answer.status_code == 422, (wrong, answer.text)
            for query in ("limit=0", "limit=201", "before=-1", f"before={2**31}", "before=" + "9" * 5000):
                assert (await api.client.get(f"/users/u?{query}")).status_code == 422
            assert await scalar(api.parts.database, "SELECT count(*) FROM deletions") == 2 * len(ids)
