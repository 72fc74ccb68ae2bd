"""What heads say: that of a request, read once and kept in its ASGI scope; and what every response says for safety."""

import re
from collections.abc import Mapping
from itertools import count
from secrets import token_hex

from starlette.types import Scope

__all__ = [
    "REQUEST_ID_HEADER",
    "SECURITY_HEADERS",
    "STRICT_TRANSPORT",
    "content_coding",
    "declared_length",
    "headers_of",
    "page_headers",
    "request_id_of",
]

REQUEST_ID_HEADER = b"x-request-id"

SECURITY_HEADERS = (
    ("cache-control", "no-store"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
)
"""Of every response, whoever writes it: `service.supervisor.server_config` gives them to the server."""

STRICT_TRANSPORT = ("strict-transport-security", "max-age=31536000")
"""Of every response by HTTPS. Behind a proxy it is for the proxy to say, and by plain HTTP it would mean nothing."""
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,256}")

_HEADERS, _REQUEST_ID = "asmg.headers", "asmg.request_id"
# An id is no secret: it is enough that no two are alike, of whatever process.
_PREFIX, _numbers = token_hex(10), count()


def page_headers(policy: str) -> dict[str, str]:
    """What an HTML page says besides: `policy`, where its parts may come from, and that nobody may frame it."""
    return {"content-security-policy": f"{policy}; frame-ancestors 'none'", "x-frame-options": "DENY"}


def headers_of(scope: Scope) -> Mapping[bytes, bytes]:
    """Header values by lower-case name; of a name that came several times the first."""
    found: Mapping[bytes, bytes] | None = scope.get(_HEADERS)
    if found is None:
        found = scope[_HEADERS] = dict(reversed(scope["headers"]))
    return found


def request_id_of(scope: Scope) -> str:
    """The client's `X-Request-ID`, where it is visible ASCII of at most 256 characters, or one that is made up."""
    found: str | None = scope.get(_REQUEST_ID)
    if found is None:
        given = headers_of(scope).get(REQUEST_ID_HEADER)
        if given is not None and REQUEST_ID.fullmatch(given):
            found = str(given, "ascii")
        else:
            found = f"{_PREFIX}{next(_numbers):012x}"
        scope[_REQUEST_ID] = found
    return found


def content_coding(scope: Scope) -> str | None:
    """What the body is compressed with, as the head says it; None where it is sent as it is."""
    if b"content-encoding" not in headers_of(scope):
        return None
    codings = [value for name, value in scope["headers"] if name == b"content-encoding"]
    return None if set(codings) == {b"identity"} else b", ".join(codings).decode("latin-1")


def declared_length(scope: Scope) -> int:
    """Bytes of the body, where the head says how many; else 0."""
    value = headers_of(scope).get(b"content-length", b"")
    return int(value[:20]) if value.isdigit() else 0  # longer ones are too large all the same, and Python refuses them
