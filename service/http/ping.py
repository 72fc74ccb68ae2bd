"""A limit for questions to servers that may hang, for readiness and metrics."""

import asyncio
from collections.abc import Awaitable

from service.tasks import start_for_caller

__all__ = ["within_time"]

PROBE_SECONDS = 1.5
"""How long readiness and metrics wait for Postgres and Redis; less than the timeout of most uptime probes."""


async def within_time(ping: Awaitable[object]) -> str:
    """`ok` or a description of the error; takes at most `PROBE_SECONDS`."""
    task = start_for_caller(ping)
    # Not `asyncio.timeout`, which waits until the cancelled call has ended: with a server that hangs, closing the
    # connection can hang too.
    done, _ = await asyncio.wait([task], timeout=PROBE_SECONDS)
    if not done:
        task.cancel()
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return f"no answer within {PROBE_SECONDS} s"
    error = task.exception()
    return "ok" if error is None else f"no answer: {type(error.__cause__ or error).__name__}"
