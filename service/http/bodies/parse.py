"""Parses JSON bodies with pydantic models, and holds what the modules for the kinds of bodies share."""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from asmg.features import MAX_FIELDS, Schema
from asmg.kernels.common import bounds_checked
from service.errors import FieldError, InvalidInput
from service.http.bodies.read import is_small
from service.http.headers import headers_of
from service.http.problems import MAX_FIELD_ERRORS, invalid_fields, invalid_input
from service.http.schemas import BatchedRequest, ImpressionEvent, ItemInContext
from service.limits import MAX_ID_LENGTH, MAX_INTEGER_ID, MAX_JSON_PARTS, MAX_POSITION, MIN_INTEGER_ID
from service.use_cases.fields import faults

__all__ = [
    "BAD",
    "ESCAPED",
    "Context",
    "Id",
    "Position",
    "check_json",
    "comes_once",
    "count_parts",
    "faults_of_items",
    "item_id_of",
    "parse_json",
    "refuse_faults",
    "refuse_future",
    "text_of",
    "texts_of",
]

M = TypeVar("M", bound=BaseModel)

JSON = b"application/json"
JSON_MEDIA_TYPE = re.compile(rb"application/([\w.+-]+\+)?json", re.IGNORECASE)
UTF_8 = (b"utf-8", b"utf8")
EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)

NUL = b"\\u0000"
"""The only way to write NUL in JSON. No id may contain it, which msgspec cannot check."""

ESCAPED = b"\\u00"
"""Begins every escape by which JSON can write an ASCII letter of a member's name."""

TextId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
IntegerId = Annotated[int, msgspec.Meta(ge=MIN_INTEGER_ID, le=MAX_INTEGER_ID)]
Id = TextId | IntegerId
Position = Annotated[int, msgspec.Meta(ge=0, le=MAX_POSITION)]
Part = str | bool | int | float
Context = Annotated[dict[str, Part | list[Part] | None], msgspec.Meta(max_length=MAX_FIELDS)]
"""A superset of the contexts that a schema can allow; the schema checks names and values."""

BAD = (msgspec.MsgspecError, PydanticCustomError, UnicodeDecodeError, RecursionError)
"""Raised where a msgspec type does not accept a body, which then goes through the pydantic model."""

_QUOTE, _BACKSLASH, _COLON, _LIST, _OBJECT = (ord(c) for c in '"\\:[{')


def count_parts(body: bytes) -> int:
    """Count the objects, arrays and members of objects of a JSON text; the result for anything else means nothing.

    pydantic names all that is wrong with a body before it answers. A million wrong parts would take it seconds and a
    hundred times their bytes, so they are counted first: by machine code, which reads 8 MB in 10 ms and checks every
    index.
    """
    return _count_parts(np.frombuffer(body, np.uint8))


@bounds_checked
def _count_parts(text: NDArray[np.uint8]) -> int:
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
    """Check that the header `Content-Type` says JSON in UTF-8, in upper or lower case.

    Raises:
        HTTPException: 415, it says something else.
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
    """Parse a body with a pydantic model.

    Raises:
        HTTPException: 400, the body is not JSON; 415, its media type is another one (`check_json`).
        InvalidInput: it is not as `model` describes it, or has more than `MAX_JSON_PARTS` parts.
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


def comes_once(member: bytes, body: bytes) -> bool:
    """Whether a member appears in the body just once, so that its value may be decoded later, as `msgspec.Raw`.

    If it appeared twice, perhaps under a name with escapes, the first value would never be decoded, and a body that is
    not JSON could be accepted.

    Args:
        member: its name in quotes.
        body: inflated.
    """
    return ESCAPED not in body and body.count(member) == 1


def faults_of_items(event: BatchedRequest | ImpressionEvent, schema: Schema, path: str) -> Iterator[FieldError]:
    """What is wrong with the context of an event and those of its items.

    Args:
        event: parsed.
        schema: of the fields.
        path: of the event in the body, with a dot at its end; "" for the body itself.
    """
    yield from faults(schema, "context", event.context, f"{path}context")
    for n, item in enumerate(event.items):
        if isinstance(item, ItemInContext):
            yield from faults(schema, "context", item.context, f"{path}items[{n}].context")


def refuse_faults(found: Iterable[FieldError]) -> None:
    """Raise InvalidInput if there are any faults."""
    if fields := list(found):
        raise invalid_fields(fields[:MAX_FIELD_ERRORS], len(fields))


def text_of(id_: str | int | None) -> str | None:
    """The text of an id; None for None."""
    return str(id_) if type(id_) is int else id_  # type: ignore[return-value]


def texts_of(ids: Sequence[str | int]) -> list[str]:
    """The texts of ids."""
    return [str(id_) for id_ in ids]


def item_id_of(item: str | ItemInContext) -> str:
    """The id of an item, with or without a context of its own."""
    return item if isinstance(item, str) else item.id


def refuse_future(kind: str, moments: NDArray[np.int64], tolerance_seconds: float) -> None:
    """Check that no event lies further ahead of this process's clock than the tolerance.

    It would be the newest of its user's history until its time has come.

    Args:
        kind: the member of the body that holds the events, such as `interactions`.
        moments: times of the events in microseconds since 1970, in the order of the body.
        tolerance_seconds: how far ahead they may be.

    Raises:
        InvalidInput: some lie further ahead; it names their fields.
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
