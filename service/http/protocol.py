"""HTTP/1.1 with a way past the task that ASGI needs for each request.

A call that can be answered without waiting for anything (its key, its user's history and the model are in memory) is
answered where its last byte is parsed: no task, no messages, one write. That saves a third of what a prediction costs.
Every other call, whatever it is and whatever is wrong with it, goes the ordinary way.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.context import current_request_id
from service.http.bodies.read import SMALL_BYTES
from service.http.connection import BoundedProtocol
from service.http.headers import REQUEST_ID_HEADER, declared_length, request_id_of

__all__ = ["AnswerNow", "quick_protocol"]

logger = logging.getLogger(__name__)

AnswerNow = Callable[[Scope, bytes], bytes | Response | None]
"""The JSON that answers a request, with status 200, or a whole response; None where that is not to be had at once."""

Headers = list[tuple[bytes, bytes]]

JSON_LINES = b"content-length: %d\r\ncontent-type: application/json\r\n"


def quick_protocol(answers: dict[str, AnswerNow]) -> type[BoundedProtocol]:
    """The protocol for `uvicorn.Config(http=…)`.

    Args:
        answers: by path, for POST requests with small bodies. What one raises is logged, and else as if it had returned
            None.
    """
    default_lines = _Lines()

    class QuickProtocol(BoundedProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._held: tuple[RequestResponseCycle, Any] | None = None

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            scope: Any = cycle.scope
            if (
                self._front.route_path(scope) in answers
                and scope["method"] == "POST"
                and cycle.more_body
                and 0 < declared_length(scope) <= SMALL_BYTES
                and not cycle.waiting_for_100_continue
            ):
                self._held = cycle, app  # until its body is complete
            else:
                super()._start_asgi_task(cycle, app)

        def on_message_complete(self) -> None:
            super().on_message_complete()
            if self._held is None:
                return
            (cycle, app), self._held = self._held, None
            scope: Any = cycle.scope
            answer = None
            if not self.flow.write_paused:
                token = current_request_id.set(request_id_of(scope))
                try:
                    answer = answers[self._front.route_path(scope)](scope, bytes(cycle.body))
                except Exception:  # a bug; the ordinary way answers the client
                    logger.exception("%s could not be answered at once", self._front.route_path(scope))
                finally:
                    current_request_id.reset(token)
            if answer is None:
                super()._start_asgi_task(cycle, app)
                return
            if isinstance(answer, bytes):
                head, content = self._head(cycle, 200, JSON_LINES % len(answer)), answer
            else:
                head, content = self._head(cycle, answer.status_code, _lines(answer.raw_headers)), bytes(answer.body)
            self.transport.write(head + content)
            cycle.response_started = cycle.response_complete = True
            if not cycle.keep_alive:
                self.transport.close()
            self.on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._held = None
            super().connection_lost(exc)

        def _head(self, cycle: RequestResponseCycle, status: int, lines: bytes) -> bytes:
            scope: Any = cycle.scope
            return b"%b%b%b%b%b: %b\r\n%b\r\n" % (
                STATUS_LINE[status],
                default_lines.of(cycle.default_headers),
                lines,
                _lines(self._front.origin_headers(scope)),
                REQUEST_ID_HEADER,
                request_id_of(scope).encode("ascii"),
                b"" if cycle.keep_alive else b"connection: close\r\n",
            )

    return QuickProtocol


def _lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


class _Lines:
    """The lines of headers that stay the same for a second."""

    def __init__(self) -> None:
        self._headers: Headers = []
        self._lines = b""

    def of(self, headers: Headers) -> bytes:
        """The lines; made anew where `headers` is not the very list that it was the last time."""
        if headers is not self._headers:
            self._headers, self._lines = headers, _lines(headers)
        return self._lines
