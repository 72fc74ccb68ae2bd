"""The calls that come most (predictions, interactions), answered as bare ASGI before FastAPI sees them.

No route is searched, no dependency solved and no pydantic model built; that takes FastAPI several times as long as a
prediction. `hot_route` also makes an ordinary route of each of them, for the description of the API and for answers to
other methods. Bodies are checked by `service.http.bodies` either way.
"""

from collections.abc import Awaitable, Callable
from inspect import getdoc
from typing import Protocol

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.app_state import AppState
from service.http.bodies.read import Bodies
from service.http.json_body import body_schema
from service.http.keys import Requires
from service.http.metrics import Metrics
from service.http.middleware import Observe
from service.http.path_prefix import PathPrefix
from service.limits import MAX_BODY_BYTES

__all__ = ["Answer", "HotRoute", "HotRoutes", "hot_route"]


class Answer(Protocol):
    """Makes the JSON body of a response with status 200, or raises what a route would. It checks the caller's key."""

    __name__: str

    def __call__(self, state: AppState, scope: Scope, receive: Receive, /) -> Awaitable[bytes]:
        """The body."""


class HotRoute(APIRoute):
    """A route that `HotRoutes` answers; FastAPI describes it."""

    answer: Answer


def hot_route(
    router: APIRouter,
    path: str,
    *,
    requires: Requires,
    request: type[BaseModel],
    response: type[BaseModel],
    summary: str,
) -> Callable[[Answer], Answer]:
    """A decorator that makes a hot route of an `Answer`, for POST requests.

    Args:
        router: that gets the route.
        path: of the route, without parameters.
        requires: what the caller's key needs; for the description.
        request: model of the body; for the description.
        response: model of the answer; for the description.
        summary: for the description.
    """

    def add(answer: Answer) -> Answer:
        async def endpoint(request: Request) -> Response:
            content = await answer(request.state.app, request.scope, request.receive)
            return Response(content, media_type="application/json")

        router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            name=answer.__name__,
            description=getdoc(answer),
            summary=summary,
            dependencies=[Depends(requires)],
            response_model=response,
            openapi_extra=body_schema(request),
            route_class_override=HotRoute,
        )
        route = router.routes[-1]
        assert isinstance(route, HotRoute)
        route.answer = answer
        return answer

    return add


class HotRoutes:
    """ASGI middleware that answers hot routes itself, and gives other requests to the framework.

    Args:
        app: the framework.
        prefix: finds the path of a request.
        routes: the hot routes.
        metrics: counts and times their requests.
        bodies: counts the bytes of their bodies.
    """

    def __init__(
        self, app: ASGIApp, prefix: PathPrefix, routes: list[HotRoute], metrics: Metrics, bodies: Bodies
    ) -> None:
        self.routes = {route.path: route for route in routes}
        self._app = app
        self._prefix = prefix
        self._bodies = bodies
        self._observed = Observe(self._answer, metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        route = None
        if scope["type"] == "http":
            route = self.routes.get(self._prefix.route_path(scope))
        if route is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
        else:
            scope["route"] = route
            await self._observed(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        route: HotRoute = scope["route"]
        with self._bodies.counted(scope, receive, MAX_BODY_BYTES) as receive_and_count:
            content = await route.answer(scope["state"]["app"], scope, receive_and_count)
        headers = [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})
