"""Asyncio tasks: whose they are, that they end for certain, and calls that nobody waits for without end.

A task has the context of whoever starts it, and with it the request id in the log. So who starts one says whose work it
is: `start_alone` or `start_for_caller`. Nothing else of the service starts tasks or timers (a test looks for it).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, ParamSpec, TypeVar

from service.errors import NotReady

__all__ = ["BoundedCalls", "end_tasks", "run_alone", "start_alone", "start_for_caller"]

T = TypeVar("T")
P = ParamSpec("P")

AGAIN_SECONDS = 0.5


def start_alone(work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
    """Start a task in the name of no request: one that goes on after the request which happens to start it, or that
    works for several.
    """
    return asyncio.create_task(work, name=name, context=Context())


def start_for_caller(work: Awaitable[T]) -> asyncio.Future[T]:
    """Start a part of the caller's own work, which names the caller's request in log and audit; the caller waits for it
    (or gives it up, and then it still is its work).
    """
    return asyncio.ensure_future(work)


def run_alone(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in the name of no request."""
    return Context().run(function, *args, **kwargs)


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
        self._tasks: set[asyncio.Future[Any]] = set()

    async def run(self, call: Coroutine[Any, Any, T]) -> T:
        """What the call returns.

        Raises:
            NotReady: too many are under way, or it took too long; it may have been carried out all the same.
        """
        if len(self._tasks) >= self._most:
            call.close()
            raise NotReady(f"{self._most} calls wait for {self._server} already")
        task = start_for_caller(call)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        done, _ = await asyncio.wait({task}, timeout=self._seconds)
        if not done:
            raise NotReady(f"{self._server} did not answer within {self._seconds:g} s; it may yet carry out the call")
        return task.result()

    async def close(self) -> None:
        """End what is under way."""
        await end_tasks(*self._tasks)

    def _end(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more
