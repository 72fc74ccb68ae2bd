"""JSON bodies: read, parsed in one pass, and checked field by field.

Each kind of body is described by a pydantic model (`service.http.schemas`). For those that come by the thousand, or
hold thousands, there is a msgspec type too, several times as fast. It accepts nothing that the model would not;
whatever it does not accept goes through the model, which decides and names the fields. So there is one set of errors,
and no body is judged twice unless it is wrong.
"""

import asyncio
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from asmg.features import DEFAULT, MAX_FIELDS, Schema
from asmg.kernels.common import compiled
from service.errors import BodyTooLarge, FieldError, InvalidInput, NotReady
from service.http.headers import content_coding, declared_length, headers_of
from service.http.problems import MAX_FIELD_ERRORS, invalid_fields, invalid_input
from service.http.schemas import (
    BatchRequest,
    ClickEvent,
    ClicksRequest,
    ImpressionEvent,
    ImpressionsRequest,
    InteractionEvent,
    InteractionsRequest,
    ItemInContext,
    PredictRequest,
    parse_positions,
    parse_timestamp,
    refuse_repetition,
)
from service.limits import (
    MAX_BATCH,
    MAX_CLICKS,
    MAX_GZIP_MEMBERS,
    MAX_HISTORY,
    MAX_ID_LENGTH,
    MAX_IMPRESSIONS,
    MAX_INTEGER_ID,
    MAX_INTERACTIONS,
    MAX_ITEMS,
    MAX_JSON_PARTS,
    MAX_POSITION,
    MAX_PREDICT_BYTES,
    MAX_REQUEST_HISTORY,
    MIN_INTEGER_ID,
)
from service.serving.forward import hash_json
from service.serving.snapshot import hashes_of
from service.storage.postgres.repositories import Click, EventBatch, Impression, Interaction, interaction_id
from service.use_cases.fields import allowed, cleaned, faults, written
from service.use_cases.predict import Question, hash_of_user

__all__ = [
    "Bodies",
    "check_json",
    "count_parts",
    "gunzipped",
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
    "refuse_faults",
    "refuse_future",
]

M = TypeVar("M", bound=BaseModel)

JSON = b"application/json"
JSON_MEDIA_TYPE = re.compile(rb"application/([\w.+-]+\+)?json", re.IGNORECASE)
UTF_8 = (b"utf-8", b"utf8")
GZIP = ("gzip", "x-gzip")
"""Names of the one content coding that is taken, by calls that store."""
EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)

NUL = b"\\u0000"
"""The only way in which JSON can say NUL."""

BACKSLASH = b"\\"

ESCAPED = b"\\u00"
"""The only way in which JSON can say the letters of a name otherwise."""

SMALL_BYTES = 64 * 1024

GZIP_WINDOW = 16 + zlib.MAX_WBITS
"""Says to zlib that the stream has the head and the checksum of gzip."""
GZIP_INPUT_BYTES = 16 * 1024
"""Compressed bytes that are fed to zlib at a time. What is behind the end of a member is copied then."""

TextId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
IntegerId = Annotated[int, msgspec.Meta(ge=MIN_INTEGER_ID, le=MAX_INTEGER_ID)]
Id = TextId | IntegerId
Position = Annotated[int, msgspec.Meta(ge=0, le=MAX_POSITION)]
Part = str | bool | int | float
Context = Annotated[dict[str, Part | list[Part] | None], msgspec.Meta(max_length=MAX_FIELDS)]
"""Some of the values that no field has are left out already; the rest of them, and their names, the schema judges."""


class _PredictBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    items: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    user_id: Id | None = None
    history: Annotated[list[Id], msgspec.Meta(max_length=MAX_REQUEST_HISTORY)] | None = None
    request_id: Id | None = None
    context: Context | None = None


class _QuickBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """The same with items that are not taken apart yet, and not looked at."""

    items: msgspec.Raw
    user_id: Id | None = None
    history: Annotated[list[Id], msgspec.Meta(max_length=MAX_REQUEST_HISTORY)] | None = None
    request_id: Id | None = None
    context: Context | None = None


class _BatchBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    requests: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]


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


def _check_head(scope: Scope, max_bytes: int, *, gzip: bool) -> bool:
    """Whether the body is compressed, as the head of the request says; of the body nothing is read.

    Raises:
        BodyTooLarge: the head says that the body is longer than `max_bytes`.
        HTTPException: 415, it is compressed in another way than gzip, or may not be.
    """
    coding = content_coding(scope)
    if coding is not None and not (gzip and coding.lower() in GZIP):
        expected, accepted = ("gzip, or none", "gzip") if gzip else ("none", "identity")
        raise HTTPException(
            415,
            f"expected {expected} as Content-Encoding; received {coding[:100]}",
            headers={"Accept-Encoding": accepted},
        )
    if declared_length(scope) > max_bytes:
        raise BodyTooLarge(max_bytes)
    return coding is not None


