"""The documents of `POST /predict` and `POST /predict/batch`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from service.http.schemas.types import Context, Id, Item, StrictModel
from service.limits import MAX_BATCH, MAX_ITEMS, MAX_REQUEST_HISTORY
from service.use_cases.status import MAX_NUMBER

__all__ = [
    "BatchPrediction",
    "BatchRequest",
    "BatchResponse",
    "BatchedRequest",
    "PredictRequest",
    "PredictResponse",
    "parse_log",
]


def parse_log(value: Any) -> bool | int:
    """`value` if it says how many impressions to log.

    Raises:
        PydanticCustomError: it is neither a boolean nor an integer from 1 to `MAX_ITEMS`.
    """
    if type(value) is bool or (type(value) is int and 1 <= value <= MAX_ITEMS):
        return value
    raise PydanticCustomError("no_log", "true, false or an integer from 1 to {most}", {"most": MAX_ITEMS})


def _log_schema(schema: dict[str, Any]) -> None:
    schema.clear()
    schema["anyOf"] = [{"type": "boolean"}, {"type": "integer", "minimum": 1, "maximum": MAX_ITEMS}]


LogImpressions = Annotated[bool | int, BeforeValidator(parse_log), Field(json_schema_extra=_log_schema)]


_LOGS_NOTHING = {"properties": {"log_impressions": {"enum": [False, None]}}}
_SERVED = {"properties": {"model_version": {"enum": [None]}}}


def _logs_only_users(schema: dict[str, Any]) -> None:
    of_somebody = {"required": ["user_id"], "properties": {"user_id": {"type": ["string", "integer"]}}}
    # Within `allOf`: generators of clients take an `anyOf` beside properties for another choice than them.
    schema["allOf"] = [{"anyOf": [of_somebody, _LOGS_NOTHING]}]


def _logs_only_what_is_served(schema: dict[str, Any]) -> None:
    _logs_only_users(schema)
    schema["allOf"].append({"anyOf": [_SERVED, _LOGS_NOTHING]})


def _logs_all_as_served(schema: dict[str, Any]) -> None:
    schema["allOf"] = [{"anyOf": [_SERVED, {"properties": {"requests": {"items": _LOGS_NOTHING}}}]}]


ChosenVersion = Annotated[
    int | None,
    Field(
        ge=0,
        le=MAX_NUMBER,
        description="The version to score with, to compare it with the one that is served. Needs a key with the scope "
        "`admin` too, and nothing can be logged.",
    ),
]


def _logged_as_served() -> PydanticCustomError:
    return PydanticCustomError("not_served", "null, or absent, where impressions are logged: they were served")


# `fail_fast`: only the first wrong item is named, because a body has room for a million of them.
class BatchedRequest(StrictModel):
    """One request of a batch: asks for the probability that a user clicks each of some items."""

    model_config = ConfigDict(json_schema_extra=_logs_only_users)

    user_id: Id | None = Field(None, description="Absent or null for a visitor without an id, who is a cold user.")
    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
    context: Context | None = Field(None, description="Context of the request, which applies to all items.")
    history: Annotated[list[Id], Field(max_length=MAX_REQUEST_HISTORY, fail_fast=True)] | None = Field(
        None, description="Items clicked before, newest first; replaces the history that the service keeps."
    )
    request_id: Id | None = None
    log_impressions: LogImpressions | None = Field(
        None,
        description="Log the items as shown in the order of their scores: all of them (`true`) or so many of the best "
        "(a number), under the `request_id` of the answer. Needs a `user_id`, and a key with the scope `ingest` too.",
    )

    @field_validator("log_impressions")
    @classmethod
    def _needs_user(cls, value: bool | int | None, info: ValidationInfo) -> bool | int | None:
        if value and info.data.get("user_id", "") is None:
            raise PydanticCustomError("of_nobody", "false, or absent, where there is no user_id to log impressions of")
        return value


class PredictRequest(BatchedRequest):
    """Asks for the probability that a user clicks each of some items."""

    model_config = ConfigDict(json_schema_extra=_logs_only_what_is_served)

    model_version: ChosenVersion = None

    @field_validator("model_version")
    @classmethod
    def _logs_nothing(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("log_impressions"):
            raise _logged_as_served()
        return value


HistoryUse = Annotated[
    Literal["used", "unavailable"],
    Field(description="`unavailable`: no server gave the user's history in time; the scores were computed without it."),
]

Logged = Annotated[
    bool | None,
    Field(
        description="Whether the impression is stored durably. False where Postgres did not store it in time, or has "
        "another one with this `request_id`. Absent where `log_impressions` did not ask for it."
    ),
]


class PredictResponse(BaseModel):
    """One score for each item, in the order of the request, by one model version."""

    model_version: int
    period: int = Field(description="The period that the model was last trained on; 0 before the first.")
    scores: list[float] = Field(description="Click probabilities, each in (0, 1).")
    cold_user: bool = Field(description="Whether the user is unknown to the model.")
    cold_items: list[int] = Field(description="Indexes of the items that are unknown to the model.")
    history: HistoryUse
    request_id: str
    logged: Logged = None


class BatchRequest(StrictModel):
    """Asks for predictions for several users; each request is as `POST /predict` takes it, without a version."""

    model_config = ConfigDict(json_schema_extra=_logs_all_as_served)

    requests: Annotated[list[BatchedRequest], Field(min_length=1, max_length=MAX_BATCH)]
    model_version: ChosenVersion = None

    @field_validator("model_version")
    @classmethod
    def _logs_nothing(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and any(request.log_impressions for request in info.data.get("requests", ())):
            raise _logged_as_served()
        return value


class BatchPrediction(BaseModel):
    """The answer to one request of a batch, as `POST /predict` gives it."""

    model_version: int | None = Field(
        None, description="The canary, where it has made this answer; absent where the version of the batch has."
    )
    period: int | None = Field(None, description="Of the canary, where it has made this answer.")

    scores: list[float] = Field(description="Click probabilities, each in (0, 1).")
    cold_user: bool
    cold_items: list[int]
    history: HistoryUse
    request_id: str
    logged: Logged = None


class BatchResponse(BaseModel):
    """One prediction for each request, in their order, by one model version and, where one runs, by the canary."""

    model_version: int
    period: int
    predictions: list[BatchPrediction]
