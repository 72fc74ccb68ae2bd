"""Asyncio tasks that end for certain, and calls that nobody waits for without end."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from service.errors import NotReady

__all__ = ["BoundedCalls", "end_tasks"]

T = TypeVar("T")

AGAIN_SECONDS = 0.5


async def end_tasks(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks that are not done, and return when all have ended; what they raised is dropped.

    They are cancelled again until then: before Python 3.12 `asyncio.wait_for`, by which the Redis client sends, can
    lose a cancellation, and the task would go on for ever. (A task that waits in a `TaskGroup` cannot be ended so: the
    group passes on the first cancellation alone.) Who is cancelled in here still ends the tasks first.
    """
    cancellation: asyncio.CancelledError | None = None
    while unfinished := [task for task in tasks if not task.done()]:
        for task in unfinished:
            task.cancel()
        try:
            await asyncio.wait(unfinished, timeout=AGAIN_SECONDS)
        except asyncio.CancelledError as error:
            cancellation = error
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen, also where nobody asks for the result
    if cancellation is not None:
        raise cancellation


class BoundedCalls:
    """Calls of a server that may hang: only so many at a time, and nobody waits for one longer than so long.

    A call that took too long goes on, for giving it up can take as long as the server does; until it ends it counts.

    Args:
        most: calls at a time; more are refused at once.
        seconds: how long a caller waits.
        server: what it is called.
    """

    def __init__(self, most: int, seconds: float, server: str) -> None:
        self._most, self._seconds, self._server = most, seconds, server
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, call: Coroutine[Any, Any, T]) -> T:
        """What the call returns.

        Raises:
            NotReady: too many are under way, or it took too long; it may have been carried out all the same.
        """
        if len(self._tasks) >= self._most:
            call.close()
            raise NotReady(f"{self._most} calls wait for {self._server} already")
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        done, _ = await asyncio.wait({task}, timeout=self._seconds)
        if not done:
            raise NotReady(f"{self._server} did not answer within {self._seconds:g} s; it may yet carry out the call")
        return task.result()

    async def close(self) -> None:
        """End what is under way."""
        await end_tasks(*self._tasks)

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more
