"""The impressions that predictions log: many share a commit, and no prediction waits long for one."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import numpy as np

from service.errors import NotReady
from service.serving.snapshot import Prediction
from service.storage.postgres.repositories import Impression
from service.tasks import end_tasks, start_alone
from service.use_cases.ingest import IngestResult
from service.use_cases.predict import ToLog

__all__ = ["ImpressionLog", "shown"]

logger = logging.getLogger(__name__)

MOST_ITEMS = 100_000
"""Of all impressions that wait; what would be more is not logged."""

ITEMS_OF_A_COMMIT = 10_000
"""About as many are stored at a time, so that the next commit is not far."""

_Logged = asyncio.Future[bool]


def shown(user_id: str, to_log: ToLog, prediction: Prediction, request_id: str) -> Impression:
    """What a client shows now who goes by the scores: the best items, each once, the best one first."""
    order = np.argsort(-prediction.scores, kind="stable").tolist()
    first: dict[str, int] = {}
    for n in order:
        first.setdefault(to_log.items[n], n)
    best = list(first.items())[: to_log.most]
    contexts = None if to_log.item_contexts is None else [to_log.item_contexts[n] for _, n in best]
    if contexts is not None and not any(contexts):
        contexts = None
    items = [item for item, _ in best]
    return Impression(request_id, user_id, items, None, datetime.now(UTC), to_log.context, contexts)


class ImpressionLog:
    """Stores impressions in groups: those that come during one commit share the next.

    Args:
        store: stores some durably, or raises NotReady.
        seconds: how long a caller waits at most. While a commit takes longer than that, others do not wait at all.
    """

    def __init__(self, store: Callable[[Sequence[Impression]], Awaitable[IngestResult]], *, seconds: float) -> None:
        self._store, self._seconds = store, seconds
        self._waiting: dict[_Logged, Impression] = {}
        self._items = 0
        self._writer: asyncio.Task[None] | None = None
        self._began_at = 0.0

    async def add(self, impressions: Sequence[Impression]) -> list[bool]:
        """For each impression, whether it is stored, durably.

        One that is not may be stored all the same, where its commit takes longer than the caller waits; other
        impressions with the same request id are why one is not stored ever.
        """
        waiting = [self._enqueue(impression) for impression in impressions]
        if asked := {logged for logged in waiting if logged is not None}:
            try:
                await asyncio.wait(asked, timeout=self._seconds)
            finally:
                for logged in asked:
                    self._take(logged)  # nobody waits for it any more
        return [logged is not None and logged.done() and logged.result() for logged in waiting]

    async def close(self) -> None:
        """End what is under way."""
        if self._writer is not None:
            await end_tasks(self._writer)

    def _enqueue(self, impression: Impression) -> _Logged | None:
        """None where it cannot be stored in time."""
        late = self._writer is not None and time.monotonic() > self._began_at + self._seconds
        if late or self._items + len(impression.item_ids) > MOST_ITEMS:
            return None
        logged = asyncio.get_running_loop().create_future()
        self._waiting[logged] = impression
        self._items += len(impression.item_ids)
        if self._writer is None:
            self._began_at = time.monotonic()
            self._writer = start_alone(self._write(), name="log impressions")
        return logged

    def _take(self, logged: _Logged) -> Impression | None:
        """The impression, which waits no longer; None where it was taken before."""
        impression = self._waiting.pop(logged, None)
        if impression is not None:
            self._items -= len(impression.item_ids)
        return impression

    def _next_batch(self) -> dict[str, tuple[Impression, _Logged]]:
        """Those that come next, by request id: of several with one id the first."""
        batch: dict[str, tuple[Impression, _Logged]] = {}
        items = 0
        for logged, impression in list(self._waiting.items()):
            if items >= ITEMS_OF_A_COMMIT:
                break
            if impression.request_id not in batch:
                self._take(logged)
                batch[impression.request_id] = impression, logged
                items += len(impression.item_ids)
        return batch

    async def _write(self) -> None:
        try:
            while batch := self._next_batch():
                self._began_at = time.monotonic()
                lost = set(batch)
                try:
                    lost = set((await self._store([impression for impression, _ in batch.values()])).conflicts)
                except NotReady:
                    pass  # callers are told, and count it
                except Exception:
                    logger.exception("impressions of predictions were not logged")
                for request_id, (_, logged) in batch.items():
                    logged.set_result(request_id not in lost)
        finally:
            self._writer = None
