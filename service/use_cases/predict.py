"""Score candidate items for users. `service.http.routers.predict` calls it for each request."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from service.limits import MAX_HISTORY
from service.serving.canary_share import CanaryShare
from service.serving.fields import NO_VALUES
from service.serving.id_hashes import NOBODY, hash_id, hash_ids
from service.serving.snapshot import Prediction, Snapshot
from service.serving.swap import ServingModel
from service.use_cases.histories import NO_PAST, Histories, UserPast

__all__ = ["PredictResult", "Question", "ToLog", "predict", "predict_many"]

NONE_BY_CANARY: Mapping[int, Snapshot] = MappingProxyType({})
"""No prediction by a canary."""

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

    model_version: int
    period: int
    """What the version was last trained on."""
    predictions: list[Prediction]
    without_history: Sequence[bool]
    """For each prediction, whether the user's history is missing because no server gave it in time."""
    by_canary: Mapping[int, Snapshot] = NONE_BY_CANARY
    """The snapshots of the predictions that the canary has made, by their places."""

    def version_of(self, place: int) -> tuple[int, int]:
        """The version that has made a prediction, and the period that it was last trained on."""
        canary = self.by_canary.get(place)
        return (self.model_version, self.period) if canary is None else (canary.version, canary.period)


async def predict(
    serving: ServingModel, histories: Histories, question: Question, chosen: Snapshot | None = None
) -> PredictResult:
    """Score the candidates of one request; arguments and errors as of `predict_many`."""
    return await predict_many(serving, histories, [question], chosen)


async def predict_many(
    serving: ServingModel, histories: Histories, questions: Sequence[Question], chosen: Snapshot | None = None
) -> PredictResult:
    """Score several requests, all with the same version and at the same time; one round trip brings all histories.
    Those of users in the share of a canary are scored with the canary.

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
    snapshot, canary = chosen, None
    if snapshot is None:
        snapshot = await serving.settled() if serving.turns else serving.current()
        canary = serving.canary
    if sum(question.work for question in questions) <= ITEMS_ON_THE_LOOP:
        predictions, by_canary = _score(snapshot, canary, questions, pasts, now_ms)
    else:
        predictions, by_canary = await asyncio.to_thread(_score, snapshot, canary, questions, pasts, now_ms)
    without = [past is None and question.history is None for past, question in zip(found, questions, strict=True)]
    return PredictResult(snapshot.version, snapshot.period, predictions, without, by_canary)


def _score(
    snapshot: Snapshot,
    canary: tuple[CanaryShare, Snapshot] | None,
    questions: Sequence[Question],
    pasts: Sequence[UserPast],
    now_ms: int,
) -> tuple[list[Prediction], Mapping[int, Snapshot]]:
    """Score requests; the predictions, and the snapshots of those that the canary has made, by their places."""
    if canary is None:
        scored = [_score_one(snapshot, *each, now_ms) for each in zip(questions, pasts, strict=True)]
        return scored, NONE_BY_CANARY
    share, other = canary
    by_canary = {
        place: other
        for place, question in enumerate(questions)
        if question.user_id is not None and share.has(hash_id(question.user_id))
    }
    scored = [
        _score_one(by_canary.get(place, snapshot), *each, now_ms)
        for place, each in enumerate(zip(questions, pasts, strict=True))
    ]
    return scored, by_canary


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
