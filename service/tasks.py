"""Ending asyncio tasks for certain."""

import asyncio
from typing import Any

__all__ = ["end_tasks"]

AGAIN_SECONDS = 2.0


async def end_tasks(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks that are not done, and return when all have ended; what they raised is dropped.

    They are cancelled again until then: before Python 3.12 `asyncio.wait_for`, by which the Redis client sends, can
    lose a cancellation, and the task would go on for ever.
    """
    while unfinished := [task for task in tasks if not task.done()]:
        for task in unfinished:
            task.cancel()
        await asyncio.wait(unfinished, timeout=AGAIN_SECONDS)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen, also where nobody asks for the result
