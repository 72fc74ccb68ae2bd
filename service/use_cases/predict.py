"""Score candidate items for users."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.limits import MAX_HISTORY
from service.serving.snapshot import Prediction, Snapshot, hashes_of
from service.serving.swap import ServingModel
from service.use_cases.histories import Histories, History

__all__ = ["PredictResult", "Question", "predict", "predict_many"]

ITEMS_ON_THE_LOOP = 2000
"""Candidates that are scored at once; more take longer than the event loop should be kept, and go to a thread."""


class Question(Protocol):
    """Who is asked about, and what."""

    @property
    def user_id(self) -> str:
        """Known or not."""

    @property
    def items(self) -> Sequence[str]:
        """Candidates, known or not; at least one."""

    @property
    def history(self) -> Sequence[str] | None:
        """Items clicked before, newest first, in place of what the service remembers."""

    @property
    def request_id(self) -> str | None:
        """The client's name for it."""


@dataclass(frozen=True, slots=True)
class PredictResult:
    """Predictions and the one version that all of them are of."""

    model_version: int
    period: int
    predictions: list[Prediction]


async def predict(serving: ServingModel, histories: Histories, question: Question) -> PredictResult:
    """The click probability of each item of the question, by the version that is served now.

    Raises:
        NotReady: no model is loaded, or the history is needed and neither Redis nor Postgres answers.
    """
    if question.history is not None:
        history = hashes_of(question.history[:MAX_HISTORY])
    elif (known := histories.known(question.user_id)) is not None:
        history = known
    else:
        history = await histories.get(question.user_id)
    # Taken once, after the last await: the request is of one version, and of the newest there is.
    snapshot = serving.current()
    prediction = snapshot.score(question.user_id, question.items, history)
    return PredictResult(snapshot.version, snapshot.period, [prediction])


async def predict_many(serving: ServingModel, histories: Histories, questions: Sequence[Question]) -> PredictResult:
    """The same for several questions; all answers are of one version, and all histories come in one round trip."""
    kept = iter(await histories.get_many([question.user_id for question in questions if question.history is None]))
    past = [
        next(kept) if question.history is None else hashes_of(question.history[:MAX_HISTORY]) for question in questions
    ]
    snapshot = serving.current()
    if sum(len(question.items) for question in questions) <= ITEMS_ON_THE_LOOP:
        predictions = _score(snapshot, questions, past)
    else:
        predictions = await asyncio.to_thread(_score, snapshot, questions, past)
    return PredictResult(snapshot.version, snapshot.period, predictions)


def _score(snapshot: Snapshot, questions: Sequence[Question], past: Sequence[History]) -> list[Prediction]:
    pairs = zip(questions, past, strict=True)
    return [snapshot.score(question.user_id, question.items, history) for question, history in pairs]
