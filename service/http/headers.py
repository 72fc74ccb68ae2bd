"""Headers: what those of a request mean, and the security headers of responses.

What is found in a request is kept in its ASGI scope, because several layers ask for it.
"""

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
"""Headers of every response; `service.processes.api.server_config` gives them to the server."""

STRICT_TRANSPORT = ("strict-transport-security", "max-age=31536000")
"""Header of every response by HTTPS. Behind a proxy the proxy sends it, and by plain HTTP browsers ignore it."""

REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,256}")

_HEADERS, _REQUEST_ID = "asmg.headers", "asmg.request_id"
# Request ids are no secrets; they only have to differ, also between processes.
_PREFIX, _numbers = token_hex(10), count()


def page_headers(policy: str) -> dict[str, str]:
    """Headers of an HTML page: a content security policy, which also forbids other pages to frame it."""
    return {"content-security-policy": f"{policy}; frame-ancestors 'none'", "x-frame-options": "DENY"}


def headers_of(scope: Scope) -> Mapping[bytes, bytes]:
    """Header values by lower-case name; the first one where a name comes several times."""
    found: Mapping[bytes, bytes] | None = scope.get(_HEADERS)
    if found is None:
        found = scope[_HEADERS] = dict(reversed(scope["headers"]))
    return found


def request_id_of(scope: Scope) -> str:
    """The client's `X-Request-ID`, where it is visible ASCII of at most 256 characters, else a generated one."""
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
    """The `Content-Encoding` of the body; None where it is not compressed."""
    if b"content-encoding" not in headers_of(scope):
        return None
    codings = [value for name, value in scope["headers"] if name == b"content-encoding"]
    return None if set(codings) == {b"identity"} else b", ".join(codings).decode("latin-1")


def declared_length(scope: Scope) -> int:
    """The `Content-Length` in bytes; 0 where there is none."""
    value = headers_of(scope).get(b"content-length", b"")
    return int(value[:20]) if value.isdigit() else 0  # Python refuses to parse thousands of digits
