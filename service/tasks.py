"""Asyncio tasks: for which request they run, that they end, and a limit for calls of a server that may hang.

A task inherits the context of its caller, and with it the request id that log lines show. So whoever starts a task says
for whom it works, by `start_alone` or `start_for_caller`. Nothing else in the service starts tasks or timers
(tests/service/test_contexts.py checks it).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, ParamSpec, TypeVar

from service.errors import NotReady
from service.telemetry.tracing import trace_context

__all__ = ["BoundedCalls", "end_tasks", "meanwhile", "run_alone", "start_alone", "start_for_caller"]

T = TypeVar("T")
P = ParamSpec("P")

AGAIN_SECONDS = 0.5
"""Seconds after which a task that has not ended is cancelled again."""


def start_alone(work: Coroutine[Any, Any, T], *, name: str | None = None, in_trace: bool = False) -> asyncio.Task[T]:
    """Start a task that belongs to no request: it serves several, or goes on after the one that happens to start it.

    Args:
        work: what the task runs.
        name: of the task.
        in_trace: whether its spans belong to the trace of the request that happens to start it. Only for work that
            the request waits for.
    """
    return asyncio.create_task(work, name=name, context=trace_context() if in_trace else Context())


def start_for_caller(work: Awaitable[T]) -> asyncio.Future[T]:
    """Start a task that is part of the caller's request; log lines and audit entries of the task name that request.

    Args:
        work: what the task runs.
    """
    return asyncio.ensure_future(work)


def run_alone(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function outside of any request: log lines, and tasks that the function starts, name none."""
    return Context().run(function, *args, **kwargs)


async def end_tasks(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks that are not done, and return when all have ended; their exceptions are dropped.

    A task that has not ended is cancelled again: before Python 3.12 `asyncio.wait_for`, which the Redis client uses,
    can lose a cancellation, and the task would go on for ever. (A task that waits in a `TaskGroup` cannot be ended like
    this, because the group passes on the first cancellation only.) If the caller is cancelled meanwhile, the tasks
    still end first.
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
            task.exception()  # retrieved, so that asyncio does not complain if nobody asks for the result
    if cancellation is not None:
        raise cancellation


@asynccontextmanager
async def meanwhile(work: Awaitable[T]) -> AsyncIterator[asyncio.Future[T]]:
    """Do some work while the block runs, which gets its future; leave the block when both have ended.

    Where the block fails or is cancelled, the work is cancelled, and has ended before that is raised. What the work
    raises is raised at the end of the block.
    """
    task = start_for_caller(work)
    try:
        yield task
        await task
    finally:
        await end_tasks(task)


class BoundedCalls:
    """Limits the calls of a server that may hang: their number, and how long a caller waits for one.

    A call that takes too long goes on in the background, because cancelling it can take as long as the server hangs; it
    counts until it ends.

    Args:
        most: number of calls at the same time; further ones are refused at once.
        seconds: that a caller waits at most.
        server: its name in messages.
    """

    def __init__(self, most: int, seconds: float, server: str) -> None:
        self._most, self._seconds, self._server = most, seconds, server
        self._tasks: set[asyncio.Future[Any]] = set()

    async def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Make a call and return its result.

        Raises:
            NotReady: too many calls are under way, or this one took too long; then it may still be carried out.
        """
        if len(self._tasks) >= self._most:
            call.close()
            raise NotReady(f"{self._most} calls wait for {self._server} already")
        task = start_for_caller(call)
        self._tasks.add(task)
        task.add_done_callback(self._remove)
        done, _ = await asyncio.wait({task}, timeout=self._seconds)
        if not done:
            raise NotReady(f"{self._server} did not answer within {self._seconds:g} s; it may yet carry out the call")
        return task.result()

    async def close(self) -> None:
        """End the calls that are under way."""
        await end_tasks(*self._tasks)

    def _remove(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not complain if nobody waits any more
