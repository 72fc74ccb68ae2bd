"""Group commit: calls that wait at the same time share one transaction.

`Ingestion` stores interactions through it, `ImpressionLog` the impressions of predictions. A call that comes alone is
stored at once; the more calls come while others are stored, the less each costs.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from service.tasks import end_tasks, start_alone

__all__ = ["GroupCommit"]

CallT = TypeVar("CallT")
StoredT = TypeVar("StoredT")
ResultT = TypeVar("ResultT")


class GroupCommit(Generic[CallT, StoredT, ResultT]):
    """Stores calls in groups, and gives each call its result.

    An exception of `store` or `results` is raised by every call of the group.

    Args:
        store: stores a group of calls durably.
        results: the result of each call of a stored group, in their order. The next group does not wait for it.
        size: of a call, in any unit.
        most: size of a group; only a single call may be larger.
        lanes: groups that are stored at a time.
        key: of a call; of calls with equal keys, a group has only the first. None where any calls go together.
    """

    def __init__(
        self,
        store: Callable[[list[CallT]], Awaitable[StoredT]],
        results: Callable[[list[CallT], StoredT], Awaitable[Sequence[ResultT]]],
        *,
        size: Callable[[CallT], int],
        most: int,
        lanes: int,
        key: Callable[[CallT], Hashable] | None = None,
    ) -> None:
        self._store, self._results = store, results
        self._size, self._most, self._lanes, self._key = size, most, lanes, key
        self._waiting: dict[asyncio.Future[ResultT], CallT] = {}
        self._begun: list[float] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.waiting_size = 0
        """Size of all calls that wait for a group."""

    async def run(self, call: CallT) -> ResultT:
        """Store the call, and return its result. A caller that is cancelled while the call waits withdraws it."""
        future = self.add(call)
        try:
            return await future
        finally:
            self.withdraw(future)

    def add(self, call: CallT) -> asyncio.Future[ResultT]:
        """Let the call wait for a group; the future gets its result."""
        future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        self._waiting[future] = call
        self.waiting_size += self._size(call)
        self._fill_lane(in_trace=True)
        return future

    def withdraw(self, future: asyncio.Future[ResultT]) -> None:
        """Do not store the call of this future, where it still waits."""
        if future in self._waiting:
            self.waiting_size -= self._size(self._waiting.pop(future))

    @property
    def busy_seconds(self) -> float:
        """How long the oldest group that is being stored has taken so far; 0 where there is none."""
        return time.monotonic() - self._begun[0] if self._begun else 0.0

    async def settle(self) -> None:
        """Wait until no call waits and none is being stored."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Cancel all calls."""
        for future in list(self._waiting):
            self.withdraw(future)
            future.cancel()
        await end_tasks(*self._tasks)

    def _fill_lane(self, *, in_trace: bool = False) -> None:
        if self._waiting and len(self._begun) < self._lanes:
            begun = time.monotonic()
            self._begun.append(begun)
            self._tasks.add(task := start_alone(self._run_group(begun), in_trace=in_trace))
            task.add_done_callback(self._tasks.discard)

    async def _run_group(self, begun: float) -> None:
        group = self._take_group()
        calls = list(group.values())
        try:
            try:
                if not calls:  # all were withdrawn
                    return
                stored = await self._store(calls)
            finally:
                self._begun.remove(begun)
                self._fill_lane()
            for future, result in zip(group, await self._results(calls, stored), strict=True):
                if not future.done():  # its caller may have been cancelled
                    future.set_result(result)
        except BaseException as error:
            for future in group:
                if future.done():
                    continue
                if isinstance(error, Exception):
                    future.set_exception(error)
                else:
                    future.cancel()
            if not isinstance(error, Exception):
                raise

    def _take_group(self) -> dict[asyncio.Future[ResultT], CallT]:
        """The calls that have waited longest, as many as fit."""
        group: dict[asyncio.Future[ResultT], CallT] = {}
        keys: set[Hashable] = set()
        room = self._most
        for future, call in list(self._waiting.items()):
            size = self._size(call)
            if group and size > room:
                break
            if self._key is not None:
                if (key := self._key(call)) in keys:
                    continue
                keys.add(key)
            self.withdraw(future)
            group[future] = call
            room -= size
        return group
