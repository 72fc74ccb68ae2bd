"""Whether a request's API key is valid, and whether it may make another request.

Each request calls `KeyCache.known` and `RateLimiter.admit`, which look into memory and never wait. Only a key that was
not seen within the last second makes its request wait for Postgres (`key_lookups`); Redis is charged in the background
(`rate_limit`).
"""

import asyncio
import logging
import time
from collections.abc import Callable

from service.errors import RateLimited, Unauthorized
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import ApiKey
from service.storage.redis.rate_buckets import RateBuckets
from service.tasks import end_tasks, start_alone
from service.use_cases.key_lookups import KeyLookups, KeyVerdicts
from service.use_cases.keys import KEY_FORMAT, hash_key
from service.use_cases.rate_limit import Account

__all__ = ["KeyCache", "RateLimiter"]

logger = logging.getLogger(__name__)

LEARN_SECONDS = 60.0
"""How often all valid keys are read, so that they are known before they are used."""

MOST_ACCOUNTS = 10_000
"""Keys with a limit that a process remembers before it forgets those that have not been used lately."""

LOG_EVERY_SECONDS = 60.0
"""Shortest time between two log lines about the same key's refusals."""


class KeyCache:
    """Recognises keys without asking Postgres for each request.

    A revoked key is refused at most `ttl_seconds` later, an expired key at once. While Postgres is away, keys that were
    valid when it was last asked stay valid for `grace_seconds`, so that predictions go on; no key outlasts its expiry.

    Args:
        database: holds the keys.
        ttl_seconds: how long an answer of Postgres is believed.
        grace_seconds: how long it is believed while Postgres does not answer.
        on_refusal: called for each key that is not looked up, since too many unknown ones came.
    """

    def __init__(
        self,
        database: Database,
        *,
        ttl_seconds: float = 1.0,
        grace_seconds: float = 300.0,
        on_refusal: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._ttl = ttl_seconds
        self.verdicts = KeyVerdicts()
        """What Postgres said about the keys seen lately."""
        self._lookups = KeyLookups(
            database, self.verdicts, ttl_seconds=ttl_seconds, grace_seconds=grace_seconds, on_refusal=on_refusal
        )
        self._any_ever = False
        self._any_asked_at = float("-inf")
        self._learned = asyncio.Event()

    def known(self, key: bytes) -> ApiKey | None:
        """The presented key, if Postgres said a moment ago that it is valid; None if `authenticate` has to find out."""
        verdict = self.verdicts.get(hash_key(key))
        return verdict.valid_key if verdict is not None and time.monotonic() <= verdict.believed_until else None

    async def authenticate(self, key: str) -> ApiKey:
        """The presented key, if it is valid.

        Raises:
            NotReady: Postgres does not answer, and the key was not seen lately.
            RateLimited: the key was not seen lately, and too many unknown keys came: it is not looked up now.
            Unauthorized: there is no such key, or it is revoked or expired.
        """
        match = KEY_FORMAT.fullmatch(key)
        if match is None:
            raise Unauthorized
        key_hash = hash_key(key.encode())
        verdict = self.verdicts.get(key_hash)
        if verdict is None or (time.monotonic() > verdict.believed_until and not verdict.expired):
            verdict = await self._lookups.ask(match[1], key_hash)
        valid = verdict.valid_key
        if valid is None:
            raise Unauthorized
        return valid

    async def open_access(self) -> bool:
        """Whether no key was ever created. Once one was, calls need a key for good.

        Raises:
            NotReady: Postgres does not answer.
        """
        if not self._any_ever and time.monotonic() - self._any_asked_at > self._ttl:
            asked_at = time.monotonic()
            async with self._database.read() as session:
                self._any_ever = await session.keys.any_ever()
            self._any_asked_at = asked_at
        return not self._any_ever

    async def follow(self) -> None:
        """Read all valid keys again and again, until cancelled.

        A process that has just started, or has not seen a key for long, then admits it even if Postgres is away.
        """
        while True:
            try:
                self._any_ever = await self._lookups.learn() or self._any_ever
                self._learned.set()
            except Exception as error:
                logger.warning("the API keys could not be read: %s", error)
                await asyncio.sleep(self._ttl)
            else:
                await asyncio.sleep(LEARN_SECONDS)

    async def wait_learned(self) -> None:
        """Return when the keys were read once."""
        await self._learned.wait()


class RateLimiter:
    """Admits or refuses the requests of each key.

    In T seconds n processes together admit `rate` * T + burst requests of a key, and at most (n + 1) / 4 bursts more,
    which are paid back; or, if that is more, what each process admits before Redis has answered, at most a burst. While
    Redis is away the processes do not know of each other, and each admits `rate` * T + burst.

    Args:
        buckets: the allowances that the processes share.
        rate: requests a second of a key that has no limit of its own; 0 for no limit.
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
        self._accounts: dict[str, Account] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Keys whose account is remembered."""
        return len(self._accounts)

    def admit(self, key: ApiKey) -> None:
        """Count a request.

        Raises:
            RateLimited: the key has used up its allowance.
        """
        rate = self._rate if key.rate_limit is None else key.rate_limit
        if not rate:
            return
        account = self._accounts.get(key.key_id)
        if account is None or account.rate != rate:
            account = self._open_account(key.key_id, rate)
        now = time.monotonic()
        if wait := account.take(now):
            raise self._refusal(key, account, wait)
        if not self._buckets.away and account.owe(now):
            account.charging = True
            self._tasks.add(task := start_alone(account.charge(self._buckets)))
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End the charges under way."""
        await end_tasks(*self._tasks)

    def _open_account(self, key_id: str, rate: float) -> Account:
        if len(self._accounts) >= MOST_ACCOUNTS:
            now = time.monotonic()
            self._accounts = {name: used for name, used in self._accounts.items() if not used.is_unused(now)}
        account = self._accounts[key_id] = Account(key_id, rate, burst=max(1.0, rate * self._burst_seconds))
        return account

    def _refusal(self, key: ApiKey, account: Account, wait: float) -> RateLimited:
        self._on_refusal()
        if (now := time.monotonic()) >= account.logged_at + LOG_EVERY_SECONDS:
            account.logged_at = now
            logger.warning("key %s (%s) makes more than its %g requests a second", key.key_id, key.name, account.rate)
        detail = f"expected at most {account.rate:g} requests a second with this key; received more"
        return RateLimited(detail, wait)
