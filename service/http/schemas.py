"""What clients send and get: the request and response documents of the HTTP API.

Requests are strict: unknown fields, numbers in quotes and booleans for numbers are errors, never guesses. Period and
model documents are not here: they are what the use cases return (`service.use_cases.status`, `model_status`).
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from asmg.log_format import EARLIEST_MS, LATEST_MS
from service.limits import (
    MAX_BATCH,
    MAX_CATALOGUE_ITEMS,
    MAX_CATEGORIES,
    MAX_CLICKS,
    MAX_ID_LENGTH,
    MAX_IMPRESSIONS,
    MAX_INTEGER_ID,
    MAX_INTERACTIONS,
    MAX_ITEMS,
    MAX_POSITION,
    MAX_REASON_LENGTH,
    MAX_REQUEST_HISTORY,
    MAX_USERS,
    MAX_WEIGHT,
    MIN_INTEGER_ID,
    MIN_WEIGHT,
)
from service.use_cases.fields import FIELDS_OF

__all__ = [
    "BatchPrediction",
    "BatchRequest",
    "BatchResponse",
    "ClickEvent",
    "ClicksRequest",
    "CloseRequest",
    "CloseResponse",
    "DeletionResponse",
    "Health",
    "Id",
    "ImpressionEvent",
    "ImpressionsRequest",
    "IngestResponse",
    "InteractionEvent",
    "InteractionsRequest",
    "ItemDocument",
    "ItemInContext",
    "ItemsRequest",
    "ItemsResponse",
    "PinRequest",
    "PinResponse",
    "PredictRequest",
    "PredictResponse",
    "Problem",
    "ProblemField",
    "Readiness",
    "RollbackRequest",
    "RollbackResponse",
    "Text",
    "UserFeatures",
    "UsersRequest",
    "UsersResponse",
    "parse_label",
    "parse_log",
    "parse_positions",
    "parse_timestamp",
    "refuse_repetition",
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST = EPOCH + timedelta(milliseconds=EARLIEST_MS)
LATEST = EPOCH + timedelta(milliseconds=LATEST_MS)
"""The first moment that is too late."""
LEAST_MILLISECONDS = 10**11
"""A smaller number does not count milliseconds: it would be before 4 March 1973. As seconds it is a time until 5138."""
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def parse_timestamp(value: Any) -> datetime:
    """A moment of the years 1990 to 2099 in UTC, of an RFC 3339 text with an offset or of integer epoch milliseconds.

    Raises:
        PydanticCustomError: `value` is no such moment; `epoch_seconds` where it is a number that most likely counts
            seconds.
    """
    if type(value) is int and 0 <= value < LEAST_MILLISECONDS:
        raise PydanticCustomError(
            "epoch_seconds", "epoch milliseconds, or a time in RFC 3339 with an offset; an integer below 1e11 is none"
        )
    try:
        if type(value) is int:
            moment = EPOCH + timedelta(milliseconds=value)
        elif isinstance(value, str) and RFC_3339.fullmatch(value):
            moment = datetime.fromisoformat(value.upper()).astimezone(UTC)
        else:
            raise ValueError
        if not EARLIEST <= moment < LATEST:
            raise ValueError
    except (ValueError, OverflowError):
        raise PydanticCustomError(
            "no_time", "a time from 1990 to 2099: RFC 3339 with an offset, or integer epoch milliseconds"
        ) from None
    return moment


def parse_label(value: Any) -> Any:
    """`value`, where it is an integer.

    Python holds `True == 1 == 1.0`, and so does a `Literal`; the API does not.

    Raises:
        PydanticCustomError: `value` is a boolean, a float or anything else.
    """
    if type(value) is not int:
        raise PydanticCustomError("no_label", "0 or 1")
    return value


def refuse_repetition(items: list[str]) -> list[str]:
    """`items`, where none is among them twice.

    Raises:
        PydanticCustomError: one is.
    """
    if len(set(items)) < len(items):
        repeated = next(item for n, item in enumerate(items) if item in items[:n])
        raise PydanticCustomError("repeated", "each item once", {"received": repeated})
    return items


def parse_positions(positions: list[int], items: int) -> list[int] | None:
    """The positions of so many items; None where they just count, from 0.

    Raises:
        PydanticCustomError: there are more of them than items, or fewer.
    """
    if len(positions) != items:
        raise PydanticCustomError("not_one_each", "as many positions as items: {items}", {"items": items})
    return None if positions == list(range(items)) else positions


def parse_log(value: Any) -> bool | int:
    """`value`, where it says how many impressions to log.

    Raises:
        PydanticCustomError: it is neither a boolean nor an integer from 1 to `MAX_ITEMS`.
    """
    if type(value) is bool or (type(value) is int and 1 <= value <= MAX_ITEMS):
        return value
    raise PydanticCustomError("no_log", "true, false or an integer from 1 to {most}", {"most": MAX_ITEMS})


def _log_schema(schema: dict[str, Any]) -> None:
    schema.clear()
    schema["anyOf"] = [{"type": "boolean"}, {"type": "integer", "minimum": 1, "maximum": MAX_ITEMS}]


def _timestamp_schema(schema: dict[str, Any]) -> None:
    schema.clear()
    milliseconds = {"type": "integer", "title": "epoch milliseconds", "minimum": EARLIEST_MS, "maximum": LATEST_MS - 1}
    schema["anyOf"] = [{"type": "string", "format": "date-time"}, milliseconds]


# Postgres cannot store NUL in text. A pattern is matched inside pydantic's core: no Python call for each of the items.
_TEXT_PATTERN = r"^[^\x00]*$"


class _OrInteger:
    """A text, or an integer of 64 bits, which becomes its decimal text; one error for whatever is neither."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        integer = core_schema.int_schema(ge=MIN_INTEGER_ID, le=MAX_INTEGER_ID, strict=True)
        return core_schema.union_schema(
            [handler(source), core_schema.no_info_after_validator_function(str, integer)],
            mode="left_to_right",
            custom_error_type="no_id",
            custom_error_message="an id",
        )


Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH, pattern=_TEXT_PATTERN)]
Id = Annotated[Text, _OrInteger()]
"""An id as its text. A JSON integer is its decimal text: 42 and "42" are the same id."""


