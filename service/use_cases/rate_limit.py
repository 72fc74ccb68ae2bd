"""How many requests a second a key may make, of all api processes together.

No request waits for Redis. A process admits on account and tells Redis afterwards, of many requests at a time; Redis
says how much of the key's allowance is left, and where nothing is, the process refuses until there is some again. What
the processes admitted too many before they heard of each other is charged too, and so paid back. No process by itself
admits more than the limit; while Redis is away that is all that holds.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import RateLimited
from service.storage.postgres.repositories import ApiKey
from service.storage.redis.rate_buckets import RateBuckets
from service.tasks import end_tasks, start_alone

__all__ = ["Bucket", "RateLimiter"]

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 0.1
"""After how long Redis is told at the latest, while requests come."""

SETTLED_PART = 0.25
"""Of what was left of the allowance: Redis is told when so much was admitted since."""

PAUSE_SECONDS = 0.05
"""Who has used up the allowance is refused until this much of it has come together, at most half a burst: so Redis need
not be asked about each request."""

MOST_ACCOUNTS = 10_000
"""Keys with a limit that a process remembers before it forgets those that have rested."""

LOG_EVERY_SECONDS = 60.0

ROUNDING_SECONDS = 1e-6


class Bucket:
    """Admits `burst` requests at once, and `rate` a second on average (GCRA: one number is all there is to know).

    Args:
        rate: requests a second, above 0.
        burst: at least 1.
    """

    __slots__ = ("_cost", "_full_at", "_span")

    def __init__(self, rate: float, burst: float) -> None:
        self._cost = 1 / rate  # seconds in which it gets back what a request takes
        self._span = (burst - 1) * self._cost + ROUNDING_SECONDS
        self._full_at = -float("inf")

    def take(self, now: float) -> float:
        """Admit a request and return 0, or else the seconds after which one would be admitted."""
        wait = self._full_at - self._span - now
        if wait > 0:
            return wait
        self._full_at = max(self._full_at, now) + self._cost
        return 0.0

    def put_back(self) -> None:
        """Forget a request that was admitted."""
        self._full_at -= self._cost

    def rests(self, now: float) -> bool:
        """Whether it is full, and so like a new one."""
        return now >= self._full_at


@dataclass(slots=True)
class _Account:
    """What this process knows of one key."""

    rate: float
    burst: float
    bucket: Bucket
    """Of this process alone."""
    settle_at: float
    """Redis is told when so many requests are owed."""
    owed: int = 0
    """Requests admitted that it has not been told of."""
    owed_since: float = 0.0
    settling: bool = False
    refused_until: float = 0.0
    """Since the processes together have used up the allowance."""
    logged_at: float = -float("inf")


class RateLimiter:
    """Admits or refuses the requests of each key.

    In T seconds n processes together admit `rate` * T + burst requests of a key, and at most (n + 1) / 4 bursts more,
    which are paid back; or else for each process what comes before Redis has answered, at most a burst. While Redis is
    away the processes do not know of each other, and each admits `rate` * T + burst.

    Args:
        buckets: what the processes share.
        rate: requests a second of a key that has no limit of its own; 0 for any number.
        burst_seconds: a burst is what comes in so many seconds at the limit, and at least one request.
        on_refusal: called for each request that is refused.
    """

    def __init__(
        self,
        buckets: RateBuckets,
        *,
        rate: float,
        burst_seconds: float,
        on_refusal: Callable[[], None] = lambda: None,
    ) -> None:
        self._buckets = buckets
        self._rate = rate
        self._burst_seconds = burst_seconds
        self._on_refusal = on_refusal
        self._accounts: dict[str, _Account] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def admit(self, key: ApiKey) -> None:
        """Count a request.

        Raises:
            RateLimited: the key has used up what it may.
        """
        rate = self._rate if key.rate_limit is None else key.rate_limit
        if not rate:
            return
        account = self._accounts.get(key.key_id)
        if account is None or account.rate != rate:
            account = self._open(key.key_id, rate)
        now = time.monotonic()
        wait = account.refused_until - now
        if wait <= 0:
            wait = account.bucket.take(now)
        if wait > 0:
            raise self._refusal(key, account, wait)
        if self._buckets.away:
            return
        if not account.owed:
            account.owed_since = now
        account.owed += 1
        if not account.settling and (account.owed >= account.settle_at or now > account.owed_since + SETTLE_SECONDS):
            account.settling = True
            self._tasks.add(task := start_alone(self._settle(key.key_id, account)))
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is under way."""
        await end_tasks(*self._tasks)

    def _open(self, key_id: str, rate: float) -> _Account:
        if len(self._accounts) >= MOST_ACCOUNTS:
            now = time.monotonic()
            self._accounts = {name: known for name, known in self._accounts.items() if not known.bucket.rests(now)}
        burst = max(1.0, rate * self._burst_seconds)
        account = self._accounts[key_id] = _Account(rate, burst, Bucket(rate, burst), burst * SETTLED_PART)
        return account

    def _refusal(self, key: ApiKey, account: _Account, wait: float) -> RateLimited:
        self._on_refusal()
        if (now := time.monotonic()) >= account.logged_at + LOG_EVERY_SECONDS:
            account.logged_at = now
            logger.warning("key %s (%s) makes more than its %g requests a second", key.key_id, key.name, account.rate)
        detail = f"expected at most {account.rate:g} requests a second with this key; received more"
        return RateLimited(detail, wait)

    async def _settle(self, key_id: str, account: _Account) -> None:
        cost, burst_seconds = 1 / account.rate, account.burst / account.rate
        owed, account.owed = account.owed, 0
        since = min(time.monotonic() - account.owed_since, burst_seconds * SETTLED_PART)
        try:
            left = await self._buckets.charge(key_id, seconds=owed * cost, burst_seconds=burst_seconds, since=since)
        finally:
            account.settling = False
        if left is None:
            account.owed = 0  # an outage is not charged: the processes were on their own
            return
        if left < cost:
            enough = max(cost, min(PAUSE_SECONDS, burst_seconds / 2))
            account.refused_until = time.monotonic() + enough - left
            left = enough
        account.settle_at = left / cost * SETTLED_PART
