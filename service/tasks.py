"""Ending asyncio tasks for certain."""

import asyncio
from typing import Any

__all__ = ["end_tasks"]

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
