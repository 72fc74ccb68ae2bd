"""Table rows under eviction: which ids count as seen, which keep their row, and which get it next."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from pydantic import ValidationError

from asmg.features import Schema
from asmg.models import EmbeddingMLPConfig
from asmg.updaters import UPDATERS, build_updater
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EntityKind, EventBatch, Interaction
from service.use_cases import retention
from service.use_cases.catalogue import put_items
from service.use_cases.update.prepare import PreparedPeriod
from tests.service.eviction_support import (
    EVICT_AFTER,
    free_rows,
    go_on,
    period,
    rows_of,
)
from tests.service.update_support import (
    HOUR_MS,
    bench,
    moment,
    prepare_period,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Obvious:
    """Who has which row, as a dictionary has it."""

    rows: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    allocated: dict[str, int] = field(default_factory=dict)
    changed: dict[int, int] = field(default_factory=dict)
    highest: int = 0
    latest: int = 0

    def turn(self, number: int, ids: list[str], evict_after: int) -> None:
        for name in ids:
            self.seen[name] = number
        gone = [name for name in self.rows if self.seen[name] <= number - evict_after]
        self.latest += bool(gone)
        for name in gone:
            self.changed[self.rows[name]] = self.latest
            del self.rows[name], self.allocated[name]
        free = sorted(set(range(1, self.highest + 1)) - set(self.rows.values()))
        fresh = [name for name in dict.fromkeys(ids) if name not in self.rows]
        self.latest += bool(fresh)
        for name in fresh:
            row = free.pop(0) if free else self.highest + 1
            self.highest = max(self.highest, row)
            self.rows[name], self.allocated[name] = row, self.latest
            self.changed[row] = self.latest


class TestRows:
    async def test_change_hands_as_in_a_dictionary(self, database: Database) -> None:
        """For each allocation it is known which id owns which row."""
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
                    assert nobody.tolist() == sorted(r for r, at in obvious.changed.items() if at > latest)
                    # Whoever had a row then and has it no more left it to nobody; the model knew no one in the others.
                    assert set(rows_then.values()) - set(same.values()) <= set(nobody.tolist())
                    assert not set(same.values()) & set(nobody.tolist())
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
        assert prepared.allocations == {"user": 3, "item": 3, "category": 0, "field": 0}  # one freed, one was given
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
        """As long as the user is active, and as long as the click is among the most recent ones."""
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
            assert prepared.data.category_items is not None
            assert prepared.data.category_items.tolist() == [(await rows_of(logs.database, EntityKind.ITEM))["a"]]
        assert await put_items(logs.database, {"shelf": ("c1", "c3")}) == 1
        await logs.prepare(("ann", "a", 0))
        assert await logs.have_rows(EntityKind.ITEM) == {"a", "shelf"}

    async def test_an_evicted_item_of_the_catalogue_has_its_categories_when_it_is_back(self, logs: Logs) -> None:
        await put_items(logs.database, {"shelf": ("c1",)})
        for item in ("a", "a", "a", "a", "shelf"):
            prepared = await logs.prepare(("ann", item, 0))
        rows, categories = [await rows_of(logs.database, kind) for kind in (EntityKind.ITEM, EntityKind.CATEGORY)]
        assert prepared.data.category_items is not None and prepared.data.item_categories is not None
        assert prepared.data.category_items.tolist() == [rows["shelf"]]
        assert prepared.data.item_categories.tolist() == [[categories["c1"]]]

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
        """All methods except the one that keeps everything: in its logs evicted ids read as unknown ones."""
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
