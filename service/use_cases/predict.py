"""Score candidate items for users. `service.http.routers.predict` calls it for each request."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from service.limits import MAX_HISTORY
from service.serving.fields import NO_VALUES
from service.serving.id_hashes import NOBODY, hash_ids
from service.serving.snapshot import Prediction, Snapshot
from service.serving.swap import ServingModel
from service.use_cases.histories import NO_PAST, Histories, UserPast

__all__ = ["PredictResult", "Question", "ToLog", "predict"]

ITEMS_ON_THE_LOOP = 2000
"""Candidates that are scored on the event loop. More would block it for too long, so they are scored in a thread."""

OWN_CONTEXT_COST = 5
"""A candidate with a context of its own takes as long as so many without."""


class ToLog(NamedTuple):
    """What to log as an impression: the best items, in the order of their scores."""

    items: Sequence[str]
    """The candidates."""
    most: int
    """How many of the best to log."""
    context: str | None = None
    """Of the request, as it is stored."""
    item_contexts: Sequence[str | None] | None = None
    """The candidates' own, as they are stored; None where no candidate has one."""


class Question(NamedTuple):
    """One request for predictions: a user and the candidates."""

    user_id: str | None
    """May be unknown. None for a visitor without an id: a cold user, without history."""
    item_ids: Sequence[str | int]
    """The N candidates; may be unknown. An integer stands for its decimal text."""
    history: Sequence[str | int] | None
    """Items clicked before, newest first, in place of the history that the service keeps; the first 30 count."""
    request_id: str | None
    """The client's name for the request."""
    to_log: ToLog | None = None
    """What to log; None for nothing."""
    context: Mapping[str, Any] | None = None
    """Values of the context fields by name, for all candidates; None for none."""
    item_contexts: Sequence[Mapping[str, Any] | None] | None = None
    """Those of each candidate, which replace the ones of `context`, [N]; None where no candidate has any."""
    model_version: int | None = None
    """The version to score with, of all questions of a call; None for the one that is served."""

    @property
    def items(self) -> int:
        """N."""
        return len(self.item_ids)

    @property
    def work(self) -> int:
        """How long it takes to score, in candidates without a context of their own."""
        return self.items if self.item_contexts is None else self.items * OWN_CONTEXT_COST


class PredictResult(NamedTuple):
    """Predictions by one model version, and by the canary where one runs."""

    served: Snapshot
    """Has made all predictions that the canary has not."""
    predictions: list[Prediction]
    snapshots: Sequence[Snapshot]
    """For each prediction, what has made it."""
    without_history: Sequence[bool]
    """For each prediction, whether the user's history is missing because no server gave it in time."""


async def predict(
    serving: ServingModel, histories: Histories, questions: Sequence[Question], chosen: Snapshot | None = None
) -> PredictResult:
    """Score the candidates of requests, all with the same version and at the same time; one round trip brings all
    histories. Those of users in the share of a canary are scored with the canary.

    Args:
        serving: has the version that is served now.
        histories: of the users.
        questions: the requests.
        chosen: what to score with in place of that version.

    Raises:
        NotReady: no model is loaded.
    """
    now_ms = int(time.time() * 1000)
    if chosen is None:
        serving.current()  # raises before anything is waited for
    found = await histories.get_many([question.user_id for question in questions])
    pasts = [past or NO_PAST for past in found]
    # Taken once, after the last wait: all answers are of one version, the newest there is.
    canary = None
    if chosen is not None:
        served = chosen
    else:
        served = await serving.settled() if serving.turns else serving.current()
        canary = serving.canary
    if canary is None:
        snapshots = [served] * len(questions)
    else:
        share, other = canary
        snapshots = [other if share.has(question.user_id) else served for question in questions]
    if sum([question.work for question in questions]) <= ITEMS_ON_THE_LOOP:
        predictions = _score(snapshots, questions, pasts, now_ms)
    else:
        predictions = await asyncio.to_thread(_score, snapshots, questions, pasts, now_ms)
    without = [past is None and question.history is None for past, question in zip(found, questions, strict=True)]
    return PredictResult(served, predictions, snapshots, without)


def _score(
    snapshots: Sequence[Snapshot], questions: Sequence[Question], pasts: Sequence[UserPast], now_ms: int
) -> list[Prediction]:
    return [_score_one(*each, now_ms) for each in zip(snapshots, questions, pasts, strict=True)]


def _score_one(snapshot: Snapshot, question: Question, past: UserPast, now_ms: int) -> Prediction:
    """Score one request.

    Args:
        snapshot: to score with.
        question: the request.
        past: of the user.
        now_ms: milliseconds since 1970.
    """
    hashes = hash_ids([question.user_id or "", *question.item_ids])
    if question.user_id is None:
        hashes[0] = NOBODY
    history = past.history if question.history is None else hash_ids(question.history[:MAX_HISTORY])
    values = NO_VALUES
    if snapshot.fields is not None:
        own_contexts = question.item_contexts or ()
        values = snapshot.fields.read(question.context or {}, past.features, own_contexts, timestamp_ms=now_ms)
    return snapshot.score(hashes, history, past.recent, values)
