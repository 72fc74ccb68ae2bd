"""Periods and their updates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = [
    "Closed",
    "Period",
    "Periods",
    "Score",
    "Stage",
]


@dataclass(frozen=True, slots=True)
class Closed:
    """The period that a close has sealed."""

    period: int
    status: str
    status_url: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of an update."""

    stage: str
    status: str
    """`running` or `done`."""
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of a model on the log of a period, before any model learned it."""

    version: int | None
    events: int
    auc: float | None
    logloss: float
    calibration: float | None
    """Mean prediction over click rate."""


@dataclass(frozen=True, slots=True)
class Period:
    """A period and its update."""

    period: int
    status: str
    """`open`, `sealed`, `updating`, `updated`, `quarantined` or `skipped`."""
    stage: str | None
    progress: float | None
    """How much of the update is done, 0 to 1; None where it is not known."""
    opened_at: datetime
    sealed_at: datetime | None
    finished_at: datetime | None
    events: int
    attempts: int
    crashes: int
    error: str | None
    version: int | None
    """The version that the update published."""
    stages: Sequence[Stage]
    scores: Mapping[str, Score]
    """By model: `generated`, `incremental`, `previous`, `baseline`; `shadow:iu` of a method that runs beside."""
    labels: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Periods:
    """A page of periods, newest first."""

    periods: Sequence[Period]
    next: int | None
    """`before` of the page that follows; None on the last."""
