"""API keys: made, listed, revoked and recognised.

A key is `asmg_<key id>_<secret>`. Stored is the SHA-256 of the whole key: the secret has 256 random bits, so nothing is
gained by a slow hash. The key id says which row to compare with and is no secret.
"""

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256

from service.errors import NotReady, RateLimited, Unauthorized
from service.limits import MAX_RATE, MIN_RATE, UNKNOWN_KEYS_BURST, UNKNOWN_KEYS_RATE
from service.storage.database import Database
from service.storage.repositories import ApiKey
from service.use_cases.rate_limit import Bucket

__all__ = ["SCOPES", "KeyCache", "create_key", "list_keys", "revoke_key"]

logger = logging.getLogger(__name__)

SCOPES = ("predict", "ingest", "admin")

_KEY = re.compile(r"asmg_([0-9a-f]{12})_[A-Za-z0-9_-]{43}", re.ASCII)
_CLI = "command line"


async def create_key(
    database: Database, name: str, scopes: Collection[str], *, rate_limit: float | None = None
) -> tuple[str, str]:
    """Make a key; return its id and the key itself, which nobody can read again later.

    Args:
        database: where it is stored.
        name: what it is for, or whose it is.
        scopes: some of `SCOPES`.
        rate_limit: requests a second; 0 for any number, None for `Settings.rate_limit`.

    Raises:
        ValueError: `name` is empty, `scopes` is empty or holds one that is not in `SCOPES`, or `rate_limit` is
            neither 0 nor from `MIN_RATE` to `MAX_RATE`.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise ValueError(
            f"expected one or more of {', '.join(SCOPES)} as scopes; received {', '.join(unknown) or 'none'}"
        )
    if not name.strip():
        raise ValueError("expected a name for the key; received an empty one")
    if rate_limit and not MIN_RATE <= rate_limit <= MAX_RATE:
        raise ValueError(f"expected a rate of {MIN_RATE} to {MAX_RATE} requests a second, or 0; received {rate_limit}")
    key_id = secrets.token_hex(6)
    key = f"asmg_{key_id}_{secrets.token_urlsafe(32)}"
    ordered = tuple(scope for scope in SCOPES if scope in scopes)
    async with database.unit_of_work() as work:
        await work.keys.insert(
            ApiKey(key_id=key_id, name=name, secret_hash=_hash(key), scopes=ordered, rate_limit=rate_limit)
        )
        detail = {"key_id": key_id, "name": name, "scopes": list(ordered), "rate_limit": rate_limit}
        await work.audit.add(_CLI, "create_key", detail)
        await work.commit()
    return key_id, key


async def list_keys(database: Database) -> Sequence[ApiKey]:
    """All keys ever made, revoked ones too, oldest first."""
    async with database.read() as session:
        return await session.keys.list()


async def revoke_key(database: Database, key_id: str) -> bool:
    """Revoke a key for ever; False where no such key was valid."""
    async with database.unit_of_work() as work:
        revoked = await work.keys.revoke(key_id)
        if revoked:
            await work.audit.add(_CLI, "revoke_key", {"key_id": key_id})
            await work.commit()
    return revoked


def _hash(key: str) -> str:
    return sha256(key.encode()).hexdigest()


@dataclass(slots=True)
class _Entry:
    key: ApiKey | None
    """None for a key that is not valid."""
    checked_at: float
    """When the database said so."""
    believed_until: float


class KeyCache:
    """Recognises keys without asking Postgres for each request.

    A key that was revoked is refused at most `ttl_seconds` later. While Postgres is away, keys that were valid when it
    was last asked stay so for `grace_seconds`, so that predictions go on.

    Args:
        database: holds the keys.
        ttl_seconds: how long an answer of the database is believed.
        grace_seconds: how long it is while the database does not answer.
        on_refusal: called for each key that is not looked up, since too many unknown ones came.
    """

    MAX_ENTRIES = 10_000
    PATIENCE_SECONDS = 0.25
    """How long a request with a key seen lately waits for a database that hangs, once each `ttl_seconds`."""

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
        self._grace = grace_seconds
        self._entries: dict[str, _Entry] = {}  # by the hash of the key, which is never kept itself
        self._lookups: dict[str, asyncio.Task[_Entry]] = {}
        self._on_refusal = on_refusal
        self._strangers = Bucket(UNKNOWN_KEYS_RATE, UNKNOWN_KEYS_BURST)
        self._any_ever = False
        self._any_checked_at = float("-inf")

    def known(self, key: bytes) -> ApiKey | None:
        """The valid key that `key` is, where the database said so a moment ago."""
        entry = self._entries.get(sha256(key).hexdigest())
        return entry.key if entry is not None and time.monotonic() <= entry.believed_until else None

    async def authenticate(self, key: str) -> ApiKey:
        """The valid key that `key` is.

        Raises:
            NotReady: the database does not answer, and the key was not seen lately.
            RateLimited: the key was not seen lately, and too many came that nobody has: it is not looked up now.
            Unauthorized: it is none of ours, or was revoked.
        """
        match = _KEY.fullmatch(key)
        if match is None:
            raise Unauthorized
        digest = _hash(key)
        entry = self._entries.get(digest)
        if entry is None or time.monotonic() > entry.believed_until:
            entry = await self._check(match[1], digest, entry)
        if entry.key is None:
            raise Unauthorized
        return entry.key

    async def open_access(self) -> bool:
        """Whether no key was ever created; once one was, calls need a key for good.

        Raises:
            NotReady: the database does not answer.
        """
        if not self._any_ever and time.monotonic() - self._any_checked_at > self._ttl:
            async with self._database.read() as session:
                self._any_ever = await session.keys.any_ever()
            self._any_checked_at = time.monotonic()
        return not self._any_ever

    async def _check(self, key_id: str, digest: str, known: _Entry | None) -> _Entry:
        # One look-up for all requests that wait for the same key. It is a task of its own, so that it does not end with
        # the request that happened to start it.
        lookup = self._lookups.get(digest)
        if lookup is None:
            stranger = known is None or known.key is None
            if stranger and (wait := self._strangers.take(time.monotonic())):
                self._on_refusal()
                raise RateLimited("expected a key that was seen lately, for too many came that are unknown", wait)
            lookup = self._lookups[digest] = asyncio.create_task(self._look_up(key_id, digest, stranger))
            lookup.add_done_callback(lambda task: self._forget(digest, task))
        if known is None or known.key is None or time.monotonic() - known.checked_at > self._grace:
            return await asyncio.shield(lookup)
        try:
            async with asyncio.timeout(self.PATIENCE_SECONDS):
                return await asyncio.shield(lookup)
        except (NotReady, TimeoutError):
            known.believed_until = time.monotonic() + self._ttl
            logger.warning("Postgres does not answer; key %s is believed for now", key_id)
            return known

    def _forget(self, digest: str, lookup: "asyncio.Task[_Entry]") -> None:
        del self._lookups[digest]
        if not lookup.cancelled():
            lookup.exception()  # seen, also where nobody waits for it any more

    async def _look_up(self, key_id: str, digest: str, stranger: bool) -> _Entry:
        async with self._database.read() as session:
            key = await session.keys.get(key_id)
        valid = key is not None and key.revoked_at is None and hmac.compare_digest(key.secret_hash, digest)
        if valid and stranger:
            self._strangers.put_back()
        if len(self._entries) >= self.MAX_ENTRIES:  # most of them made up
            real = {known: entry for known, entry in self._entries.items() if entry.key is not None}
            self._entries = real if len(real) < self.MAX_ENTRIES else {}
        now = time.monotonic()
        entry = self._entries[digest] = _Entry(key if valid else None, checked_at=now, believed_until=now + self._ttl)
        return entry
