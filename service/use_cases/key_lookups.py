"""What Postgres says about API keys, cached in each api process. `service.use_cases.auth` asks it.

Postgres is asked about a key once a second at most, whatever the number of requests. Keys that nobody has cost it a
bounded number of look-ups, and a bounded amount of memory.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from service.errors import NotReady, RateLimited
from service.limits import UNKNOWN_KEYS_BURST, UNKNOWN_KEYS_RATE
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import ApiKey
from service.tasks import start_alone
from service.use_cases.rate_limit import Bucket

__all__ = ["KeyLookups", "KeyVerdict", "KeyVerdicts"]

logger = logging.getLogger(__name__)

MAX_VERDICTS = 10_000
"""Keys whose verdict is remembered, valid or not."""

PATIENCE_SECONDS = 0.25
"""How long a request waits for Postgres if its key was valid a moment ago. Then the old verdict counts, so that
predictions go on while Postgres hangs."""

DEADLINE_SECONDS = 5.0
"""How long a request with any other key waits for Postgres."""

LEARNED_KEYS = 5000
"""Valid keys that are read ahead of their use, the newest ones."""


@dataclass(slots=True)
class KeyVerdict:
    """What Postgres said about one presented key."""

    key: ApiKey | None
    """None if there is no such key."""
    asked_at: float
    """When Postgres was asked, in seconds of `time.monotonic`."""
    believed_until: float
    """From then on Postgres is asked again; in seconds of `time.monotonic`."""

    @property
    def expired(self) -> bool:
        """Whether the key has expired, which needs no question to Postgres."""
        return self.key is not None and self.key.expired

    @property
    def valid_key(self) -> ApiKey | None:
        """The key, unless it is revoked or has expired by now."""
        return self.key if self.key is not None and self.key.valid else None


class KeyVerdicts:
    """The verdicts that a process remembers, by the hash of the key. The key itself is never kept."""

    def __init__(self) -> None:
        self._by_hash: dict[str, KeyVerdict] = {}

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._by_hash)

    def get(self, key_hash: str) -> KeyVerdict | None:
        """The last verdict on a key, however old."""
        return self._by_hash.get(key_hash)

    def put(self, verdicts: Iterable[tuple[str, KeyVerdict]]) -> None:
        """Remember verdicts. If there are too many, only those on valid keys are kept."""
        new = dict(verdicts)
        if len(self._by_hash) + len(new) > MAX_VERDICTS:
            # A flood of made-up keys must not push out the real ones, which predictions need while Postgres is away.
            self._by_hash = {hash_: known for hash_, known in self._by_hash.items() if known.valid_key is not None}
            if len(self._by_hash) >= MAX_VERDICTS:
                self._by_hash.clear()
        self._by_hash.update(new)


class KeyLookups:
    """Asks Postgres, and remembers the answers.

    Args:
        database: holds the keys.
        verdicts: where the answers go.
        ttl_seconds: how long an answer is believed.
        grace_seconds: how long it is believed while Postgres does not answer.
        on_refusal: called for each key that is not looked up, since too many unknown ones came.
    """

    def __init__(
        self,
        database: Database,
        verdicts: KeyVerdicts,
        *,
        ttl_seconds: float,
        grace_seconds: float,
        on_refusal: Callable[[], None],
    ) -> None:
        self._database = database
        self._verdicts = verdicts
        self._ttl = ttl_seconds
        self._grace = grace_seconds
        self._on_refusal = on_refusal
        self._under_way: dict[str, asyncio.Task[KeyVerdict]] = {}
        self._unknown = Bucket(UNKNOWN_KEYS_RATE, UNKNOWN_KEYS_BURST)

    async def ask(self, key_id: str, key_hash: str) -> KeyVerdict:
        """Ask about a key; all requests that wait for the same key share one look-up.

        If Postgres does not answer and the key was valid less than `grace_seconds` ago, its last verdict is returned.

        Raises:
            NotReady: Postgres does not answer.
            RateLimited: the key was not valid a moment ago, and too many unknown keys came: it is not looked up.
        """
        known = self._verdicts.get(key_hash)
        lookup = self._under_way.get(key_hash)
        if lookup is None:
            lookup = self._start(key_id, key_hash, is_unknown=known is None or known.key is None)
        if known is None or known.valid_key is None or time.monotonic() - known.asked_at > self._grace:
            try:
                async with asyncio.timeout(DEADLINE_SECONDS):
                    return await asyncio.shield(lookup)
            except TimeoutError:
                raise NotReady(f"Postgres did not answer within {DEADLINE_SECONDS:g} s") from None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await asyncio.shield(lookup)
        except (NotReady, TimeoutError):
            known.believed_until = time.monotonic() + self._ttl
            logger.warning("Postgres does not answer; key %s is believed for now", key_id)
            return known

    async def learn(self) -> bool:
        """Read the valid keys before they are used; return whether any key was ever created.

        Raises:
            NotReady: Postgres does not answer.
        """
        asked_at = time.monotonic()
        async with self._database.read() as session:
            keys = await session.keys.valid(LEARNED_KEYS)
            any_ever = await session.keys.any_ever()
        self._verdicts.put((key.secret_hash, KeyVerdict(key, asked_at, asked_at + self._ttl)) for key in keys)
        return any_ever

    def _start(self, key_id: str, key_hash: str, *, is_unknown: bool) -> "asyncio.Task[KeyVerdict]":
        if is_unknown and (wait := self._unknown.take(time.monotonic())):
            self._on_refusal()
            raise RateLimited("expected a key that was seen lately; too many unknown ones came", wait)
        # A task of its own, so that it does not end with the request that starts it.
        lookup = self._under_way[key_hash] = start_alone(self._look_up(key_id, key_hash, is_unknown), in_trace=True)
        lookup.add_done_callback(lambda task: self._end(key_hash, task))
        return lookup

    def _end(self, key_hash: str, lookup: "asyncio.Task[KeyVerdict]") -> None:
        del self._under_way[key_hash]
        if not lookup.cancelled():
            lookup.exception()  # marks it as retrieved, in case nobody waits any more

    async def _look_up(self, key_id: str, key_hash: str, is_unknown: bool) -> KeyVerdict:
        asked_at = time.monotonic()  # before the question, so that the verdict is never older than it claims
        async with self._database.read() as session:
            key = await session.keys.get(key_id)
        same = key is not None and hmac.compare_digest(key.secret_hash, key_hash)
        if same and is_unknown:
            self._unknown.put_back()
        verdict = KeyVerdict(key if same else None, asked_at=asked_at, believed_until=asked_at + self._ttl)
        self._verdicts.put([(key_hash, verdict)])
        return verdict
