"""What predictions read of users, cached in the memory of an api process.

`service.use_cases.predict` reads the pasts of users here; `service.use_cases.ingest` and the use cases that store
features or delete users tell it what has changed. What is not in memory comes from Redis, else from Postgres
(`service.storage.redis.histories.HistoryStore`).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asmg.layout import HISTORY_LENGTH
from service.errors import NotReady
from service.serving.id_hashes import Hashes, hash_ids
from service.serving.snapshot import NOTHING_RECENT
from service.storage.postgres.repositories import NOTHING_KNOWN, Happened
from service.storage.redis.histories import HistoryStore, StoredPast
from service.tasks import end_tasks, start_alone

__all__ = ["NO_PAST", "Histories", "UserPast"]

logger = logging.getLogger(__name__)

MAX_USERS = 20_000
"""Users that are cached. They take about 15 MB, and 10 MB more with five features each."""

MAX_USERS_PER_TRIP = 256
"""Users that one round trip to Redis reads."""

LISTEN_AGAIN_SECONDS = 1.0
"""Pause before the notices are subscribed to again."""

READERS = 4
"""Users that are read from Postgres at a time; more would only block the event loop together."""

MAX_READS = 1024
"""Users that may wait to be read from Postgres. For further ones no past is had."""

PAUSE_SECONDS = 1.0
"""How long Postgres is not asked after it has failed: in an outage predictions do not wait one after another."""


class UserPast(NamedTuple):
    """What a user did last, and its features."""

    history: Hashes
    """Hashes of the items clicked last, newest first, at most `HISTORY_LENGTH`: uint64 [n]."""
    recent: NDArray[np.int32]
    """int32 [3]: what `PeriodData.recent` would be of an interaction that happened now."""
    features: Mapping[str, Any] = NOTHING_KNOWN
    """Values by the names of their fields, as clients sent them; the snapshot's `FieldReader` reads them."""


NO_PAST = UserPast(np.empty(0, dtype=np.uint64), NOTHING_RECENT)
"""The past of a visitor without an id, and of a user whose past is not had."""

_Answer = asyncio.Future[UserPast]


async def _no_notices() -> AsyncIterator[list[str] | None]:
    await asyncio.Event().wait()
    yield None


class _Cached(NamedTuple):
    until: float
    """Time of expiry, of the monotonic clock."""
    past: UserPast


