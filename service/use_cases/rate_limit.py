"""How many requests an API key may make: an account in each process, settled with Redis in the background.

`service.use_cases.auth` takes from the account for each request. No request waits for Redis: the process admits a
request on its own account and charges Redis later, for many requests at a time. Redis answers how much of the key's
allowance is left over all processes. If nothing is left, the process refuses the key until there is some again. What
the processes admitted too many before they heard of each other is charged too, and so paid back.
"""

import time

from service.storage.redis.rate_buckets import RateBuckets

__all__ = ["Account", "Bucket"]

SETTLE_SECONDS = 0.1
"""Longest time between two charges while requests come."""

SETTLED_PART = 0.25
"""Part of the remaining allowance after which a charge is due at once. With n processes it bounds what they can admit
too many before they hear of each other, to (n + 1) / 4 bursts."""

PAUSE_SECONDS = 0.05
"""A key that has used up its allowance is refused until this much of it has grown again, or half a burst if that is
less. So Redis is not called for every single request of such a key."""

ROUNDING_SECONDS = 1e-6
"""What rounding errors may add up to; without it a full bucket could hold one request less than its burst."""


class Bucket:
    """A token bucket as one number, the time at which it is full again (the algorithm GCRA).

    Args:
        rate: tokens that it gains a second, above 0.
        burst: tokens in a full bucket, at least 1.
    """

    __slots__ = ("_cost", "_full_at", "_span")

    def __init__(self, rate: float, burst: float) -> None:
        self._cost = 1 / rate  # seconds until one token has grown again
        self._span = (burst - 1) * self._cost + ROUNDING_SECONDS
        self._full_at = -float("inf")

    def take(self, now: float) -> float:
        """Take a token and return 0, or take none and return the seconds until there is one."""
        wait = self._full_at - self._span - now
        if wait > 0:
            return wait
        self._full_at = max(self._full_at, now) + self._cost
        return 0.0

    def put_back(self) -> None:
        """Put a token back that was taken."""
        self._full_at -= self._cost

    def is_full(self, now: float) -> bool:
        """Whether it is full, and so the same as a new one."""
        return now >= self._full_at


class Account:
    """What one process knows of one key's allowance. Times are those of `time.monotonic`.

    Args:
        key_id: of the API key.
        rate: requests a second.
        burst: requests at once, at least 1.
    """

    __slots__ = (
        "_bucket",
        "_charge_after",
        "_owed",
        "_owed_since",
        "_refused_until",
        "burst",
        "charging",
        "key_id",
        "logged_at",
        "rate",
    )

    def __init__(self, key_id: str, rate: float, burst: float) -> None:
        self.key_id, self.rate, self.burst = key_id, rate, burst
        self.charging = False
        """Whether Redis is being charged now."""
        self.logged_at = -float("inf")
        """When a refusal was last logged."""
        self._bucket = Bucket(rate, burst)
        self._refused_until = 0.0
        self._owed = 0
        self._owed_since = 0.0
        self._charge_after = burst * SETTLED_PART

    def take(self, now: float) -> float:
        """Take a request from the allowance and return 0, or the seconds until it can be taken."""
        wait = self._refused_until - now
        return wait if wait > 0 else self._bucket.take(now)

    def owe(self, now: float) -> bool:
        """Note a request that Redis has to be charged for; return whether to do so now."""
        if not self._owed:
            self._owed_since = now
        self._owed += 1
        return not self.charging and (self._owed >= self._charge_after or now > self._owed_since + SETTLE_SECONDS)

    def is_unused(self, now: float) -> bool:
        """Whether the account is the same as a new one, as far as this process knows."""
        return self._bucket.is_full(now)

    async def charge(self, buckets: RateBuckets) -> None:
        """Charge Redis for the requests that are owed, and refuse further ones if the allowance is used up."""
        cost, burst_seconds = 1 / self.rate, self.burst / self.rate
        owed, self._owed = self._owed, 0
        since = min(time.monotonic() - self._owed_since, burst_seconds * SETTLED_PART)
        try:
            left = await buckets.charge(self.key_id, seconds=owed * cost, burst_seconds=burst_seconds, since=since)
        finally:
            self.charging = False
        if left is None:
            self._owed = 0  # Redis is away: each process limits by itself, and nothing is charged later
            return
        if left < cost:
            enough = max(cost, min(PAUSE_SECONDS, burst_seconds / 2))
            self._refused_until = time.monotonic() + enough - left
            left = enough
        self._charge_after = left / cost * SETTLED_PART
