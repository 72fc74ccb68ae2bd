"""The types that several documents have: ids, items, times, labels, values of fields."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, StringConstraints
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from asmg.log_format import EARLIEST_MS, LATEST_MS
from service.limits import (
    MAX_ID_LENGTH,
    MAX_INTEGER_ID,
    MAX_POSITION,
    MAX_REASON_LENGTH,
    MAX_WEIGHT,
    MIN_INTEGER_ID,
    MIN_WEIGHT,
)
from service.use_cases.fields import FIELDS_OF

__all__ = [
    "Context",
    "FeaturesOfItem",
    "FeaturesOfUser",
    "Id",
    "Item",
    "ItemInContext",
    "Label",
    "Position",
    "Reason",
    "StrictModel",
    "Text",
    "Timestamp",
    "Weight",
    "parse_label",
    "parse_timestamp",
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST = EPOCH + timedelta(milliseconds=EARLIEST_MS)
LATEST = EPOCH + timedelta(milliseconds=LATEST_MS)
"""The first moment that is too late."""
LEAST_MILLISECONDS = 10**11
"""The least integer that is taken for milliseconds. A smaller one would be a time before 4 March 1973; most likely it
counts seconds, as which it is a time until 5138."""
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

# Postgres cannot store NUL in text. A pattern is matched inside pydantic's core: no Python call for each id.
TEXT_PATTERN = r"^[^\x00]*$"


class StrictModel(BaseModel):
    """A request document: unknown members are errors, and values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def parse_timestamp(value: Any) -> datetime:
    """Parse a time of the years 1990 to 2099: RFC 3339 with an offset, or integer epoch milliseconds.

    Returns:
        the time in UTC.

    Raises:
        PydanticCustomError: `value` is no such time; `epoch_seconds` where it is an integer that most likely counts
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
    """`value` if it is an integer. For Python, and so for a `Literal`, `True == 1 == 1.0`; for the API it is not.

    Raises:
        PydanticCustomError: `value` is a boolean, a float or anything else.
    """
    if type(value) is not int:
        raise PydanticCustomError("no_label", "0 or 1")
    return value


def _timestamp_schema(schema: dict[str, Any]) -> None:
    schema.clear()
    milliseconds = {"type": "integer", "title": "epoch milliseconds", "minimum": EARLIEST_MS, "maximum": LATEST_MS - 1}
    schema["anyOf"] = [{"type": "string", "format": "date-time"}, milliseconds]


class _OrInteger:
    """A text, or a 64-bit integer, which becomes its decimal text; one error for anything else."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        integer = core_schema.int_schema(ge=MIN_INTEGER_ID, le=MAX_INTEGER_ID, strict=True)
        return core_schema.union_schema(
            [handler(source), core_schema.no_info_after_validator_function(str, integer)],
            mode="left_to_right",
            custom_error_type="no_id",
            custom_error_message="an id",
        )


Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH, pattern=TEXT_PATTERN)]
Id = Annotated[Text, _OrInteger()]
"""An id as its text. A JSON integer is its decimal text: 42 and "42" are the same id."""


class _OrObject:
    """An id, or an `ItemInContext`; one error for anything else."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.union_schema(
            [handler.generate_schema(Id), handler.generate_schema(ItemInContext)],
            mode="left_to_right",
            custom_error_type="no_item",
            custom_error_message="an item",
        )


# Values of fields by name. The schema of the installation says which fields there are.
Context = Annotated[dict[str, Any], Field(json_schema_extra={FIELDS_OF: "context"})]
FeaturesOfUser = Annotated[dict[str, Any], Field(json_schema_extra={FIELDS_OF: "user"})]
FeaturesOfItem = Annotated[dict[str, Any], Field(json_schema_extra={FIELDS_OF: "item"})]

Weight = Annotated[float, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=MAX_REASON_LENGTH, pattern=TEXT_PATTERN)]
Label = Annotated[Literal[0, 1], BeforeValidator(parse_label)]
Timestamp = Annotated[datetime, BeforeValidator(parse_timestamp), Field(json_schema_extra=_timestamp_schema)]
Position = Annotated[int, Field(ge=0, le=MAX_POSITION)]


class ItemInContext(StrictModel):
    """An item with context fields of its own, such as its position."""

    id: Id
    context: Context | None = Field(
        None, description="Context of this item alone. Its values replace those of the context of the request."
    )


Item = Annotated[str | ItemInContext, _OrObject()]
