"""The point-in-time rule: what a prediction reads about a user is exactly what an update learns from later.

A log is replayed through HTTP. Before each step the service is asked what it knows of the users who are about to act,
and after the close this is compared with what is prepared for the same interactions; both also with a slow and obvious
version. Times collide, down to the same millisecond across periods, and event ids do not tell the order.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from redis.asyncio import Redis
from sqlalchemy import text

from asmg.batch import PeriodData
from service.serving.id_hashes import hash_ids
from service.serving.snapshot import Prediction, Snapshot
from service.storage.postgres.repositories import EntityKind, interaction_id
from service.use_cases.update.resolve import resolve_labels
from tests.service.api_support import Api, running_app, settings_for
from tests.service.update_support import moment, prepare_period

START = moment(1_700_000_000_000)
WINDOW = timedelta(minutes=30)
USERS = ["ann", "bob", "ü 3", "dan"]
ITEMS = [f"i{n}" for n in range(12)]

Past = tuple[list[str], list[int]]
"""The items of a history, and the three numbers of what is recent."""


@dataclass
class Event:
    name: str
    user: str
    item: str
    label: int
    ms: int
    period: int


def past_of(events: list[Event], user: str, before_ms: float = float("inf")) -> Past:
    """By the definition: everything that the user did, newest first."""
    past = sorted((e for e in events if e.user == user and e.ms < before_ms), key=lambda e: (e.ms, e.name.encode()))
    past.reverse()
    labels = [e.label for e in past]
    return [e.item for e in past if e.label][:30], [len(labels[:30]), sum(labels[:10]), sum(labels[:30])]


@dataclass
class Replay:
    """A log that is replayed into a running service."""

    api: Api
    redis: Redis
    random: Random = field(default_factory=lambda: Random(7))
    events: list[Event] = field(default_factory=list)
    """All that is stored, as what it became."""
    asked: dict[str, Past] = field(default_factory=dict)
    """Event → what the service knew of its user, where nothing of the same moment was stored by then."""
    ms: int = 0
    period: int = 1
    count: int = 0

    async def known(self, user: str) -> Past:
        """What the service knows of a user now."""
        past = await self.api.state.histories.get(user)
        assert past is not None
        items = dict(zip(hash_ids(ITEMS).tolist(), ITEMS, strict=True))
        return [items[hash_] for hash_ in past.history.tolist()], past.recent.tolist()

    async def check_known(self) -> None:
        for user in USERS:
            assert await self.known(user) == past_of(self.events, user), user

    def new_name(self) -> str:
        """In no order, some the beginning of another."""
        self.count += 1
        return self.random.choice(["a", "b", "é", "~", "Z/", ""]) + str(self.count)

    def time(self, ms: int) -> str:
        """Clients know microseconds, which are in no order either."""
        return (START + timedelta(milliseconds=ms, microseconds=self.random.randrange(1000))).isoformat()

    async def post(self, path: str, kind: str, *documents: dict[str, object]) -> None:
        answer = await self.api.client.post(path, json={kind: list(documents)})
        assert answer.status_code == 200, answer.text
        assert answer.json()["accepted"] == len(documents)

    async def interact(self, users: list[str], ms: int) -> list[Event]:
        """Some interactions at one moment, in one call."""
        made = [
            Event(self.new_name(), user, self.random.choice(ITEMS), int(self.random.random() < 0.4), ms, self.period)
            for user in users
            for _ in range(self.random.randrange(1, 4))
        ]
        self.random.shuffle(made)
        await self.post(
            "/interactions",
            "interactions",
            *(
                {"event_id": e.name, "user_id": e.user, "item_id": e.item, "label": e.label, "timestamp": self.time(ms)}
                for e in made
            ),
        )
        return made

    async def show(self, user: str, ms: int) -> list[Event]:
        """An impression, of which one item is clicked at once, maybe before it is known that it was shown."""
        name, items = self.new_name(), self.random.sample(ITEMS, 4)
        impression = {"request_id": name, "user_id": user, "items": items, "timestamp": self.time(ms)}
        click = {"request_id": name, "item_id": items[0], "timestamp": self.time(ms + 1)}
        calls = [("/impressions", "impressions", impression), ("/clicks", "clicks", click)]
        if self.random.random() < 0.5:
            calls.reverse()
        for path, kind, document in calls:
            await self.post(path, kind, document)
        return [Event(interaction_id(name, i), user, i, int(i == items[0]), ms, self.period) for i in items]

    async def step(self) -> None:
        """A moment in which some users do something."""
        users = self.random.sample(USERS, 2)
        before = {}
        for user in users:
            before[user] = await self.known(user)
            assert before[user] == past_of(self.events, user)
        made = await self.interact(users, self.ms)
        if self.random.random() < 0.3:
            made += await self.show(users[0], self.ms)
        if not any(e.ms >= self.ms for e in self.events if e.user in users):
            self.asked |= {e.name: before[e.user] for e in made}
        self.events += made
        if self.random.random() < 0.2:
            await self.redis.flushdb()
        self.ms += self.random.randrange(1, 4)

    async def late(self) -> None:
        """What comes only now of moments long ago, some of which are taken."""
        for _ in range(4):
            self.events += await self.interact([self.random.choice(USERS)], self.random.randrange(self.ms))
        await self.check_known()

    async def close(self) -> None:
        """The next period begins in the millisecond in which this one ends."""
        assert (await self.api.client.post("/periods/close")).status_code == 202
        await resolve_labels(self.api.state.database, self.api.state.histories, self.period, WINDOW)
        await self.check_known()
        self.period += 1
        self.ms = max(e.ms for e in self.events)

    async def prepared(self, period: int) -> dict[str, Past]:
        """Event → what an update learns of its user's past."""
        data = (await prepare_period(self.api.state.database, period, 30)).data
        async with self.api.state.database.read() as session:
            rows = (await session.entities.find(EntityKind.ITEM, ITEMS)).tolist()
            query = f"SELECT event_id FROM interactions WHERE period = {period} ORDER BY occurred_at, event_id"
            names = list((await session.connection.execute(text(query))).scalars())
        items = dict(zip(rows, ITEMS, strict=True))
        assert data.recent is not None
        assert data.recent.dtype == torch.int32
        pasts = zip(_histories(data), data.recent.tolist(), strict=True)
        return {
            name: ([items[row] for row in history], recent)
            for name, (history, recent) in zip(names, pasts, strict=True)
        }

    async def check(self, period: int) -> int:
        """Compare; of how many interactions the service was asked in time."""
        prepared = await self.prepared(period)
        log = [e for e in self.events if e.period == period]
        assert prepared == {e.name: past_of(self.until(period), e.user, e.ms) for e in log}
        on_time = {name: past for name, past in self.asked.items() if name in prepared}
        assert {name: prepared[name] for name in on_time} == on_time
        return len(on_time)

    def until(self, period: int) -> list[Event]:
        return [e for e in self.events if e.period <= period]


