"""JSON bodies: read, parsed in one pass, and checked field by field.

Each kind of body is described by a pydantic model (`service.schemas`). For those that come by the thousand, or hold
thousands, there is a msgspec type too, several times as fast. It accepts nothing that the model would not; whatever it
does not accept goes through the model, which decides and names the fields. So there is one set of errors, and no body
is judged twice unless it is wrong.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope
from xxhash import xxh64_intdigest

from asmg.kernels.common import compiled
from service.errors import BodyTooLarge, InvalidInput, NotReady
from service.head import content_coding, declared_length, headers_of
from service.limits import (
    MAX_BATCH,
    MAX_CLICKS,
    MAX_HISTORY,
    MAX_ID_LENGTH,
    MAX_IMPRESSIONS,
    MAX_ITEMS,
    MAX_JSON_PARTS,
    MAX_POSITION,
    MAX_PREDICT_BYTES,
    MAX_REQUEST_HISTORY,
)
from service.problems import invalid_input
from service.schemas import (
    BatchRequest,
    ClickEvent,
    ClicksRequest,
    ImpressionEvent,
    ImpressionsRequest,
    InteractionEvent,
    InteractionsRequest,
    PredictRequest,
    parse_positions,
    parse_timestamp,
    refuse_repetition,
)
from service.serving.forward import hash_json
from service.serving.snapshot import hashes_of
from service.storage.repositories import Click, EventBatch, Impression, Interaction, interaction_id
from service.use_cases.predict import Question

__all__ = [
    "Bodies",
    "check_head",
    "count_parts",
    "is_small",
    "parse_batch",
    "parse_clicks",
    "parse_impressions",
    "parse_interactions",
    "parse_json",
    "parse_predict",
    "plain_interactions",
    "quick_question",
    "read_body",
]

M = TypeVar("M", bound=BaseModel)

JSON = b"application/json"
JSON_MEDIA_TYPE = re.compile(r"application/([\w.+-]+\+)?json", re.ASCII | re.IGNORECASE)
NUL = b"\\u0000"
"""The only way in which JSON can say NUL."""

BACKSLASH = b"\\"

ESCAPED = b"\\u00"
"""The only way in which JSON can say the letters of a name otherwise."""

SMALL_BYTES = 64 * 1024

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
Position = Annotated[int, msgspec.Meta(ge=0, le=MAX_POSITION)]


class _PredictBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    user_id: Id
    items: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    history: Annotated[list[Id], msgspec.Meta(max_length=MAX_REQUEST_HISTORY)] | None = None
    request_id: Id | None = None


class _QuickBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """The same with items that are not taken apart yet, and not looked at."""

    user_id: Id
    items: msgspec.Raw
    history: Annotated[list[Id], msgspec.Meta(max_length=MAX_REQUEST_HISTORY)] | None = None
    request_id: Id | None = None


class _BatchBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    requests: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]


class _EventBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    event_id: str
    user_id: str
    item_id: str
    label: int
    timestamp: int | str
    request_id: str | None = None


class _EventsBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """For events with escapes: written again, they have none but those that no id may have."""

    interactions: list[_EventBody]


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


def is_small(body: bytes) -> bool:
    """Whether a body is parsed in a fraction of a millisecond, so that the event loop can do it."""
    return len(body) <= SMALL_BYTES


def check_head(scope: Scope, max_bytes: int) -> None:
    """That the head of a request announces a body that can be taken in; of the body nothing is read.

    Raises:
        BodyTooLarge: it says that it is longer than `max_bytes`.
        HTTPException: 415, it is compressed; it is never inflated, for it could become of any size.
    """
    if (coding := content_coding(scope)) is not None:
        raise HTTPException(415, f"expected no Content-Encoding; received {coding[:100]}")
    if declared_length(scope) > max_bytes:
        raise BodyTooLarge(max_bytes)


class Bodies:
    """The bodies of all calls that are under way: how many bytes they have together, and that these are not too many.

    Args:
        max_bytes: of all together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0

    @contextmanager
    def counted(self, receive: Receive, max_bytes: int) -> Iterator[Receive]:
        """`receive` for one call that goes on as long as the `with` block.

        It raises BodyTooLarge as soon as the body has more than `max_bytes`, and NotReady as soon as all have too many.
        """
        received = 0

        async def receive_and_count() -> Message:
            nonlocal received
            message = await receive()
            length = len(message.get("body", b""))
            received += length
            self._bytes += length
            if received > max_bytes:
                raise BodyTooLarge(max_bytes)
            if self._bytes > self._max_bytes:
                raise NotReady(f"the bodies of all calls have more than {self._max_bytes} bytes")
            return message

        try:
            yield receive_and_count
        finally:
            self._bytes -= received


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """All of a request's body.

    Raises:
        ClientDisconnect: the client went away.
        BodyTooLarge, HTTPException: as `check_head`; the former also where it is longer than `max_bytes`.
    """
    check_head(scope, max_bytes)
    parts: list[bytes] = []
    received, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        received += len(parts[-1])
        if received > max_bytes:
            raise BodyTooLarge(max_bytes)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


