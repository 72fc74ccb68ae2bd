"""What heads say: that of a request, read once and kept in its ASGI scope; and what every response says for safety."""

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import count
from secrets import token_hex

from starlette.types import Scope

__all__ = [
    "REQUEST_ID_HEADER",
    "SECURITY_HEADERS",
    "STRICT_TRANSPORT",
    "content_coding",
    "declared_length",
    "head_fault",
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
"""Of every response, whoever writes it: `service.processes.api.server_config` gives them to the server."""

STRICT_TRANSPORT = ("strict-transport-security", "max-age=31536000")
"""Of every response by HTTPS. Behind a proxy it is for the proxy to say, and by plain HTTP it would mean nothing."""
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,256}")

SINGLE = (b"content-length", b"host", b"transfer-encoding")
"""Headers that say where a request ends and whom it is for; of two a proxy may believe the other one."""

HOST = re.compile(rb"(?:[\w.~%!$&'()*+;=-]+|\[[\dA-Fa-f:.]+\])(?::\d{0,5})?")
"""A host and perhaps a port (RFC 9110, 7.2). A comma, which a name might have, would be a list of two."""

SLASH = ord("/")
ABSOLUTE = re.compile(rb"https?://([^/?]+)/.*", re.IGNORECASE)
"""A target as it is sent to a proxy: a URL with an authority and a path."""

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


def head_fault(scope: Scope, target: bytes, version: str) -> str | None:
    """What was expected of a request's head that could be understood in two ways; None where it is clear.

    The parser has seen to the rest of RFC 9112: the ends of lines, their names and values, a length of digits, and not
    both a length and chunks.

    Args:
        target: what the request line asks for.
        version: of HTTP, such as `1.1`.
    """
    if version != "1.1" and version != "1.0":
        return f"expected HTTP/1.1 or HTTP/1.0; received HTTP/{version}"
    headers = headers_of(scope)
    if len(headers) < len(scope["headers"]):
        names = [name for name, _ in scope["headers"]]
        for name in SINGLE:
            if (times := names.count(name)) > 1:
                return f"expected one {name.decode().title()} header; received {times}"
    coding = headers.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or version != "1.1"):
        return "expected no Transfer-Encoding but chunked, of HTTP/1.1"
    host = headers.get(b"host")
    if host is None:
        if version == "1.1":
            return "expected a Host header; received none"
    elif not _is_host(host):
        return "expected a host, and perhaps a port, in the Host header; received something else"
    if b"#" in target:
        return "expected a path, and perhaps a query, in the request line; received a fragment, too"
    if target[0] != SLASH and target != b"*":
        authority = ABSOLUTE.fullmatch(target)
        if authority is None or (host is not None and authority[1].lower() != host.lower()):
            return "expected a path, or a URL with the host of the Host header and a path, in the request line"
    return None


@lru_cache(1024)
def _is_host(value: bytes) -> bool:
    return HOST.fullmatch(value) is not None  # 0.2 µs, and nearly all requests have one of a few hosts


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
