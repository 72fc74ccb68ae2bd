"""Answers to questions and to events."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "BatchPrediction",
    "Ingested",
    "Prediction",
    "Predictions",
    "PutItems",
    "PutUsers",
]


@dataclass(frozen=True, slots=True)
class BatchPrediction:
    """Click probabilities of the items of one question."""

    scores: Sequence[float]
    """One for each item, in the order of the question."""
    cold_user: bool
    """Whether the model does not know the user."""
    cold_items: Sequence[int]
    """Indexes of the items that the model does not know."""
    history: str
    """`used`, or `unavailable` where no server gave the user's history in time."""
    request_id: str
    """Clicks on a logged impression refer to it."""
    logged: bool | None = None
    """Whether the impression is stored; None where that was not asked for."""
    model_version: int | None = None
    """The canary, where it has made this answer of a batch; else None."""
    period: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction(BatchPrediction):
    """Click probabilities by one version."""

    model_version: int
    period: int
    """The period that the model was last trained on."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers to several questions, in their order, all by one version but for those of a canary's users."""

    model_version: int
    period: int
    predictions: Sequence[BatchPrediction]


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of the events of a call."""

    accepted: int
    duplicates: int
    """Events that were stored before, or are in the call twice."""
    period: int
    conflicts: Sequence[str] = ()
    """Ids of events that differ from the stored event with the same id, which stays as it is."""


@dataclass(frozen=True, slots=True)
class PutItems:
    """What a call changed in the catalogue."""

    items: int
    changed: int


@dataclass(frozen=True, slots=True)
class PutUsers:
    """What a call changed in the features of users."""

    users: int
    changed: int
