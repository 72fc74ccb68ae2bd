"""The bodies of `POST /impressions` and `POST /clicks`."""

from contextlib import suppress
from datetime import datetime
from typing import Annotated

import msgspec
from starlette.types import Scope

from asmg.features import DEFAULT, Schema
from service.http.bodies.parse import (
    BAD,
    NUL,
    Id,
    Position,
    check_json,
    comes_once,
    faults_of_items,
    item_id_of,
    parse_json,
    refuse_faults,
    text_of,
    texts_of,
)
from service.http.schemas import (
    ClickEvent,
    ClicksRequest,
    ImpressionEvent,
    ImpressionsRequest,
    parse_positions,
    parse_timestamp,
    refuse_repetition,
)
from service.limits import (
    MAX_CLICKS,
    MAX_IMPRESSIONS,
    MAX_ITEMS,
)
from service.storage.postgres.repositories import Click, Impression, interaction_id
from service.use_cases.fields import written

__all__ = ["parse_clicks", "parse_impressions"]


class _ImpressionBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    request_id: Id
    user_id: Id
    items: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    timestamp: int | str
    positions: Annotated[list[Position], msgspec.Meta(max_length=MAX_ITEMS)] | None = None


class _ImpressionsBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    impressions: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_IMPRESSIONS)]


class _ClickBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    request_id: Id
    item_id: Id
    timestamp: int | str
    event_id: Id | None = None


class _ClicksBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    clicks: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_CLICKS)]


_impressions, _one_impression = msgspec.json.Decoder(_ImpressionsBody), msgspec.json.Decoder(_ImpressionBody)
_clicks, _one_click = msgspec.json.Decoder(_ClicksBody), msgspec.json.Decoder(_ClickBody)


def parse_impressions(body: bytes, scope: Scope, schema: Schema = DEFAULT) -> list[Impression]:
    """The impressions in the body of `POST /impressions`.

    They are parsed one by one, so that a thread that parses megabytes lets the event loop go on in between. Raises what
    `parse_json` raises, and InvalidInput for a context that `schema` does not allow.
    """
    check_json(scope)
    if NUL not in body and comes_once(b'"impressions"', body):
        with suppress(*BAD):
            return [_impression(_one_impression.decode(part)) for part in _impressions.decode(body).impressions]
    found = parse_json(ImpressionsRequest, body, scope).impressions
    refuse_faults(
        fault for n, event in enumerate(found) for fault in faults_of_items(event, schema, f"impressions[{n}].")
    )
    return [_impression(event) for event in found]


def parse_clicks(body: bytes, scope: Scope) -> list[Click]:
    """The clicks in the body of `POST /clicks`, parsed one by one too. Raises what `parse_json` raises."""
    check_json(scope)
    if NUL not in body and comes_once(b'"clicks"', body):
        with suppress(*BAD):
            return [_click(_one_click.decode(part)) for part in _clicks.decode(body).clicks]
    return [_click(event) for event in parse_json(ClicksRequest, body, scope).clicks]


def _impression(event: _ImpressionBody | ImpressionEvent) -> Impression:
    positions = None if event.positions is None else parse_positions(event.positions, len(event.items))
    if isinstance(event, _ImpressionBody):
        items = refuse_repetition(texts_of(event.items))
        return Impression(str(event.request_id), str(event.user_id), items, positions, _moment(event))
    contexts = [None if isinstance(item, str) else written(item.context) for item in event.items]
    return Impression(
        request_id=event.request_id,
        user_id=event.user_id,
        item_ids=[item_id_of(item) for item in event.items],
        positions=positions,
        shown_at=event.timestamp,
        context=written(event.context),
        item_contexts=contexts if any(contexts) else None,
    )


def _click(event: _ClickBody | ClickEvent) -> Click:
    request_id, item_id, event_id = str(event.request_id), str(event.item_id), text_of(event.event_id)
    return Click(
        interaction_id(request_id, item_id) if event_id is None else event_id, request_id, item_id, _moment(event)
    )


def _moment(event: _ImpressionBody | ImpressionEvent | _ClickBody | ClickEvent) -> datetime:
    return event.timestamp if isinstance(event.timestamp, datetime) else parse_timestamp(event.timestamp)
