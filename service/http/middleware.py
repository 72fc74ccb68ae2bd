"""Pure ASGI middleware: what holds for every request, whatever its route.

Starlette's `BaseHTTPMiddleware` would start a task group for each request and delay streams; these classes only wrap
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
from service.http.front import Front
from service.http.headers import REQUEST_ID_HEADER, declared_length, request_id_of
from service.http.metrics import Metrics
from service.http.problems import render_problem, route_of

__all__ = ["CLIENT_CLOSED_REQUEST", "AtFront", "BodyLimit", "Observe"]

PREFLIGHT_ROUTE = "preflight"
CLIENT_CLOSED_REQUEST = 499  # nginx's number for a client that went away; nobody receives it


class Observe:
    """Give each response its `X-Request-ID`, count and time it, and answer what no handler did with a bare 500.

    It sits inside Starlette's own error middleware, which would send a 500 past every header and metric.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Never reset: each request is a task of its own, and what the server still logs of it shall name it too.
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
    """Refuse a body of more than `max_bytes`: by its head before a byte is read, else as it streams in."""

    def __init__(self, app: ASGIApp, max_bytes: int, bodies: Bodies) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if declared_length(scope) > self._max_bytes:
            await render_problem(BodyTooLarge(self._max_bytes), instance=scope["path"])(scope, receive, send)
            return
        with self._bodies.counted(scope, receive, self._max_bytes) as receive_and_count:
            await self._app(scope, receive_and_count, send)


class AtFront:
    """Give each request the path prefix of its proxy, each response what pages of other origins may do with it, and
    answer browsers that ask for that before they call.

    It is outermost, so that what is refused further in says the same.

    Args:
        app: that gets the requests.
        front: what the settings say.
        routes: all that the service has.
        metrics: that count the browsers' questions, which need no key.
    """

    def __init__(self, app: ASGIApp, front: Front, routes: Sequence[Route], metrics: Metrics) -> None:
        self._app = app
        self._front = front
        self._routes = routes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = self._front.route_path(scope)
        said = self._front.origin_headers(scope)
        if not said:
            await self._app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS":
            preflight = self._front.preflight_headers(scope, self._methods(path))
            if preflight is not None:
                started = time.perf_counter()
                headers = [*preflight, (REQUEST_ID_HEADER, request_id_of(scope).encode("ascii"))]
                await send({"type": "http.response.start", "status": HTTPStatus.NO_CONTENT, "headers": headers})
                await send({"type": "http.response.body"})
                self._metrics.note_request(PREFLIGHT_ROUTE, HTTPStatus.NO_CONTENT, time.perf_counter() - started)
                return

        async def send_and_say(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *said]
            await send(message)

        await self._app(scope, receive, send_and_say)

    def _methods(self, path: str) -> Collection[str]:
        return {
            method
            for route in self._routes
            if route.path_regex.match(path) is not None
            for method in route.methods or ()
        }
