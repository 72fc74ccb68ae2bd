"""Eviction in the period cycle: tables stay bounded, and no model confuses an id with a row's former owner."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sqlalchemy import make_url, text
from typing_extensions import override

from asmg.batch import PeriodData
from asmg.models import table_sizes
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import Allocation, Entities, EntityKind, PeriodStatus
from service.storage.redis.notices import Notices
from service.use_cases.catalogue import put_items
from service.use_cases.quarantine import retry_period
from service.use_cases.rollback import rollback
from service.use_cases.update import gate
from service.use_cases.update import prepare as prepare_module
from tests.conftest import Servers, database_dsn, flush, in_thread
from tests.service.backup_support import sql
from tests.service.eviction_support import (
    EVICT_AFTER,
    EVICTING,
    NEVER_KNOWN,
    go_on,
    period,
    rows_of,
)
from tests.service.layers_support import served_parameters, stored_period, whole_statistics
from tests.service.predictions_by_hand import clicks_by_hand
from tests.service.update_doubles import update_interrupted_often
from tests.service.update_support import (
    Prepared,
    bench,
    copies,
    outcome,
    parts_of,
    prepare_period,
    scalar,
    snapshot_of,
    until_true,
)
from tests.service.worker_processes import forked_worker

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def prepared(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], tmp_path_factory: Any
) -> Iterator[Prepared]:
    """A database with seven versions and period 8 to be updated on, in which ids are evicted and rows given again."""
    folder = tmp_path_factory.mktemp("prepared")

    async def make(dsn: str) -> None:
        async with bench(dsn, servers.redis_url, folder, **EVICTING) as b:
            await go_on(b, *(period(t) for t in range(1, 8)))
            await b.log(period(8))

    async def finish(dsn: str) -> dict[str, Any]:
        async with bench(dsn, servers.redis_url, folder, **EVICTING) as b:
            before = await rows_of(b.database, EntityKind.USER)
            await b.update(8)
            after = await rows_of(b.database, EntityKind.USER)
            assert "gone" in before.keys() - after.keys()
            assert {before[n] for n in before.keys() - after.keys()} & {after[n] for n in after.keys() - before.keys()}
            return await b.outcome()

    with copies(servers, migrated_template, database_numbers) as copy:
        name = copy()
        in_thread(asyncio.run, make(database_dsn(servers, name)))
        yield Prepared(name, in_thread(asyncio.run, finish(database_dsn(servers, copy(name)))))


@pytest.fixture(scope="module")
def eight(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], tmp_path_factory: Any
) -> Iterator[Callable[[str], str]]:
    """Name of a database with eight versions of an update method, which nobody changes."""
    with copies(servers, migrated_template, database_numbers) as copy:

        async def make(dsn: str, updater: str) -> None:
            folder = tmp_path_factory.mktemp("eight")
            async with bench(dsn, servers.redis_url, folder, updater=updater, **EVICTING) as b:
                await go_on(b, *(period(t, events=40) for t in range(1, 9)))

        @cache
        def name_of(updater: str) -> str:
            name = copy()
            flush(servers.redis_url)
            in_thread(asyncio.run, make(database_dsn(servers, name), updater))
            flush(servers.redis_url)
            return name

        yield name_of


@pytest.fixture
def eighth(copy: Callable[..., str], prepared: Prepared) -> str:
    """DSN of a database with period 8 to be updated on."""
    return copy(prepared.name)


class TestCycle:
    @pytest.mark.parametrize("updater", ["asmg-gru-multi", "asmg-gru-full", "spmf", "sml-mf"])
    async def test_tables_stay_bounded_and_who_is_evicted_is_cold(
        self, copy: Callable[..., str], eight: Callable[[str], str], redis_url: str, tmp_path: Path, updater: str
    ) -> None:
        last, periods = 10, [period(t, events=40) for t in range(1, 11)]
        async with bench(copy(eight(updater)), redis_url, tmp_path, updater=updater, **EVICTING) as b:
            await go_on(b, *periods[8:])
            found = await b.outcome()
            sizes = {n: table_sizes((await parts_of(b, found, n))["base"]) for n in (7, 8, last)}
            snapshot, before = await snapshot_of(b, last, tmp_path), await snapshot_of(b, 7, tmp_path)
            users = await rows_of(b.database, EntityKind.USER)
        # As many rows as the ids of eight periods need; later ones bring as many new ids as leave.
        assert sizes[7] == sizes[8] == sizes[last]
        assert set(users) == {*periods[-1].user_ids, *(name for p in periods[-7:] for name in p.user_ids)}
        for table, ever in (
            ("user", {name for p in periods for name in p.user_ids}),
            ("item", {name for p in periods for name in p.item_ids}),
        ):
            assert sizes[last][table] < len(ever)
        assert snapshot.overlay is None  # rows have changed hands
        assert len(snapshot.base.file.tensors["users.vectors"]) == len(users) + 1
        asked, past = ["evergreen1", "lost", f"i{last}.1", NEVER_KNOWN], ["evergreen0", "lost"]
        prediction = snapshot.predict("gone", asked, past)
        assert prediction.cold_user
        assert prediction.cold_items.tolist() == [1, 3]
        # To the bit what it says of who was never there.
        stranger = snapshot.predict(NEVER_KNOWN, ["evergreen1", NEVER_KNOWN, f"i{last}.1"], ["evergreen0", NEVER_KNOWN])
        assert prediction.scores[:3].tolist() == stranger.scores.tolist()
        assert not snapshot.predict("regular0", ["evergreen1"], []).cold_user
        # A version from before, kept for a rollback, has an index of its own.
        assert not before.predict("gone", ["lost"], []).cold_user
        assert before.predict("gone", ["lost"], []).cold_items.tolist() == []

    @pytest.mark.parametrize("updater", ["asmg-gru-multi", "spmf"])
    async def test_who_returns_is_as_new(
        self, copy: Callable[..., str], eight: Callable[[str], str], redis_url: str, tmp_path: Path, updater: str
    ) -> None:
        """The training state equals the one for an id that never existed before."""
        before, versions, scores = copy(eight(updater)), [], []
        async with bench(before, redis_url, tmp_path, updater=updater, **EVICTING) as b:
            # What is recent comes from the log, as the history does: somebody who was never there has none.
            await sql(b.database, "DELETE FROM interactions WHERE user_id = 'gone'")
        for rename in (False, True):
            async with bench(copy(make_url(before).database), redis_url, tmp_path, updater=updater, **EVICTING) as b:
                await go_on(b, period(9, events=40, back=9, rename=rename))
                versions.append((await b.outcome())["versions"])
                snapshot = await snapshot_of(b, 9, tmp_path / str(rename))
                gone, lost = ("another", "other") if rename else ("gone", "lost")
                prediction = snapshot.predict(gone, ["evergreen0", lost], ["evergreen2"])
                assert not prediction.cold_user
                assert not len(prediction.cold_items)
                scores.append(prediction.scores.tolist())
        one, other = (v[9] for v in versions)
        files = [v["state"].pop("snapshot", None) for v in (one, other)]
        assert one["state"] == other["state"]
        assert (one["kind"], one["scores"], one["gate"]) == (other["kind"], other["scores"], other["gate"])
        assert one["serving"] != other["serving"]  # which knows its ids
        assert files[0] != files[1]
        assert scores[0] == scores[1]

    async def test_negatives_that_are_sampled_keep_no_item(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path
    ) -> None:
        """Otherwise chance would keep all items: here each is drawn in nearly every period, as long as it may
        be drawn.
        """
        setting = {**EVICTING, "updater": "iu", "negatives_per_positive": 5}
        async with bench(postgres_dsn, redis_url, tmp_path, **setting) as b:
            drawn, last = {}, 10
            for number in range(1, last + 1):
                clicked = replace(period(number), labels=np.ones_like(period(number).labels), new_items={})
                await go_on(b, clicked)
                async with b.database.read() as session:
                    log = await session.interactions.log(number)
                    drawn[number] = set(log.item_ids) - set(clicked.item_ids)
                    assert set(await session.interactions.shown_items(number)) == set(clicked.item_ids)
            items = await rows_of(b.database, EntityKind.ITEM)
        fleeting = {number: {f"i{number}.{n}" for n in range(3)} for number in range(1, last + 1)}
        assert sum(fleeting[2] <= drawn[number] for number in range(3, 2 + EVICT_AFTER)) >= 3
        # Two periods more than the setting says, in which they are in a history yet.
        assert not fleeting[1] & (items.keys() | drawn[last])
        assert set().union(*(fleeting[number] for number in range(last - 6, last + 1))) <= items.keys()

    async def test_models_from_before_are_scored_as_if_new_ids_had_no_row(
        self, eighth: str, redis_url: str, tmp_path: Path
    ) -> None:
        """An id that got the row of an id known to the baseline is unknown to the baseline, although the row is not."""
        async with bench(eighth, redis_url, tmp_path, **EVICTING) as b:
            ids = {kind: await rows_of(b.database, kind) for kind in (EntityKind.USER, EntityKind.ITEM)}
            await b.update(8)
            found = await b.outcome()
            now = {kind: await rows_of(b.database, kind) for kind in (EntityKind.USER, EntityKind.ITEM)}
            async with b.database.read() as session:
                stage = await session.stages.get(8, "prepare")
            assert stage is not None
            artifacts = b.context.artifacts
            data = await stored_period(b.context, stage.result["data"])
            kept = {kind: {row for name, row in now[kind].items() if name in ids[kind]} for kind in now}
            taken = set(data.user.tolist()) & (set(ids[EntityKind.USER].values()) - kept[EntityKind.USER])
            assert taken
            by_strangers = strangers_made_cold(data, kept)
            checked = {e.model: e for e in found["evaluations"] if e.period == 8}
            assert {e.version for e in checked.values()} >= {1, 7}
            strange = torch.tensor([row for row in range(1, data.items) if row not in kept[EntityKind.ITEM]])
            assert data.fields is not None
            states = {number: found["versions"][number]["state"] for number in (1, 6, 7)}
            for name, number, model, counted in (
                ("baseline", 1, await served_parameters(artifacts, states[1]), states[1]["serving_statistics"]),
                ("previous", 6, await served_parameters(artifacts, states[6]), states[6]["serving_statistics"]),
                ("incremental", 7, (await parts_of(b, found, 7))["base"], states[7]["parts"]["statistics"]),
            ):
                params = {n: t.double().numpy() for n, t in model.items()}
                statistics = await whole_statistics(artifacts, counted)
                without = statistics.forgotten({"item": strange}).inputs(data).double().numpy()
                told_apart = np.abs(without - statistics.inputs(data).double().numpy()).max()
                # After one period nothing of items has differed yet, and so nothing of it is read.
                assert (told_apart == 0) if name == "baseline" else (told_apart > 0.1)
                label = data.label.numpy()
                async with b.database.read() as session:
                    allocation = states[number]["allocations"]["field"]
                    new = torch.from_numpy(await session.entities.rows_of_nobody(EntityKind.FIELD, allocation))
                fields = data.fields.forgotten(new)
                right, wrong = (
                    clicks_by_hand(params, replace(d, fields=fields), without) for d in (by_strangers, data)
                )
                assert checked[name].logloss == pytest.approx(log_loss(label, right), rel=1e-5)
                assert abs(log_loss(label, right) - log_loss(label, wrong)) > 1e-4

    async def test_a_version_that_goes_on_serving_the_old_model_says_whom_that_knows(
        self, eighth: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with bench(eighth, redis_url, tmp_path, **EVICTING) as b:
            with monkeypatch.context() as patch:
                patch.setattr(gate, "CALIBRATION_RANGE", (100.0, 200.0))
                await b.update(8)
            found = (await b.outcome())["versions"]
            assert found[8]["kind"] == "previous"
            assert found[8]["serving"] == found[7]["serving"]
            assert found[8]["state"]["serving_allocations"] == found[7]["state"]["allocations"]
            assert found[8]["state"]["allocations"]["user"] > found[7]["state"]["allocations"]["user"]
            assert not (await snapshot_of(b, 8, tmp_path)).predict("gone", ["lost"], []).cold_user
            await go_on(b, period(9))
            assert (await snapshot_of(b, 9, tmp_path)).predict("gone", ["lost"], []).cold_user

    async def test_models_are_scored_when_it_is_committed_which_rows_changed_hands(
        self, eighth: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Scoring asks Postgres in a transaction of its own. No row is written before the period is encoded."""
        loop, encoded = asyncio.get_running_loop(), asyncio.Event()
        encode, append = prepare_module.encode_period, Entities.append

        def encode_and_tell(*values: Any) -> PeriodData:
            loop.call_soon_threadsafe(encoded.set)
            return encode(*values)

        async def append_later(entities: Entities, kind: EntityKind, allocation: Allocation) -> None:
            await encoded.wait()
            await asyncio.to_thread(time.sleep, 0.1)
            await append(entities, kind, allocation)

        monkeypatch.setattr(prepare_module, "encode_period", encode_and_tell)
        monkeypatch.setattr(Entities, "append", append_later)
        async with bench(eighth, redis_url, tmp_path, **EVICTING) as b:
            period = prepare_module.prepared_period(b.database, 8, EVICTING["history_length"], evict_after=EVICT_AFTER)
            async with period as prepared:
                assert prepared.written.done()

    async def test_who_gets_a_row_while_an_update_is_under_way_is_not_known_to_its_version(
        self, eighth: str, prepared: Prepared, redis_url: str, tmp_path: Path
    ) -> None:
        """A worker that lost its leadership without noticing also prepares the period, with one more item in the
        catalogue.
        """
        async with bench(eighth, redis_url, tmp_path, **EVICTING) as b:

            class Meanwhile(Notices):
                @override
                async def publish_progress(self, period: int, progress: Any) -> None:
                    if progress["stage"] == "update_base":
                        await put_items(b.database, {"late": ("c1",)})
                        await prepare_period(b.database, 8, EVICTING["history_length"], evict_after=EVICT_AFTER)

            before = await rows_of(b.database, EntityKind.ITEM)
            await b.update(8, notices=Meanwhile(b.redis))
            assert await b.outcome() == prepared.outcome
            row = (await rows_of(b.database, EntityKind.ITEM))["late"]
            assert row in before.values()
            assert (await snapshot_of(b, 8, tmp_path)).predict("regular0", ["late"], []).cold_items.tolist() == [0]
            await go_on(b, period(9))
            found = await b.outcome()
            old, new = [(await parts_of(b, found, n))["base"]["item"] for n in (8, 9)]
            assert torch.equal(old[row], old[0])  # nobody's
            assert torch.equal(new[row], old[0])
            assert not len((await snapshot_of(b, 9, tmp_path)).predict("regular0", ["late"], []).cold_items)

    async def test_an_update_from_an_older_version_takes_nobody_for_somebody_else(
        self, eighth: str, redis_url: str, tmp_path: Path
    ) -> None:
        """Version 8, in which rows got new owners, is excised from the sequence."""
        async with bench(eighth, redis_url, tmp_path, **EVICTING) as b:
            before = await rows_of(b.database, EntityKind.USER)
            await b.update(8)
            taken = {name: row for name, row in (await rows_of(b.database, EntityKind.USER)).items()
                     if name not in before and row in before.values()}  # fmt: skip
            assert taken
            await rollback(
                b.database,
                b.context.notices,
                to_version=7,
                sequence="excise",
                reason="bad data",
                actor="test",
                settings=b.settings,
            )
            await go_on(b, period(9))
            found = await b.outcome()
            assert [found["versions"][9][name] for name in ("parent", "period")] == [7, 9]
            before, after = [await parts_of(b, found, n) for n in (7, 9)]
            old = before["base"]["user"]
            new, window, hidden = (after[name]["user"] for name in ("base", "model.1", "hidden"))
            for row in taken.values():  # in period 9 nobody of them was there
                assert not torch.equal(old[row], old[0])
                assert torch.equal(new[row], new[0])
                assert torch.equal(window[row], old[0])
                assert torch.equal(hidden[row], hidden[0])

    async def test_who_comes_in_a_period_that_is_learned_late_comes_now(
        self, eighth: str, redis_url: str, tmp_path: Path
    ) -> None:
        """Its ids count as seen in the newest period, and its absence evicts nobody."""
        async with bench(eighth, redis_url, tmp_path, **EVICTING) as b:
            await b.update(8)
            await b.log(period(9))
            async with b.database.unit_of_work() as work:
                await work.periods.set_status(9, PeriodStatus.QUARANTINED)
                await work.commit()
            await go_on(b, period(10, events=30))
            before = await rows_of(b.database, EntityKind.USER)
            await retry_period(b.database, 9, reason="repaired", actor="test")
            await b.update(9)
            after, late = await rows_of(b.database, EntityKind.USER), {f"u9.{n}" for n in range(3)}
            assert after.keys() == before.keys() | late
            # Seen in period 9 they would go in period 16.
            await go_on(b, *(period(t, events=30) for t in range(11, 17)))
            assert late <= (await rows_of(b.database, EntityKind.USER)).keys()
            await go_on(b, period(17, events=30))
            assert not late & (await rows_of(b.database, EntityKind.USER)).keys()


