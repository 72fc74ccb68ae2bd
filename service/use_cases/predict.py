"""Score candidate items for users."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from xxhash import xxh64_intdigest

from service.limits import MAX_HISTORY
from service.serving.forward import NO_VALUES
from service.serving.id_index import NOBODY
from service.serving.snapshot import NOTHING_RECENT, Prediction, Snapshot, hashes_of
from service.serving.swap import ServingModel
from service.use_cases.fields import written
from service.use_cases.histories import Hashes, Histories, UserPast

__all__ = ["PredictResult", "Question", "ToLog", "hash_of_user", "predict", "predict_many", "predict_now"]

ITEMS_ON_THE_LOOP = 2000
"""Candidates that are scored at once; more take longer than the event loop should be kept, and go to a thread."""

OWN_CONTEXT = 5
"""As how many candidates one counts that may have a context of its own."""


NO_PAST = UserPast(np.empty(0, dtype=np.uint64), NOTHING_RECENT)
WITH_HISTORY = (False,)


def hash_of_user(user_id: str | None) -> int:
    """By which a snapshot knows the user; of a visitor without an id the hash that no id has."""
    return NOBODY if user_id is None else xxh64_intdigest(user_id.encode())


class ToLog(NamedTuple):
    """What to log of the answer to a question: the items, as their scores rank them."""

    items: Sequence[str]
    """The candidates."""
    most: int
    """How many of the best."""
    context: str | None = None
    """Of all of them, as an impression has it."""
    item_contexts: Sequence[str | None] | None = None
    """Those of each of them; None where no item has any."""


class Question(NamedTuple):
    """Who is asked about, and what."""

    user_id: str | None
    """Known or not; None for a visitor without an id, who is a cold user and whose past nobody keeps."""
    asked: Hashes
    """Hashes of the user and of the N candidates, known or not, [1 + N]."""
    history: Hashes | None
    """Hashes of the items clicked before, newest first, in place of those that the service remembers."""
    request_id: str | None
    """The client's name for it."""
    to_log: ToLog | None = None
    """What the answer is logged as, where it shall be."""
    context: Mapping[str, Any] | None = None
    """Values of the fields of the context, by their names, which all items have; None for none."""
    item_contexts: Sequence[Mapping[str, Any] | None] | None = None
    """Those of each item, over the ones of all, [N]; None where no item has any."""

    @property
    def items(self) -> int:
        """N."""
        return len(self.asked) - 1

    @property
    def work(self) -> int:
        """How long it takes, in candidates without a context of their own."""
        return self.items if self.item_contexts is None else self.items * OWN_CONTEXT

    @classmethod
    def of(
        cls,
        user_id: str | None,
        items: Sequence[str],
        history: Sequence[str] | None = None,
        request_id: str | None = None,
        *,
        log: int | None = None,
        context: Mapping[str, Any] | None = None,
        item_contexts: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> "Question":
        """The question in plain ids, none of which holds NUL; of a history the first `MAX_HISTORY` items count, and the
        best `log` items are to be logged. The values of the contexts have no fault.
        """
        past = None if history is None else hashes_of(history[:MAX_HISTORY])
        to_log = None
        if log is not None:
            of_items = None if item_contexts is None else [written(values) for values in item_contexts]
            to_log = ToLog(items, log, written(context), of_items)
        asked = np.empty(1 + len(items), dtype=np.uint64)
        asked[0], asked[1:] = hash_of_user(user_id), hashes_of(items)
        return cls(user_id, asked, past, request_id, to_log, context, item_contexts)


class PredictResult(NamedTuple):
    """Predictions and the one version that all of them are of."""

    model_version: int
    period: int
    predictions: list[Prediction]
    without_history: Sequence[bool]
    """For each, whether it was made without the user's history, since no server gave it in time."""


def predict_now(serving: ServingModel, histories: Histories, question: Question) -> PredictResult | None:
    """What `predict` returns, where nothing has to be waited for; None where the user's past is not in memory.

    Raises:
        NotReady: no model is loaded.
    """
    past = NO_PAST if question.user_id is None else histories.known(question.user_id)
    if past is None:
        return None
    # Taken once, after the last wait: the request is of one version, and of the newest there is.
    snapshot = serving.current()
    prediction = _score_one(snapshot, question, past, _now())
    return PredictResult(snapshot.version, snapshot.period, [prediction], WITH_HISTORY)


async def predict(serving: ServingModel, histories: Histories, question: Question) -> PredictResult:
    """The click probability of each item of the question, by the version that is served now.

    Raises:
        NotReady: no model is loaded.
    """
    if question.work <= ITEMS_ON_THE_LOOP and (result := predict_now(serving, histories, question)) is not None:
        return result
    return await predict_many(serving, histories, [question])


async def predict_many(serving: ServingModel, histories: Histories, questions: Sequence[Question]) -> PredictResult:
    """The same for several questions; all answers are of one version and one moment, and all pasts come in one round
    trip.
    """
    now_ms = _now()
    serving.current()  # who cannot be answered does not wait
    kept = iter(await histories.get_many([question.user_id for question in questions if question.user_id is not None]))
    found = [NO_PAST if question.user_id is None else next(kept) for question in questions]
    pasts = [NO_PAST if past is None else past for past in found]
    snapshot = serving.current()
    if sum(question.work for question in questions) <= ITEMS_ON_THE_LOOP:
        predictions = _score(snapshot, questions, pasts, now_ms)
    else:
        predictions = await asyncio.to_thread(_score, snapshot, questions, pasts, now_ms)
    without = [past is None and question.history is None for past, question in zip(found, questions, strict=True)]
    return PredictResult(snapshot.version, snapshot.period, predictions, without)


def _score_one(snapshot: Snapshot, question: Question, past: UserPast, now_ms: int) -> Prediction:
    values, history = NO_VALUES, past.history if question.history is None else question.history
    if snapshot.fields is not None:
        of_all, of_each = question.context or {}, question.item_contexts or ()
        values = snapshot.fields.read(of_all, past.features, of_each, timestamp_ms=now_ms)
    return snapshot.score(question.asked, history, past.recent, values)


def _score(
    snapshot: Snapshot, questions: Sequence[Question], pasts: Sequence[UserPast], now_ms: int
) -> list[Prediction]:
    return [_score_one(snapshot, question, past, now_ms) for question, past in zip(questions, pasts, strict=True)]


def _now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
