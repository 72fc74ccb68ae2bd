"""What callers send: questions, events, items and users, as frozen dataclasses with their JSON.

An event gets its id and its time when the object is made, so every attempt to send it sends the same event.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, ClassVar, TypeAlias
from uuid import uuid4

__all__ = [
    "Click",
    "Event",
    "Id",
    "Impression",
    "Interaction",
    "Item",
    "ItemInContext",
    "Question",
    "Timestamp",
    "User",
    "new_id",
]

MAX_ID_LENGTH = 256
"""The most characters of an id. The service hashes ids that it composes and that are longer."""

Id: TypeAlias = str | int
"""An id of 1 to 256 characters, or an integer of 64 bits, which is its decimal text."""

Timestamp: TypeAlias = datetime | int
"""A time with a time zone, or milliseconds since 1970."""

Fields: TypeAlias = Mapping[str, Any]
"""Values of fields by name, as the schema of the service declares them."""


def new_id() -> str:
    """A random id of 32 characters."""
    return uuid4().hex


def _now() -> datetime:
    return datetime.now(UTC)


def _sent(at: Timestamp) -> str | int:
    """The time as the API takes it.

    Raises:
        ValueError: it has no time zone.
    """
    if isinstance(at, int):
        return at
    if at.tzinfo is None:
        raise ValueError(f"expected a time with a time zone; received {at.isoformat()}")
    return at.isoformat()


def _given(**members: Any) -> dict[str, Any]:
    """The members that are not None; mappings as the dictionaries that JSON needs."""
    given = {name: value for name, value in members.items() if value is not None}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in given.items()}


@dataclass(frozen=True, slots=True)
class ItemInContext:
    """An item with context of its own, such as its position."""

    id: Id
    context: Fields

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"id": self.id, "context": dict(self.context)}


def _items(items: Sequence[Id | ItemInContext]) -> list[Any]:
    if isinstance(items, str):
        raise TypeError(f"expected a sequence of items; received the string {items!r}")
    return [item.document() if isinstance(item, ItemInContext) else item for item in items]


@dataclass(frozen=True, slots=True)
class Question:
    """Asks how likely a user is to click each of some items."""

    user_id: Id | None
    """None for a visitor without an id."""
    items: Sequence[Id | ItemInContext]
    """1 to 1,000 items."""
    context: Fields | None = None
    """Context of the request, for all items."""
    history: Sequence[Id] | None = None
    """Items clicked before, newest first; in place of the history that the service keeps."""
    request_id: Id | None = None
    """By which clicks refer to the impression; the service makes one if it is None."""
    log_impressions: bool | int | None = None
    """Whether the service stores the answer as an impression: all items, or so many of the best."""

    def document(self) -> dict[str, Any]:
        """As JSON. A question that is logged gets a `request_id`, so that a repeated call does not log it twice."""
        request_id = new_id() if self.log_impressions and self.request_id is None else self.request_id
        return {
            "items": _items(self.items),
            **_given(
                user_id=self.user_id,
                context=self.context,
                history=None if self.history is None else list(self.history),
                request_id=request_id,
                log_impressions=self.log_impressions,
            ),
        }


@dataclass(frozen=True, slots=True)
class Interaction:
    """A user was shown an item, and clicked it (label 1) or did not (label 0)."""

    kind: ClassVar[str] = "interactions"

    user_id: Id
    item_id: Id
    label: int
    timestamp: Timestamp = field(default_factory=_now)
    event_id: Id = field(default_factory=new_id)
    request_id: Id | None = None
    context: Fields | None = None
    weight: float | None = None
    """Weight in training; 1 where it is None."""

    @property
    def id(self) -> str:
        """By which the service tells whether it is stored already."""
        return str(self.event_id)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "event_id": self.event_id,
            "user_id": self.user_id,
            "item_id": self.item_id,
            "label": self.label,
            "timestamp": _sent(self.timestamp),
            **_given(request_id=self.request_id, context=self.context, weight=self.weight),
        }


@dataclass(frozen=True, slots=True)
class Impression:
    """A user was shown these items."""

    kind: ClassVar[str] = "impressions"

    user_id: Id
    items: Sequence[Id | ItemInContext]
    timestamp: Timestamp = field(default_factory=_now)
    request_id: Id = field(default_factory=new_id)
    """By which clicks refer to it: that of the prediction, or a new one."""
    positions: Sequence[int] | None = None
    """Where each item was shown; 0, 1, 2 and so on where it is None."""
    context: Fields | None = None

    @property
    def id(self) -> str:
        """By which the service tells whether it is stored already."""
        return str(self.request_id)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "request_id": self.request_id,
            "user_id": self.user_id,
            "items": _items(self.items),
            "timestamp": _sent(self.timestamp),
            **_given(positions=None if self.positions is None else list(self.positions), context=self.context),
        }


@dataclass(frozen=True, slots=True)
class Click:
    """The user clicked an item of an impression. Without an `event_id` an item of an impression is clicked once."""

    kind: ClassVar[str] = "clicks"

    request_id: Id
    """That of the impression, which may be sent later."""
    item_id: Id
    timestamp: Timestamp = field(default_factory=_now)
    event_id: Id | None = None
    """`request_id/item_id` where it is None."""

    @property
    def id(self) -> str:
        """By which the service tells whether it is stored already."""
        if self.event_id is not None:
            return str(self.event_id)
        id_ = f"{self.request_id}/{self.item_id}"
        return id_ if len(id_) <= MAX_ID_LENGTH else sha256(id_.encode()).hexdigest()

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "request_id": self.request_id,
            "item_id": self.item_id,
            "timestamp": _sent(self.timestamp),
            **_given(event_id=self.event_id),
        }


Event: TypeAlias = Interaction | Impression | Click


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the catalogue."""

    item_id: Id
    categories: Sequence[Id] | None = None
    """In place of those that it had; None for none."""
    features: Fields | None = None
    """In place of those that it had, which stay where it is None."""
    timestamp: Timestamp | None = None
    """From when on the features hold; now where it is None."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        categories = None if self.categories is None else list(self.categories)
        at = None if self.timestamp is None else _sent(self.timestamp)
        return {
            "item_id": self.item_id,
            "categories": categories,
            **_given(features=self.features, timestamp=at),
        }


@dataclass(frozen=True, slots=True)
class User:
    """The features of a user."""

    user_id: Id
    features: Fields | None
    """In place of those that it had; None for none."""
    timestamp: Timestamp | None = None
    """From when on they hold; now where it is None."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        at = None if self.timestamp is None else _sent(self.timestamp)
        return {"user_id": self.user_id, "features": None, **_given(features=self.features, timestamp=at)}