_QUOTE, _BACKSLASH, _COLON, _LIST, _OBJECT = (ord(c) for c in '"\\:[{')


@compiled
def count_parts(text: bytes) -> int:
    """How many objects, arrays and members of objects a JSON text has; of what is no JSON any number."""
    parts, at, in_string = 0, 0, False
    while at < len(text):
        byte = text[at]
        if in_string:
            if byte == _BACKSLASH:
                at += 1
            elif byte == _QUOTE:
                in_string = False
        elif byte == _QUOTE:
            in_string = True
        elif byte in (_COLON, _LIST, _OBJECT):
            parts += 1
        at += 1
    return parts


def parse_json(model: type[M], body: bytes, scope: Scope) -> M:
    """The body as a model.

    Raises:
        HTTPException: 400, it is no JSON; 415, it is not said to be.
        InvalidInput: it is not as `model` wants it, or has more parts than any model could want: to find out all that
            is wrong with a million takes seconds, and a hundred times their bytes.
    """
    content_type = headers_of(scope).get(b"content-type", b"").decode("latin-1")
    if not JSON_MEDIA_TYPE.fullmatch(content_type.partition(";")[0].strip()):
        raise HTTPException(415, f"expected Content-Type application/json; received {content_type[:100] or 'none'}")
    if not is_small(body) and (parts := count_parts(body)) > MAX_JSON_PARTS:
        raise InvalidInput(f"expected at most {MAX_JSON_PARTS} objects, arrays and members in a body; received {parts}")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if errors[0]["type"] == "json_invalid":
            raise HTTPException(400, f"expected a JSON document; received {errors[0]['ctx']['error']}") from None
        raise invalid_input(errors) from None


_BAD = (msgspec.MsgspecError, PydanticCustomError, UnicodeDecodeError, RecursionError)
_predict = msgspec.json.Decoder(_PredictBody)
_quick = msgspec.json.Decoder(_QuickBody)
_batch = msgspec.json.Decoder(_BatchBody)
_events = msgspec.json.Decoder(_EventsBody)
_impressions, _one_impression = msgspec.json.Decoder(_ImpressionsBody), msgspec.json.Decoder(_ImpressionBody)
_clicks, _one_click = msgspec.json.Decoder(_ClicksBody), msgspec.json.Decoder(_ClickBody)


def _may_be_quick(body: bytes, scope: Scope) -> bool:
    headers = headers_of(scope)
    return headers.get(b"content-type") == JSON and b"content-encoding" not in headers and NUL not in body


def _comes_once(member: bytes, body: bytes) -> bool:
    """Whether what stands in this member can be skipped at first and judged on its own.

    Of a member that comes twice, also under a name with escapes, the first would never be judged.
    """
    return ESCAPED not in body and body.count(member) == 1


def parse_predict(body: bytes, scope: Scope) -> Question:
    """The body of `POST /predict`; raises as `parse_json` does."""
    return quick_question(body, scope) or _question_of(parse_json(PredictRequest, body, scope))


def quick_question(body: bytes, scope: Scope) -> Question | None:
    """The body of `POST /predict`, where it is plainly right."""
    if _may_be_quick(body, scope):
        with suppress(*_BAD):
            return _question(body)
    return None


