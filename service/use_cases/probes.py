"""Every few seconds a process asks Postgres and Redis a small question, and looks at its pools, for the metrics.

Measured so, the latency is that which the process sees, waiting for a connection and for its own event loop included,
and no question of a client pays for it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from service.storage.postgres.database import Database
from service.storage.redis.connection import pool_state
from service.tasks import BoundedCalls
from service.telemetry.server_metrics import ServerMetrics

__all__ = ["probe_servers"]

PROBE_SECONDS = 5.0
"""Seconds between two rounds of questions; each costs a server some 0.1 ms."""
ANSWER_SECONDS = 2.0
"""How long a question waits for its answer."""


async def probe_servers(database: Database, redis: Redis, metrics: ServerMetrics) -> None:
    """Ask again and again, until cancelled."""

    async def ask_redis() -> None:
        await redis.ping()

    asked: dict[str, tuple[BoundedCalls, Callable[[], Awaitable[None]]]] = {
        "postgres": (BoundedCalls(1, ANSWER_SECONDS, "Postgres"), database.ping),
        "redis": (BoundedCalls(1, ANSWER_SECONDS, "Redis"), ask_redis),
    }
    try:
        while True:
            metrics.note_pool("postgres", database.pool)
            metrics.note_pool("redis", pool_state(redis))
            await asyncio.gather(*(_ask(server, *how, metrics) for server, how in asked.items()))
            await asyncio.sleep(PROBE_SECONDS)
    finally:
        for calls, _ in asked.values():
            await calls.close()


async def _ask(
    server: str, calls: BoundedCalls, question: Callable[[], Awaitable[None]], metrics: ServerMetrics
) -> None:
    started = time.perf_counter()

    async def ask() -> None:
        await question()

    try:
        await calls.run(ask())
    except Exception:  # a metric; whoever needs the server says what is wrong with it
        metrics.note_answer(server, None)
    else:
        metrics.note_answer(server, time.perf_counter() - started)
