"""Tasks end reliably, even if they lose a cancellation."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service import tasks
from service.errors import NotReady
from service.tasks import BoundedCalls, end_tasks, meanwhile


def stubborn(losses: int) -> tuple[Callable[[], Coroutine[Any, Any, None]], list[int]]:
    """A coroutine that goes on after its first `losses` cancellations, and the number of those it has seen."""
    seen: list[int] = []

    async def run() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                seen.append(1)
                if len(seen) > losses:
                    raise

    return run, seen


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.01)


async def test_a_lost_cancellation_is_repeated() -> None:
    run, seen = stubborn(3)
    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await end_tasks(task)
    assert task.cancelled()
    assert len(seen) == 4


async def test_tasks_that_are_done_or_fail_are_no_trouble() -> None:
    async def fail() -> None:
        raise ValueError("seen")

    done, failed = asyncio.create_task(asyncio.sleep(0)), asyncio.create_task(fail())
    await asyncio.sleep(0.01)
    await end_tasks(done, failed)
    await end_tasks()
    assert done.done() and isinstance(failed.exception(), ValueError)


async def test_who_is_cancelled_meanwhile_ends_them_first() -> None:
    run, seen = stubborn(5)
    inner = asyncio.create_task(run())
    await asyncio.sleep(0)
    outer = asyncio.create_task(end_tasks(inner))
    await asyncio.sleep(0.015)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert inner.cancelled()
    assert len(seen) == 6


async def test_work_meanwhile_is_waited_for_and_ends_with_a_block_that_fails() -> None:
    done: list[str] = []

    async def work(seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
            done.append("work")
        finally:
            done.append("ended")

    async with meanwhile(work(0.01)):
        done.append("block")
    assert done == ["block", "work", "ended"]
    done.clear()
    with pytest.raises(ValueError, match="seen"):
        async with meanwhile(work(60)):
            await asyncio.sleep(0)
            raise ValueError("seen")
    assert done == ["ended"]


async def test_what_work_meanwhile_raises_is_raised_after_the_block() -> None:
    async def fail() -> None:
        raise ValueError("seen")

    reached = False
    with pytest.raises(ValueError, match="seen"):
        async with meanwhile(fail()):
            await asyncio.sleep(0.01)
            reached = True
    assert reached


class TestBoundedCalls:
    async def test_give_what_the_call_gives(self) -> None:
        calls = BoundedCalls(2, 5, "Postgres")

        async def broken() -> None:
            raise RuntimeError("a bug")

        assert await calls.run(asyncio.sleep(0, 7)) == 7
        with pytest.raises(RuntimeError, match="a bug"):
            await calls.run(broken())

    async def test_nobody_waits_too_long_and_a_late_one_counts_until_it_ends(self) -> None:
        calls = BoundedCalls(2, 0.02, "Postgres")
        go = asyncio.Event()
        for _ in range(2):
            with pytest.raises(NotReady, match=r"Postgres did not answer within 0.02 s"):
                await calls.run(go.wait())
        with pytest.raises(NotReady, match="2 calls wait for Postgres already"):
            await calls.run(go.wait())
        go.set()
        await asyncio.sleep(0.01)
        assert await calls.run(go.wait())

    async def test_what_is_under_way_ends_with_them(self) -> None:
        calls = BoundedCalls(1, 0.01, "Postgres")
        with pytest.raises(NotReady):
            await calls.run(asyncio.sleep(3600))
        async with asyncio.timeout(5):
            await calls.close()
        assert await calls.run(asyncio.sleep(0, 1)) == 1