def _histories(data: PeriodData) -> list[list[int]]:
    return [data.history[start:stop].tolist() for start, stop in pairwise(data.offsets.tolist())]


async def test_what_is_known_at_a_time_is_what_is_learned_of_it(
    postgres_dsn: str, redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    settings = settings_for(
        postgres_dsn, redis_url, tmp_path, history_cache_seconds=0, attribution_window_seconds=WINDOW.total_seconds()
    )
    async with running_app(settings) as api:
        replay = Replay(api, redis)
        database = api.state.database
        for _ in range(25):
            await replay.step()
        await replay.close()
        assert await replay.check(1) > 80
        first = await replay.prepared(1)

        await replay.late()
        for _ in range(20):
            await replay.step()
        await replay.close()
        assert await replay.check(2) > 60
        # What came since, late events of its time among it, changes nothing of the first period.
        assert await replay.prepared(1) == first
        assert any(e.ms < max(f.ms for f in replay.until(1)) for e in replay.events if e.period == 2)

        # A user and an item are deleted: whatever is asked and learned from now on is as if they had never been.
        for path, gone in (("/users/ann", "ann"), ("/items/i3", "i3")):
            assert (await api.client.delete(path)).json()["status"] == "done"
            replay.events = [e for e in replay.events if gone not in (e.user, e.item)]
        await replay.check_known()
        await replay.late()
        for _ in range(20):
            await replay.step()
        await replay.close()
        assert await replay.check(3) > 60

        # Logs are dropped. What late events of their time would need of them is gone; nobody else misses anything.
        for period in (1, 2):
            async with database.unit_of_work() as work:
                await work.interactions.merge_ids(period)
                assert await work.past.fold(period)
                await work.commit()
            await redis.flushdb()
            await replay.check_known()  # they are in both
            async with database.unit_of_work() as work:
                await work.interactions.drop(period, lock_seconds=5)
                await work.commit()
            await redis.flushdb()
            await replay.check_known()
        for _ in range(20):
            await replay.step()
        await replay.close()
        assert await replay.check(4) > 60


@pytest.mark.parametrize("history_length", [1, 5])
async def test_a_shorter_history_leaves_what_is_recent_as_it_is(
    postgres_dsn: str, redis_url: str, redis: Redis, tmp_path: Path, history_length: int
) -> None:
    settings = settings_for(postgres_dsn, redis_url, tmp_path, history_length=history_length)
    async with running_app(settings) as api:
        replay = Replay(api, redis)
        for user in USERS[:1] * 40:
            replay.events += await replay.interact([user], replay.ms)
            replay.ms += 1
            history, recent = await replay.known(user)
            expected = past_of(replay.events, user)
            assert (history, recent) == (expected[0][:history_length], expected[1])


async def test_a_history_that_is_sent_replaces_the_history_alone(
    postgres_dsn: str, redis_url: str, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a user who is cached, who is not, who is unknown, and for a visitor without an id; also in a batch."""
    seen: list[tuple[int, list[int], list[int]]] = []
    score = Snapshot.score

    def noted(snapshot: Snapshot, asked: Any, history: Any, recent: Any, values: Any) -> Prediction:
        seen.append((len(asked) - 1, history.tolist(), recent.tolist()))
        return score(snapshot, asked, history, recent, values)

    async with running_app(settings_for(postgres_dsn, redis_url, tmp_path)) as api:
        replay = Replay(api, redis)
        for ms in range(12):
            replay.events += await replay.interact(["ann", "bob"], ms)
        await replay.known("ann")
        monkeypatch.setattr(Snapshot, "score", noted)
        questions = [
            {"user_id": user, "items": ["i1"] * n, **({} if history is None else {"history": history})}
            for n, (user, history) in enumerate(
                [("ann", None), ("ann", ["i5"]), ("bob", ["i5"]), ("bob", None), ("nobody", ["i5"]), ("nobody", None)],
                1,
            )
        ]
        questions += [{"items": ["i1"] * 7, "history": ["i5"]}, {"items": ["i1"] * 8}]
        for question in questions:
            assert (await api.client.post("/predict", json=question)).json()["history"] == "used"
        one_by_one, seen[:] = list(seen), []
        assert (await api.client.post("/predict/batch", json={"requests": questions})).status_code == 200
    expected = []
    for question in questions:
        history, recent = past_of(replay.events, str(question.get("user_id")))
        history = question.get("history", history)  # type: ignore[assignment]
        expected.append((len(question["items"]), hash_ids(history).tolist(), recent))
    assert one_by_one == expected
    assert seen == expected
    assert [recent for _, _, recent in expected][4:] == [[0, 0, 0]] * 4 and expected[0][2][0] > 10
