"""What predictions read of users: in this process for a moment, else in Redis, else in Postgres."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asmg.layout import HISTORY_LENGTH
from service.errors import NotReady
from service.serving.snapshot import hashes_of
from service.storage.postgres.repositories import NOTHING_KNOWN, Happened
from service.storage.redis.histories import HistoryStore, StoredPast
from service.tasks import end_tasks, start_alone

__all__ = ["Hashes", "Histories", "UserPast"]

logger = logging.getLogger(__name__)

MOST_USERS = 20_000
"""Of the memory of a process: about 15 MB, and 10 MB with five features each."""

USERS_OF_A_TRIP = 256
"""Whom one round trip to Redis asks about."""

LISTEN_AGAIN_SECONDS = 1.0

READERS = 4
"""Histories that are read from Postgres at a time; more at once would only hold up the event loop together."""

MOST_READS = 1024
"""Histories that wait to be read from Postgres; who comes then goes without."""

PAUSE_SECONDS = 1.0
"""For how long Postgres is not asked after it failed: the predictions of an outage do not wait one after another."""

Hashes = NDArray[np.uint64]


class UserPast(NamedTuple):
    """What a user did last, and its features."""

    history: Hashes
    """Hashes of the items clicked last, newest first, at most `HISTORY_LENGTH`: uint64 [n]."""
    recent: NDArray[np.int32]
    """int32 [3]: as `PeriodData.recent` has it of an interaction that happens now."""
    features: Mapping[str, Any] = NOTHING_KNOWN
    """Values by the names of their fields, as they were sent; whose model reads them says what they are to it."""


_Answer = asyncio.Future[UserPast]


async def _silence() -> AsyncIterator[list[str] | None]:
    await asyncio.Event().wait()
    yield None


class _Remembered(NamedTuple):
    until: float
    """Of the monotonic clock."""
    past: UserPast


class Histories:
    """What users did last and their features, histories as the hashes that a snapshot looks up, remembered for
    `seconds`.

    What this process takes in counts at once; what another process takes in counts as soon as its notice arrives, and
    after `seconds` where that was lost. What is not remembered comes from Redis in one round trip,
    together with what the other requests of the moment want: the next trip takes along whoever came during the last.

    Args:
        store: Redis, with Postgres behind it.
        clicks: an endless stream of users whose past has changed; None where some may be missing.
        seconds: how long a past is remembered; 0 for not at all.
        deadline_seconds: how long one call waits at most.
    """

    def __init__(
        self,
        store: HistoryStore,
        *,
        seconds: float,
        clicks: Callable[[], AsyncIterator[list[str] | None]] = _silence,
        deadline_seconds: float = 0.75,
    ) -> None:
        self._store = store
        self._deadline = deadline_seconds
        self._clicks = clicks
        self._seconds = seconds
        self._known: dict[str, _Remembered] = {}
        self._asked: dict[str, _Answer] = {}
        self._waiting: list[tuple[str, _Answer]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._travelling = False
        self._readers = asyncio.Semaphore(READERS)
        self._reading: set[_Answer] = set()
        self._read_at = self._failed_at = -float("inf")

    def known(self, user_id: str) -> UserPast | None:
        """The user's past, where it is remembered."""
        known = self._known.get(user_id)
        return known.past if known is not None and known.until > time.monotonic() else None

    async def get(self, user_id: str) -> UserPast | None:
        """What the user did last; nothing where nobody knows it.

        None stands for what neither Redis nor Postgres gave in time.
        """
        return (await self.get_many([user_id]))[0]

    async def get_many(self, user_ids: Sequence[str]) -> list[UserPast | None]:
        """The same for several users, with one round trip for all."""
        found = [known if (known := self.known(user)) is not None else self._ask(user) for user in user_ids]
        if waiting := {answer for answer in found if isinstance(answer, asyncio.Future)}:
            _, late = await asyncio.wait(waiting, timeout=self._deadline)
            # Many may have to wait for their turn; only where nobody had one Postgres does not answer.
            if not late.isdisjoint(self._reading) and time.monotonic() > self._read_at + self._deadline:
                self._failed_at = time.monotonic()
        return [_found(answer) if isinstance(answer, asyncio.Future) else answer for answer in found]

    def _ask(self, user_id: str) -> _Answer:
        answer = self._asked.get(user_id)
        if answer is None:
            answer = self._asked[user_id] = asyncio.get_running_loop().create_future()
            self._waiting.append((user_id, answer))
            if not self._travelling:
                self._travelling = True
                self._spawn(self._travel())
        return answer

    async def append(self, happened: Happened) -> None:
        """Add what was committed: whoever asks from now on gets a past with it."""
        await self._store.append(happened)
        self._forget(happened.user_ids)

    async def forget_features(self, user_ids: Collection[str]) -> None:
        """Forget the features of these users, which have changed: whoever asks from now on gets the new ones."""
        await self._store.forget_features(user_ids)
        self._forget(user_ids)

    async def forget_user(self, user_id: str) -> None:
        """Forget the past and the features of a user everywhere.

        Raises:
            NotReady: Redis does not answer.
        """
        await self._store.forget_user(user_id)
        self._forget([user_id])

    async def forget_all(self) -> None:
        """Forget the pasts and the features of all users everywhere.

        Raises:
            NotReady: Redis does not answer.
        """
        await self._store.forget_all()
        self._forget_all()

    async def listen(self) -> None:
        """Hear of what other processes take in, until cancelled."""
        while True:
            try:
                async for users in self._clicks():
                    if users is None:
                        self._forget_all()
                    else:
                        self._forget(users)
            except Exception:
                logger.exception("lost the notices of clicks; what is remembered expires in time")
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

    def _forget(self, user_ids: Iterable[str]) -> None:
        for user_id in user_ids:
            self._known.pop(user_id, None)
            self._asked.pop(user_id, None)  # who waits for it asked before, and nobody shall remember it

    def _forget_all(self) -> None:
        self._known.clear()
        self._asked.clear()

    async def close(self) -> None:
        """End what is under way."""
        await end_tasks(*self._tasks)

    async def _travel(self) -> None:
        while self._waiting:
            trip, self._waiting = self._waiting[:USERS_OF_A_TRIP], self._waiting[USERS_OF_A_TRIP:]
            try:
                found = await self._store.cached([user_id for user_id, _ in trip])
            except Exception as error:  # a bug, for `cached` raises nothing; nobody shall wait for ever because of it
                for user_id, answer in trip:
                    self._fail(user_id, answer, error)
                continue
            for (user_id, answer), stored in zip(trip, found, strict=True):
                if stored is None and self._refuses_reads:
                    self._fail(user_id, answer, NotReady("Postgres does not answer"))
                elif stored is None:
                    self._reading.add(answer)
                    self._spawn(self._read(user_id, answer))
                else:
                    self._give(user_id, answer, stored)
        self._travelling = False

    @property
    def _refuses_reads(self) -> bool:
        return time.monotonic() < self._failed_at + PAUSE_SECONDS or len(self._reading) >= MOST_READS

    async def _read(self, user_id: str, answer: _Answer) -> None:
        try:
            async with self._readers:
                stored = await self._store.get(user_id)
            self._read_at = time.monotonic()
            self._give(user_id, answer, stored)
        except Exception as error:
            if isinstance(error, NotReady):
                self._failed_at = time.monotonic()
            self._fail(user_id, answer, error)
        finally:
            self._reading.discard(answer)

    def _fail(self, user_id: str, answer: _Answer, error: Exception) -> None:
        if self._asked.get(user_id) is answer:
            del self._asked[user_id]
        answer.set_exception(error)
        answer.exception()  # seen, also where nobody waits for it any more

    def _give(self, user_id: str, answer: _Answer, stored: StoredPast) -> None:
        past = UserPast(hashes_of(stored.items[:HISTORY_LENGTH]), np.array(stored.recent, np.int32), stored.features)
        answer.set_result(past)
        if self._asked.get(user_id) is not answer:
            return
        del self._asked[user_id]
        if self._seconds > 0:
            self._known.pop(user_id, None)  # so that the one remembered first stands first
            if len(self._known) >= MOST_USERS:
                del self._known[next(iter(self._known))]
            self._known[user_id] = _Remembered(time.monotonic() + self._seconds, past)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(task := start_alone(work))
        task.add_done_callback(self._tasks.discard)


def _found(answer: _Answer) -> UserPast | None:
    """None where it is not there, for want of time or of a server; a bug is raised."""
    if not answer.done() or isinstance(answer.exception(), NotReady):
        return None
    return answer.result()
