"""A call of the API, and the ways in which its request is made."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from asmg_client.questions import Id

__all__ = ["Call", "changing", "compressed", "encoded", "in_path", "reading", "storing"]

T_co = TypeVar("T_co", covariant=True)

ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))

GZIP_BYTES = 1024
"""The least bytes of a body that is sent compressed, where the call takes that; a smaller one fits into a packet."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """One request, and what its answer is read as."""

    method: str
    path: str
    """Percent-encoded, from the root of the service."""
    answer: type[T_co]
    """Class of the answer; `dict` for the JSON object as it is, `NoneType` for none."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Of the query."""
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    """Of the body, which is JSON."""
    repeatable: bool = False
    """Whether the call can be sent again where it is not known what became of it."""


def encoded(document: Mapping[str, Any]) -> bytes:
    """The document as JSON.

    Raises:
        TypeError, ValueError: a value has no JSON, such as NaN.
    """
    return ENCODER.encode(document).encode()


def reading(path: str, answer: type[T_co], **params: str | int | None) -> Call[T_co]:
    """A GET with the parameters that are not None."""
    given = {name: str(value) for name, value in params.items() if value is not None}
    return Call("GET", path, answer, given, repeatable=True)


def storing(
    method: str, path: str, answer: type[T_co], document: Mapping[str, Any], *, compress: bool = True
) -> Call[T_co]:
    """A call with a body that changes nothing when it is sent again."""
    call = Call(method, path, answer, content=encoded(document), repeatable=True)
    return compressed(call) if compress else call


def changing(path: str, answer: type[T_co], document: Mapping[str, Any] | None) -> Call[T_co]:
    """A call that is not repeatable: each leaves a row in the audit, and what came in between would be undone. It has
    no body where the document is None.
    """
    return Call("POST", path, answer, content=None if document is None else encoded(document))


def compressed(call: Call[T_co]) -> Call[T_co]:
    """The call with its body compressed, where it is large enough."""
    if call.content is None or len(call.content) < GZIP_BYTES:
        return call
    content = gzip.compress(call.content, compresslevel=1, mtime=0)
    return replace(call, content=content, headers={**call.headers, "Content-Encoding": "gzip"})


def in_path(id_: Id) -> str:
    """The id percent-encoded; `.` and `..` too, which would be taken for steps of the path."""
    text = quote(str(id_), safe="")
    return text.replace(".", "%2E") if set(text) == {"."} else text
