"""JSON bodies: read, parsed in one pass, and checked field by field.

Each kind of body is described by a pydantic model (`service.schemas`). For the two that come by the thousand there is a
msgspec type too, several times as fast. It accepts nothing that the model would not; whatever it does not accept goes
through the model, which decides and names the fields. So there is one set of errors, and no body is judged twice
unless it is wrong.
"""

import re
from typing import Annotated, Generic, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.limits import MAX_BATCH, MAX_ID_LENGTH, MAX_ITEMS, MAX_REQUEST_HISTORY
from service.problems import invalid_input
from service.schemas import BatchRequest, PredictRequest

__all__ = ["BATCH", "PREDICT", "Parser", "parse_json", "read_body"]

M = TypeVar("M", bound=BaseModel)
S = TypeVar("S", bound=msgspec.Struct)

JSON = b"application/json"
JSON_MEDIA_TYPE = re.compile(r"application/([\w.+-]+\+)?json", re.ASCII | re.IGNORECASE)
NUL = b"\\u0000"
"""The only way in which JSON can say NUL."""

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]


class _PredictBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    user_id: Id
    items: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    history: Annotated[list[Id], msgspec.Meta(max_length=MAX_REQUEST_HISTORY)] | None = None
    request_id: Id | None = None


class _BatchBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    requests: Annotated[list[_PredictBody], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]


async def read_body(receive: Receive) -> bytes:
    """All of a request's body.

    Raises:
        ClientDisconnect: the client went away.
        BodyTooLarge: `service.middleware.BodyLimit` has seen enough.
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        return bytes(message.get("body", b""))
    parts = []
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()
    raise ClientDisconnect


def parse_json(model: type[M], body: bytes, scope: Scope) -> M:
    """The body as a model.

    Raises:
        HTTPException: 400, it is no JSON; 415, it is not said to be.
        InvalidInput: it is not as `model` wants it.
    """
    content_type = _content_type(scope).decode("latin-1")
    if not JSON_MEDIA_TYPE.fullmatch(content_type.partition(";")[0].strip()):
        raise HTTPException(415, f"expected Content-Type application/json; received {content_type[:100] or 'none'}")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if errors[0]["type"] == "json_invalid":
            raise HTTPException(400, f"expected a JSON document; received {errors[0]['ctx']['error']}") from None
        raise invalid_input(errors) from None


def _content_type(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"content-type":
            return bytes(value)
    return b""


class Parser(Generic[S, M]):
    """Parses bodies of one kind.

    Args:
        quick: accepts what is right.
        model: judges the rest; its fields have the same names.
    """

    def __init__(self, quick: type[S], model: type[M]) -> None:
        self._decoder = msgspec.json.Decoder(quick)
        self._model = model

    def parse(self, body: bytes, scope: Scope) -> S | M:
        """The body, as one or the other; raises as `parse_json` does."""
        if _content_type(scope) == JSON and NUL not in body:
            try:
                return self._decoder.decode(body)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                pass
        return parse_json(self._model, body, scope)


PREDICT = Parser(_PredictBody, PredictRequest)
BATCH = Parser(_BatchBody, BatchRequest)
