"""Calls that wait at the same time are stored together, and each gets its own result."""

import asyncio
from collections.abc import Sequence

import pytest

from service.use_cases.group_commit import GroupCommit


class Store:
    """Keeps the groups that it gets, and stores each when it is told to."""

    def __init__(self, *, lanes: int = 1, most: int = 10) -> None:
        self.groups: list[list[str]] = []
        self.go_on = asyncio.Event()
        self.error: Exception | None = None
        self.commit = GroupCommit(self.store, self.results, size=len, most=most, lanes=lanes, key=lambda call: call[0])

    async def store(self, calls: list[str]) -> int:
        self.groups.append(calls)
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return len(self.groups)

    async def results(self, calls: list[str], stored: int) -> Sequence[str]:
        return [call.upper() for call in calls]

    def start(self, *calls: str) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self.commit.run(call)) for call in calls]


async def begun() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_go_together_as_they_fit_and_each_key_once() -> None:
    store = Store()
    first = store.start("first")
    await begun()
    later = store.start("aaaa", "bbbb", "a", "ccc", "long text of its own")
    await begun()
    assert store.groups == [["first"]] and store.commit.waiting_size == 32 and store.commit.busy_seconds > 0
    store.go_on.set()
    assert await asyncio.gather(*first, *later) == ["FIRST", "AAAA", "BBBB", "A", "CCC", "LONG TEXT OF ITS OWN"]
    # "a" has the key of "aaaa"; what comes behind it and does not fit waits with it.
    assert store.groups == [["first"], ["aaaa", "bbbb"], ["a", "ccc"], ["long text of its own"]]
    await store.commit.settle()
    assert store.commit.waiting_size == 0 and store.commit.busy_seconds == 0


async def test_as_many_groups_at_a_time_as_there_are_lanes() -> None:
    store = Store(lanes=2, most=1)
    calls = store.start("a", "b", "c")
    await begun()
    assert store.groups == [["a"], ["b"]]
    store.go_on.set()
    assert await asyncio.gather(*calls) == ["A", "B", "C"]


async def test_who_is_cancelled_while_it_waits_is_not_stored() -> None:
    store = Store()
    first = store.start("first")
    await begun()
    gone = store.start("gone")
    await begun()
    gone[0].cancel()
    store.go_on.set()
    await asyncio.gather(*first, *gone, return_exceptions=True)
    assert await store.commit.run("here") == "HERE"
    assert store.groups == [["first"], ["here"]]


async def test_a_group_that_nobody_is_left_of_holds_no_lane() -> None:
    store = Store()
    store.go_on.set()
    for _ in range(3):
        store.commit.withdraw(store.commit.add("gone"))
        await begun()
    assert await store.commit.run("here") == "HERE"
    assert store.groups == [["here"]]


async def test_an_error_reaches_all_of_the_group_and_no_other() -> None:
    store = Store()
    store.error = ZeroDivisionError()
    store.go_on.set()
    results = await asyncio.gather(*store.start("a", "b"), return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError] * 2
    store.error = None
    assert await store.commit.run("c") == "C"


async def test_the_end_cancels_whoever_waits_or_is_being_stored() -> None:
    store = Store()
    calls = store.start("a")
    await begun()
    calls += store.start("b")
    await begun()
    await store.commit.close()
    for call in calls:
        with pytest.raises(asyncio.CancelledError):
            await call
    assert store.groups == [["a"]] and store.commit.waiting_size == 0
