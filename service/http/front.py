"""What stands before the service: a proxy that gives it a path prefix, and pages of other origins in browsers.

Every response needs to know both, whoever writes it: a route, `service.http.hot_routes`, or the protocol itself. So
what is said about them is made here, once, from the settings.
"""

from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_network

from starlette.types import Scope

from service.addresses import parse_address
from service.http.headers import headers_of
from service.settings import checked_prefix

__all__ = ["Front"]

Headers = Sequence[tuple[bytes, bytes]]

FORWARDED_PREFIX = b"x-forwarded-prefix"

ASKED_HEADERS = ("authorization", "content-encoding", "content-type", "idempotency-key", "x-api-key", "x-request-id")
"""What the service reads of a request, and a page may therefore send."""
TOLD_HEADERS = ("location", "retry-after", "x-request-id")
"""What a page may read of a response, beside what it always may."""
PREFLIGHT_SECONDS = 7200
"""How long a browser may remember what it was told of a call before making it; the most that Chromium takes."""

ALLOW_ORIGIN = b"access-control-allow-origin"
VARY = (b"vary", b"origin")

_ROUTE_PATH = "asmg.route_path"


class Front:
    """What the settings say of proxies and origins.

    Args:
        root_path: prefix of all paths; empty for none.
        trusted_proxies: addresses and networks of the proxies that may say another one.
        origins: whose pages may call; `*` for all.
        parts: first parts of the paths that the service has, such as `predict`.
    """

    def __init__(
        self,
        *,
        root_path: str = "",
        trusted_proxies: Sequence[str] = (),
        origins: Sequence[str] = (),
        parts: Collection[str] = (),
    ) -> None:
        self._root_path = root_path
        self._trusted = [ip_network(proxy) for proxy in trusted_proxies]
        self._parts = frozenset(parts)
        self._others: Headers = [VARY] if origins else []
        self._allowed: Mapping[bytes, Headers] = {}
        if "*" in origins:
            self._others = _allowing("*")
        else:
            self._allowed = {origin.encode(): [*_allowing(origin), VARY] for origin in origins}

    def route_path(self, scope: Scope) -> str:
        """The path of a request without the prefix. The scope gets both as ASGI has them: `root_path`, and `path` which
        begins with it, whether the proxy took the prefix off or not.
        """
        known: str | None = scope.get(_ROUTE_PATH)
        if known is not None:
            return known
        path: str = scope["path"]
        prefix = self._prefix(scope)
        if prefix:
            path = self._without(prefix, path)
            scope["root_path"], scope["path"] = prefix, prefix + path
        scope[_ROUTE_PATH] = path
        return path

    def origin_headers(self, scope: Scope) -> Headers:
        """What the response says of who may read it; nothing where no origin is allowed at all."""
        return self._allowed.get(headers_of(scope).get(b"origin", b""), self._others)

    def preflight_headers(self, scope: Scope, methods: Collection[str]) -> Headers | None:
        """The headers that tell a browser that a page may make a call; None where it does not ask that, or may not.

        Args:
            scope: of the request.
            methods: that its path has.
        """
        headers = headers_of(scope)
        if scope["method"] != "OPTIONS" or not {b"origin", b"access-control-request-method"} <= headers.keys():
            return None
        allowed = self.origin_headers(scope)
        if not methods or ALLOW_ORIGIN not in dict(allowed):
            return None
        return [
            *allowed,
            (b"access-control-allow-methods", ", ".join(sorted(methods)).encode()),
            (b"access-control-allow-headers", ", ".join(ASKED_HEADERS).encode()),
            (b"access-control-max-age", b"%d" % PREFLIGHT_SECONDS),
        ]

    def _prefix(self, scope: Scope) -> str:
        if self._trusted and FORWARDED_PREFIX in headers_of(scope) and self._is_trusted(scope):
            given = [value for name, value in scope["headers"] if name == FORWARDED_PREFIX]
            try:
                return checked_prefix(str(given[0], "latin-1")) if len(given) == 1 else self._root_path
            except ValueError:
                return self._root_path  # the proxy passes on what somebody else made up
        return self._root_path

    def _is_trusted(self, scope: Scope) -> bool:
        client = scope.get("client")
        address = parse_address(client[0]) if client else None  # none at all is a Unix socket, which is not served
        return address is not None and any(address in network for network in self._trusted)

    def _without(self, prefix: str, path: str) -> str:
        if path != prefix and not path.startswith(f"{prefix}/"):
            return path
        rest = path[len(prefix) :]
        # Behind a prefix `/admin` the path `/admin/models` had it taken off, and `/admin/predict` has not.
        return path if _first(path) in self._parts and _first(rest) not in self._parts else rest


def _allowing(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (ALLOW_ORIGIN, origin.encode()),
        (b"access-control-expose-headers", ", ".join(TOLD_HEADERS).encode()),
    ]


def _first(path: str) -> str:
    return path[1:].partition("/")[0]
