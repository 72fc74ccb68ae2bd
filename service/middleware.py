"""Pure ASGI middleware: what holds for every request, whatever its route.

Starlette's `BaseHTTPMiddleware` would start a task group for each request and delay streams; these classes only wrap
`receive` and `send`.
"""

import re
import time
from collections.abc import Mapping
from random import Random

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge
from service.metrics import Metrics
from service.problems import render_problem

__all__ = ["BodyLimit", "Observe", "request_id_of"]

REQUEST_ID_HEADER = b"x-request-id"
SCOPE_KEY = "asmg.request_id"
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,256}")
UNMATCHED_ROUTE = "unmatched"
_random = Random()  # an id is no secret, and the system's randomness costs a system call

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
        request_id = _request_id(scope)
        scope[SCOPE_KEY] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID_HEADER, request_id.encode("ascii"))]
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_CLOSED_REQUEST
        except Exception as error:
            if status:  # The head of the response is out: cutting the connection is all that tells the client.
                raise
            await render_problem(error, instance=scope["path"])(scope, receive, send_with_id)
        finally:
            # The route's template, never the path: the number of label values has to stay small.
            route = getattr(scope.get("route"), "path_format", UNMATCHED_ROUTE)
            self._metrics.note_request(route, status or CLIENT_CLOSED_REQUEST, time.perf_counter() - started)


def request_id_of(scope: Scope) -> str:
    """The id of a request that went through `Observe`: the client's `X-Request-ID`, or one that was made up."""
    request_id: str = scope[SCOPE_KEY]
    return request_id


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == REQUEST_ID_HEADER and REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return f"{_random.getrandbits(128):032x}"


class BodyLimit:
    """Refuse a body that is too long: by its declared length before a byte is read, else as it streams in.

    Args:
        app: gets the others.
        max_bytes: how long a body may be.
        of_path: how long it may be for the calls with these paths.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, of_path: Mapping[str, int]) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._of_path = of_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_bytes = self._of_path.get(scope["path"], self._max_bytes)
        if _declared_length(scope) > max_bytes:
            response = render_problem(BodyTooLarge(max_bytes), instance=scope["path"])
            await response(scope, receive, send)
            return
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > max_bytes:
                raise BodyTooLarge(max_bytes)
            return message

        await self._app(scope, receive_within_limit, send)


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])  # longer ones are too large all the same, and Python refuses to convert them
    return 0
