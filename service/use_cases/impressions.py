"""Logs the impressions of predictions: many share a commit, and no prediction waits long for one."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import numpy as np

from service.errors import NotReady
from service.serving.snapshot import Prediction
from service.storage.postgres.repositories import Impression
from service.use_cases.group_commit import GroupCommit
from service.use_cases.ingest import IngestResult
from service.use_cases.predict import ToLog

__all__ = ["ImpressionLog", "shown"]

logger = logging.getLogger(__name__)

MOST_ITEMS = 100_000
"""Items of all impressions that wait; an impression that would exceed it is not logged."""

ITEMS_OF_A_COMMIT = 10_000
"""Items that are stored at a time, so that the next commit is not far away."""


def shown(user_id: str, to_log: ToLog, prediction: Prediction, request_id: str, version: int) -> Impression:
    """The impression that a client makes who shows the items in the order of their scores: the best ones, each once."""
    order = np.argsort(-prediction.scores, kind="stable").tolist()
    first: dict[str, int] = {}
    for n in order:
        first.setdefault(to_log.items[n], n)
    best = list(first.items())[: to_log.most]
    contexts = None if to_log.item_contexts is None else [to_log.item_contexts[n] for _, n in best]
    if contexts is not None and not any(contexts):
        contexts = None
    items, scores = [item for item, _ in best], prediction.scores[[n for _, n in best]].tolist()
    now = datetime.now(UTC)
    return Impression(request_id, user_id, items, None, now, to_log.context, contexts, version, scores)


class ImpressionLog:
    """Stores impressions in groups: those that come during one commit share the next.

    Args:
        store: stores impressions durably, or raises NotReady.
        seconds: how long a caller waits at most. While a commit takes longer than that, new callers do not wait at all.
    """

    def __init__(self, store: Callable[[Sequence[Impression]], Awaitable[IngestResult]], *, seconds: float) -> None:
        self._store, self._seconds = store, seconds
        # With two impressions of one request id in a commit, it would not be known which one is stored.
        self._groups = GroupCommit(
            self._conflicts,
            _are_stored,
            size=lambda impression: len(impression.item_ids),
            most=ITEMS_OF_A_COMMIT,
            lanes=1,
            key=lambda impression: impression.request_id,
        )

    async def add(self, impressions: Sequence[Impression]) -> list[bool]:
        """Store impressions; for each, whether it is known to be stored, durably.

        One that is not may be stored all the same, where its commit takes longer than the caller waits. It never is
        where another impression has its request id.
        """
        submitted = [self._submit(impression) for impression in impressions]
        if waiting := {future for future in submitted if future is not None}:
            try:
                await asyncio.wait(waiting, timeout=self._seconds)
            finally:
                for future in waiting:
                    self._groups.withdraw(future)
        return [_is_true(future) for future in submitted]

    @property
    def waiting_items(self) -> int:
        """Items of all impressions that wait."""
        return self._groups.waiting_size

    async def settle(self) -> None:
        """Wait until nothing is under way."""
        await self._groups.settle()

    async def close(self) -> None:
        """Cancel what is under way."""
        await self._groups.close()

    def _submit(self, impression: Impression) -> asyncio.Future[bool] | None:
        """None where the impression cannot be stored in time."""
        if self._groups.busy_seconds > self._seconds:
            return None
        if self.waiting_items + len(impression.item_ids) > MOST_ITEMS:
            return None
        return self._groups.add(impression)

    async def _conflicts(self, impressions: list[Impression]) -> set[str]:
        """Store a group; the request ids of those that are not stored."""
        try:
            return set((await self._store(impressions)).conflicts)
        except NotReady:
            pass  # callers are told, and count it
        except Exception:
            logger.exception("impressions of predictions were not logged")
        return {impression.request_id for impression in impressions}


async def _are_stored(impressions: list[Impression], conflicts: set[str]) -> list[bool]:
    return [impression.request_id not in conflicts for impression in impressions]


def _is_true(future: asyncio.Future[bool] | None) -> bool:
    return future is not None and future.done() and not future.cancelled() and future.result()
