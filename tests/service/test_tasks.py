"""Tasks are ended for certain, also those that lose a cancellation."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service import tasks
from service.tasks import end_tasks


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
