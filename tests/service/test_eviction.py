"""Ids that were not seen for long lose their row: who keeps one, who gets it next, and that no model mixes them up."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import log_loss
from sqlalchemy import text
from typing_extensions import override

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, load_data
from asmg.datasets.synthetic import DriftPeriod
from asmg.features import Schema
from asmg.models import EmbeddingMLPConfig, table_sizes
from asmg.statistics import Statistics
from asmg.updaters import UPDATERS, build_updater
from service.serving.snapshot import Snapshot
from service.settings import Settings
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EntityKind, EventBatch, Interaction, PeriodStatus
from service.storage.redis.notices import Notices
from service.use_cases import retention
from service.use_cases.catalogue import put_items
from service.use_cases.quarantine import retry_period
from service.use_cases.rollback import rollback
from service.use_cases.update import gate
from service.use_cases.update.period_data import PreparedPeriod, prepare_period
from tests.conftest import Servers, database_dsn, in_thread
from tests.service.backup_support import sql
from tests.service.test_update_model import Stopped, Watched, clicks_by_hand, closing
from tests.service.update_support import Bench, bench, copies, moment, outcome, single_thread
from tests.service.worker_processes import forked_worker

NEVER_KNOWN = "nobody at all"
EVICT_AFTER = 7
"""The least there is; who was there in period 1 only is evicted in period 8."""
EVICTING: dict[str, Any] = {"evict_after_periods": EVICT_AFTER, "history_length": 3}
"""Short histories, or an item would be seen in them long after."""
HOUR_MS = 3_600_000


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


# --- a stream in which ids go and come back


def period(number: int, *, events: int = 60, back: int | None = None, rename: bool = False) -> DriftPeriod:
    """A period with regulars and with users and items that are there once.

    User `gone` and item `lost` are there in period 1 and again in period `back`, under other names where `rename`. They
    have no clicks, so that they leave nothing in anybody's history. So have four items that never come again.
    """
    rng = Random(number)
    users = [f"regular{n}" for n in range(4)] + [f"u{number}.{n}" for n in range(3)]
    items = [f"evergreen{n}" for n in range(4)] + [f"i{number}.{n}" for n in range(3)]
    rows = [(rng.choice(users), rng.choice(items)) for _ in range(events)]
    labels = [int(rng.random() < (0.7 if hash_of(item) % 2 else 0.2)) for _, item in rows]
    if number in (1, back):
        gone, lost = ("another", "other") if rename and number == back else ("gone", "lost")
        rows += [(gone, "evergreen1"), ("regular1", lost), (gone, lost)] * 3
        labels += [0] * 9
    if number == 1:
        rows += [("regular0", f"mayfly{n}") for n in range(4)]
        labels += [0] * 4
    order = Random(number + 1).sample(range(len(rows)), len(rows))
    fresh = [f"evergreen{n}" for n in range(4)] if number == 1 else []
    return DriftPeriod(
        number=number,
        user_ids=[rows[n][0] for n in order],
        item_ids=[rows[n][1] for n in order],
        labels=np.array([labels[n] for n in order], dtype=np.uint8),
        timestamps_ms=1_700_000_000_000 + number * HOUR_MS + 1000 * np.arange(len(rows)),
        probabilities=np.full(len(rows), 0.5),
        new_items={item: (f"c{n % 3}",) for n, item in enumerate([*fresh, f"i{number}.0"])},
    )


def hash_of(item: str) -> int:
    return sum(item.encode())


async def go_on(b: Bench, *periods: DriftPeriod, **parts: Any) -> None:
    for each in periods:
        await b.log(each)
        await b.update(each.number, **parts)


async def served(b: Bench, version: int, folder: Path) -> Snapshot:
    digest = (await b.outcome())["versions"][version]["serving"]
    snapshot = Snapshot.open(await b.workshop.artifacts.fetch_file(digest, folder / str(version)), version, version)
    snapshot.check()
    return snapshot


async def tensors(b: Bench, digest: str) -> dict[str, torch.Tensor]:
    return dict(Checkpoint.from_bytes(await b.workshop.artifacts.get(digest)).tensors)


async def rows_of(database: Database, kind: EntityKind) -> dict[str, int]:
    async with database.read() as session:
        ids, rows = await session.entities.rows(kind)
    return dict(zip(ids, rows.tolist(), strict=True))


async def scalar(database: Database, query: str) -> Any:
    async with database.read() as session:
        return await session.connection.scalar(text(query))


async def until(database: Database, query: str) -> None:
    """Wait for a query to say yes."""
    async with asyncio.timeout(60):
        while True:
            if await scalar(database, query):
                return
            await asyncio.sleep(0.005)


async def free_rows(database: Database, kind: EntityKind) -> list[int]:
    async with database.read() as session:
        extent = await session.entities.extent(kind)
        return (await session.entities.rows_of_nobody(kind, extent.allocation)).tolist()  # type: ignore[no-any-return]


# --- rows


@dataclass
class Obvious:
    """Who has which row, as a dictionary has it."""

    rows: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    allocated: dict[str, int] = field(default_factory=dict)
    highest: int = 0
    latest: int = 0

    def turn(self, number: int, ids: list[str], evict_after: int) -> None:
        for name in ids:
            self.seen[name] = number
        for name in [name for name in self.rows if self.seen[name] <= number - evict_after]:
            del self.rows[name], self.allocated[name]
        free = sorted(set(range(1, self.highest + 1)) - set(self.rows.values()))
        fresh = [name for name in dict.fromkeys(ids) if name not in self.rows]
        self.latest += bool(fresh)
        for name in fresh:
            row = free.pop(0) if free else self.highest + 1
            self.highest = max(self.highest, row)
            self.rows[name], self.allocated[name] = row, self.latest


class TestRows:
    async def test_change_hands_as_in_a_dictionary(self, database: Database) -> None:
        """And from each allocation on it is known whose rows are whose."""
        rng, obvious, before = Random(3), Obvious(), []
        async with database.unit_of_work() as work:
            entities = work.entities
            for number in range(1, 60):
                ids = [f"id{rng.randrange(number, number + 25)}" for _ in range(rng.randrange(12))]
                await entities.see(EntityKind.USER, ids, number)
                await entities.evict(EntityKind.USER, number, 4)
                for _ in range(2):  # the second time gives the same
                    rows = await entities.allocate(EntityKind.USER, ids, number)
                obvious.turn(number, ids, 4)
                assert rows.tolist() == [obvious.rows[name] for name in ids]
                assert await entities.extent(EntityKind.USER) == (obvious.highest, obvious.latest)
                known, at = await entities.rows(EntityKind.USER)
                assert dict(zip(known, at.tolist(), strict=True)) == obvious.rows
                before.append((obvious.latest, dict(obvious.rows), dict(obvious.allocated)))
                for latest, rows_then, allocated_then in before[-8:]:
                    same = {
                        n: r for n, r in obvious.rows.items() if allocated_then.get(n) == obvious.allocated[n]
                    }  # fmt: skip
                    assert same.items() <= rows_then.items()
                    nobody = await entities.rows_of_nobody(EntityKind.USER, latest)
                    assert nobody.tolist() == sorted(set(range(1, obvious.highest + 1)) - set(same.values()))
                    known, at = await entities.rows(EntityKind.USER, latest)
                    assert dict(zip(known, at.tolist(), strict=True)) == same
        assert obvious.highest < 50 < len(obvious.seen)

    async def test_an_id_without_a_row_is_found_at_the_cold_row(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            await work.entities.allocate(EntityKind.ITEM, ["a", "b"], 1)
            assert (await work.entities.find(EntityKind.ITEM, ["b", "x", "a", "b"])).tolist() == [2, 0, 1, 2]
            assert (await work.entities.find(EntityKind.ITEM, [])).shape == (0,)
            await work.entities.see(EntityKind.ITEM, ["x"], 2)
            assert await work.entities.evict(EntityKind.ITEM, 2, 1) == 2
            assert await work.entities.evict(EntityKind.ITEM, 2, 1) == 0
            assert (await work.entities.find(EntityKind.ITEM, ["a"])).tolist() == [0]

    async def test_periods_count_from_when_it_is_noted_who_is_seen(self, database: Database) -> None:
        """Eviction was turned on, then off and on again. A period that is not prepared counts as well."""
        async with database.unit_of_work() as work:
            entities, evicted = work.entities, {}
            for number in range(1, 20):
                await entities.allocate(EntityKind.USER, [f"once{number}"], number)
                if number == 12:
                    await entities.forget_seen()
                if number in (3, 4, 5, 8, 9, *range(15, 20)):
                    await entities.see(EntityKind.USER, ["nobody"], number)
                    evicted[number] = await entities.evict(EntityKind.USER, number, 3)
        # In period 5 those of 1 and 2, for they were not seen in 3, 4 and 5.
        assert evicted == {3: 0, 4: 0, 5: 2, 8: 3, 9: 1, 15: 0, 16: 0, 17: 8, 18: 1, 19: 1}

    async def test_who_is_noted_twice_for_one_period_is_seen_in_it(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            entities = work.entities
            await entities.allocate(EntityKind.USER, ["a", "b", "c", "d"], 1)
            for ids in (["b"], ["c", "b", "nobody"]):
                await entities.see(EntityKind.USER, ids, 2)
            assert await entities.evict(EntityKind.USER, 2, 1) == 2
            assert (await entities.rows(EntityKind.USER))[0] == ["b", "c"]

    async def test_two_at_once_agree(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            await work.entities.allocate(EntityKind.USER, [f"old{n}" for n in range(50)], 1)
            await work.entities.see(EntityKind.USER, [], 7)
            await work.commit()

        async def turn() -> list[int]:
            async with database.unit_of_work() as work:
                await work.entities.see(EntityKind.USER, ["old7", "new1"], 9)
                await work.entities.evict(EntityKind.USER, 9, 2)
                rows = await work.entities.allocate(EntityKind.USER, ["old7", "new1", "new2"], 9)
                await asyncio.sleep(0.02)
                await work.commit()
            return rows.tolist()  # type: ignore[no-any-return]

        results = await asyncio.gather(*(turn() for _ in range(4)))
        assert results == [[8, 1, 2]] * 4
        assert await free_rows(database, EntityKind.USER) == [3, 4, 5, 6, 7, *range(9, 51)]


# --- who counts as seen


@dataclass
class Logs:
    """Periods of a few interactions: (user, item, label)."""

    database: Database
    closed: int = 0

    async def prepare(self, *rows: tuple[str, str, int]) -> PreparedPeriod:
        self.closed += 1
        events = [
            Interaction(f"{self.closed}-{n}", user, item, label, moment(self.closed * HOUR_MS + n))
            for n, (user, item, label) in enumerate(rows)
        ]
        async with self.database.unit_of_work() as work:
            await work.interactions.insert(self.closed, EventBatch.of(events))
            await work.periods.seal(self.closed, len(events))
            await work.periods.create(self.closed + 1)
            await work.commit()
        return await self.again()

    async def again(self) -> PreparedPeriod:
        return await prepare_period(self.database, self.closed, 30, evict_after=3, schema=Schema(time=()))

    async def have_rows(self, kind: EntityKind) -> set[str]:
        return set(await rows_of(self.database, kind))


@pytest.fixture
def logs(database: Database) -> Logs:
    return Logs(database)


class TestSeen:
    async def test_after_so_many_periods_the_row_is_the_next_ones(self, logs: Logs) -> None:
        await logs.prepare(("ann", "a", 0), ("bob", "b", 0))
        await logs.prepare(("bob", "b", 0))
        await logs.prepare(("bob", "b", 0))
        assert await logs.have_rows(EntityKind.USER) == {"ann", "bob"}
        prepared = await logs.prepare(("bob", "b", 0), ("eve", "e", 0))
        assert await rows_of(logs.database, EntityKind.USER) == {"eve": 1, "bob": 2}
        assert await rows_of(logs.database, EntityKind.ITEM) == {"e": 1, "b": 2}
        assert prepared.data.user.tolist() == prepared.data.item.tolist() == [2, 1]
        assert (prepared.data.users, prepared.data.items) == (3, 3)
        assert prepared.allocations == {"user": 2, "item": 2, "category": 0, "field": 0}
        again = await logs.again()
        assert again.allocations == prepared.allocations
        assert again.data.user.tolist() == [2, 1]

    async def test_who_comes_just_in_time_stays(self, logs: Logs) -> None:
        await logs.prepare(("ann", "a", 0), ("bob", "b", 0))
        for _ in range(2):
            await logs.prepare(("bob", "b", 0))
        await logs.prepare(("ann", "a", 0))
        assert await rows_of(logs.database, EntityKind.USER) == {"ann": 1, "bob": 2}

    async def test_the_tables_keep_their_size(self, logs: Logs) -> None:
        await logs.prepare(*((f"u{n}", f"i{n}", 0) for n in range(5)))
        for _ in range(3):
            prepared = await logs.prepare(("bob", "b", 0))
        assert (prepared.data.users, prepared.data.items) == (7, 7)
        assert await free_rows(logs.database, EntityKind.USER) == [1, 2, 3, 4, 5]
        assert await rows_of(logs.database, EntityKind.USER) == {"bob": 6}

    async def test_what_is_in_a_history_is_seen(self, logs: Logs) -> None:
        """As long as the user comes, and for as long as the click is among the last ones."""
        await logs.prepare(("ann", "clicked", 1), ("ann", "shown", 0), ("bob", "b", 1))
        for _ in range(4):
            prepared = await logs.prepare(("ann", "a", 0))
        assert await logs.have_rows(EntityKind.ITEM) == {"clicked", "a"}
        assert prepared.data.history.tolist() == [(await rows_of(logs.database, EntityKind.ITEM))["clicked"]]
        # Bob's click, long evicted, is there again with Bob: a new item to the models.
        prepared = await logs.prepare(("bob", "a", 0))
        assert await logs.have_rows(EntityKind.ITEM) == {"clicked", "a", "b"}
        assert prepared.data.history.tolist() == [(await rows_of(logs.database, EntityKind.ITEM))["b"]]

    async def test_the_catalogue_gives_a_row_for_as_long_as_a_log_does(self, logs: Logs) -> None:
        await put_items(logs.database, {"shelf": ("c1",), "a": ("c2",)})
        for _ in range(3):
            await logs.prepare(("ann", "a", 0))
            assert await logs.have_rows(EntityKind.ITEM) == {"a", "shelf"}
            assert await put_items(logs.database, {"shelf": ("c1",)}) == 0  # nothing new in it
        for _ in range(2):
            prepared = await logs.prepare(("ann", "a", 0))
            assert await logs.have_rows(EntityKind.ITEM) == {"a"}
            # Who has a row has categories, however old the entry is; a free row has none.
            assert prepared.data.item_categories is not None
            row = (await rows_of(logs.database, EntityKind.ITEM))["a"]
            assert [r for r, names in enumerate(prepared.data.item_categories.tolist()) if max(names) > 0] == [row]
        assert await put_items(logs.database, {"shelf": ("c1", "c3")}) == 1
        await logs.prepare(("ann", "a", 0))
        assert await logs.have_rows(EntityKind.ITEM) == {"a", "shelf"}

    async def test_an_evicted_item_of_the_catalogue_has_its_categories_when_it_is_back(self, logs: Logs) -> None:
        await put_items(logs.database, {"shelf": ("c1",)})
        for item in ("a", "a", "a", "a", "shelf"):
            prepared = await logs.prepare(("ann", item, 0))
        rows, categories = [await rows_of(logs.database, kind) for kind in (EntityKind.ITEM, EntityKind.CATEGORY)]
        assert prepared.data.item_categories is not None
        assert prepared.data.item_categories[rows["shelf"]].tolist() == [categories["c1"]]

    async def test_a_changed_entry_protects_whoever_has_a_row(self, logs: Logs) -> None:
        await logs.prepare(("ann", "shelf", 0))
        for _ in range(2):
            before = await logs.prepare(("ann", "a", 0))
        await put_items(logs.database, {"shelf": ("c1",)})
        for _ in range(3):
            prepared = await logs.prepare(("ann", "a", 0))
            assert await rows_of(logs.database, EntityKind.ITEM) == {"shelf": 1, "a": 2}
            assert prepared.allocations["item"] == before.allocations["item"]  # it is not new, nor taken for new
        await logs.prepare(("ann", "a", 0))
        assert await logs.have_rows(EntityKind.ITEM) == {"a"}

    async def test_categories_are_never_evicted(self, logs: Logs) -> None:
        await put_items(logs.database, {"a": ("c1",)})
        await logs.prepare(("ann", "a", 0))
        await put_items(logs.database, {"a": ("c2",)})
        for _ in range(5):
            await logs.prepare(("ann", "b", 0))
        assert await logs.have_rows(EntityKind.CATEGORY) == {"c1", "c2"}


# --- the setting


class TestSetting:
    def test_it_is_off_unless_it_is_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Settings().evict_after_periods is None
        for value, expected in (("", None), ("7", 7), ("365", 365)):
            monkeypatch.setenv("ASMG_EVICT_AFTER_PERIODS", value)
            assert Settings().evict_after_periods == expected

    @pytest.mark.parametrize("value", ["6", "0", "-1"])
    def test_nobody_is_evicted_whose_log_is_learned_yet(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("ASMG_EVICT_AFTER_PERIODS", value)
        with pytest.raises(ValidationError) as raised:
            Settings()
        assert "evict_after_periods" in str(raised.value)
        expected = "expected at least 7, the periods that the method which looks back furthest learns from, or none"
        assert f"{expected}; received {value}" in str(raised.value)

    def test_the_least_is_what_the_methods_look_back(self) -> None:
        """All but the one that keeps everything: in its logs strangers take the place of who is evicted."""
        windows = {name: getattr(build_updater(name, EmbeddingMLPConfig()), "config", None) for name in UPDATERS}
        furthest = max(getattr(config, "window", None) or 0 for config in windows.values())
        assert furthest == EVICT_AFTER == retention.KEPT_FOR_TRAINING

    async def test_evicting_nobody_is_as_good_as_off(
        self, copy: Callable[..., str], redis_url: str, tmp_path: Path
    ) -> None:
        """Digest for digest."""
        outcomes = []
        for evict_after in (None, 100):
            async with bench(copy(), redis_url, tmp_path, evict_after_periods=evict_after) as b:
                await go_on(b, *(period(t) for t in (1, 2, 3)))
                outcomes.append(await b.outcome())
        assert outcomes[0] == outcomes[1]


# --- the period cycle


@dataclass(frozen=True)
class Prepared:
    """A database with seven versions and period 8 to be updated on, in which ids are evicted and rows given again."""

    name: str
    outcome: dict[str, Any]
    """Of an update on it that was not disturbed."""


@pytest.fixture(scope="module")
def prepared(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], tmp_path_factory: Any
) -> Iterator[Prepared]:
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


@pytest.fixture
def copy(servers: Servers, migrated_template: str, database_numbers: Iterator[int]) -> Iterator[Callable[..., str]]:
    """DSN of a new database: empty, or a copy of the one named."""
    with copies(servers, migrated_template, database_numbers) as make:
        yield lambda *source: database_dsn(servers, make(*source))


@pytest.fixture
def eighth(copy: Callable[..., str], prepared: Prepared) -> str:
    """DSN of a database with period 8 to be updated on."""
    return copy(prepared.name)


class TestCycle:
    @pytest.mark.parametrize("updater", ["asmg-gru-multi", "asmg-gru-full", "spmf", "sml-mf"])
    async def test_tables_stay_bounded_and_who_is_evicted_is_cold(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path, updater: str
    ) -> None:
        last, periods = 10, [period(t, events=40) for t in range(1, 11)]
        async with bench(postgres_dsn, redis_url, tmp_path, updater=updater, **EVICTING) as b:
            await go_on(b, *periods)
            parts = {n: (await b.outcome())["versions"][n]["state"]["parts"]["base"] for n in (7, 8, last)}
            sizes = {n: table_sizes(await tensors(b, digest)) for n, digest in parts.items()}
            snapshot, before = await served(b, last, tmp_path), await served(b, 7, tmp_path)
            users = await rows_of(b.database, EntityKind.USER)
        # As many rows as the ids of eight periods need; later ones bring as many new ids as leave.
        assert sizes[7] == sizes[8] == sizes[last]
        assert set(users) == {*periods[-1].user_ids, *(name for p in periods[-7:] for name in p.user_ids)}
        for table, ever in (
            ("user", {name for p in periods for name in p.user_ids}),
            ("item", {name for p in periods for name in p.item_ids}),
        ):
            assert sizes[last][table] < len(ever)
        assert len(snapshot.tensors["users.vectors"]) == len(users) + 1
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
        self, copy: Callable[..., str], redis_url: str, tmp_path: Path, updater: str
    ) -> None:
        """The same training state as if somebody else had come who was never there before."""
        versions, scores = [], []
        for rename in (False, True):
            async with bench(copy(), redis_url, tmp_path, updater=updater, **EVICTING) as b:
                await go_on(b, *(period(t, events=40, back=9, rename=rename) for t in range(1, 9)))
                # What is recent comes from the log, as the history does: somebody who was never there has none.
                await sql(b.database, "DELETE FROM interactions WHERE user_id = 'gone'")
                await go_on(b, period(9, events=40, back=9, rename=rename))
                versions.append((await b.outcome())["versions"])
                snapshot = await served(b, 9, tmp_path / str(rename))
                gone, lost = ("another", "other") if rename else ("gone", "lost")
                prediction = snapshot.predict(gone, ["evergreen0", lost], ["evergreen2"])
                assert not prediction.cold_user
                assert not len(prediction.cold_items)
                scores.append(prediction.scores.tolist())
        for number in range(10):
            one, other = (v[number] for v in versions)
            assert one["state"] == other["state"]
            assert (one["kind"], one["scores"], one["gate"]) == (other["kind"], other["scores"], other["gate"])
            assert (one["serving"] == other["serving"]) == (number < 9)  # which knows its ids
        assert scores[0] == scores[1]

    async def test_negatives_that_are_sampled_keep_no_item(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path
    ) -> None:
        """Else chance would keep them all: here an item is drawn in nearly every period, as long as it may be."""
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
        """Whoever has the row of somebody whom the baseline knows is a stranger to it, though the row is not."""
        async with bench(eighth, redis_url, tmp_path, **EVICTING) as b:
            ids = {kind: await rows_of(b.database, kind) for kind in (EntityKind.USER, EntityKind.ITEM)}
            await b.update(8)
            found = await b.outcome()
            now = {kind: await rows_of(b.database, kind) for kind in (EntityKind.USER, EntityKind.ITEM)}
            async with b.database.read() as session:
                stage = await session.stages.get(8, "prepare")
            assert stage is not None
            data = load_data(Checkpoint.from_bytes(await b.workshop.artifacts.get(stage.result["data"])))
            kept = {kind: {row for name, row in now[kind].items() if name in ids[kind]} for kind in now}
            taken = set(data.user.tolist()) & (set(ids[EntityKind.USER].values()) - kept[EntityKind.USER])
            assert taken
            by_strangers = strangers_made_cold(data, kept)
            checked = {e.model: e for e in found["evaluations"] if e.period == 8}
            assert {e.version for e in checked.values()} >= {1, 7}
            strange = torch.tensor([row for row in range(1, data.items) if row not in kept[EntityKind.ITEM]])
            assert data.fields is not None
            states = {number: found["versions"][number]["state"] for number in (1, 6, 7)}
            for name, number, digest, counted in (
                ("baseline", 1, states[1]["serving"], states[1]["serving_statistics"]),
                ("previous", 6, states[6]["serving"], states[6]["serving_statistics"]),
                ("incremental", 7, states[7]["parts"]["base"], states[7]["parts"]["statistics"]),
            ):
                params = {n: t.double().numpy() for n, t in (await tensors(b, digest)).items()}
                statistics = Statistics.load(Checkpoint.from_bytes(await b.workshop.artifacts.get(counted)))
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
            assert not (await served(b, 8, tmp_path)).predict("gone", ["lost"], []).cold_user
            await go_on(b, period(9))
            assert (await served(b, 9, tmp_path)).predict("gone", ["lost"], []).cold_user

    async def test_who_gets_a_row_while_an_update_is_under_way_is_not_known_to_its_version(
        self, eighth: str, prepared: Prepared, redis_url: str, tmp_path: Path
    ) -> None:
        """A worker that lost its leadership unaware prepares the period too, with one more item in the catalogue."""
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
            assert (await served(b, 8, tmp_path)).predict("regular0", ["late"], []).cold_items.tolist() == [0]
            await go_on(b, period(9))
            found = (await b.outcome())["versions"]
            old, new = [(await tensors(b, found[n]["state"]["parts"]["base"]))["item"] for n in (8, 9)]
            assert not torch.equal(old[row], old[0])
            assert torch.equal(new[row], old[0])
            assert not len((await served(b, 9, tmp_path)).predict("regular0", ["late"], []).cold_items)

    async def test_an_update_from_an_older_version_takes_nobody_for_somebody_else(
        self, eighth: str, redis_url: str, tmp_path: Path
    ) -> None:
        """Version 8, in which rows were given to others, is taken out of the sequence again."""
        async with bench(eighth, redis_url, tmp_path, **EVICTING) as b:
            before = await rows_of(b.database, EntityKind.USER)
            await b.update(8)
            taken = {name: row for name, row in (await rows_of(b.database, EntityKind.USER)).items()
                     if name not in before and row in before.values()}  # fmt: skip
            assert taken
            await rollback(
                b.database,
                b.workshop.notices,
                to_version=7,
                sequence="excise",
                reason="bad data",
                actor="test",
                lead_seconds=0,
            )
            await go_on(b, period(9))
            found = (await b.outcome())["versions"]
            assert (found[9]["parent"], found[9]["period"]) == (7, 9)
            old, new = [(await tensors(b, found[n]["state"]["parts"]["base"]))["user"] for n in (7, 9)]
            window = (await tensors(b, found[9]["state"]["parts"]["model.1"]))["user"]
            hidden = (await tensors(b, found[9]["state"]["parts"]["hidden"]))["user"]
            for row in taken.values():  # in period 9 nobody of them was there
                assert not torch.equal(old[row], old[0])
                assert torch.equal(new[row], old[0])
                assert torch.equal(window[row], old[0])
                assert torch.equal(hidden[row], hidden[0])

    async def test_who_comes_in_a_period_that_is_learned_late_comes_now(
        self, eighth: str, redis_url: str, tmp_path: Path
    ) -> None:
        """Its ids count as seen in the newest period, and nobody is evicted for want of it."""
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
    @pytest.mark.parametrize("what", ["commit", "committed"])
    async def test_at_every_transaction(
        self, eighth: str, prepared: Prepared, redis_url: str, tmp_path: Path, what: str
    ) -> None:
        """The n-th attempt ends at its n-th transaction, so each gets a little further."""
        attempts, left = 0, 0

        def told(happened: str) -> None:
            nonlocal left
            left -= happened == what
            if left == 0 and happened == what:
                raise Stopped

        watched = Watched(eighth, told)
        async with bench(eighth, redis_url, tmp_path, **EVICTING) as b, closing(watched):
            for attempts in count(1):
                left = attempts
                with suppress(Stopped):
                    await b.update(8, database=watched, artifacts=ArtifactStore(watched, b.redis))
                    break
            assert await b.outcome() == prepared.outcome
        assert attempts > 5

    @pytest.mark.slow
    async def test_a_worker_that_is_killed_while_it_evicts(
        self, eighth: str, prepared: Prepared, redis_url: str, tmp_path: Path
    ) -> None:
        """Once within the transaction that takes and gives the rows, once between it and the note that it is done."""
        database = Database(eighth, pool_size=2)
        async with database.unit_of_work() as work:
            for statement in (
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END'",
                "CREATE TRIGGER evicting BEFORE UPDATE ON entity_rows FOR EACH ROW WHEN (NEW.id IS NULL) "
                "EXECUTE FUNCTION slow()",
                "CREATE TRIGGER evicted BEFORE INSERT ON artifacts FOR EACH ROW WHEN (NEW.kind = 'period-data') "
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
                await until(database, sign)
                worker.kill()
            assert await scalar(database, noted) == 0
            gone.append(await scalar(database, "SELECT count(*) FROM entity_rows WHERE id = 'gone'"))
        assert gone == [1, 1, 0]
        async with database.unit_of_work() as work:
            await work.connection.execute(text("DROP FUNCTION slow CASCADE"))
            await work.commit()
        with forked_worker(eighth, redis_url, tmp_path, **changes) as worker:
            await until(database, learned)
            worker.stop()
        assert await outcome(database) == prepared.outcome
        await database.close()
