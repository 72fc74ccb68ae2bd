"""What Redis does: what users did last and their features at the speed of a cache, notices between processes, shared
rate limits.

Nothing here is the only copy. Every call works on when Redis is away: what is known of users comes from Postgres,
notices are dropped (their receivers poll Postgres too), limits are each process's own, and a log line a minute says so.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple
from uuid import uuid4

import orjson
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError

from asmg.layout import RECENT, RECENT_SHORT
from service.errors import NotReady
from service.limits import MAX_FUTURE_SECONDS, MAX_HISTORY
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import NOTHING_KNOWN, Happened, PastEvent
from service.tasks import start_alone

__all__ = ["HistoryStore", "Notices", "RateBuckets", "StoredPast", "connect", "purge", "unusable"]

logger = logging.getLogger(__name__)

NAMESPACE = "asmg:"
"""What all keys of the service begin with."""

HISTORY_SECONDS = 3600
LEASE_SECONDS = 10
PROGRESS_SECONDS = 24 * 3600
LEADER_SECONDS = 24 * 3600
# What one command may hold: Redis does nothing else meanwhile, nor does the event loop that packs it.
EVENTS_OF_A_SCRIPT = 250
KEYS_OF_A_PAGE = 1000

# Of an outage. After more users than that nobody remembers whose histories are old: all are dropped.
MOST_OUTDATED_USERS = 100_000

# While Redis is away, one call a second finds that out; the others do not wait for its timeout.
PAUSE_SECONDS = 1.0
# Predictions wait for it: a Redis that takes longer than this is as good as away.
ANSWER_SECONDS = 0.5
LOG_EVERY_SECONDS = 60.0

PROGRESS_KEY = "asmg:progress"
LEADER_KEY = "asmg:leader"

SWAP_CHANNEL = "asmg:swap"
CLICKS_CHANNEL = "asmg:clicks"
PROGRESS_CHANNEL = "asmg:progress"
EVERYBODY = b""
"""On that channel, in place of users."""
RECONNECT_SECONDS = (0.1, 5.0)
LISTEN_SECONDS = 15.0

# What a user did last is one sorted set, by the time in milliseconds and then by the member: of a click its event, NUL
# and its item, of a pass (an interaction without a click) its event. NUL is in no id, and before all that is: so the
# order is that of the log. A user without any is cached as this one member.
NOTHING = b""

MOST_MEMBERS = 90
"""From here on a set is cut to what is asked for: seldom, for that looks at each of them."""

# The features of a user are a text of their own, as JSON, which is in Redis or not as the set is. Being another key it
# may go alone: then nothing counts as cached. It expires where the next version of the features begins to hold.

# KEYS: users' sets. ARGV: clicks of a history, RECENT, RECENT_SHORT. Of each user that is there one text: the three
# numbers, and with NUL before each the features and the items clicked, newest first. One command, however many users: a
# command costs the client more than the server's work on it, and each part of an answer costs it too.
LOOK = """
local length, recent, short = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local found = {}
for i, key in ipairs(KEYS) do
  local members = redis.call('ZREVRANGE', key, 0, -1)
  local features = #members > 0 and redis.call('GET', 'asmg:features:' .. string.sub(key, #'asmg:past:' + 1))
  local few, clicks, past = 0, 0, {'', features}
  for n, member in ipairs(members) do
    local item = string.match(member, '%z(.*)')
    if item then
      if n <= short then few = few + 1 end
      if n <= recent then clicks = clicks + 1 end
      if #past < length + 2 then past[#past + 1] = item end
    end
  end
  local size = members[1] == '' and 0 or math.min(#members, recent)
  past[1] = size .. ' ' .. few .. ' ' .. clicks
  found[i] = features and table.concat(past, '\\0')
end
return found
"""

# KEYS: set, features, lease. ARGV: token, seconds, features, milliseconds of these, score, member, score, member, …
# A lease that is gone means that something was committed after the reader looked: its answer may lack it.
FILL = """
if redis.call('GET', KEYS[3]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[3])
for i = 5, #ARGV, 2 do redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
return 1
"""

# ARGV: clicks of a history, RECENT, most members, channel, the users, which are the message, and of each event its
# user, time, event, item and kind, NUL behind each. These are two texts, and the keys are made of them, for what a
# script costs the client goes by its arguments. Of most users nothing is cached, and two commands see to all of them.
# A click takes the place of the pass that its item was, a pass that of nothing, and an item that was shown not even
# that of a pass. The expiry stays that of the fill, which bounds how long a cache that missed an append lives.
APPEND = """
local length, recent, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local function cut(key)
  local clicks, gone = 0, {}
  for n, member in ipairs(redis.call('ZREVRANGE', key, 0, -1)) do
    local click = string.find(member, '%z')
    if click then clicks = clicks + 1 end
    if n > recent and not (click and clicks <= length) then gone[#gone + 1] = member end
  end
  redis.call('ZREM', key, unpack(gone))
end
local keys, leases = {}, {}
for user in string.gmatch(ARGV[5], '%Z+') do
  keys[#keys + 1] = 'asmg:past:' .. user
  leases[#leases + 1] = 'asmg:past-lease:' .. user
end
redis.call('DEL', unpack(leases))
local cached = {}
local function is_cached(key)
  if cached[key] == nil then cached[key] = redis.call('EXISTS', key) == 1 end
  return cached[key]
end
local events = redis.call('EXISTS', unpack(keys)) > 0 and ARGV[6] or ''
for user, score, event, item, kind in string.gmatch(events, '(%Z+)%z(%Z+)%z(%Z+)%z(%Z+)%z(%Z+)%z') do
  local key = 'asmg:past:' .. user
  if is_cached(key) then
    local click = event .. '\\0' .. item
    if kind == '1' then
      redis.call('ZREM', key, '', event)
      redis.call('ZADD', key, score, click)
    elseif not redis.call('ZSCORE', key, click) then
      redis.call('ZREM', key, '')
      if kind == '0' then redis.call('ZADD', key, score, event) else redis.call('ZADD', key, 'NX', score, event) end
    end
    if redis.call('ZCARD', key) > most then cut(key) end
  end
end
redis.call('PUBLISH', ARGV[4], ARGV[5])
"""

# KEYS: bucket, which holds the moment at which it is full again. ARGV: seconds to take, of how many when it is full,
# over how many they were used, how many it can be in debt. By the clock of Redis, for those of the hosts differ.
# A bucket that is full again is still kept: what another process used at the same time comes on top of that.
CHARGE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now - ARGV[3]) + ARGV[1]
full_at = math.min(full_at, now + ARGV[2] + ARGV[4])
redis.call('SET', KEYS[1], string.format('%.6f', full_at), 'PX', math.ceil((full_at - now + ARGV[2]) * 1000))
return tostring(now + ARGV[2] - full_at)
"""
DEBT_SECONDS = 60


def connect(url: str) -> Redis:
    """A client for `redis://`, `rediss://` or `unix://`; it connects when first used and raises within seconds.

    The pool makes callers wait for a connection for a moment: an error there would send a burst of requests to
    Postgres at the worst time.
    """
    pool = _Pool.from_url(
        url,
        max_connections=256,
        timeout=2,
        socket_connect_timeout=1,
        socket_timeout=5,
        health_check_interval=30,
        retry=Retry(NoBackoff(), 1),
    )
    return Redis.from_pool(pool)


async def unusable(url: str) -> str | None:
    """Why the Redis at this URL cannot be used now, in words that hold nothing of the URL; None where it can."""
    redis = connect(url)
    try:
        await redis.ping()
    except (RedisError, OSError) as error:
        cause = error.__cause__ or error  # of what goes wrong while it connects
        if isinstance(cause, (AuthenticationError, AuthorizationError)):
            return "refuses the user name or password"
        if isinstance(cause, ResponseError):
            return f"refuses the connection: {cause}"
        return f"does not answer: {type(error).__name__}"
    finally:
        await redis.aclose()
    return None


class _Pool(BlockingConnectionPool):
    """Its connections are opened in the name of no request, whichever needs one first."""

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """See there."""
        if connection.is_connected:
            await super().ensure_connection(connection)
        else:
            await start_alone(super().ensure_connection(connection))


async def purge(redis: Redis) -> int:
    """Remove every key of the service; return how many there were.

    Raises:
        NotReady: Redis does not answer.
    """
    removed = 0
    try:
        async for keys in _pages(redis, f"{NAMESPACE}*"):
            removed += await redis.unlink(*keys)
    except RedisError as error:
        raise NotReady(f"Redis does not answer: {type(error).__name__}") from error
    return removed


class StoredPast(NamedTuple):
    """What a user did last, and its features now."""

    items: Sequence[str] | Sequence[bytes]
    """Clicked last, newest first: the history; as text, or as UTF-8 where Redis had them."""
    recent: tuple[int, int, int]
    """Of the last `RECENT` interactions how many there are, the clicks among the newest `RECENT_SHORT`, all clicks."""
    features: Mapping[str, Any] = NOTHING_KNOWN
    """Values by the names of their fields."""

    @classmethod
    def of(cls, events: Sequence[PastEvent], length: int, features: Mapping[str, Any] = NOTHING_KNOWN) -> "StoredPast":
        """These events, newest first; the history of at most `length` items."""
        labels = [event.label for event in events[:RECENT]]
        items = [event.item_id for event in events if event.label][:length]
        return cls(items, (len(labels), sum(labels[:RECENT_SHORT]), sum(labels)), features)


class HistoryStore:
    """What each user did last: the items of the last clicks, and how many clicks are among the last interactions; and
    the features that it has now.

    A sorted set and a text each in Redis, filled from Postgres. The cache is never filled with an answer that misses
    something committed. A reader that finds nothing takes a lease before it reads Postgres, and fills only while it
    holds the lease; `append`, which runs after the commit, adds to a cached set or else takes the lease away, and
    `forget_features` takes away both lease and features. The other way round, what Redis did not get of these is
    remembered, and all that it has of the users concerned is dropped before this process tells it anything again; at
    the latest it expires.

    A set has the last `RECENT` interactions, and the last clicks of a history; what it has beyond is of no account.

    Args:
        redis: a client that returns bytes.
        database: where sets are rebuilt from.
        length: items of a history.
        on_fallback: called for each user whose past is read from Postgres because Redis did not answer.
    """

    def __init__(
        self,
        redis: Redis,
        database: Database,
        *,
        length: int = MAX_HISTORY,
        on_fallback: Callable[[], None] = lambda: None,
    ) -> None:
        self._redis = redis
        self._database = database
        self._length = length
        self._on_fallback = on_fallback
        self._fill = redis.register_script(FILL)
        self._append = redis.register_script(APPEND)
        self._look = redis.register_script(LOOK)
        self._outage = _Outage("user histories are read from Postgres")
        self._outdated: set[str] = set()
        self._all_outdated = False

    async def cached(self, user_ids: Sequence[str]) -> list[StoredPast | None]:
        """What Redis has of the users, otherwise as `get` returns it, in one round trip.

        None stands for what `get` has to find out; that Redis is away as well, for this never raises.
        """
        if self._outage.pausing:
            return [None] * len(user_ids)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._looked(user_ids)
        except (RedisError, TimeoutError) as error:
            self._outage.note(error)
            return [None] * len(user_ids)

    async def get(self, user_id: str) -> StoredPast:
        """What the user did last; nothing of an unknown one."""
        if self._outage.pausing:
            self._on_fallback()
            return (await self._read(user_id))[0]
        past, features, lease = _keys(user_id)
        token = uuid4().hex
        leased = False
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                [found] = await self._looked([user_id])
                if found is not None:
                    items = [item.decode() for item in found.items if isinstance(item, bytes)]
                    return found._replace(items=items)
                leased = bool(await self._redis.set(lease, token, nx=True, ex=LEASE_SECONDS))
        except (RedisError, TimeoutError) as error:
            self._outage.note(error)
            self._on_fallback()
        found, events, holds_ms = await self._read(user_id)
        if leased:
            pairs = [part for event in events for part in (event.timestamp_ms, _member(event))]
            text = orjson.dumps(found.features)
            try:
                await self._fill(
                    keys=[past, features, lease],
                    args=[token, HISTORY_SECONDS, text, holds_ms, *(pairs or ("-inf", NOTHING))],
                )
            except RedisError as error:
                self._outage.note(error)
        return found

    async def append(self, happened: Happened) -> None:
        """Add what was committed to the pasts of the users.

        To be called after the commit, and only with what was accepted by it; calling it twice does no harm.
        """
        if not happened.user_ids:
            return
        if self._outage.pausing:
            self._note_outdated(happened.user_ids)
            return
        latest_ms = (time.time() + MAX_FUTURE_SECONDS) * 1000  # what is later would keep all others out
        sizes = [self._length, RECENT, MOST_MEMBERS]
        try:
            await self._drop_outdated()
            for users, text in happened.parts(EVENTS_OF_A_SCRIPT, latest_ms):
                await self._append(args=[*sizes, CLICKS_CHANNEL, users, text])
        except RedisError as error:
            self._note_outdated(happened.user_ids)
            self._outage.note(error)

    async def forget_features(self, user_ids: Collection[str]) -> None:
        """Drop the features of users that were changed, and have every process drop what it remembers of these users.

        To be called after the commit. It never raises.
        """
        if self._outage.pausing:
            self._note_outdated(user_ids)
            return
        try:
            await self._drop_outdated()
            rest = iter(user_ids)
            while chunk := list(islice(rest, EVENTS_OF_A_SCRIPT)):
                async with self._redis.pipeline(transaction=True) as pipeline:
                    pipeline.delete(*(key for user_id in chunk for key in _keys(user_id)[1:]))
                    pipeline.publish(CLICKS_CHANNEL, "\0".join(chunk))
                    await pipeline.execute()
        except RedisError as error:
            self._note_outdated(user_ids)
            self._outage.note(error)

    async def _looked(self, user_ids: Sequence[str]) -> list[StoredPast | None]:
        keys, sizes = [_keys(user_id)[0] for user_id in user_ids], [self._length, RECENT, RECENT_SHORT]
        found = await self._look(keys=keys, args=sizes)
        return [None if text is None else _parsed(text) for text in found]

    async def forget_user(self, user_id: str) -> None:
        """Drop what Redis has of a user, also where it is being filled just now, and have every process drop what it
        remembers.

        Raises:
            NotReady: Redis does not answer.
        """
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(*_keys(user_id))
                pipeline.publish(CLICKS_CHANNEL, user_id)
                await pipeline.execute()
        except RedisError as error:
            raise NotReady(f"Redis does not answer: {type(error).__name__}") from error

    async def forget_all(self) -> None:
        """The same for all users.

        Raises:
            NotReady: Redis does not answer.
        """
        try:
            await self._drop_all()
            await self._redis.publish(CLICKS_CHANNEL, EVERYBODY)
        except RedisError as error:
            raise NotReady(f"Redis does not answer: {type(error).__name__}") from error

    def _note_outdated(self, user_ids: Iterable[str]) -> None:
        self._outdated.update(user_ids)
        if len(self._outdated) > MOST_OUTDATED_USERS:
            self._outdated.clear()
            self._all_outdated = True

    async def _drop_outdated(self) -> None:
        if self._all_outdated:
            self._all_outdated = False  # first: what is noted meanwhile has to count
            try:
                await self._drop_all()
            except BaseException:
                self._all_outdated = True
                raise
        while chunk := list(islice(self._outdated, EVENTS_OF_A_SCRIPT)):
            await self._redis.delete(*(key for user_id in chunk for key in _keys(user_id)))
            self._outdated.difference_update(chunk)

    async def _drop_all(self) -> None:
        """Leases first: then nobody who has looked before can fill one behind this."""
        async for keys in _pages(self._redis, *reversed(_keys("*"))):
            await self._redis.unlink(*keys)

    async def _read(self, user_id: str) -> tuple[StoredPast, list[PastEvent], int]:
        """What Postgres has: as it is read, the events, and for how many milliseconds the features may be cached."""
        now_ms = int(time.time() * 1000)
        async with self._database.read() as session:
            events = await session.past.recent(user_id)
            features, until_ms = await session.features.of_user_at(user_id, now_ms)
        holds_ms = 1000 * HISTORY_SECONDS if until_ms is None else min(1000 * HISTORY_SECONDS, until_ms - now_ms)
        return StoredPast.of(events, self._length, features), events, holds_ms


class Notices:
    """News between processes, worth nothing but speed: every receiver can also find it out by polling Postgres."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._outage = _Outage("notices are not sent")

    async def publish_swap(self) -> None:
        """Tell the api processes that an alias moved."""
        try:
            await self._redis.publish(SWAP_CHANNEL, b"")
        except RedisError as error:
            self._outage.note(error)

    async def swap_notices(self) -> AsyncIterator[None]:
        """One None for each move of an alias, and for each (re)connection, since a notice may have been missed."""
        async for _ in self._messages(SWAP_CHANNEL):
            yield None

    async def clicks(self) -> AsyncIterator[list[str] | None]:
        """Users whose past has changed, whichever process changed it; None where that may be any: also for each
        (re)connection, for some may be missing.
        """
        async for data in self._messages(CLICKS_CHANNEL):
            yield data.decode(errors="replace").split("\0") if data else None

    async def publish_progress(self, period: int, progress: Mapping[str, Any]) -> None:
        """Tell who watches the update of a period how far it is; JSON, also kept for those who come later.

        Only that of one period is kept: one leader updates one period after another.
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

    async def note_leader(self, at: float) -> None:
        """Note when the leading worker last got further, in seconds of the epoch."""
        try:
            await self._redis.set(LEADER_KEY, f"{at:.3f}", ex=LEADER_SECONDS)
        except RedisError as error:
            self._outage.note(error)

    async def leader_at(self) -> float | None:
        """When the leading worker last got further, in seconds of the epoch; None where that is not known."""
        try:
            at = await self._redis.get(LEADER_KEY)
        except RedisError as error:
            self._outage.note(error)
            return None
        return None if at is None else float(at)

    async def progress_notices(self) -> AsyncIterator[int | None]:
        """Numbers of periods whose update has made progress; None for each (re)connection: some may be missing."""
        async for data in self._messages(PROGRESS_CHANNEL):
            yield None if data is None else int(data)

    async def _messages(self, channel: str) -> AsyncIterator[bytes | None]:
        """Messages of a channel for ever; None for each subscription to it, the ones after a lost connection too."""
        wait, longest = RECONNECT_SECONDS
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(channel)
                    while True:
                        # The client renews a lost subscription by itself; its confirmation is what tells us.
                        message = await pubsub.get_message(timeout=LISTEN_SECONDS)
                        if message is not None:
                            wait = RECONNECT_SECONDS[0]
                            yield message["data"] if message["type"] == "message" else None
            except RedisError as error:
                self._outage.note(error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)


class RateBuckets:
    """What the api processes together have left of the allowance of each API key.

    A number each, which expires: the longest that one stays behind is `DEBT_SECONDS` and twice the key's burst.

    Args:
        redis: a client that returns bytes.
    """

    def __init__(self, redis: Redis) -> None:
        self._charge = redis.register_script(CHARGE)
        self._outage = _Outage("rate limits are held by each api process alone")

    @property
    def away(self) -> bool:
        """Whether Redis has failed a moment ago; nothing is charged then."""
        return self._outage.pausing

    async def charge(self, key_id: str, *, seconds: float, burst_seconds: float, since: float) -> float | None:
        """Take from an allowance that grows by a second a second; never raises.

        Args:
            key_id: whose.
            seconds: to take.
            burst_seconds: of how many there are at most.
            since: seconds over which they were used up, at most `burst_seconds`; meanwhile it grew.

        Returns:
            the seconds that are left, negative where too many were taken (by at most `DEBT_SECONDS`); None where Redis
            does not answer.
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


class _Outage:
    """Notes failures of Redis: one line a minute, and a pause after each in which Redis is not asked."""

    def __init__(self, consequence: str) -> None:
        self._consequence = consequence
        self._failed_at = self._logged_at = -float("inf")

    @property
    def pausing(self) -> bool:
        return time.monotonic() < self._failed_at + PAUSE_SECONDS

    def note(self, error: RedisError | TimeoutError) -> None:
        self._failed_at = time.monotonic()
        if self._failed_at >= self._logged_at + LOG_EVERY_SECONDS:
            self._logged_at = self._failed_at
            logger.warning("Redis does not answer, %s: %s", self._consequence, str(error) or type(error).__name__)


async def _pages(redis: Redis, *patterns: str) -> AsyncIterator[list[bytes | str]]:
    """All keys that match one of the patterns, some at a time."""
    for pattern in patterns:
        cursor = 0
        while True:
            cursor, keys = await redis.scan(cursor, match=pattern, count=KEYS_OF_A_PAGE)
            if keys:
                yield keys
            if cursor == 0:
                break


def _keys(user_id: str) -> tuple[str, str, str]:
    """Of the user's set, of its features, and of the lease of who fills them."""
    return f"asmg:past:{user_id}", f"asmg:features:{user_id}", f"asmg:past-lease:{user_id}"


def _member(event: PastEvent) -> bytes:
    return (f"{event.event_id}\0{event.item_id}" if event.label else event.event_id).encode()


def _parsed(text: bytes) -> StoredPast:
    """What `LOOK` says of one user."""
    numbers, features, *items = text.split(b"\0")
    seen, few, clicks = map(int, numbers.split())
    return StoredPast(items, (seen, few, clicks), NOTHING_KNOWN if features == b"{}" else orjson.loads(features))