_COUNT = "asmg.count_bytes"


class Bodies:
    """The bodies of all calls that are under way: how many bytes they have together, and that these are not too many.

    Of a compressed body both count: what was received, and what it becomes.

    Args:
        max_bytes: of all together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0

    @contextmanager
    def counted(self, scope: Scope, receive: Receive, max_bytes: int) -> Iterator[Receive]:
        """`receive` for one call that goes on as long as the `with` block.

        It raises BodyTooLarge as soon as the body has more than `max_bytes`, and NotReady as soon as all have too many;
        the latter does `read_body` too, while it inflates.
        """
        received = counted = 0

        def count(length: int) -> None:
            nonlocal counted
            counted += length
            self._bytes += length
            if self._bytes > self._max_bytes:
                raise NotReady(f"the bodies of all calls have more than {self._max_bytes} bytes")

        async def receive_and_count() -> Message:
            nonlocal received
            message = await receive()
            length = len(message.get("body", b""))
            received += length
            if received > max_bytes:
                raise BodyTooLarge(max_bytes)
            count(length)
            return message

        scope[_COUNT] = count
        try:
            yield receive_and_count
        finally:
            self._bytes -= counted


async def read_body(scope: Scope, receive: Receive, max_bytes: int, *, gzip: bool = False) -> bytes:
    """All of a request's body, inflated where it is compressed.

    Args:
        scope: of the request.
        receive: that it came with.
        max_bytes: that the body may have, compressed and inflated.
        gzip: whether it may be compressed.

    Raises:
        ClientDisconnect: the client went away.
        BodyTooLarge: it is longer than `max_bytes`, or becomes so.
        HTTPException: 415, it is compressed in another way than gzip, or may not be; 400, it is no gzip stream.
        NotReady: the bodies of all calls become too large.
    """
    compressed = _check_head(scope, max_bytes, gzip=gzip)
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
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    return await _inflated(scope, body, max_bytes) if compressed else body


async def _inflated(scope: Scope, body: bytes, max_bytes: int) -> bytes:
    """Small bodies become what they are at once, and of others each piece in a thread."""
    count: Callable[[int], None] = scope.get(_COUNT, lambda _: None)
    parts: list[bytes] = []
    inflated, pieces = 0, gunzipped(body)
    while True:
        on_the_loop = is_small(body) and inflated < SMALL_BYTES
        piece = next(pieces, None) if on_the_loop else await asyncio.to_thread(next, pieces, None)
        if piece is None:
            return b"".join(parts)
        inflated += len(piece)
        if inflated > max_bytes:
            raise BodyTooLarge(max_bytes)
        count(len(piece))
        parts.append(piece)


def gunzipped(body: bytes) -> Iterator[bytes]:
    """What a gzip stream of one or more members (RFC 1952) says, in pieces of at most `SMALL_BYTES`.

    Raises:
        HTTPException: 400, it is none, is cut short, has something behind it, or has more than `MAX_GZIP_MEMBERS`.
    """
    inflating, members = zlib.decompressobj(GZIP_WINDOW), 1
    taken, waiting = 0, b""
    while True:
        if not waiting:
            waiting = body[taken : taken + GZIP_INPUT_BYTES]
            taken += len(waiting)
        try:
            piece = inflating.decompress(waiting, SMALL_BYTES)
        except zlib.error as error:
            raise HTTPException(400, f"expected a gzip stream and nothing else; received one with: {error}") from None
        if piece:
            yield piece
        waiting = inflating.unused_data if inflating.eof else inflating.unconsumed_tail
        over = not waiting and taken == len(body)
        if inflating.eof:
            if over:
                return
            if members == MAX_GZIP_MEMBERS:
                raise HTTPException(400, f"expected at most {MAX_GZIP_MEMBERS} members of a gzip stream; received more")
            inflating, members = zlib.decompressobj(GZIP_WINDOW), members + 1
        elif over and not piece:
            raise HTTPException(400, "expected a whole gzip stream; received one that is cut short")


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


def check_json(scope: Scope) -> None:
    """That the head of a request says that its body is JSON; names and parameters of media types have no case.

    Raises:
        HTTPException: 415, it says otherwise, or that the JSON is in another charset than UTF-8.
    """
    content_type = headers_of(scope).get(b"content-type", b"")
    if content_type == JSON:
        return
    media_type, *parameters = content_type.split(b";")
    shown = content_type[:100].decode("latin-1") or "none"
    if not JSON_MEDIA_TYPE.fullmatch(media_type.strip()):
        raise HTTPException(415, f"expected Content-Type application/json; received {shown}")
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        if name.strip().lower() == b"charset" and value.strip().strip(b'"').lower() not in UTF_8:
            raise HTTPException(415, f"expected JSON in UTF-8; received {shown}")


def parse_json(model: type[M], body: bytes, scope: Scope) -> M:
    """The body as a model.

    Raises:
        HTTPException: 400, it is no JSON; 415, it is not said to be (`check_json`).
        InvalidInput: it is not as `model` wants it, or has more parts than any model could want: to find out all that
            is wrong with a million takes seconds, and a hundred times their bytes.
    """
    check_json(scope)
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


def _comes_once(member: bytes, body: bytes) -> bool:
    """Whether what stands in this member can be skipped at first and judged on its own.

    Of a member that comes twice, also under a name with escapes, the first would never be judged.
    """
    return ESCAPED not in body and body.count(member) == 1


def parse_predict(body: bytes, scope: Scope, schema: Schema = DEFAULT) -> Question:
    """The body of `POST /predict`; raises as `parse_json` does, and InvalidInput for what `schema` has no place for."""
    if (question := quick_question(body, scope, schema)) is not None:
        return question
    request = parse_json(PredictRequest, body, scope)
    refuse_faults(_faults_of_items(request, schema, ""))
    return _question_of(request)


def quick_question(body: bytes, scope: Scope, schema: Schema = DEFAULT) -> Question | None:
    """The body of `POST /predict`, where it is plainly right; raises as `check_json` does."""
    check_json(scope)
    if NUL not in body:
        with suppress(*_BAD):
            return _question(body, schema)
    return None


def parse_batch(body: bytes, scope: Scope, schema: Schema = DEFAULT) -> list[Question]:
    """The requests in the body of `POST /predict/batch`; raises as `parse_predict` does, and BodyTooLarge for one of
    them.

    They are parsed one by one, so that a thread that does this for megabytes lets the event loop go on in between.
    """
    check_json(scope)
    with suppress(*_BAD):
        parts = [bytes(part) for part in _batch.decode(body).requests]
        if any(len(part) > MAX_PREDICT_BYTES for part in parts):
            raise BodyTooLarge(MAX_PREDICT_BYTES)
        if NUL not in body and _comes_once(b'"requests"', body):
            return [_question(part, schema) for part in parts]
    requests = parse_json(BatchRequest, body, scope).requests
    refuse_faults(
        fault for n, request in enumerate(requests) for fault in _faults_of_items(request, schema, f"requests[{n}].")
    )
    return [_question_of(request) for request in requests]


def _question(body: bytes, schema: Schema) -> Question:
    """Raises one of `_BAD` for a body that is not right."""
    if not _comes_once(b'"items"', body):
        return _question_of_ids(_predict.decode(body), schema)
    quick = _quick.decode(body)
    context = _allowed(quick.context, schema)
    raw = bytes(quick.items)
    asked = np.empty(1 + min(MAX_ITEMS, len(raw) // 2), dtype=np.uint64)
    n = hash_json(raw, MAX_ID_LENGTH, asked[1:])
    if n < 1:
        return _question_of_ids(_predict.decode(body), schema)
    user_id = _text(quick.user_id)
    asked[0] = hash_of_user(user_id)
    history = None if quick.history is None else hashes_of(_texts(quick.history[:MAX_HISTORY]))
    return Question(user_id, asked[: 1 + n], history, _text(quick.request_id), context=context)


def _allowed(context: Context | None, schema: Schema) -> Context | None:
    """A context in which nothing is wrong, None for an empty one. Raises one of `_BAD` where something is."""
    if context and not allowed(schema, "context", context):
        raise msgspec.ValidationError("context: expected values that the schema allows; received others")
    return context or None


def _question_of_ids(request: _PredictBody, schema: Schema) -> Question:
    history = None if request.history is None else _texts(request.history)
    return Question.of(
        _text(request.user_id),
        _texts(request.items),
        history,
        _text(request.request_id),
        context=_allowed(request.context, schema),
    )


def _question_of(request: PredictRequest) -> Question:
    history = None if request.history is None else _texts(request.history)
    log = request.log_impressions
    contexts = [{} if isinstance(item, str) else cleaned(item.context) for item in request.items]
    return Question.of(
        request.user_id,
        [_item_id(item) for item in request.items],
        history,
        request.request_id,
        log=MAX_ITEMS if log is True else log or None,
        context=cleaned(request.context) or None,
        item_contexts=contexts if any(contexts) else None,
    )


def _item_id(item: str | ItemInContext) -> str:
    return item if isinstance(item, str) else item.id


def _faults_of_items(event: PredictRequest | ImpressionEvent, schema: Schema, path: str) -> Iterator[FieldError]:
    """What is wrong with the contexts of items and of all of them; `path` ends with a point where it is not empty."""
    yield from faults(schema, "context", event.context, f"{path}context")
    for n, item in enumerate(event.items):
        if isinstance(item, ItemInContext):
            yield from faults(schema, "context", item.context, f"{path}items[{n}].context")


def refuse_faults(found: Iterable[FieldError]) -> None:
    """Raise InvalidInput where there are any."""
    if fields := list(found):
        raise invalid_fields(fields[:MAX_FIELD_ERRORS], len(fields))


def _text(id_: str | int | None) -> str | None:
    """An id as its text; None for none."""
    return str(id_) if type(id_) is int else id_  # type: ignore[return-value]


def _texts(ids: Sequence[str | int]) -> list[str]:
    """Ids as their texts."""
    return [str(id_) for id_ in ids]


def parse_interactions(body: bytes, scope: Scope, schema: Schema = DEFAULT) -> EventBatch:
    """The events in the body of `POST /interactions`; raises as `parse_predict` does.

    Those with a context or a weight are read by the model, which takes some 17 µs for each.
    """
    if (events := plain_interactions(body, scope)) is not None:
        return events
    with suppress(*_BAD):
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
    """The events with each id as a text, and as few escapes as can be. Raises one of `_BAD` where they are wrong."""
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


def parse_impressions(body: bytes, scope: Scope, schema: Schema = DEFAULT) -> list[Impression]:
    """The impressions in the body of `POST /impressions`, one by one as well; raises as `parse_predict` does."""
    check_json(scope)
    if NUL not in body and _comes_once(b'"impressions"', body):
        with suppress(*_BAD):
            return [_impression(_one_impression.decode(part)) for part in _impressions.decode(body).impressions]
    found = parse_json(ImpressionsRequest, body, scope).impressions
    refuse_faults(
        fault for n, event in enumerate(found) for fault in _faults_of_items(event, schema, f"impressions[{n}].")
    )
    return [_impression(event) for event in found]


def parse_clicks(body: bytes, scope: Scope) -> list[Click]:
    """The clicks in the body of `POST /clicks`, the same way."""
    check_json(scope)
    if NUL not in body and _comes_once(b'"clicks"', body):
        with suppress(*_BAD):
            return [_click(_one_click.decode(part)) for part in _clicks.decode(body).clicks]
    return [_click(event) for event in parse_json(ClicksRequest, body, scope).clicks]


def _impression(event: _ImpressionBody | ImpressionEvent) -> Impression:
    positions = None if event.positions is None else parse_positions(event.positions, len(event.items))
    if isinstance(event, _ImpressionBody):
        items = refuse_repetition(_texts(event.items))
        return Impression(str(event.request_id), str(event.user_id), items, positions, _moment(event))
    contexts = [None if isinstance(item, str) else written(item.context) for item in event.items]
    return Impression(
        request_id=event.request_id,
        user_id=event.user_id,
        item_ids=[_item_id(item) for item in event.items],
        positions=positions,
        shown_at=event.timestamp,
        context=written(event.context),
        item_contexts=contexts if any(contexts) else None,
    )


def _click(event: _ClickBody | ClickEvent) -> Click:
    request_id, item_id, event_id = str(event.request_id), str(event.item_id), _text(event.event_id)
    return Click(
        interaction_id(request_id, item_id) if event_id is None else event_id, request_id, item_id, _moment(event)
    )


def _moment(event: _ImpressionBody | ImpressionEvent | _ClickBody | ClickEvent) -> datetime:
    return event.timestamp if isinstance(event.timestamp, datetime) else parse_timestamp(event.timestamp)


def refuse_future(kind: str, moments: NDArray[np.int64], tolerance_seconds: float) -> None:
    """That no event is dated further ahead of this process's clock than the tolerance.

    It would be the newest of its user's history for as long as it is ahead, and belong to no window.

    Args:
        kind: the member of the body that holds the events, such as `interactions`.
        moments: their times in microseconds since 1970, in their order.
        tolerance_seconds: how far ahead they may be.

    Raises:
        InvalidInput: some are; it names their fields.
    """
    latest = datetime.now(UTC) + timedelta(seconds=tolerance_seconds)
    (ahead,) = np.nonzero(moments > (latest - EPOCH) // MICROSECOND)
    if not len(ahead):
        return
    expected = (
        f"a time no later than {latest.isoformat(timespec='seconds')}, {tolerance_seconds:g} s ahead of the service"
    )
    fields = [
        FieldError(f"{kind}[{n}].timestamp", expected, (EPOCH + int(moments[n]) * MICROSECOND).isoformat())
        for n in ahead[:MAX_FIELD_ERRORS].tolist()
    ]
    raise invalid_fields(fields, len(ahead))
