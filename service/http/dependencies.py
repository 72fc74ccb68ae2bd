"""What routes are given: the parts of the running service, the caller, and the parsed body."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from pydantic import BaseModel
from redis.asyncio import Redis
from starlette.types import Scope

from asmg.features import Schema
from service.addresses import is_loopback
from service.errors import Forbidden, Unauthorized
from service.http.bodies.parse import parse_json
from service.http.bodies.read import read_body
from service.http.front import Front
from service.http.headers import headers_of
from service.http.metrics import Metrics
from service.limits import MAX_BODY_BYTES
from service.serving.swap import ServingModel
from service.settings import Settings
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import ApiKey
from service.storage.redis.notices import Notices
from service.tasks import BoundedCalls
from service.use_cases.auth import KeyCache, RateLimiter
from service.use_cases.histories import Histories
from service.use_cases.impressions import ImpressionLog
from service.use_cases.ingest import Ingestion
from service.use_cases.watch import PeriodWatch

__all__ = ["Caller", "JsonBody", "Parts", "Requires", "Service", "body_schema"]

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Parts:
    """The running service; the lifespan of the app makes it and every request sees the same."""

    settings: Settings
    schema: Schema
    """Of the fields that clients may send."""
    front: Front
    database: Database
    redis: Redis
    artifacts: ArtifactStore
    histories: Histories
    notices: Notices
    periods: PeriodWatch
    serving: ServingModel
    keys: KeyCache
    limiter: RateLimiter
    ingestion: Ingestion
    writes: BoundedCalls
    """Through which everything is stored that a client waits for."""
    lookups: BoundedCalls
    """Through which goes what takes a pass over all logs: deletions, and looks at what is stored about an id."""
    impressions: ImpressionLog
    """Of the predictions that are to be logged."""
    metrics: Metrics
    stopping: Callable[[], bool]
    """Whether the process has been told to end: streams end then, for the server waits for them."""


async def _parts(request: Request) -> Parts:
    parts: Parts = request.state.parts
    return parts


Service = Annotated[Parts, Depends(_parts)]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the audit names them."""

    name: str


class Requires(SecurityBase):
    """A dependency that lets a caller through whose key has one of `scopes`.

    The key comes as `Authorization: Bearer <key>` or as `X-API-Key: <key>`. Before any key was created everybody on
    this host may call everything, and nobody else anything: also where something other than `asmg serve` runs the app
    and binds more than loopback.
    """

    def __init__(self, *scopes: str) -> None:
        self.scopes = scopes
        self._needed = frozenset(scopes)
        self.model = HTTPBearer(description="An API key of `asmg keys create`; `X-API-Key: <key>` does as well.")
        self.scheme_name = "API key"

    async def __call__(self, request: Request) -> Caller:
        """The caller; raises as `key` does."""
        key = await self.key(request.state.parts, request.scope)
        return Caller("anonymous" if key is None else f"{key.name} ({key.key_id})")

    def known(self, parts: Parts, scope: Scope) -> ApiKey | None:
        """The key, where it has a scope and the database said a moment ago that it is valid; else `key` finds out.

        Raises:
            RateLimited: the key makes too many requests.
        """
        presented = _presented_key(scope)
        key = None if presented is None else parts.keys.known(presented)
        if key is None or self._needed.isdisjoint(key.scopes):
            return None
        _admit(parts, scope, key)
        return key

    async def key(self, parts: Parts, scope: Scope) -> ApiKey | None:
        """The key that the request of this ASGI scope came with; None where it may come without.

        Raises:
            Forbidden: the key has none of the scopes.
            RateLimited: the key makes too many requests.
            Unauthorized: there is no key, or it is not valid.
        """
        presented = _presented_key(scope)
        if presented is not None:
            key = await parts.keys.authenticate(str(presented, "latin-1"))
            _admit(parts, scope, key)
            if self._needed.isdisjoint(key.scopes):
                raise Forbidden(self.scopes[0])
            return key
        if not await parts.keys.open_access():
            raise Unauthorized("expected an API key in Authorization: Bearer or X-API-Key; received none")
        if not _is_of_this_host(scope):
            raise Unauthorized("no API key exists yet, so only this host may call; `asmg keys create` makes one")
        return None


ADMITTED = "asmg.admitted"


def _admit(parts: Parts, scope: Scope, key: ApiKey) -> None:
    """Count the request, once; one that could not be answered at once comes here again."""
    if ADMITTED not in scope:
        parts.limiter.admit(key)
        scope[ADMITTED] = True


FORWARDED = (
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-prefix",
    b"x-forwarded-proto",
    b"x-real-ip",
)
"""By which a proxy says that it asks for somebody else."""


def _presented_key(scope: Scope) -> bytes | None:
    headers = headers_of(scope)
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key")


def _is_of_this_host(scope: Scope) -> bool:
    headers = headers_of(scope)
    if any(name in headers for name in FORWARDED):
        return False
    # Any page may make a browser of this host ask: it then says where the page is from, and by what name it asked.
    host = headers.get(b"host")
    origin = headers.get(b"origin")
    if (host is not None and not is_loopback(_without_port(host))) or (
        origin is not None and origin.partition(b"://")[2] != host
    ):
        return False
    client = scope.get("client")
    return client is None or is_loopback(client[0])  # no client at all is a Unix socket


def _without_port(host: bytes) -> str:
    name = str(host, "latin-1")
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]


class JsonBody(Generic[M]):
    """A dependency that parses the body as a `model`, in one pass over its bytes.

    FastAPI's own body parameters are parsed before any dependency runs; this one runs after `Requires`, so a caller
    without a key cannot make the service parse 8 MiB, and gets 401 whatever the body holds.

    Args:
        model: of the document.
        optional: whether no body at all means a model of defaults.
        gzip: whether the body may be compressed.
    """

    def __init__(self, model: type[M], *, optional: bool = False, gzip: bool = False) -> None:
        self._model = model
        self._optional = optional
        self._gzip = gzip

    async def __call__(self, request: Request) -> M:
        """The parsed body; raises as `read_body` and `parse_json` do."""
        body = await read_body(request.scope, request.receive, MAX_BODY_BYTES, gzip=self._gzip)
        if not body and self._optional:
            return self._model()
        return parse_json(self._model, body, request.scope)


def body_schema(model: type[BaseModel], *, optional: bool = False) -> dict[str, Any]:
    """The OpenAPI part that describes the body which `JsonBody(model)` parses."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    content = {"application/json": {"schema": _inlined(schema, definitions)}}
    return {"requestBody": {"required": not optional, "content": content}}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """`node` with each `{"$ref": …}` replaced by what it names, for a reference would not resolve inside OpenAPI."""
    if isinstance(node, list):
        return [_inlined(part, definitions) for part in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(part, definitions) for name, part in node.items()}
