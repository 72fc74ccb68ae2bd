"""HTTP/1.1 as uvicorn speaks it, with a way past the task that ASGI needs for each request.

A call that can be answered without waiting for anything (its key, its user's history and the model are in memory) is
answered where its last byte is parsed: no task, no messages, one write. That saves a third of what a prediction costs.
Every other call, whatever it is and whatever is wrong with it, goes the ordinary way.
"""

import logging
from collections.abc import Callable
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.bodies import SMALL_BYTES
from service.context import current_request_id
from service.head import REQUEST_ID_HEADER, declared_length, request_id_of

__all__ = ["AnswerNow", "quick_protocol"]

logger = logging.getLogger(__name__)

AnswerNow = Callable[[Scope, bytes], bytes | None]
"""The JSON that answers a request, with status 200; None where that is not to be had at once."""


def quick_protocol(answers: dict[str, AnswerNow]) -> type[HttpToolsProtocol]:
    """The protocol for `uvicorn.Config(http=…)`.

    Args:
        answers: by path, for POST requests with small bodies. What one raises is logged, and else as if it had returned
            None.
    """

    class QuickProtocol(HttpToolsProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._held: tuple[RequestResponseCycle, Any] | None = None

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            scope: Any = cycle.scope
            if (
                scope["path"] in answers
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
            content = None
            if not self.flow.write_paused:
                token = current_request_id.set(request_id_of(scope))
                try:
                    content = answers[scope["path"]](scope, bytes(cycle.body))
                except Exception:  # a bug; the ordinary way answers the client
                    logger.exception("%s could not be answered at once", scope["path"])
                finally:
                    current_request_id.reset(token)
            if content is None:
                super()._start_asgi_task(cycle, app)
                return
            self.transport.write(self._head(cycle, len(content)) + content)
            cycle.response_started = cycle.response_complete = True
            if not cycle.keep_alive:
                self.transport.close()
            self.on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._held = None
            super().connection_lost(exc)

        def _head(self, cycle: RequestResponseCycle, length: int) -> bytes:
            lines = [b"HTTP/1.1 200 OK"]
            lines += [name + b": " + value for name, value in cycle.default_headers]
            scope: Any = cycle.scope
            request_id = request_id_of(scope).encode("ascii")
            lines += [
                b"content-length: %d" % length,
                b"content-type: application/json",
                REQUEST_ID_HEADER + b": " + request_id,
            ]
            if not cycle.keep_alive:
                lines.append(b"connection: close")
            return b"\r\n".join(lines) + b"\r\n\r\n"

    return QuickProtocol
