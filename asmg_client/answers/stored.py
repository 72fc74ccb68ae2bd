"""What is stored about users and items, and its deletion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = [
    "Deletion",
    "Recent",
    "StoredItem",
    "StoredLog",
    "StoredPeriod",
    "StoredUser",
]


@dataclass(frozen=True, slots=True)
class StoredPeriod:
    """What the log of one period has about an id."""

    period: int
    interactions: int
    positives: int
    impressions: int
    clicks: int
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class StoredLog:
    """What all kept logs have about an id."""

    interactions: int
    positives: int
    impressions: int
    clicks: int
    first: datetime | None
    last: datetime | None
    periods: Sequence[StoredPeriod]
    next: int | None
    """`before` of the page that follows; None on the last."""


@dataclass(frozen=True, slots=True)
class Recent:
    """The newest interactions of a user, clicks or not."""

    interactions: int
    clicks_of_newest: int
    clicks: int


@dataclass(frozen=True, slots=True)
class StoredUser:
    """What is stored about a user."""

    user_id: str
    row: int | None
    known_to_model: bool
    history: Sequence[str]
    """The items clicked last, newest first."""
    recent: Recent
    features: Mapping[str, Any] | None
    feature_versions: int
    log: StoredLog


@dataclass(frozen=True, slots=True)
class StoredItem:
    """What is stored about an item."""

    item_id: str
    row: int | None
    known_to_model: bool
    categories: Sequence[str] | None
    features: Mapping[str, Any] | None
    feature_versions: int
    histories: int
    passes: int
    unresolved: int
    log: StoredLog


@dataclass(frozen=True, slots=True)
class Deletion:
    """How far a deletion has come."""

    deletion: str
    """By which the audit calls it."""
    status: str
    """`done`, or `pending` where the service goes on with it."""
    removed: Mapping[str, int]
    """Rows removed so far, by what they were."""
