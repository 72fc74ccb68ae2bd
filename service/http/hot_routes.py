"""The calls that come most, as bare ASGI.

FastAPI knows them as ordinary routes, for the description of the API. `Shortcut` answers them before that: no route is
searched, no dependency solved, no pydantic model built. What a body has to be is checked either way, by
`service.http.bodies`.
"""

import time
from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from service.context import current_request_id
from service.http.bodies.read import Bodies
from service.http.dependencies import Parts
from service.http.front import Front
from service.http.headers import REQUEST_ID_HEADER, request_id_of
from service.http.metrics import Metrics
from service.http.middleware import CLIENT_CLOSED_REQUEST
from service.http.problems import render_problem
from service.limits import MAX_BODY_BYTES

__all__ = ["Answer", "Shortcut", "by_path"]

Answer = Callable[[Parts, Scope, Receive], Awaitable[bytes]]
"""The JSON that answers a request, with status 200; raises what a route would."""


def by_path(router: APIRouter, answers: Mapping[object, Answer]) -> dict[str, Answer]:
    """The answers of a router's endpoints by their paths."""
    return {route.path: answers[route.endpoint] for route in router.routes if isinstance(route, APIRoute)}


class Shortcut:
    """Middleware that answers some calls itself, as `Observe` and the router would, and passes on the others.

    Args:
        app: that gets the others.
        front: that knows the path without a proxy's prefix.
        answers: by path, of POST requests.
        metrics: that count them.
        bodies: that count theirs.
    """

    def __init__(
        self, app: ASGIApp, front: Front, answers: Mapping[str, Answer], metrics: Metrics, bodies: Bodies
    ) -> None:
        self._app = app
        self._front = front
        self._answers = answers
        self._metrics = metrics
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        path = self._front.route_path(scope) if is_post else ""
        answer = self._answers.get(path)
        if answer is None:
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), CLIENT_CLOSED_REQUEST
        current_request_id.set(request_id_of(scope))
        request_id = (REQUEST_ID_HEADER, request_id_of(scope).encode("ascii"))
        try:
            with self._bodies.counted(scope, receive, MAX_BODY_BYTES) as receive_and_count:
                content = await answer(scope["state"]["parts"], scope, receive_and_count)
            headers = [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json"), request_id]
            status = 200
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": content})
        except ClientDisconnect:
            pass
        except Exception as error:
            if status == 200:  # The head of the response is out: cutting the connection is all that tells the client.
                raise
            response = render_problem(error, instance=scope["path"], route=path)
            response.raw_headers.append(request_id)
            status = response.status_code
            await response(scope, receive, send)
        finally:
            self._metrics.note_request(path, status, time.perf_counter() - started)