class Histories:
    """Caches the pasts of users for `seconds`.

    A change that this process makes counts at once. One that another process makes counts as soon as its notice
    arrives, and after `seconds` where the notice was lost.

    What is not cached is read from Redis: one round trip at a time, for all users that were asked for during the last.

    Args:
        store: Redis, with Postgres behind it.
        clicks: an endless stream of users whose past has changed; None where some notices may have been lost.
        seconds: how long a past is cached; 0 for not at all.
        deadline_seconds: how long a call waits at most.
    """

    def __init__(
        self,
        store: HistoryStore,
        *,
        seconds: float,
        clicks: Callable[[], AsyncIterator[list[str] | None]] = _no_notices,
        deadline_seconds: float = 0.75,
    ) -> None:
        self._store = store
        self._deadline = deadline_seconds
        self._clicks = clicks
        self._seconds = seconds
        self._cache: dict[str, _Cached] = {}  # the one that expires first stands first
        self._pending: dict[str, _Answer] = {}
        self._queue: list[tuple[str, _Answer]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_reading_redis = False
        self._readers = asyncio.Semaphore(READERS)
        self._reading: set[_Answer] = set()
        self._read_at = self._failed_at = -float("inf")

    def known(self, user_id: str) -> UserPast | None:
        """The past of a user if it is cached."""
        cached = self._cache.get(user_id)
        return cached.past if cached is not None and cached.until > time.monotonic() else None

    async def get(self, user_id: str) -> UserPast | None:
        """The past of a user; None where neither Redis nor Postgres gave it in time."""
        return (await self.get_many([user_id]))[0]

    async def get_many(self, user_ids: Sequence[str | None]) -> list[UserPast | None]:
        """`get` for several users, with one round trip for all; `NO_PAST` for a visitor without an id, None."""
        found = [NO_PAST if user is None else self.known(user) or self._request(user) for user in user_ids]
        if waiting := {answer for answer in found if isinstance(answer, asyncio.Future)}:
            _, late = await asyncio.wait(waiting, timeout=self._deadline)
            # Late answers may just have queued for a reader. Postgres has failed if no read at all came back meanwhile.
            if not late.isdisjoint(self._reading) and time.monotonic() > self._read_at + self._deadline:
                self._failed_at = time.monotonic()
        return [_result_in_time(answer) if isinstance(answer, asyncio.Future) else answer for answer in found]

    async def append(self, happened: Happened) -> None:
        """Add events that were committed: whoever asks from now on gets a past with them."""
        await self._store.append(happened)
        self._drop(happened.user_ids)

    async def forget_features(self, user_ids: Collection[str]) -> None:
        """Forget the features of these users, which have changed: whoever asks from now on gets the new ones."""
        await self._store.forget_features(user_ids)
        self._drop(user_ids)

    async def forget_user(self, user_id: str) -> None:
        """Forget the past and the features of a user everywhere.

        Raises:
            NotReady: Redis does not answer.
        """
        await self._store.forget_user(user_id)
        self._drop([user_id])

    async def forget_all(self) -> None:
        """Forget the pasts and the features of all users everywhere.

        Raises:
            NotReady: Redis does not answer.
        """
        await self._store.forget_all()
        self.drop_all()

    async def listen(self) -> None:
        """Follow the notices of other processes, until cancelled."""
        while True:
            try:
                async for users in self._clicks():
                    if users is None:
                        self.drop_all()
                    else:
                        self._drop(users)
            except Exception:
                logger.exception("lost the notices of clicks; what is remembered expires in time")
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

    def drop_all(self) -> None:
        """Drop all pasts from memory; they are read again."""
        self._cache.clear()
        self._pending.clear()

    async def close(self) -> None:
        """Cancel all reads."""
        await end_tasks(*self._tasks)

    def _drop(self, user_ids: Iterable[str]) -> None:
        for user_id in user_ids:
            self._cache.pop(user_id, None)
            self._pending.pop(user_id, None)  # its answer is for those who wait already, and is not cached

    def _request(self, user_id: str) -> _Answer:
        """The future past of a user that is not cached; one for all who ask."""
        answer = self._pending.get(user_id)
        if answer is None:
            answer = self._pending[user_id] = asyncio.get_running_loop().create_future()
            self._queue.append((user_id, answer))
            if not self._is_reading_redis:
                self._is_reading_redis = True
                self._start(self._read_redis())
        return answer

    async def _read_redis(self) -> None:
        """Read all queued users from Redis, trip by trip; those that it does not have are read from Postgres."""
        while self._queue:
            trip, self._queue = self._queue[:MAX_USERS_PER_TRIP], self._queue[MAX_USERS_PER_TRIP:]
            try:
                found = await self._store.cached([user_id for user_id, _ in trip])
            except Exception as error:  # `cached` raises nothing, so this is a bug; all who wait get it
                for user_id, answer in trip:
                    self._fail(user_id, answer, error)
                continue
            for (user_id, answer), stored in zip(trip, found, strict=True):
                if stored is not None:
                    self._deliver(user_id, answer, stored)
                elif self._refuses_reads:
                    self._fail(user_id, answer, NotReady("Postgres does not answer"))
                else:
                    self._reading.add(answer)
                    self._start(self._read_postgres(user_id, answer))
        self._is_reading_redis = False

    @property
    def _refuses_reads(self) -> bool:
        return time.monotonic() < self._failed_at + PAUSE_SECONDS or len(self._reading) >= MAX_READS

    async def _read_postgres(self, user_id: str, answer: _Answer) -> None:
        try:
            async with self._readers:
                stored = await self._store.get(user_id)
            self._read_at = time.monotonic()
            self._deliver(user_id, answer, stored)
        except Exception as error:
            if isinstance(error, NotReady):
                self._failed_at = time.monotonic()
            self._fail(user_id, answer, error)
        finally:
            self._reading.discard(answer)

    def _deliver(self, user_id: str, answer: _Answer, stored: StoredPast) -> None:
        past = UserPast(hash_ids(stored.items[:HISTORY_LENGTH]), np.array(stored.recent, np.int32), stored.features)
        answer.set_result(past)
        if self._pending.get(user_id) is not answer:  # the past has changed meanwhile
            return
        del self._pending[user_id]
        if self._seconds > 0:
            self._cache.pop(user_id, None)  # so that it goes to the end
            if len(self._cache) >= MAX_USERS:
                del self._cache[next(iter(self._cache))]
            self._cache[user_id] = _Cached(time.monotonic() + self._seconds, past)

    def _fail(self, user_id: str, answer: _Answer, error: Exception) -> None:
        if self._pending.get(user_id) is answer:
            del self._pending[user_id]
        answer.set_exception(error)
        answer.exception()  # retrieved, so that asyncio does not log it where nobody waits any more

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(task := start_alone(work, in_trace=True))
        task.add_done_callback(self._tasks.discard)


def _result_in_time(answer: _Answer) -> UserPast | None:
    """The past; None where it has not come, or a server failed. Raises any other error, which is a bug."""
    if not answer.done() or isinstance(answer.exception(), NotReady):
        return None
    return answer.result()
