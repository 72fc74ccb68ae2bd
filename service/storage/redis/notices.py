"""Notices from one process to the others: a period was closed, an alias moved, a user's past changed, an update made
progress.

A notice only saves time: every receiver also finds the news by polling Postgres, so a lost notice does no harm.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.storage.redis.history_layout import CLICKS_CHANNEL
from service.storage.redis.outage import Outage

__all__ = ["Notices"]

PROGRESS_KEY = "asmg:progress"
LEADER_KEY = "asmg:leader"
PROGRESS_SECONDS = 24 * 3600
"""Expiry of the last progress."""
LEADER_SECONDS = 24 * 3600
"""Expiry of the leader's last sign of life."""

SEALED_CHANNEL = "asmg:sealed"
SWAP_CHANNEL = "asmg:swap"
PROGRESS_CHANNEL = "asmg:progress"

RECONNECT_SECONDS = (0.1, 5.0)
"""Pause before the first attempt to subscribe again, and the longest one; it doubles after each failure."""
LISTEN_SECONDS = 15.0
"""How long one call waits for a message. The client checks its connection between two calls."""


class Notices:
    """Sends and receives notices.

    Args:
        redis: a client that returns bytes.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._outage = Outage("notices are not sent")

    async def publish_sealed(self) -> None:
        """Tell the worker that a period waits for its update."""
        await self._publish(SEALED_CHANNEL)

    async def sealed_notices(self) -> AsyncIterator[None]:
        """One None for each period that was closed, and one for each (re)connection."""
        async for _ in self._messages(SEALED_CHANNEL):
            yield None

    async def publish_swap(self) -> None:
        """Tell the api processes that an alias moved."""
        await self._publish(SWAP_CHANNEL)

    async def swap_notices(self) -> AsyncIterator[None]:
        """One None for each move of an alias, and one for each (re)connection, since a notice may have been missed."""
        async for _ in self._messages(SWAP_CHANNEL):
            yield None

    async def clicks(self) -> AsyncIterator[list[str] | None]:
        """Users whose past has changed, in whichever process; None if any user's past may have.

        None also comes for each (re)connection, since a notice may have been missed.
        """
        async for data in self._messages(CLICKS_CHANNEL):
            yield data.decode(errors="replace").split("\0") if data else None

    async def publish_progress(self, period: int, progress: Mapping[str, Any]) -> None:
        """Send the progress of a period's update, and keep it for those who ask later.

        Only the last one is kept, since one leader updates one period after another.

        Args:
            period: its number.
            progress: a JSON object; may contain NumPy values.
        """
        data = orjson.dumps(progress, option=orjson.OPT_SERIALIZE_NUMPY)
        kept = orjson.dumps({"period": period, "progress": orjson.Fragment(data)})
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.set(PROGRESS_KEY, kept, ex=PROGRESS_SECONDS)
                pipeline.publish(PROGRESS_CHANNEL, str(period))
                await pipeline.execute()
        except RedisError as error:
            self._outage.note(error)

    async def progress(self, period: int) -> dict[str, Any] | None:
        """The last progress of a period's update, if it is known."""
        try:
            data = await self._redis.get(PROGRESS_KEY)
        except RedisError as error:
            self._outage.note(error)
            return None
        kept = orjson.loads(data) if data else {}
        return kept["progress"] if kept.get("period") == period else None

    async def progress_notices(self) -> AsyncIterator[int | None]:
        """Numbers of periods whose update has made progress.

        None comes for each (re)connection, since a notice may have been missed.
        """
        async for data in self._messages(PROGRESS_CHANNEL):
            yield None if data is None else int(data)

    async def note_leader(self, at: float) -> None:
        """Store when the leading worker last made progress, in seconds of the epoch."""
        try:
            await self._redis.set(LEADER_KEY, f"{at:.3f}", ex=LEADER_SECONDS)
        except RedisError as error:
            self._outage.note(error)

    async def leader_at(self) -> float | None:
        """When the leading worker last made progress, in seconds of the epoch; None if that is not known."""
        try:
            at = await self._redis.get(LEADER_KEY)
        except RedisError as error:
            self._outage.note(error)
            return None
        return None if at is None else float(at)

    async def _publish(self, channel: str) -> None:
        try:
            await self._redis.publish(channel, b"")
        except RedisError as error:
            self._outage.note(error)

    async def _messages(self, channel: str) -> AsyncIterator[bytes | None]:
        """Messages of a channel without end, and None for each subscription, also after a lost connection."""
        wait, longest = RECONNECT_SECONDS
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(channel)
                    while True:
                        # The client renews a lost subscription by itself; we learn of it by its confirmation.
                        message = await pubsub.get_message(timeout=LISTEN_SECONDS)
                        if message is not None:
                            wait = RECONNECT_SECONDS[0]
                            yield message["data"] if message["type"] == "message" else None
            except RedisError as error:
                self._outage.note(error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)
