"""The documents of `POST /interactions`, `POST /impressions` and `POST /clicks`."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from service.http.schemas.types import (
    Context,
    Id,
    Item,
    ItemInContext,
    Label,
    Position,
    StrictModel,
    Timestamp,
    Weight,
)
from service.limits import MAX_CLICKS, MAX_IMPRESSIONS, MAX_INTERACTIONS, MAX_ITEMS

__all__ = [
    "ClickEvent",
    "ClicksRequest",
    "ImpressionEvent",
    "ImpressionsRequest",
    "IngestResponse",
    "InteractionEvent",
    "InteractionsRequest",
    "parse_positions",
    "refuse_repetition",
]


def refuse_repetition(items: list[str]) -> list[str]:
    """`items` if each of them is there once.

    Raises:
        PydanticCustomError: one is there twice.
    """
    if len(set(items)) < len(items):
        repeated = next(item for n, item in enumerate(items) if item in items[:n])
        raise PydanticCustomError("repeated", "each item once", {"received": repeated})
    return items


def parse_positions(positions: list[int], items: int) -> list[int] | None:
    """The positions of so many items; None where they are 0, 1, 2 and so on.

    Raises:
        PydanticCustomError: there are more of them than items, or fewer.
    """
    if len(positions) != items:
        raise PydanticCustomError("not_one_each", "as many positions as items: {items}", {"items": items})
    return None if positions == list(range(items)) else positions


def _each_once(items: list[str | ItemInContext]) -> list[str | ItemInContext]:
    refuse_repetition([item if isinstance(item, str) else item.id for item in items])
    return items


# `fail_fast`: only the first wrong item is named, because a body has room for a million of them.
ShownItems = Annotated[
    list[Item],
    Field(min_length=1, max_length=MAX_ITEMS, json_schema_extra={"uniqueItems": True}, fail_fast=True),
    AfterValidator(_each_once),
]


class InteractionEvent(StrictModel):
    """A user was shown an item and clicked it (label 1) or did not (label 0)."""

    event_id: Id
    user_id: Id
    item_id: Id
    label: Label
    timestamp: Timestamp
    request_id: Id | None = None
    context: Context | None = None
    weight: Weight | None = Field(None, description="Weight of the interaction in training; 1 if absent.")


class InteractionsRequest(StrictModel):
    """A batch of interactions, stored as a whole or not at all. An event that is stored already is a duplicate."""

    interactions: Annotated[list[InteractionEvent], Field(min_length=1, max_length=MAX_INTERACTIONS)]


class ImpressionEvent(StrictModel):
    """A user was shown these items. Each becomes an interaction as soon as it is known whether it was clicked."""

    request_id: Id = Field(description="The `request_id` of the prediction, or any other name; clicks refer to it.")
    user_id: Id
    items: ShownItems
    positions: Annotated[list[Position], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = Field(
        None, description="Where each item was shown, in the order of `items`; 0, 1, 2, … if absent."
    )
    timestamp: Timestamp
    context: Context | None = Field(None, description="Context of all items.")

    @field_validator("positions")
    @classmethod
    def _one_each(cls, value: list[int] | None, info: ValidationInfo) -> list[int] | None:
        # Not checked where the items themselves are wrong.
        return value if value is None or "items" not in info.data else parse_positions(value, len(info.data["items"]))


class ImpressionsRequest(StrictModel):
    """A batch of impressions, stored as a whole or not at all. A `request_id` that is stored already counts as a
    duplicate.
    """

    impressions: Annotated[list[ImpressionEvent], Field(min_length=1, max_length=MAX_IMPRESSIONS)]


class ClickEvent(StrictModel):
    """The user clicked an item of an impression, which may be sent later."""

    event_id: Id | None = Field(None, description="`request_id/item_id` if absent.")
    request_id: Id = Field(description="The `request_id` of the impression.")
    item_id: Id
    timestamp: Timestamp


class ClicksRequest(StrictModel):
    """A batch of clicks, stored as a whole or not at all. A click that is stored already counts as a duplicate."""

    clicks: Annotated[list[ClickEvent], Field(min_length=1, max_length=MAX_CLICKS)]


class IngestResponse(BaseModel):
    """Sent after the commit."""

    accepted: int
    duplicates: int = Field(description="Events that were stored before, or came earlier in the same call.")
    conflicts: list[str] | None = Field(
        None,
        description="Ids of events that differ from the stored event with the same id, which stays as it is; absent if "
        "there are none.",
    )
    period: int
