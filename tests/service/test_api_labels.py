"""Impressions and clicks are stored once, in whichever order they arrive, and count in histories at once."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from service.limits import MAX_ID_LENGTH
from service.serving.id_hashes import hash_ids
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import interaction_id
from tests.service.api_support import Api, click, impression, recorded_histories

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
WINDOW = timedelta(minutes=30)
MS = timedelta(milliseconds=1)


async def show(api: Api, *impressions: dict[str, Any]) -> dict[str, Any]:
    return await send(api, "impressions", impressions)


async def clicked(api: Api, *clicks: dict[str, Any]) -> dict[str, Any]:
    return await send(api, "clicks", clicks)


async def send(api: Api, kind: str, events: Any) -> dict[str, Any]:
    response = await api.client.post(f"/{kind}", json={kind: list(events)})
    assert response.status_code == 200, response.text
    return response.json()


async def rows(database: Database, query: str) -> list[tuple[Any, ...]]:
    async with database.read() as session:
        return [tuple(row) for row in await session.connection.execute(text(query))]


class TestStoring:
    async def test_an_impression_is_stored_as_it_is(self, api: Api, database: Database) -> None:
        answer = await show(
            api, impression("r1", "ann", "ab", NOON + MS), impression("r2", "bob", "ba", positions=[4, 2])
        )
        assert answer == {"accepted": 2, "duplicates": 0, "period": 1}
        query = "SELECT request_id, period, user_id, item_ids, positions, shown_at FROM impressions ORDER BY request_id"
        assert await rows(database, query) == [
            ("r1", 1, "ann", ["a", "b"], None, NOON + MS),
            ("r2", 1, "bob", ["b", "a"], [4, 2], NOON),
        ]

    async def test_a_click_is_stored_as_it_is(self, api: Api, database: Database) -> None:
        answer = await clicked(api, click("r/1", "a"), click("r/1", "b", NOON + MS, event_id="mine"))
        assert answer == {"accepted": 2, "duplicates": 0, "period": 1}
        query = "SELECT event_id, period, request_id, item_id, clicked_at, interaction_id FROM clicks ORDER BY item_id"
        assert await rows(database, query) == [
            ("r%2F1/a", 1, "r/1", "a", NOON, "r%2F1/a"),
            ("mine", 1, "r/1", "b", NOON + MS, "r%2F1/b"),
        ]

    DUPLICATES = (
        ("impressions", impression("r", "ann", "ab"), impression("r", "ann", "ab", positions=[0, 1])),
        ("clicks", click("r", "a"), click("r", "a", event_id="r/a")),
    )
    OTHERS = (
        ("impressions", impression("r", "ann", "ab"), impression("r", "bob", "ab")),
        ("impressions", impression("r", "ann", "ab"), impression("r", "ann", "ba")),
        ("impressions", impression("r", "ann", "ab"), impression("r", "ann", "a")),
        ("impressions", impression("r", "ann", "ab"), impression("r", "ann", "ab", positions=[1, 0])),
        ("impressions", impression("r", "ann", "ab"), impression("r", "ann", "ab", NOON + MS)),
        ("clicks", click("r", "a", event_id="c"), click("r", "b", event_id="c")),
        ("clicks", click("r", "a", event_id="c"), click("s", "a", event_id="c")),
        ("clicks", click("r", "a"), click("r", "a", NOON + MS)),
    )

    @pytest.mark.parametrize(("kind", "first", "again"), DUPLICATES)
    async def test_the_same_again_is_a_duplicate(self, api: Api, database: Database, kind: str, first: Any, again: Any):
        assert await send(api, kind, [first, again]) == {"accepted": 1, "duplicates": 1, "period": 1}
        assert await send(api, kind, [again, first]) == {"accepted": 0, "duplicates": 2, "period": 1}
        assert len(await rows(database, f"SELECT * FROM {kind}")) == 1

    @pytest.mark.parametrize(("kind", "first", "other"), OTHERS)
    async def test_something_else_under_an_id_is_a_conflict(
        self, api: Api, database: Database, kind: str, first: Any, other: Any
    ) -> None:
        name = first.get("event_id") or ("r/a" if kind == "clicks" else "r")
        one = {"accepted": 1, "duplicates": 0, "period": 1, "conflicts": [name]}
        assert await send(api, kind, [first, other]) == one
        stored = await rows(database, f"SELECT * FROM {kind}")
        assert await send(api, kind, [other, first]) == one | {"accepted": 0, "duplicates": 1}
        assert await rows(database, f"SELECT * FROM {kind}") == stored

    async def test_names_of_one_kind_are_nothing_to_another(self, api: Api) -> None:
        event = {"event_id": "r", "user_id": "ann", "item_id": "a", "label": 0, "timestamp": NOON.isoformat()}
        assert (await send(api, "interactions", [event]))["accepted"] == 1
        assert (await show(api, impression("r", "ann", "a")))["accepted"] == 1
        assert (await clicked(api, click("r", "a", event_id="r")))["accepted"] == 1

    @pytest.mark.parametrize("kind", ["impressions", "clicks"])
    async def test_many_at_once_store_each_once(self, api: Api, database: Database, kind: str) -> None:
        """In orders that could deadlock, in calls larger than one statement accepts, and while a period is closed."""
        make, name = {
            "impressions": (lambda n: impression(f"r{n}", "ann", "ab"), "request_id"),
            "clicks": (lambda n: click(f"r{n}", "a"), "event_id"),
        }[kind]
        events = [make(n) for n in range(2500)]
        await show(api, impression("first", "ann", "a"))  # something to close
        calls = [send(api, kind, events[::step]) for step in (1, -1) * 3]
        *answers, closed = await asyncio.gather(*calls, api.client.post("/periods/close"))
        assert closed.status_code == 202
        assert sum(answer["accepted"] for answer in answers) == 2500
        assert sum(answer["accepted"] + answer["duplicates"] for answer in answers) == 6 * 2500
        stored = await rows(database, f"SELECT {name}, period FROM {kind} WHERE {name} <> 'first' ORDER BY 1")
        assert len({event_id for event_id, _ in stored}) == len(stored) == 2500
        number = 1 + (kind == "clicks")
        ids = f"SELECT event_id, period FROM event_ids WHERE kind = {number} AND event_id <> 'first' ORDER BY 1"
        assert stored == await rows(database, ids)

    async def test_metrics_count_them(self, api: Api) -> None:
        await show(api, impression("r", "ann", "ab"), impression("r", "ann", "ab"), impression("r", "bob", "ab"))
        await clicked(api, click("r", "a"))
        lines = (await api.client.get("/metrics")).text.splitlines()
        for result in ("accepted", "duplicate", "conflict"):
            assert f'asmg_impressions_total{{result="{result}"}} 1.0' in lines
        assert 'asmg_clicks_total{result="accepted"} 1.0' in lines


ID = st.text(st.sampled_from("a/%2F5é😀"), min_size=1, max_size=6)


class TestInteractionId:
    @given(ID, ID, ID, ID)
    def test_no_two_items_have_one(self, request: str, item: str, other_request: str, other_item: str) -> None:
        same = (request, item) == (other_request, other_item)
        assert (interaction_id(request, item) == interaction_id(other_request, other_item)) is same

    def test_is_never_longer_than_an_id_may_be(self) -> None:
        longest = "😀" * MAX_ID_LENGTH
        assert interaction_id("r", "x" * 254) == "r/" + "x" * 254
        made = [interaction_id(longest, "a"), interaction_id(longest, longest), interaction_id("/" * 256, "b")]
        assert {len(name) for name in made} == {64} and len(set(made)) == 3


class TestHistories:
    """What predictions read of clicks whose period is not resolved yet."""

    async def history(self, api: Api, user: str, seen: list[list[int]]) -> list[int]:
        response = await api.client.post("/predict", json={"user_id": user, "items": ["x"]})
        assert response.json()["history"] == "used"
        return seen[-1]

    @pytest.mark.parametrize("where", ["redis", "postgres"])
    async def test_a_click_counts_at_once_whichever_half_comes_first(
        self, api: Api, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        seen = recorded_histories(monkeypatch)

        async def forget() -> None:
            if where == "postgres":
                await api.state.redis.flushdb()
                api.state.histories.drop_all()

        for user in ("ann", "bob"):
            assert await self.history(api, user, seen) == []
        await show(api, impression("r1", "ann", "abc"))
        await clicked(api, click("r1", "b", NOON + MS), click("r1", "b", NOON + 2 * MS, event_id="again"))
        await clicked(api, click("r2", "d", NOON + 2 * MS))
        await forget()
        assert await self.history(api, "ann", seen) == hash_ids(["b"]).tolist()
        await show(api, impression("r2", "bob", "cd", NOON + MS), impression("r3", "ann", "ae", NOON + MS))
        await forget()
        assert await self.history(api, "bob", seen) == hash_ids(["d"]).tolist()
        await clicked(api, click("r3", "e", NOON + WINDOW + MS), click("r1", "a", NOON))
        await forget()
        assert await self.history(api, "ann", seen) == hash_ids(["e", "b", "a"]).tolist()

    async def test_what_is_no_positive_does_not_count(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        """Clicks that are too early, too late, on an item that was not shown, or on an unknown request."""
        seen = recorded_histories(monkeypatch)
        await clicked(api, click("r", "a", NOON - MS), click("r", "b", NOON + WINDOW + MS))
        await show(api, impression("r", "ann", "abc"))
        await clicked(api, click("r", "c", NOON - MS), click("r", "d", NOON + MS), click("s", "a", NOON + MS))
        for _ in range(2):
            assert await self.history(api, "ann", seen) == []
            await api.state.redis.flushdb()
            api.state.histories.drop_all()
