"""Who calls: the API key of a request, checked for its scope and its rate limit."""

from dataclasses import dataclass

from fastapi import Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.types import Scope

from service.addresses import is_loopback
from service.errors import Forbidden, Unauthorized
from service.http.app_state import AppState
from service.http.headers import headers_of
from service.storage.postgres.repositories import ApiKey

__all__ = ["Caller", "Requires"]

FORWARDED = (
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-prefix",
    b"x-forwarded-proto",
    b"x-real-ip",
)
"""Headers with which a proxy says that it calls for somebody else."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the audit names them."""

    name: str


class Requires(SecurityBase):
    """A dependency that lets a caller through whose key has one of `scopes`.

    The key comes as `Authorization: Bearer <key>` or as `X-API-Key: <key>`. Before the first key is created, callers on
    this host need none, and all others are refused, even where another server than `asmg serve` runs the app and binds
    more than loopback.
    """

    def __init__(self, *scopes: str) -> None:
        self.scopes = scopes
        self._needed = frozenset(scopes)
        self.model = HTTPBearer(description="An API key of `asmg keys create`; `X-API-Key: <key>` does as well.")
        self.scheme_name = "API key"

    async def __call__(self, request: Request) -> Caller:
        """The caller; raises as `key` does."""
        key = await self.key(request.state.app, request.scope)
        return Caller("anonymous" if key is None else f"{key.name} ({key.key_id})")

    async def key(self, state: AppState, scope: Scope) -> ApiKey | None:
        """The key of the request, which is counted for the key's rate limit; None where no key is needed.

        Raises:
            Forbidden: the key has none of the scopes.
            RateLimited: the key makes too many requests.
            Unauthorized: there is no key, or it is not valid.
        """
        presented = _presented_key(scope)
        if presented is not None:
            key = await state.keys.authenticate(str(presented, "latin-1"))
            state.limiter.admit(key)
            if self._needed.isdisjoint(key.scopes):
                raise Forbidden(self.scopes[0])
            return key
        if not await state.keys.open_access():
            raise Unauthorized("expected an API key in Authorization: Bearer or X-API-Key; received none")
        if not _is_from_this_host(scope):
            raise Unauthorized("no API key exists yet, so only this host may call; `asmg keys create` makes one")
        return None


def _presented_key(scope: Scope) -> bytes | None:
    headers = headers_of(scope)
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key")


def _is_from_this_host(scope: Scope) -> bool:
    headers = headers_of(scope)
    if any(name in headers for name in FORWARDED):
        return False
    # Any web page can make a browser on this host send requests. The browser then tells the page's origin, and the
    # name by which the page reached this host.
    host = headers.get(b"host")
    origin = headers.get(b"origin")
    if (host is not None and not is_loopback(_without_port(host))) or (
        origin is not None and origin.partition(b"://")[2] != host
    ):
        return False
    client = scope.get("client")
    return client is None or is_loopback(client[0])  # a Unix socket has no client address


def _without_port(host: bytes) -> str:
    name = str(host, "latin-1")
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
