"""Notices between processes reach all listeners, also after a lost connection."""

import asyncio
from contextlib import aclosing

import pytest
from redis.asyncio import Redis

from service.storage.redis.notices import Notices


async def test_swap_notices_come_on_subscription_and_on_each_swap(redis: Redis) -> None:
    notices = Notices(redis)
    async with asyncio.timeout(5), aclosing(notices.swap_notices()) as listener:
        await anext(listener)  # the subscription itself
        await notices.publish_swap()
        await anext(listener)
        waiting = asyncio.ensure_future(anext(listener))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_swap_notices_reconnect(redis: Redis) -> None:
    notices = Notices(redis)
    async with asyncio.timeout(5), aclosing(notices.swap_notices()) as listener:
        await anext(listener)
        await redis.client_kill_filter(_type="pubsub")
        await anext(listener)  # the new subscription
        await notices.publish_swap()
        await anext(listener)


async def test_progress_is_kept_and_sent(redis: Redis) -> None:
    notices = Notices(redis)
    assert await notices.progress(3) is None
    await notices.publish_progress(3, {"stage": "score", "done": 0.5})
    assert await notices.progress(3) == {"stage": "score", "done": 0.5}
    assert await notices.progress(4) is None
    assert 0 < await redis.ttl("asmg:progress") <= 24 * 3600
    async with asyncio.timeout(5), aclosing(notices.progress_notices()) as listener:
        assert await anext(listener) is None  # so that the listener looks at what came before
        await notices.publish_progress(4, {"stage": "other"})
        await notices.publish_progress(3, {"stage": "train"})
        assert [await anext(listener), await anext(listener)] == [4, 3]
    # There is one key, however many periods.
    assert await redis.keys() == [b"asmg:progress"]
    assert await notices.progress(4) is None
    assert await notices.progress(3) == {"stage": "train"}
