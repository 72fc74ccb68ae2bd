"""The path prefix that a reverse proxy puts before the paths of the service."""

from collections.abc import Collection, Sequence
from ipaddress import ip_network

from starlette.types import Scope

from service.addresses import parse_address
from service.http.headers import headers_of
from service.settings import checked_prefix

__all__ = ["PathPrefix"]

FORWARDED_PREFIX = b"x-forwarded-prefix"

_ROUTE_PATH = "asmg.route_path"


class PathPrefix:
    """Finds the prefix of a request's path.

    Args:
        root_path: prefix of all paths (`Settings.root_path`); empty for none.
        trusted_proxies: addresses and networks of the proxies that may send another prefix as `X-Forwarded-Prefix`.
        first_segments: first segments of the paths that the service has, such as `predict`.
    """

    def __init__(
        self, *, root_path: str = "", trusted_proxies: Sequence[str] = (), first_segments: Collection[str] = ()
    ) -> None:
        self._root_path = root_path
        self._trusted = [ip_network(proxy) for proxy in trusted_proxies]
        self._first_segments = frozenset(first_segments)

    def route_path(self, scope: Scope) -> str:
        """The path of a request without the prefix, and without the path of a mount in another application.

        The scope gets both in the form of ASGI: `root_path` is the prefix, and `path` begins with it, whether the proxy
        has removed it or not.
        """
        known: str | None = scope.get(_ROUTE_PATH)
        if known is not None:
            return known
        path: str = scope["path"]
        mount: str = scope.get("root_path", "")
        if mount and path.startswith(f"{mount}/"):
            path = path[len(mount) :]
        prefix = self._prefix(scope)
        if prefix:
            path = self._without(prefix, path)
            scope["root_path"], scope["path"] = mount + prefix, mount + prefix + path
        scope[_ROUTE_PATH] = path
        return path

    def _prefix(self, scope: Scope) -> str:
        if self._trusted and FORWARDED_PREFIX in headers_of(scope) and self._is_trusted(scope):
            given = [value for name, value in scope["headers"] if name == FORWARDED_PREFIX]
            try:
                return checked_prefix(str(given[0], "latin-1")) if len(given) == 1 else self._root_path
            except ValueError:
                return self._root_path  # the proxy passes on what a client has made up
        return self._root_path

    def _is_trusted(self, scope: Scope) -> bool:
        client = scope.get("client")
        address = parse_address(client[0]) if client else None  # a Unix socket has no address; none is served
        return address is not None and any(address in network for network in self._trusted)

    def _without(self, prefix: str, path: str) -> str:
        if path != prefix and not path.startswith(f"{prefix}/"):
            return path
        rest = path[len(prefix) :]
        # Behind a prefix `/admin` a proxy has removed it from `/admin/models`, and has not from `/admin/predict`.
        has_none = _first_segment(path) in self._first_segments and _first_segment(rest) not in self._first_segments
        return path if has_none else rest


def _first_segment(path: str) -> str:
    return path[1:].partition("/")[0]
