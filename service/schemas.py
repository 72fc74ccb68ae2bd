"""What clients send and get: the request and response documents of the HTTP API.

Requests are strict: unknown fields, numbers in quotes and booleans for numbers are errors, never guesses. Period and
model documents are not here: they are what the use cases return (`service.use_cases.status`).
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from service.limits import (
    MAX_BATCH,
    MAX_CATALOGUE_ITEMS,
    MAX_CATEGORIES,
    MAX_ID_LENGTH,
    MAX_INTERACTIONS,
    MAX_ITEMS,
    MAX_REASON_LENGTH,
    MAX_REQUEST_HISTORY,
)

__all__ = [
    "BatchPrediction",
    "BatchRequest",
    "BatchResponse",
    "CloseRequest",
    "CloseResponse",
    "Health",
    "Id",
    "InteractionEvent",
    "InteractionsRequest",
    "InteractionsResponse",
    "ItemDocument",
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
    "parse_label",
    "parse_timestamp",
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
END_OF_TIME = datetime(2200, 1, 1, tzinfo=UTC)
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def parse_timestamp(value: Any) -> datetime:
    """A moment between 1970 and 2200 in UTC, of an RFC 3339 text with an offset or of integer epoch milliseconds.

    Raises:
        PydanticCustomError: `value` is no such moment.
    """
    try:
        if type(value) is int:
            moment = EPOCH + timedelta(milliseconds=value)
        elif isinstance(value, str) and RFC_3339.fullmatch(value):
            moment = datetime.fromisoformat(value.upper()).astimezone(UTC)
        else:
            raise ValueError
        if not EPOCH <= moment < END_OF_TIME:
            raise ValueError
    except (ValueError, OverflowError):
        raise PydanticCustomError(
            "no_time", "a time from 1970 to 2199: RFC 3339 with an offset, or integer epoch milliseconds"
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


def _timestamp_schema(schema: dict[str, Any]) -> None:
    schema.clear()
    schema["anyOf"] = [{"type": "string", "format": "date-time"}, {"type": "integer", "title": "epoch milliseconds"}]


# Postgres cannot store NUL in text. A pattern is matched inside pydantic's core: no Python call for each of the items.
_TEXT_PATTERN = r"^[^\x00]*$"

Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH, pattern=_TEXT_PATTERN)]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=MAX_REASON_LENGTH, pattern=_TEXT_PATTERN)]
Label = Annotated[Literal[0, 1], BeforeValidator(parse_label)]
Timestamp = Annotated[datetime, BeforeValidator(parse_timestamp), Field(json_schema_extra=_timestamp_schema)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PredictRequest(_Request):
    """Asks how likely a user is to click each of some items."""

    user_id: Id
    # Of each list of ids the first wrong one is told (`fail_fast`): a body has room for half a million.
    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
    history: Annotated[list[Id], Field(max_length=MAX_REQUEST_HISTORY, fail_fast=True)] | None = Field(
        None, description="Items clicked before, newest first; in place of the history that the service keeps."
    )
    request_id: Id | None = None


HistoryUse = Annotated[
    Literal["used", "unavailable"],
    Field(description="`unavailable`: no server gave the user's history in time, so the scores are without it."),
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


class InteractionsRequest(_Request):
    """A batch of the log, stored as a whole or not at all; an event that is known counts as a duplicate."""

    interactions: Annotated[list[InteractionEvent], Field(min_length=1, max_length=MAX_INTERACTIONS)]


class InteractionsResponse(BaseModel):
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
    categories: Annotated[list[Id], Field(max_length=MAX_CATEGORIES, fail_fast=True)]


class ItemsRequest(_Request):
    """Items to add or to replace; of an item given twice the last counts."""

    items: Annotated[list[ItemDocument], Field(min_length=1, max_length=MAX_CATALOGUE_ITEMS)]


class ItemsResponse(BaseModel):
    """Sent after the commit."""

    items: int = Field(description="Distinct items received.")
    changed: int = Field(description="Those that were new or had other categories.")


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