def parse_batch(body: bytes, scope: Scope) -> list[Question]:
    """The requests in the body of `POST /predict/batch`; raises as `parse_json` does, and BodyTooLarge for one of them.

    They are parsed one by one, so that a thread that does this for megabytes lets the event loop go on in between.
    """
    with suppress(*_BAD):
        parts = [bytes(part) for part in _batch.decode(body).requests]
        if any(len(part) > MAX_PREDICT_BYTES for part in parts):
            raise BodyTooLarge(MAX_PREDICT_BYTES)
        if _may_be_quick(body, scope) and _comes_once(b'"requests"', body):
            return [_question(part) for part in parts]
    return [_question_of(request) for request in parse_json(BatchRequest, body, scope).requests]


def _question(body: bytes) -> Question:
    """Raises one of `_BAD` for a body that is not right."""
    if not _comes_once(b'"items"', body):
        return _question_of(_predict.decode(body))
    quick = _quick.decode(body)
    raw = bytes(quick.items)
    asked = np.empty(1 + min(MAX_ITEMS, len(raw) // 3), dtype=np.uint64)
    n = hash_json(raw, MAX_ID_LENGTH, asked[1:])
    if n < 1:
        return _question_of(_predict.decode(body))
    asked[0] = xxh64_intdigest(quick.user_id.encode())
    history = None if quick.history is None else hashes_of(quick.history[:MAX_HISTORY])
    return Question(quick.user_id, asked[: 1 + n], history, quick.request_id)


def _question_of(request: _PredictBody | PredictRequest) -> Question:
    log = request.log_impressions if isinstance(request, PredictRequest) else None
    most = MAX_ITEMS if log is True else log or None
    return Question.of(request.user_id, request.items, request.history, request.request_id, log=most)


def parse_interactions(body: bytes, scope: Scope) -> EventBatch:
    """The events in the body of `POST /interactions`; raises as `parse_json` does."""
    if (events := plain_interactions(body, scope)) is not None:
        return events
    if BACKSLASH in body and headers_of(scope).get(b"content-type") == JSON:
        with suppress(*_BAD):
            if (events := EventBatch.parse(msgspec.json.encode(_events.decode(body)))) is not None:
                return events
    return EventBatch.of([_interaction(event) for event in parse_json(InteractionsRequest, body, scope).interactions])


def plain_interactions(body: bytes, scope: Scope) -> EventBatch | None:
    """The same, where the body is plainly right; it takes about 2 ns a byte."""
    if BACKSLASH in body or headers_of(scope).get(b"content-type") != JSON:
        return None
    return EventBatch.parse(body)


def _interaction(event: InteractionEvent) -> Interaction:
    return Interaction(event.event_id, event.user_id, event.item_id, event.label, event.timestamp, event.request_id)


def parse_impressions(body: bytes, scope: Scope) -> list[Impression]:
    """The impressions in the body of `POST /impressions`, one by one as well; raises as `parse_json` does."""
    if _may_be_quick(body, scope) and _comes_once(b'"impressions"', body):
        with suppress(*_BAD):
            return [_impression(_one_impression.decode(part)) for part in _impressions.decode(body).impressions]
    return [_impression(event) for event in parse_json(ImpressionsRequest, body, scope).impressions]


def parse_clicks(body: bytes, scope: Scope) -> list[Click]:
    """The clicks in the body of `POST /clicks`, the same way."""
    if _may_be_quick(body, scope) and _comes_once(b'"clicks"', body):
        with suppress(*_BAD):
            return [_click(_one_click.decode(part)) for part in _clicks.decode(body).clicks]
    return [_click(event) for event in parse_json(ClicksRequest, body, scope).clicks]


def _impression(event: _ImpressionBody | ImpressionEvent) -> Impression:
    positions = None if event.positions is None else parse_positions(event.positions, len(event.items))
    return Impression(event.request_id, event.user_id, refuse_repetition(event.items), positions, _moment(event))


def _click(event: _ClickBody | ClickEvent) -> Click:
    event_id = event.event_id or interaction_id(event.request_id, event.item_id)
    return Click(event_id, event.request_id, event.item_id, _moment(event))


def _moment(event: _ImpressionBody | ImpressionEvent | _ClickBody | ClickEvent) -> datetime:
    return event.timestamp if isinstance(event.timestamp, datetime) else parse_timestamp(event.timestamp)
