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
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from service.errors import NotReady, RateLimited, Unauthorized
from service.limits import (
    MAX_KEY_DAYS,
    MAX_KEY_NAME_LENGTH,
    MAX_RATE,
    MIN_RATE,
    UNKNOWN_KEYS_BURST,
    UNKNOWN_KEYS_RATE,
)
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import ApiKey
from service.tasks import start_alone
from service.use_cases.audit import command_line
from service.use_cases.rate_limit import Bucket

__all__ = ["SCOPES", "KeyCache", "create_key", "limit_key", "list_keys", "revoke_key"]

logger = logging.getLogger(__name__)

SCOPES = ("predict", "ingest", "admin")

_KEY = re.compile(r"asmg_([0-9a-f]{12})_[A-Za-z0-9_-]{43}", re.ASCII)


async def create_key(
    database: Database,
    name: str,
    scopes: Collection[str],
    *,
    rate_limit: float | None = None,
    expires_at: datetime | None = None,
    reason: str | None = None,
) -> tuple[str, str]:
    """Make a key; return its id and the key itself, which nobody can read again later.

    Args:
        database: holds the keys.
        name: what it is for, or whose it is: up to `MAX_KEY_NAME_LENGTH` printable characters.
        scopes: some of `SCOPES`.
        rate_limit: requests a second, 0 for any number; None for `Settings.rate_limit`.
        expires_at: from when on it is refused, up to `MAX_KEY_DAYS` from now; None for never.
        reason: for the audit.

    Raises:
        ValueError: one of them is not as it has to be.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise ValueError(
            f"expected one or more of {', '.join(SCOPES)} as scopes; received {', '.join(unknown) or 'none'}"
        )
    if not name.strip() or len(name) > MAX_KEY_NAME_LENGTH or not name.isprintable():
        raise ValueError(
            f"expected 1 to {MAX_KEY_NAME_LENGTH} printable characters as the key's name; received {name[:100]!r}"
        )
    now = datetime.now(UTC)
    if expires_at is not None and not now < expires_at <= now + timedelta(days=MAX_KEY_DAYS):
        raise ValueError(
            f"expected a key to expire later than now and within {MAX_KEY_DAYS} days; received {expires_at.isoformat()}"
        )
    _check_rate(rate_limit)
    key_id = secrets.token_hex(6)
    key = f"asmg_{key_id}_{secrets.token_urlsafe(32)}"
    ordered = tuple(scope for scope in SCOPES if scope in scopes)
    detail: dict[str, object] = {"key_id": key_id, "name": name, "scopes": list(ordered)}
    if rate_limit is not None:
        detail["rate_limit"] = rate_limit
    if expires_at is not None:
        detail["expires_at"] = expires_at.isoformat()
    made = ApiKey(
        key_id=key_id,
        name=name,
        secret_hash=_hash(key),
        scopes=ordered,
        rate_limit=rate_limit,
        expires_at=expires_at,
    )
    async with database.unit_of_work() as work:
        await work.keys.insert(made)
        await work.audit.add(command_line(), "create_key", detail, reason=reason)
        await work.commit()
    return key_id, key


async def list_keys(database: Database) -> Sequence[ApiKey]:
    """All keys ever made, revoked and expired ones too, oldest first."""
    async with database.read() as session:
        return await session.keys.list()


async def revoke_key(database: Database, key_id: str, *, reason: str | None = None) -> bool:
    """Revoke a key for ever; False where there is no such key that is not revoked."""
    async with database.unit_of_work() as work:
        revoked = await work.keys.revoke(key_id)
        if revoked:
            await work.audit.add(command_line(), "revoke_key", {"key_id": key_id}, reason=reason)
            await work.commit()
    return revoked


async def limit_key(database: Database, key_id: str, rate_limit: float | None, *, reason: str | None = None) -> bool:
    """Change the rate limit of a key, from a second later on; False where there is no such key that is not revoked.

    Raises:
        ValueError: `rate_limit` is not as `create_key` wants it.
    """
    _check_rate(rate_limit)
    async with database.unit_of_work() as work:
        changed = await work.keys.limit(key_id, rate_limit)
        if changed:
            detail = {"key_id": key_id, "rate_limit": rate_limit}
            await work.audit.add(command_line(), "limit_key", detail, reason=reason)
            await work.commit()
    return changed


def _check_rate(rate_limit: float | None) -> None:
    if rate_limit and not MIN_RATE <= rate_limit <= MAX_RATE:
        raise ValueError(f"expected a rate of {MIN_RATE} to {MAX_RATE} requests a second, or 0; received {rate_limit}")


def _hash(key: str) -> str:
    return sha256(key.encode()).hexdigest()


@dataclass(slots=True)
class _Entry:
    key: ApiKey | None
    """None where there is no such key."""
    asked_at: float
    """When the database was asked."""
    believed_until: float

    @property
    def expired(self) -> bool:
        """Whether the key's time is over, which needs no database to tell."""
        return self.key is not None and self.key.expired

    @property
    def valid_key(self) -> ApiKey | None:
        """The key, unless it is revoked or has expired by now."""
        return self.key if self.key is not None and self.key.valid else None


