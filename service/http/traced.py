"""Spans of requests: ASGI middleware that `service.app` puts around everything where traces are on, else nowhere."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.headers import headers_of, request_id_of
from service.http.path_prefix import PathPrefix
from service.http.problems import UNMATCHED_ROUTE, route_of
from service.telemetry.tracing import Tracing

__all__ = ["Traced"]

UNTRACED = ("/healthz", "/readyz", "/metrics")
"""Paths that probes ask every few seconds."""


class Traced:
    """Makes a span of each request, in the trace of the client's `traceparent` if it sends one.

    Args:
        app: that gets all requests.
        tracing: makes the spans; the sampler decides which.
        prefix: finds the path of a request.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing, prefix: PathPrefix) -> None:
        self._app, self._tracing, self._prefix = app, tracing, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or self._prefix.route_path(scope) in UNTRACED:
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)
        parent, state = _text(headers.get(b"traceparent")), _text(headers.get(b"tracestate"))
        if parent is None and not self._tracing.samples(scope["method"]):
            await self._app(scope, receive, send)
            return
        with self._tracing.server_span(scope["method"], parent, state) as span:
            if not span.is_recording():
                await self._app(scope, receive, send)
                return
            status = 0

            async def send_and_note(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await self._app(scope, receive, send_and_note)
            finally:
                route = route_of(scope)
                if route != UNMATCHED_ROUTE:
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.route", route)
                span.set_attribute("http.request.method", scope["method"])
                span.set_attribute("asmg.request_id", request_id_of(scope))
                if status:
                    span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_attribute("error.type", str(status))


def _text(header: bytes | None) -> str | None:
    return None if header is None else str(header, "latin-1")
