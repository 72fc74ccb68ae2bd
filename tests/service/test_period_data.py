"""From a log of ids to table rows, compared with a slow and obvious version."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from random import Random

import pytest
import torch
from sqlalchemy import text

from asmg.batch import PeriodData
from asmg.features import Schema
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EventBatch, Interaction
from service.use_cases.catalogue import put_items
from tests.service.update_support import moment, prepare_period

HOUR = 3_600_000
START = moment(1_700_000_000_000)


async def prepared_data(database: Database, period: int, history_length: int) -> PeriodData:
    return (await prepare_period(database, period, history_length, schema=Schema(time=()))).data


def event(name: str, user: str, item: str, label: int, milliseconds: float) -> Interaction:
    return Interaction(name, user, item, label, START + timedelta(milliseconds=milliseconds))


@dataclass
class Logs:
    """The logs of all periods, kept in the database and here."""

    database: Database
    closed: list[list[Interaction]] = field(default_factory=list)
    catalogue: dict[str, tuple[str, ...]] = field(default_factory=dict)

    async def add(self, *batches: Sequence[Interaction]) -> int:
        """One more period, ingested batch by batch; its number. A batch is in the order of its event ids."""
        number = len(self.closed) + 1
        async with self.database.unit_of_work() as work:
            for batch in batches:
                assert [e.event_id for e in batch] == sorted(e.event_id for e in batch)
                assert len((await work.interactions.insert(number, EventBatch.of(batch))).accepted) == len(batch)
            await work.periods.seal(number, sum(map(len, batches)))
            await work.periods.create(number + 1)
            await work.commit()
        self.closed.append([event for batch in batches for event in batch])
        return number

    async def put(self, items: Mapping[str, tuple[str, ...]]) -> None:
        await put_items(self.database, items)
        self.catalogue |= items


@dataclass
class Obvious:
    """What preparing periods one after the other should give."""

    rows: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))

    def prepare(self, logs: Logs, period: int, length: int = 30) -> "Expected":
        log = sorted(logs.closed[period - 1], key=lambda e: e.occurred_at)  # stable: of equal times as ingested
        before = [e for closed in logs.closed[: period - 1] for e in closed]
        known_before = {e.user_id for e in log}
        clicked_before = sorted((e for e in before if e.label and e.user_id in known_before), key=_newest_first)
        self._allocate("user", (e.user_id for e in log))
        self._allocate("item", (e.item_id for e in log))
        self._allocate("item", (e.item_id for e in clicked_before))
        self._allocate("item", sorted(logs.catalogue))
        self._allocate("category", (name for item in sorted(logs.catalogue) for name in logs.catalogue[item]))
        histories = []
        for e in log:
            # At the resolution of the log, a millisecond, only what is strictly earlier had happened.
            clicks = [c for c in [*before, *log] if c.label and c.user_id == e.user_id and _ms(c) < _ms(e)]
            clicks.sort(key=lambda c: c.occurred_at)  # stable: of equal times the one ingested later is more recent
            histories.append([self.rows["item"][c.item_id] for c in reversed(clicks)][:length])
        return Expected(
            user=[self.rows["user"][e.user_id] for e in log],
            item=[self.rows["item"][e.item_id] for e in log],
            label=[float(e.label) for e in log],
            histories=histories,
            sizes={kind: len(self.rows[kind]) + 1 for kind in ("user", "item", "category")} | {"field": 1},
            categories={
                self.rows["item"][item]: [self.rows["category"][name] for name in names]
                for item, names in logs.catalogue.items()
            },
        )

    def _allocate(self, kind: str, ids: Iterable[str]) -> None:
        for name in ids:
            self.rows[kind].setdefault(name, len(self.rows[kind]) + 1)


def _newest_first(event: Interaction) -> tuple[str, float]:
    return event.user_id, -event.occurred_at.timestamp()


def _ms(event: Interaction) -> int:
    return (event.occurred_at - START) // timedelta(milliseconds=1)


@dataclass
class Expected:
    user: list[int]
    item: list[int]
    label: list[float]
    histories: list[list[int]]
    sizes: dict[str, int]
    categories: dict[int, list[int]]

    def check(self, data: PeriodData) -> None:
        assert data.user.tolist() == self.user
        assert data.item.tolist() == self.item
        assert data.label.tolist() == self.label
        assert histories(data) == self.histories
        assert data.sizes == self.sizes
        assert data.item_categories is not None and data.category_items is not None
        table = [[c for c in row if c != -1] for row in data.item_categories.tolist()]
        known = dict(zip(data.category_items.tolist(), table, strict=True))
        assert known == {row: names for row, names in self.categories.items() if row in known}
        touched = {*data.item.tolist(), *data.history.tolist()}
        assert {row for row, names in self.categories.items() if names and row in touched} <= set(known)


def histories(data: PeriodData) -> list[list[int]]:
    starts = data.offsets.tolist()
    return [data.history[a:b].tolist() for a, b in pairwise(starts)]


@pytest.fixture
def logs(database: Database) -> Logs:
    return Logs(database)


@pytest.mark.parametrize("seed", range(4))
async def test_equals_the_obvious_version(logs: Logs, seed: int) -> None:
    random, obvious = Random(seed), Obvious()
    users, items = [f"u{n}" for n in range(6)], [f"i{n:02}" for n in range(25)]
    for number in range(1, 5):
        if random.random() < 0.7:
            chosen = random.sample(items, 8)
            await logs.put({i: tuple(random.sample("pqrstuv", random.randrange(4))) for i in chosen})
        batches = []
        for part in range(3):
            batch = []
            for n in range(50):
                # Few distinct moments, so that many are equal; a tenth comes late, up to two periods.
                late = random.randrange(2 * HOUR) if random.random() < 0.1 else 0
                time = number * HOUR + random.randrange(40) * HOUR / 40 - late
                # Two users in three come back in every period, the others now and then.
                user = random.choice(users[: 4 if random.random() < 0.9 else 6])
                batch.append(event(f"{number}-{part}-{n:03}", user, random.choice(items), random.randrange(2), time))
            batches.append(batch)
        await logs.add(*batches)
        data = await prepared_data(logs.database, number, 30)
        expected = obvious.prepare(logs, number)
        expected.check(data)
    assert max(map(len, expected.histories)) == 30


@pytest.mark.parametrize("length", [1, 3, 30])
async def test_the_cap_keeps_the_most_recent(logs: Logs, length: int) -> None:
    await logs.add([event(f"a{n:02}", "u", f"i{n}", 1, n) for n in range(40)])
    await logs.add([event(f"b{n}", "u", f"j{n}", 1, 100 + n) for n in range(2)] + [event("bx", "u", "k", 0, 200)])
    obvious = Obvious()
    obvious.prepare(logs, 1, length).check(await prepared_data(logs.database, 1, length))
    data = await prepared_data(logs.database, 2, length)
    obvious.prepare(logs, 2, length).check(data)
    # By hand: i0…i39 have rows 1…40, j0 and j1 follow with 41 and 42.
    assert histories(data)[2] == [42, 41, *range(40, 0, -1)][:length]


async def test_rows_are_repeatable_and_stable(logs: Logs) -> None:
    await logs.add([event("a1", "zoe", "z", 1, 1), event("a2", "amy", "y", 0, 2), event("a3", "zoe", "y", 1, 3)])
    first = await prepared_data(logs.database, 1, 30)
    again = await prepared_data(logs.database, 1, 30)
    for name in ("user", "item", "history", "offsets", "label", "item_categories"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert (first.user.tolist(), first.item.tolist()) == ([1, 2, 1], [1, 2, 2])
    await logs.add([event("b1", "new", "x", 1, 10), event("b2", "amy", "z", 0, 11)])
    second = await prepared_data(logs.database, 2, 30)
    assert (second.user.tolist(), second.item.tolist(), second.sizes) == (
        [3, 2],
        [3, 1],
        {"user": 4, "item": 4, "category": 1, "field": 1},
    )
    # The first period has still the same rows, though the tables have grown.
    later = await prepared_data(logs.database, 1, 30)
    assert (later.user.tolist(), later.item.tolist()) == ([1, 2, 1], [1, 2, 2])
    assert (later.users, later.items) == (4, 4)


async def test_the_open_period_does_not_show(logs: Logs) -> None:
    await logs.add([event("a1", "u", "i", 1, 100), event("a2", "u", "j", 0, 200)])
    async with logs.database.unit_of_work() as work:
        # Ingested into period 2 before period 1 is prepared, and said to have happened in the midst of it.
        events = [event("b1", "u", "other", 1, 150), event("b2", "v", "j", 1, 50)]
        await work.interactions.insert(2, EventBatch.of(events))
        await work.commit()
    data = await prepared_data(logs.database, 1, 30)
    assert histories(data) == [[], [1]]
    assert data.sizes == {"user": 2, "item": 3, "category": 1, "field": 1}


async def test_a_history_ends_strictly_before_its_interaction(logs: Logs) -> None:
    await logs.add([event("a1", "u", "old", 1, 100), event("a2", "u", "same", 1, 200)])
    await logs.add(
        [
            event("b1", "u", "x", 1, 200),
            event("b2", "u", "y", 1, 200.4),  # the same millisecond
            event("b3", "u", "z", 0, 201),
            event("b4", "other", "z", 0, 300),
        ]
    )
    await prepared_data(logs.database, 1, 30)
    data = await prepared_data(logs.database, 2, 30)
    # Rows: old 1, same 2, x 3, y 4, z 5. A click is in no history of its own millisecond, from whatever period.
    assert histories(data) == [[1], [1], [4, 3, 2, 1], []]


async def test_clicks_of_the_same_millisecond_take_no_place_in_a_history(logs: Logs) -> None:
    await logs.add([event("a1", "u", "old", 1, 100), event("a2", "u", "same", 1, 200.2)])
    await logs.add([event("b1", "u", "x", 0, 200.4)])
    await prepared_data(logs.database, 1, 1)
    assert histories(await prepared_data(logs.database, 2, 1)) == [[1]]


async def test_of_equal_times_the_one_ingested_later_is_more_recent(logs: Logs) -> None:
    await logs.add([event(f"a{n}", "u", f"i{n}", 1, 100) for n in range(4)])
    await logs.add([event("b0", "u", "i4", 1, 100), event("b1", "u", "i5", 0, 200)])
    await prepared_data(logs.database, 1, 3)
    data = await prepared_data(logs.database, 2, 3)
    assert histories(data) == [[], [5, 4, 3]]


async def test_a_late_event_has_the_history_of_its_time(logs: Logs) -> None:
    await logs.add([event(f"a{n:02}", "u", f"i{n:02}", 1, n) for n in range(80)])
    # Arrives a period late; sixty clicks of that period came after it.
    await logs.add([event("b0", "u", "late", 1, 19.5), event("b1", "u", "x", 0, 1000), event("b2", "v", "x", 0, 1000)])
    await prepared_data(logs.database, 1, 30)
    data = await prepared_data(logs.database, 2, 30)
    late, usual, stranger = histories(data)
    assert late == list(range(19, 0, -1))  # of i00…i18; i19 shares its millisecond
    assert usual == list(range(80, 50, -1))
    assert stranger == []


async def test_clicks_said_to_be_in_the_future_do_not_hide_the_others(logs: Logs) -> None:
    century = 100 * 365 * 24 * HOUR
    await logs.add([event("a1", "u", "old", 1, 1), *(event(f"b{n:02}", "u", "odd", 1, century) for n in range(40))])
    await logs.add([event("c1", "u", "x", 0, HOUR)])
    await prepared_data(logs.database, 1, 30)
    data = await prepared_data(logs.database, 2, 30)
    assert histories(data) == [[1]]


async def test_sampled_negatives_are_nobodys_past(logs: Logs) -> None:
    """Neither those of the period nor earlier ones count as the past; their own past is that of their user."""
    for number in (1, 2):
        first = 100 * number
        clicks = [event(f"{number}c{n}", "u", f"i{n}", 1, first + n) for n in range(8)]
        # Of the moment of their click, and in between by their ids.
        drawn = [event(f"{number}c{n}~sampled1", "u", "other", 0, first + n) for n in range(8)]
        passed = [event(f"{number}p{n}", "u", "passed", 0, first + 3) for n in range(2)]
        await logs.add(sorted([*clicks, *drawn, *passed], key=lambda e: e.event_id))
    async with logs.database.unit_of_work() as work:
        await work.connection.execute(text("UPDATE interactions SET sampled = true WHERE event_id LIKE '%~sampled1'"))
        await work.commit()
    recent = []
    for number in (1, 2):
        data = await prepared_data(logs.database, number, 30)
        assert data.recent is not None
        recent.append(data.recent.tolist())
    # By hand: each click with its sampled negative, and behind the fourth pair the two passes.
    before = [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3], [6, 4, 4], [7, 5, 5], [8, 6, 6], [9, 7, 7]]
    assert recent[0] == [row for n, row in enumerate(before) for _ in range(4 if n == 3 else 2)]
    # Among the newest ten are both passes still, and as many clicks.
    assert recent[1][:8:2] == [[10 + n, 8, 8 + n] for n in range(4)]


async def test_catalogue_items_have_rows_before_anyone_sees_them(logs: Logs) -> None:
    await logs.put({"c-shoe": ("red", "shoe"), "b-none": (), "a-hat": ("hat", "red", "wool")})
    await logs.add([event("a1", "u", "c-shoe", 1, 1), event("a2", "u", "unlisted", 0, 2)])
    data = await prepared_data(logs.database, 1, 30)
    assert data.item.tolist() == [1, 2]
    # a-hat 3, b-none 4; categories in the order of the items' ids: hat 1, red 2, wool 3, shoe 4.
    assert data.sizes == {"user": 2, "item": 5, "category": 5, "field": 1}
    assert data.category_items is not None and data.item_categories is not None
    assert data.category_items.tolist() == [1, 3, 4]
    assert data.item_categories.tolist() == [[2, 4, -1], [1, 2, 3], [-1, -1, -1]]

    await logs.put({"c-shoe": ("sandal",), "d-new": ("hat",)})
    await logs.add([event("b1", "u", "b-none", 1, 10)])
    later = await prepared_data(logs.database, 2, 30)
    assert later.sizes == {"user": 2, "item": 6, "category": 6, "field": 1}
    # What was put (nothing says here that some was taken up before), and what the period touches.
    assert later.category_items is not None and later.item_categories is not None
    assert later.category_items.tolist() == [1, 3, 4, 5]
    assert [row[0] for row in later.item_categories.tolist()] == [5, 1, -1, 1]


async def test_ids_of_a_period_that_was_given_up_get_their_rows_later(logs: Logs) -> None:
    await logs.add([event("a1", "u", "i", 1, 1), event("a2", "gone", "j", 1, 2)])
    await logs.add([event("b1", "new", "k", 0, 10), event("b2", "u", "k", 0, 11)])
    data = await prepared_data(logs.database, 2, 30)
    assert (data.user.tolist(), data.item.tolist(), histories(data)) == ([1, 2], [1, 1], [[], [2]])
    assert (data.users, data.items) == (3, 3)


def test_the_clock_of_these_tests_is_exact() -> None:
    assert datetime.fromisoformat("2023-11-14T22:13:20+00:00") == START
