"""Impressions and clicks, as clients report them, and the id of the interaction that both become."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from asmg.layout import RECENT
from service.limits import MAX_ID_LENGTH, within_id_length
from service.storage.postgres.events import Interaction

__all__ = ["INTERACTION_ID", "Click", "Impression", "interaction_id"]

WHOLE_ID = "replace(replace(request_id, '%', '%25'), '/', '%2F') || '/' || item_id"
INTERACTION_ID = f"""
    CASE WHEN length({WHOLE_ID}) <= {MAX_ID_LENGTH} THEN {WHOLE_ID}
         ELSE encode(sha256(convert_to({WHOLE_ID}, 'UTF8')), 'hex') END
"""
"""`interaction_id` as an SQL expression over the columns `request_id` and `item_id`."""


def interaction_id(request_id: str, item_id: str) -> str:
    """Event id of the interaction that an item of an impression becomes: `request_id/item_id`.

    `%` and `/` in the request id are written as `%25` and `%2F`, so that no two items get the same id. An id that would
    be longer than event ids may be is replaced by its SHA-256.
    """
    return within_id_length(f"{request_id.replace('%', '%25').replace('/', '%2F')}/{item_id}")


@dataclass(frozen=True, slots=True)
class Impression:
    """Items that a user was shown at once."""

    request_id: str
    """The client's name for it; a second impression with the same name is a duplicate."""
    user_id: str
    item_ids: Sequence[str]
    """Distinct items."""
    positions: Sequence[int] | None
    """The position of each item; None for 0, 1, 2, …"""
    shown_at: datetime
    """Timezone-aware."""
    context: str | None = None
    """Values of the context fields for all items, as a JSON object; None for none."""
    item_contexts: Sequence[str | None] | None = None
    """The same for each item, which take precedence; None where no item has any."""
    model_version: int | None = None
    """The version that has scored the items, where the service itself has logged them."""
    scores: Sequence[float] | None = None
    """What it said of each item; None where a client reports the impression."""

    @property
    def event_id(self) -> str:
        """The id by which a repetition is recognised."""
        return self.request_id

    @property
    def newest(self) -> list[Interaction]:
        """The interactions that its items are until a click comes, in the order of the event ids: at most the last
        `RECENT`, for no more of one moment count in a history.
        """
        made = sorted((interaction_id(self.request_id, item), item) for item in self.item_ids)[-RECENT:]
        return [Interaction(name, self.user_id, item, 0, self.shown_at) for name, item in made]

    @property
    def content(self) -> str:
        """All of it but its id, as one text, of which the content hash is stored."""
        positions = "" if self.positions is None else ",".join(map(str, self.positions))
        whole = "\0".join((self.user_id, _utc(self.shown_at), positions, *self.item_ids))
        if self.context is None and self.item_contexts is None:
            return whole
        return "\0".join((whole, "", self.context or "", *(context or "" for context in self.item_contexts or ())))

    @property
    def item_contexts_json(self) -> str | None:
        """`item_contexts` as a JSON array."""
        if self.item_contexts is None:
            return None
        return f"[{','.join(context or 'null' for context in self.item_contexts)}]"


@dataclass(frozen=True, slots=True)
class Click:
    """A click on an item of an impression."""

    event_id: str
    """The client's name for it, else the id of the interaction; a second click with the same name is a duplicate."""
    request_id: str
    """The impression."""
    item_id: str
    clicked_at: datetime
    """Timezone-aware."""

    @property
    def interaction_id(self) -> str:
        """Event id of the interaction whose label it sets to 1."""
        return interaction_id(self.request_id, self.item_id)

    @property
    def content(self) -> str:
        """All of it but its id, as one text, of which the content hash is stored."""
        return "\0".join((self.request_id, self.item_id, _utc(self.clicked_at)))


def _utc(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