def strangers_made_cold(data: PeriodData, kept: dict[EntityKind, set[int]]) -> PeriodData:
    """The log with rows past every table's end in the place of those that are not kept; items keep their categories."""
    far = 10_000

    def moved(rows: torch.Tensor, kind: EntityKind) -> torch.Tensor:
        return torch.tensor([row + far * (row not in kept[kind]) for row in rows.tolist()], dtype=torch.int32)

    assert data.item_categories is not None
    matrix = torch.full((far + data.items, data.item_categories.shape[1]), -1, dtype=torch.int32)
    matrix[: data.items] = matrix[far:] = data.item_categories
    return replace(
        data,
        user=moved(data.user, EntityKind.USER),
        item=moved(data.item, EntityKind.ITEM),
        history=moved(data.history, EntityKind.ITEM),
        users=far + data.users,
        items=len(matrix),
        item_categories=matrix,
    )


class TestInterruptions:
    @pytest.mark.parametrize("moment", ["commit", "committed"])
    async def test_at_every_transaction(
        self, eighth: str, prepared: Prepared, redis_url: str, tmp_path: Path, moment: str
    ) -> None:
        async with bench(eighth, redis_url, tmp_path, **EVICTING) as b:
            assert await update_interrupted_often(b, 8, moment) > 5
            assert await b.outcome() == prepared.outcome

    @pytest.mark.slow
    async def test_a_worker_that_is_killed_while_it_evicts(
        self, eighth: str, prepared: Prepared, redis_url: str, tmp_path: Path
    ) -> None:
        """Once within the transaction that frees and assigns rows, once between it and the note that it is done."""
        database = Database(eighth, pool_size=2)
        async with database.unit_of_work() as work:
            for statement in (
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END'",
                "CREATE TRIGGER evicting BEFORE UPDATE ON entity_rows FOR EACH ROW WHEN (NEW.id IS NULL) "
                "EXECUTE FUNCTION slow()",
                "CREATE TRIGGER evicted BEFORE UPDATE ON period_stages FOR EACH ROW WHEN (NEW.stage = 'prepare') "
                "EXECUTE FUNCTION slow()",
            ):
                await work.connection.execute(text(statement))
            await work.commit()
        evicting = "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^UPDATE entity_rows SET id' "
        evicting += "AND state = 'active' AND datname = current_database()"
        evicted = "SELECT count(*) FROM entity_rows WHERE id = 'u8.0'"
        noted = "SELECT count(*) FROM period_stages WHERE stage = 'prepare' AND period = 8 AND status = 'done'"
        learned = "SELECT count(*) FROM periods WHERE number = 8 AND status = 'updated'"
        # A worker prunes after it has published, maybe before it is stopped; all that is compared is to be left.
        changes = {**EVICTING, "keep_states": 50}
        gone = [await scalar(database, "SELECT count(*) FROM entity_rows WHERE id = 'gone'")]
        for sign in (evicting, evicted):
            with forked_worker(eighth, redis_url, tmp_path, **changes) as worker:
                await until_true(database, sign)
                worker.kill()
            assert await scalar(database, noted) == 0
            gone.append(await scalar(database, "SELECT count(*) FROM entity_rows WHERE id = 'gone'"))
        assert gone == [1, 1, 0]
        async with database.unit_of_work() as work:
            await work.connection.execute(text("DROP FUNCTION slow CASCADE"))
            await work.commit()
        with forked_worker(eighth, redis_url, tmp_path, **changes) as worker:
            await until_true(database, learned)
            worker.stop()
        assert await outcome(database) == prepared.outcome
        await database.close()
