"""The body of `POST /interactions`."""

from contextlib import suppress
from typing import Annotated

import msgspec
from starlette.types import Scope

from asmg.features import DEFAULT, Schema
from service.http.bodies.parse import BAD, Id, check_json, parse_json, refuse_faults
from service.http.schemas import (
    InteractionEvent,
    InteractionsRequest,
)
from service.limits import (
    MAX_INTERACTIONS,
)
from service.storage.postgres.repositories import EventBatch, Interaction
from service.use_cases.fields import faults, written

__all__ = ["parse_interactions", "plain_interactions"]


BACKSLASH = b"\\"


class _EventBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    event_id: Id
    user_id: Id
    item_id: Id
    label: int
    timestamp: int | str
    request_id: Id | None = None


class _EventsBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """For events with escapes or with ids that are integers: written again, as text, they have none but those escapes
    that no id may have.
    """

    interactions: Annotated[list[_EventBody], msgspec.Meta(max_length=MAX_INTERACTIONS)]


_events = msgspec.json.Decoder(_EventsBody)


def parse_interactions(body: bytes, scope: Scope, schema: Schema = DEFAULT) -> EventBatch:
    """The events in the body of `POST /interactions`; raises as `parse_predict` does.

    Those with a context or a weight are read by the model, which takes some 17 µs for each.
    """
    if (events := plain_interactions(body, scope)) is not None:
        return events
    with suppress(*BAD):
        if (events := EventBatch.parse(_written_again(body))) is not None:
            return events
    found = parse_json(InteractionsRequest, body, scope).interactions
    refuse_faults(
        fault
        for n, event in enumerate(found)
        for fault in faults(schema, "context", event.context, f"interactions[{n}].context")
    )
    return EventBatch.of([_interaction(event) for event in found])


def plain_interactions(body: bytes, scope: Scope) -> EventBatch | None:
    """The same, where the body is plainly right and all its ids are texts; it takes about 2 ns a byte. Raises as
    `check_json` does.
    """
    check_json(scope)
    return None if BACKSLASH in body else EventBatch.parse(body)


def _written_again(body: bytes) -> bytes:
    """The events with each id as a text, and as few escapes as can be. Raises one of `BAD` where they are wrong."""
    document = _events.decode(body)
    for event in document.interactions:
        event.event_id, event.user_id, event.item_id = str(event.event_id), str(event.user_id), str(event.item_id)
        if event.request_id is not None:
            event.request_id = str(event.request_id)
    return msgspec.json.encode(document)


def _interaction(event: InteractionEvent) -> Interaction:
    return Interaction(
        event_id=event.event_id,
        user_id=event.user_id,
        item_id=event.item_id,
        label=event.label,
        occurred_at=event.timestamp,
        request_id=event.request_id,
        context=written(event.context),
        weight=None if event.weight in (None, 1) else event.weight,
    )