class _OrObject:
    """An id, or an object that holds it with more; one error for whatever is neither."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.union_schema(
            [handler.generate_schema(Id), handler.generate_schema(ItemInContext)],
            mode="left_to_right",
            custom_error_type="no_item",
            custom_error_message="an item",
        )


# Values of fields by their names; which these are says the schema of the installation.
Context = Annotated[dict[str, Any], Field(json_schema_extra={FIELDS_OF: "context"})]
FeaturesOfUser = Annotated[dict[str, Any], Field(json_schema_extra={FIELDS_OF: "user"})]
FeaturesOfItem = Annotated[dict[str, Any], Field(json_schema_extra={FIELDS_OF: "item"})]
Weight = Annotated[float, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=MAX_REASON_LENGTH, pattern=_TEXT_PATTERN)]
Label = Annotated[Literal[0, 1], BeforeValidator(parse_label)]
Timestamp = Annotated[datetime, BeforeValidator(parse_timestamp), Field(json_schema_extra=_timestamp_schema)]
LogImpressions = Annotated[bool | int, BeforeValidator(parse_log), Field(json_schema_extra=_log_schema)]
# Of a list of ids or positions the first wrong one is told (`fail_fast`): a body has room for a million.
Position = Annotated[int, Field(ge=0, le=MAX_POSITION)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ItemInContext(_Request):
    """An item with the fields of the context that are its own, such as its position."""

    id: Id
    context: Context | None = Field(None, description="Its values count before those of the context of all.")


Item = Annotated[str | ItemInContext, _OrObject()]


def _each_once(items: list[str | ItemInContext]) -> list[str | ItemInContext]:
    refuse_repetition([item if isinstance(item, str) else item.id for item in items])
    return items


ShownItems = Annotated[
    list[Item],
    Field(min_length=1, max_length=MAX_ITEMS, json_schema_extra={"uniqueItems": True}, fail_fast=True),
    AfterValidator(_each_once),
]


def _logs_only_users(schema: dict[str, Any]) -> None:
    of_somebody = {"required": ["user_id"], "properties": {"user_id": {"type": ["string", "integer"]}}}
    schema["anyOf"] = [of_somebody, {"properties": {"log_impressions": {"enum": [False, None]}}}]


class PredictRequest(_Request):
    """Asks how likely a user is to click each of some items."""

    model_config = ConfigDict(json_schema_extra=_logs_only_users)

    user_id: Id | None = Field(None, description="Absent or null for a visitor without an id, who is a cold user.")
    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
    context: Context | None = Field(None, description="Of the request, and so of each of its items.")
    history: Annotated[list[Id], Field(max_length=MAX_REQUEST_HISTORY, fail_fast=True)] | None = Field(
        None, description="Items clicked before, newest first; in place of the history that the service keeps."
    )
    request_id: Id | None = None
    log_impressions: LogImpressions | None = Field(
        None,
        description="Log the items as shown in the order of their scores, all of them (`true`) or the best ones (their "
        "number), under the `request_id` of the answer; needs a `user_id`, and a key with the scope `ingest` too.",
    )

    @field_validator("log_impressions")
    @classmethod
    def _of_somebody(cls, value: bool | int | None, info: ValidationInfo) -> bool | int | None:
        if value and info.data.get("user_id", "") is None:
            raise PydanticCustomError("of_nobody", "false, or absent, where there is no user_id to log impressions of")
        return value


HistoryUse = Annotated[
    Literal["used", "unavailable"],
    Field(description="`unavailable`: no server gave the user's history in time, so the scores are without it."),
]


Logged = Annotated[
    bool | None,
    Field(
        description="Whether the impression is stored, durably; false where Postgres did not take it in time, or has "
        "another one under the `request_id`. Absent where `log_impressions` did not ask for it."
    ),
]


class PredictResponse(BaseModel):
    """One score for each item, in the order of the request; all of one model version."""

    model_version: int
    period: int = Field(description="The period that the model was last trained on; 0 before the first.")
    scores: list[float] = Field(description="Click probabilities, each in (0, 1).")
    cold_user: bool = Field(description="Whether the model has not seen this user.")
    cold_items: list[int] = Field(description="Indexes of the items that the model has not seen.")
    history: HistoryUse
    request_id: str
    logged: Logged = None


class BatchRequest(_Request):
    """Asks for several users at once; each request is as `POST /predict` takes it."""

    requests: Annotated[list[PredictRequest], Field(min_length=1, max_length=MAX_BATCH)]


class BatchPrediction(BaseModel):
    """The scores of one request of a batch, as in the answer of `POST /predict`."""

    scores: list[float] = Field(description="Click probabilities, each in (0, 1).")
    cold_user: bool
    cold_items: list[int]
    history: HistoryUse
    request_id: str
    logged: Logged = None


class BatchResponse(BaseModel):
    """One prediction for each request, in their order; all of one model version."""

    model_version: int
    period: int
    predictions: list[BatchPrediction]


class InteractionEvent(_Request):
    """A user was shown an item and clicked it (1) or did not (0)."""

    event_id: Id
    user_id: Id
    item_id: Id
    label: Label
    timestamp: Timestamp
    request_id: Id | None = None
    context: Context | None = None
    weight: Weight | None = Field(None, description="How much it counts when it is learned, 1 where this is absent.")


class InteractionsRequest(_Request):
    """A batch of the log, stored as a whole or not at all; an event that is known counts as a duplicate."""

    interactions: Annotated[list[InteractionEvent], Field(min_length=1, max_length=MAX_INTERACTIONS)]


class ImpressionEvent(_Request):
    """A user was shown these items; each is an interaction as soon as it is known whether it was clicked."""

    request_id: Id = Field(description="The `request_id` of the prediction, or any other name; clicks refer to it.")
    user_id: Id
    items: ShownItems
    positions: Annotated[list[Position], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = Field(
        None, description="Where each item was, in their order; 0, 1, 2, … where this is absent."
    )
    timestamp: Timestamp
    context: Context | None = Field(None, description="Of all items.")

    @field_validator("positions")
    @classmethod
    def _one_each(cls, value: list[int] | None, info: ValidationInfo) -> list[int] | None:
        # Of items that are wrong themselves nothing can be said.
        return value if value is None or "items" not in info.data else parse_positions(value, len(info.data["items"]))


class ImpressionsRequest(_Request):
    """A batch of impressions, stored as a whole or not at all; a `request_id` that is known counts as a duplicate."""

    impressions: Annotated[list[ImpressionEvent], Field(min_length=1, max_length=MAX_IMPRESSIONS)]


class ClickEvent(_Request):
    """The user clicked an item of an impression, which may come later."""

    event_id: Id | None = Field(None, description="`request_id/item_id` where this is absent.")
    request_id: Id = Field(description="Of the impression.")
    item_id: Id
    timestamp: Timestamp


class ClicksRequest(_Request):
    """A batch of clicks, stored as a whole or not at all; a click that is known counts as a duplicate."""

    clicks: Annotated[list[ClickEvent], Field(min_length=1, max_length=MAX_CLICKS)]


class IngestResponse(BaseModel):
    """Sent after the commit."""

    accepted: int
    duplicates: int = Field(description="Events that were stored before, or came earlier in the same call.")
    conflicts: list[str] | None = Field(
        None, description="Ids of events that differ from what is stored under the id, which stays; absent for none."
    )
    period: int


class ItemDocument(_Request):
    """An item of the catalogue with its categories."""

    item_id: Id
    categories: Annotated[list[Id], Field(max_length=MAX_CATEGORIES, fail_fast=True)] | None = Field(
        description="Null for none, as an empty list."
    )
    features: FeaturesOfItem | None = Field(
        None, description="Of the item, in place of those that it had; where they are absent these stay."
    )
    timestamp: Timestamp | None = Field(
        None, description="From when on the features hold; from now on where this is absent."
    )


class ItemsRequest(_Request):
    """Items to add or to replace; of an item given twice the last counts."""

    items: Annotated[list[ItemDocument], Field(min_length=1, max_length=MAX_CATALOGUE_ITEMS)]


class ItemsResponse(BaseModel):
    """Sent after the commit."""

    items: int = Field(description="Distinct items received.")
    changed: int = Field(description="Those that were new, or had other categories or features.")


class UserFeatures(_Request):
    """What is known of a user."""

    user_id: Id
    features: FeaturesOfUser | None = Field(description="In place of those that the user had; null for none.")
    timestamp: Timestamp | None = Field(None, description="From when on they hold; from now on where this is absent.")


class UsersRequest(_Request):
    """Features of users; of a user given twice for one time the last ones count."""

    users: Annotated[list[UserFeatures], Field(min_length=1, max_length=MAX_USERS)]


class UsersResponse(BaseModel):
    """Sent after the commit."""

    users: int = Field(description="Distinct users received.")
    changed: int = Field(description="Those that had other features at that time.")


class DeletionResponse(BaseModel):
    """What became of the wish that nothing be stored about an id."""

    deletion: str = Field(description="Its name, by which the audit knows it.")
    status: Literal["done", "pending"] = Field(
        description="`pending`: it is noted and goes on without the caller; asking again tells when it is done."
    )
    removed: dict[str, int] = Field(description="Rows that were removed so far, by what they were.")


class CloseRequest(_Request):
    """Guards a close against closing the next period by mistake, and says why it was closed."""

    expected_period: int | None = None
    reason: Reason | None = Field(None, description="For the audit.")


class CloseResponse(BaseModel):
    """The period is sealed; its update goes on behind `status_url`."""

    period: int
    status: Literal["sealed"]
    status_url: str


class RollbackRequest(_Request):
    """Serve an earlier (or again a later) version."""

    to_version: int
    sequence: Literal["keep", "excise"] = Field(
        description="`excise` also takes the versions rolled back out of the sequence that the next update learns from."
    )
    reason: Reason


class PinRequest(_Request):
    """Why a version is pinned, or is not any more."""

    reason: Reason


class PinResponse(BaseModel):
    """Sent after the commit."""

    version: int
    pinned: bool
    changed: bool = Field(description="Whether it was otherwise before.")
    reason: str


class RollbackResponse(BaseModel):
    """Sent after the moment from which every api process serves `to_version`."""

    from_version: int
    to_version: int
    sequence: Literal["keep", "excise"]
    active_from: datetime
    reason: str


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The process can predict and store."""

    status: Literal["ready"] = "ready"
    model_version: int
    period: int
    checks: dict[str, str]


class ProblemField(BaseModel):
    """One field of a request that is not as it has to be."""

    field: str
    expected: str
    received: str


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str = Field(description="As in the header `X-Request-ID`; the service's log names it too.")
    errors: list[ProblemField] | None = None
