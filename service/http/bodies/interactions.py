"""The body of `POST /interactions`."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Annotated

import msgspec
from starlette.types import Scope

from asmg.features import DEFAULT, Schema
from asmg.log_format import EARLIEST_MS, LATEST_MS
from service.errors import FieldError
from service.http.bodies.parse import (
    BAD,
    EPOCH,
    MICROSECOND,
    NUL,
    Context,
    Id,
    check_json,
    parse_json,
    refuse_faults,
    texts_of,
)
from service.http.schemas import InteractionEvent, InteractionsRequest, parse_timestamp
from service.http.schemas.types import RFC_3339
from service.limits import MAX_INTERACTIONS, MAX_WEIGHT, MIN_WEIGHT
from service.storage.postgres.repositories import EventBatch, Interaction
from service.use_cases.fields import allowed, faults, written

__all__ = ["parse_interactions"]


class _EventBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    event_id: Id
    user_id: Id
    item_id: Id
    label: Annotated[int, msgspec.Meta(ge=0, le=1)]
    timestamp: int | str
    request_id: Id | None = None
    context: Context | None = None
    weight: Annotated[float, msgspec.Meta(ge=MIN_WEIGHT, le=MAX_WEIGHT)] | None = None


class _EventsBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    interactions: Annotated[list[_EventBody], msgspec.Meta(min_length=1, max_length=MAX_INTERACTIONS)]


DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")

_events = msgspec.json.Decoder(_EventsBody)


def parse_interactions(body: bytes, scope: Scope, schema: Schema = DEFAULT) -> EventBatch:
    """The events in the body of `POST /interactions`.

    Raises what `parse_json` raises, and InvalidInput for a context that `schema` does not allow.
    """
    check_json(scope)
    if NUL not in body:
        with suppress(*BAD):
            return _batch(_events.decode(body).interactions, schema)
    events = parse_json(InteractionsRequest, body, scope).interactions
    refuse_faults(_faults(events, schema))
    return EventBatch.of([_interaction(event) for event in events])


def _batch(events: list[_EventBody], schema: Schema) -> EventBatch:
    """Raises one of `BAD` where something is wrong with an event."""
    return EventBatch.of_columns(
        texts_of([event.event_id for event in events]),
        texts_of([event.user_id for event in events]),
        texts_of([event.item_id for event in events]),
        [event.label for event in events],
        _microseconds([event.timestamp for event in events]),
        [None if event.request_id is None else str(event.request_id) for event in events],
        [_written(event.context, schema) if event.context else None for event in events],
        [None if event.weight is None else _stored_weight(event.weight) for event in events],
    )


def _microseconds(timestamps: list[int | str]) -> list[int]:
    """The timestamps in microseconds since 1970, as `parse_timestamp` reads them; raises what it raises.

    Most batches are read in a third of its time: it is enough to match each shape of a text once, with its digits as
    zeros, since a batch has few of them.
    """
    with suppress(TypeError, ValueError):
        shapes = set("\0".join(timestamps).encode().translate(DIGITS_AS_ZEROS).split(b"\0"))  # type: ignore[arg-type]
        if all(RFC_3339.fullmatch(shape.decode()) for shape in shapes):
            times = [(datetime.fromisoformat(text) - EPOCH) // MICROSECOND for text in timestamps]  # type: ignore[arg-type]
            if min(times) >= EARLIEST_MS * 1000 and max(times) < LATEST_MS * 1000:
                return times
    return [(parse_timestamp(timestamp) - EPOCH) // MICROSECOND for timestamp in timestamps]


def _written(context: Context, schema: Schema) -> str | None:
    if not allowed(schema, "context", context):
        raise msgspec.ValidationError("context: expected values that the schema allows; received others")
    return written(context)


def _faults(events: list[InteractionEvent], schema: Schema) -> Iterator[FieldError]:
    for n, event in enumerate(events):
        yield from faults(schema, "context", event.context, f"interactions[{n}].context")


def _interaction(event: InteractionEvent) -> Interaction:
    return Interaction(
        event_id=event.event_id,
        user_id=event.user_id,
        item_id=event.item_id,
        label=event.label,
        occurred_at=event.timestamp,
        request_id=event.request_id,
        context=written(event.context),
        weight=_stored_weight(event.weight),
    )


def _stored_weight(weight: float | None) -> float | None:
    """The weight as it is stored: None for 1."""
    return None if weight == 1 else weight