class KeyCache:
    """Recognises keys without asking Postgres for each request.

    A key that was revoked is refused at most `ttl_seconds` later, one that expires at that moment. While Postgres is
    away, keys that were valid when it was last asked stay so for `grace_seconds`, so that predictions go on, but none
    longer than until it expires.

    Args:
        database: holds the keys.
        ttl_seconds: how long an answer of the database is believed.
        grace_seconds: how long it is while the database does not answer.
        on_refusal: called for each key that is not looked up, since too many unknown ones came.
    """

    MAX_ENTRIES = 10_000
    PATIENCE_SECONDS = 0.25
    """How long a request with a key seen lately waits for a database that hangs, once each `ttl_seconds`."""
    DEADLINE_SECONDS = 5.0
    """How long one with any other key does."""
    LEARN_SECONDS = 60.0
    """How often all valid keys are read, so that they are known before they are used."""
    MOST_LEARNED = 5000
    """Of them so many, the newest."""

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
        self._any_asked_at = float("-inf")
        self._learned = asyncio.Event()

    async def follow(self) -> None:
        """Learn the keys that there are, again and again, until cancelled.

        A process that has just started, or did not see a key for long, then lets it in though the database is away.
        """
        while True:
            try:
                await self._learn()
            except Exception as error:
                logger.warning("the API keys could not be read: %s", error)
                await asyncio.sleep(self._ttl)
            else:
                await asyncio.sleep(self.LEARN_SECONDS)

    async def wait_learned(self) -> None:
        """Return when the keys were read once."""
        await self._learned.wait()

    async def _learn(self) -> None:
        asked_at = time.monotonic()
        async with self._database.read() as session:
            keys = await session.keys.valid(self.MOST_LEARNED)
            self._any_ever = self._any_ever or await session.keys.any_ever()
        if len(self._entries) + len(keys) > self.MAX_ENTRIES:
            self._make_room()
        believed_until = asked_at + self._ttl
        self._entries.update({key.secret_hash: _Entry(key, asked_at, believed_until) for key in keys})
        self._learned.set()

    def known(self, key: bytes) -> ApiKey | None:
        """The valid key that `key` is, where the database said so a moment ago."""
        entry = self._entries.get(sha256(key).hexdigest())
        return entry.valid_key if entry is not None and time.monotonic() <= entry.believed_until else None

    async def authenticate(self, key: str) -> ApiKey:
        """The valid key that `key` is.

        Raises:
            NotReady: the database does not answer, and the key was not seen lately.
            RateLimited: the key was not seen lately, and too many came that nobody has: it is not looked up now.
            Unauthorized: it is none of ours, was revoked or has expired.
        """
        match = _KEY.fullmatch(key)
        if match is None:
            raise Unauthorized
        digest = _hash(key)
        entry = self._entries.get(digest)
        if entry is None or (time.monotonic() > entry.believed_until and not entry.expired):
            entry = await self._check(match[1], digest, entry)
        valid = entry.valid_key
        if valid is None:
            raise Unauthorized
        return valid

    async def open_access(self) -> bool:
        """Whether no key was ever created; once one was, calls need a key for good.

        Raises:
            NotReady: the database does not answer.
        """
        if not self._any_ever and time.monotonic() - self._any_asked_at > self._ttl:
            asked_at = time.monotonic()
            async with self._database.read() as session:
                self._any_ever = await session.keys.any_ever()
            self._any_asked_at = asked_at
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
            lookup = self._lookups[digest] = start_alone(self._look_up(key_id, digest, stranger))
            lookup.add_done_callback(lambda task: self._forget(digest, task))
        if known is None or known.valid_key is None or time.monotonic() - known.asked_at > self._grace:
            try:
                async with asyncio.timeout(self.DEADLINE_SECONDS):
                    return await asyncio.shield(lookup)
            except TimeoutError:
                raise NotReady(f"Postgres did not answer within {self.DEADLINE_SECONDS:g} s") from None
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
        asked_at = time.monotonic()  # before the database looks, so that what it says is never older than it seems
        async with self._database.read() as session:
            key = await session.keys.get(key_id)
        same = key is not None and hmac.compare_digest(key.secret_hash, digest)
        if same and stranger:
            self._strangers.put_back()
        if len(self._entries) >= self.MAX_ENTRIES:
            self._make_room()
        entry = _Entry(key if same else None, asked_at=asked_at, believed_until=asked_at + self._ttl)
        self._entries[digest] = entry
        return entry

    def _make_room(self) -> None:
        # A flood of made-up keys must not push out the real ones, which predictions need while Postgres is away.
        self._entries = {digest: entry for digest, entry in self._entries.items() if entry.valid_key is not None}
        if len(self._entries) >= self.MAX_ENTRIES:
            self._entries.clear()
