"""CORS: which pages of other origins may call the service from a browser."""

from collections.abc import Collection, Mapping, Sequence

from starlette.types import Scope

from service.http.headers import headers_of

__all__ = ["Cors"]

Headers = Sequence[tuple[bytes, bytes]]

REQUEST_HEADERS = ("authorization", "content-encoding", "content-type", "idempotency-key", "x-api-key", "x-request-id")
"""Headers that the service reads, so a page may send them."""
RESPONSE_HEADERS = ("location", "retry-after", "x-request-id")
"""Headers of a response that a page may read, beside those that it always may."""
PREFLIGHT_SECONDS = 7200
"""How long a browser may remember the answer to a preflight request; Chromium takes no more than two hours."""

ALLOW_ORIGIN = b"access-control-allow-origin"
VARY = (b"vary", b"origin")


class Cors:
    """Makes the headers that tell browsers what pages of other origins may do.

    Args:
        origins: whose pages may call (`Settings.cors_origins`); `*` for all.
    """

    def __init__(self, origins: Sequence[str] = ()) -> None:
        self.is_enabled = bool(origins)
        self._others: Headers = [VARY] if origins else []
        self._allowed: Mapping[bytes, Headers] = {}
        if "*" in origins:
            self._others = _allowing("*")
        else:
            self._allowed = {origin.encode(): [*_allowing(origin), VARY] for origin in origins}

    def response_headers(self, scope: Scope) -> Headers:
        """Headers of the response to a request; none where no origin is allowed at all."""
        return self._allowed.get(headers_of(scope).get(b"origin", b""), self._others)

    def preflight_headers(self, scope: Scope, methods: Collection[str]) -> Headers | None:
        """Headers of the response to a preflight request; None where it is none, or the origin may not call.

        Args:
            scope: of the request.
            methods: those of its path.
        """
        headers = headers_of(scope)
        if scope["method"] != "OPTIONS" or not {b"origin", b"access-control-request-method"} <= headers.keys():
            return None
        allowed = self.response_headers(scope)
        if not methods or ALLOW_ORIGIN not in dict(allowed):
            return None
        return [
            *allowed,
            (b"access-control-allow-methods", ", ".join(sorted(methods)).encode()),
            (b"access-control-allow-headers", ", ".join(REQUEST_HEADERS).encode()),
            (b"access-control-max-age", b"%d" % PREFLIGHT_SECONDS),
        ]


def _allowing(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (ALLOW_ORIGIN, origin.encode()),
        (b"access-control-expose-headers", ", ".join(RESPONSE_HEADERS).encode()),
    ]
