"""What is left of each API key's allowance, over all api processes. `service.use_cases.rate_limit` charges it."""

import asyncio

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.storage.redis.outage import ANSWER_SECONDS, Outage

__all__ = ["DEBT_SECONDS", "RateBuckets"]

DEBT_SECONDS = 60
"""Most seconds of allowance that a key can owe: a key that was admitted too often is refused for no longer."""

# KEYS: the bucket, which holds the time at which it is full again.
# ARGV: seconds to take, seconds in a full bucket, seconds over which they were used, most seconds of debt.
# It uses the clock of Redis, since the hosts' clocks differ. A bucket that is full again is kept a while longer:
# another process may charge what it used in the same time.
CHARGE_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now - ARGV[3]) + ARGV[1]
full_at = math.min(full_at, now + ARGV[2] + ARGV[4])
redis.call('SET', KEYS[1], string.format('%.6f', full_at), 'PX', math.ceil((full_at - now + ARGV[2]) * 1000))
return tostring(now + ARGV[2] - full_at)
"""


class RateBuckets:
    """One number for each API key in Redis. It expires at most `DEBT_SECONDS` and two bursts after its last charge.

    Args:
        redis: a client that returns bytes.
    """

    def __init__(self, redis: Redis) -> None:
        self._charge = redis.register_script(CHARGE_SCRIPT)
        self._outage = Outage("rate limits are held by each api process alone")

    @property
    def away(self) -> bool:
        """Whether Redis has failed a moment ago. Nothing is charged then."""
        return self._outage.pausing

    async def charge(self, key_id: str, *, seconds: float, burst_seconds: float, since: float) -> float | None:
        """Take from an allowance, which grows by a second a second. Never raises.

        Args:
            key_id: of the API key.
            seconds: how many to take: the number of requests, divided by the key's rate.
            burst_seconds: how many a full allowance has.
            since: seconds over which the requests came, at most `burst_seconds`; the allowance grew meanwhile.

        Returns:
            the seconds that are left, down to `-DEBT_SECONDS` if too many were taken; None if Redis does not answer.
        """
        if self._outage.pausing:
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                left = await self._charge(
                    keys=[f"asmg:rate:{key_id}"], args=[seconds, burst_seconds, since, DEBT_SECONDS]
                )
        except (RedisError, TimeoutError) as error:
            self._outage.note(error)
            return None
        return float(left)
