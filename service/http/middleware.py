"""ASGI middleware for every request, whatever its route; `service.app` puts it around the routes.

Starlette's `BaseHTTPMiddleware` would start a task group for each request and delay streams. These classes only wrap
`receive` and `send`.
"""

import time
from collections.abc import Collection, Sequence
from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.context import current_request_id
from service.errors import BodyTooLarge
from service.http.bodies.read import Bodies
from service.http.cors import Cors
from service.http.headers import REQUEST_ID_HEADER, declared_length, request_id_of
from service.http.metrics import Metrics
from service.http.path_prefix import PathPrefix
from service.http.problems import render_problem, route_of

__all__ = ["BodyLimit", "CrossOrigin", "Observe"]

PREFLIGHT_ROUTE = "preflight"
"""The route, for metrics, of the preflight requests of browsers."""
CLIENT_CLOSED_REQUEST = 499
"""The status, for metrics, of a request whose client has disconnected; nginx uses this number. It is never sent."""


class Observe:
    """Give each response its `X-Request-ID`, count and time the request, and answer errors that nothing inside has
    handled with a problem document.

    Around FastAPI's routes it has to be inside Starlette's own error middleware, which would answer such errors with a
    500 that has no headers and is not counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Never reset: each request has a task of its own, and what the server logs later in it names the request too.
        current_request_id.set(request_id_of(scope))
        request_id = request_id_of(scope).encode("ascii")
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID_HEADER, request_id)]
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_CLOSED_REQUEST
        except Exception as error:
            if status:  # The head of the response is out: cutting the connection is all that tells the client.
                raise
            response = render_problem(error, instance=scope["path"], route=route_of(scope))
            await response(scope, receive, send_with_id)
        finally:
            self._metrics.note_request(route_of(scope), status or CLIENT_CLOSED_REQUEST, time.perf_counter() - started)


class BodyLimit:
    """Refuse a body of more than `max_bytes`: at once where the head tells its length, else while it is read."""

    def __init__(self, app: ASGIApp, max_bytes: int, bodies: Bodies) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if declared_length(scope) > self._max_bytes:
            await render_problem(BodyTooLarge(self._max_bytes), instance=scope["path"])(scope, receive, send)
            return
        with self._bodies.counted(scope, receive, self._max_bytes) as receive_and_count:
            await self._app(scope, receive_and_count, send)


class CrossOrigin:
    """Tell browsers what pages of other origins may do, and answer the preflight requests that they send before a call.

    It is outermost, so that refusals have these headers too. Only used where the settings allow an origin.

    Args:
        app: that gets all other requests.
        cors: makes the headers.
        prefix: finds the path of a request.
        routes: all of the service.
        metrics: counts preflight requests, which need no key.
    """

    def __init__(self, app: ASGIApp, cors: Cors, prefix: PathPrefix, routes: Sequence[Route], metrics: Metrics) -> None:
        self._app = app
        self._cors = cors
        self._prefix = prefix
        self._routes = routes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS":
            methods = self._methods(self._prefix.route_path(scope))
            preflight = self._cors.preflight_headers(scope, methods)
            if preflight is not None:
                started = time.perf_counter()
                headers = [*preflight, (REQUEST_ID_HEADER, request_id_of(scope).encode("ascii"))]
                await send({"type": "http.response.start", "status": HTTPStatus.NO_CONTENT, "headers": headers})
                await send({"type": "http.response.body"})
                self._metrics.note_request(PREFLIGHT_ROUTE, HTTPStatus.NO_CONTENT, time.perf_counter() - started)
                return
        added = self._cors.response_headers(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _methods(self, path: str) -> Collection[str]:
        return {
            method
            for route in self._routes
            if route.path_regex.match(path) is not None
            for method in route.methods or ()
        }
