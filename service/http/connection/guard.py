"""One connection: the order of its answers, its deadlines, and its end.

`service.processes.api.server_config` gives `Connection` and `with_connection(app)` to uvicorn, which makes a
`Connection` for each client.
"""

import asyncio
from enum import Enum
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.context import current_request_id
from service.errors import NotReady
from service.http.app_state import AppState
from service.http.connection.reader import PIECE_BYTES, IncomingRequest, RequestReader
from service.http.connection.transport import UvicornTransport
from service.http.headers import REQUEST_ID_HEADER, request_id_of
from service.http.problems import render_problem

__all__ = ["UVICORN_IDLE_SECONDS", "Connection", "with_connection"]

UVICORN_IDLE_SECONDS = 10 * 365 * 86_400
"""`Config.timeout_keep_alive`, so long that uvicorn never closes an idle connection: `Connection` does, which knows
whether the next head has begun."""

CHECK_SECONDS = 1.0
"""How often a connection checks whether a deadline has passed; with deadlines under four seconds more often."""

LINGER_SECONDS = 2.0
"""How long a client that is still sending has to read why the connection ends. What it sends meanwhile is dropped. A
connection that is closed at once would be reset, and the answer lost."""

LINGER_BYTES = 64 * 1024 * 1024
"""How many bytes it may send in this time; the connection is aborted when it sends more."""

SPARE_CONNECTIONS = 64
"""Connections above the limit that are answered with 503; more are aborted without an answer."""

READ_AHEAD_REQUESTS = 16
"""Requests that may wait for the answer to an earlier one before the connection reads no more."""

READ_AHEAD_BYTES = 64 * 1024
"""Bytes of such requests before the connection reads no more; as many as uvicorn keeps of a body."""


class _Wait(Enum):
    """What a connection waits for; the values are for messages."""

    NEXT_REQUEST = "another request"
    HEAD = "the head of a request"
    BODY = "the body of a request"
    READER = "the client to read an answer"


class Connection(asyncio.Protocol):
    """A connection that gives uvicorn's protocol one checked request at a time.

    Its settings are those of the application (`AppState`) that the server's lifespan yields.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._state: AppState = app_state["app"]
        self._default_headers = server_state.default_headers
        self._loop = _loop or asyncio.get_running_loop()
        self._uvicorn = HttpToolsProtocol(config, server_state, {**app_state, "connection": self}, _loop)
        self._uvicorn_transport: UvicornTransport | None = None  # until uvicorn was told that the connection is lost
        self._reader = RequestReader()
        self._current: IncomingRequest | None = None  # the request that uvicorn has
        self._answer_has_begun = False  # of a current request whose body was not complete
        self._refusal: tuple[int, bytes] | None = None  # status and bytes of the answer that ends the connection
        self._is_closing = False
        self._dropped_bytes = 0
        self._uvicorn_paused = self._is_paused = False  # reading: by uvicorn, and altogether
        self._is_write_paused = False
        self._is_idle = False  # answered all requests, and received nothing since
        self._taken = 0  # requests that uvicorn was given
        self._last_check: tuple[_Wait | None, int] = None, 0  # what was waited for, and in which request
        self._waits_since = 0.0
        self._end: asyncio.TimerHandle | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin, or refuse the connection where there are too many."""
        self._transport = transport
        settings, connections = self._state.settings, self._state.connections
        deadline = min(settings.head_deadline_seconds, settings.body_deadline_seconds, settings.keep_alive_seconds)
        self._check_seconds = min(CHECK_SECONDS, deadline / 4)
        self._next_check = self._loop.call_later(self._check_seconds, self._check_deadlines)
        connections.add(self)
        excess = len(connections) - settings.max_connections
        if excess > SPARE_CONNECTIONS:
            transport.abort()
        elif excess > 0:
            self._refuse(NotReady(f"the process has {settings.max_connections} connections, and takes no more"))
        else:
            self._uvicorn_transport = UvicornTransport(
                transport, self._loop, close=self.close, is_closing=self.is_closing, pause=self.pause_for_uvicorn
            )
            self._uvicorn.connection_made(self._uvicorn_transport)

    def data_received(self, data: bytes) -> None:
        """Read requests and give them to uvicorn, or drop the data where the connection ends."""
        if len(data) > PIECE_BYTES:
            for start in range(0, len(data), PIECE_BYTES):
                self.data_received(data[start : start + PIECE_BYTES])
            return
        self._is_idle = False
        if self._refusal is not None or self._is_closing or self._reader.is_over:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > LINGER_BYTES:
                self._transport.abort()
            return
        try:
            self._reader.feed(data)
        except HTTPException as fault:
            self._give_to_uvicorn()
            self._refuse(fault)
        else:
            self._give_to_uvicorn()

    def eof_received(self) -> bool | None:
        """Have the connection closed: the client takes no answers either, as far as anyone can know."""
        return None

    def pause_writing(self) -> None:
        """Note that the client does not read, and tell uvicorn."""
        self._is_write_paused = True
        if self._uvicorn_transport is not None:
            self._uvicorn.pause_writing()

    def resume_writing(self) -> None:
        """Note that the client reads again, and tell uvicorn."""
        self._is_write_paused = False
        if self._uvicorn_transport is not None:
            self._uvicorn.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all that is done for the connection."""
        self._is_closing = True
        self._state.connections.discard(self)
        self._next_check.cancel()
        if self._end is not None:
            self._end.cancel()
        self._detach()

    # What uvicorn calls, through its transport.

    def close(self) -> None:
        """Close the connection when what was written is sent, and what the client still sends is not reset."""
        if self._is_closing:
            return
        if self._uvicorn_transport is not None:
            self._uvicorn_transport.flush()
        self._is_closing = True
        newest = self._reader.newest
        seconds: float = self._state.settings.body_deadline_seconds
        more_may_come = self._refusal is not None or self._reader.has_surplus or self._dropped_bytes > 0
        if more_may_come or (newest is not None and not newest.is_complete):
            seconds = LINGER_SECONDS
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._pause_reading_where_needed()
        else:
            self._transport.close()
        self._end = self._loop.call_later(seconds, self._transport.abort)

    def is_closing(self) -> bool:
        """Whether the connection ends."""
        return self._is_closing

    def pause_for_uvicorn(self, paused: bool) -> None:
        """Read no more, or go on, as far as uvicorn is concerned."""
        self._uvicorn_paused = paused
        self._pause_reading_where_needed()

    # What the application calls, through `with_connection`.

    def answering(self, send: Send) -> Send:
        """`send` for the current request. An answer that begins before the body is complete ends the connection, so
        that nobody has to read the rest.
        """
        request = self._current
        if request is None or request.is_complete:
            return send

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answer_has_begun = True
                if not request.is_complete:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        return send_and_close

    def keep_caching(self) -> None:
        """Send the current answer without the default `Cache-Control`: it has its own, since a browser may keep it."""
        if self._uvicorn_transport is not None:
            cycle = self._uvicorn.cycle
            cycle.default_headers = [header for header in cycle.default_headers if header[0] != b"cache-control"]

    def answered(self) -> None:
        """The current request is answered: go on with the next one, or with the refusal that is due."""
        self._current, self._answer_has_begun = None, False
        self._reader.is_answering = False
        if self._is_closing:
            return
        if self._uvicorn_transport is not None:
            self._uvicorn_transport.flush()
        self._is_idle = not self._reader.in_head
        if self._reader.requests:
            self._loop.call_soon(self._give_to_uvicorn)
        elif self._refusal is not None:
            self._send_refusal(*self._refusal)

    # Requests and refusals.

    def _give_to_uvicorn(self) -> None:
        """Give uvicorn the next request, where it has none, and what has come of the one that it has."""
        requests = self._reader.requests
        if self._current is None:
            if not requests or self._is_closing:
                return
            self._current = requests.popleft()
            self._reader.is_answering = True
            self._taken += 1
        data = self._current.take()
        if data:
            self._uvicorn.data_received(data)
        if requests or self._is_paused:
            self._pause_reading_where_needed()

    def _refuse(self, error: Exception) -> None:
        """Answer the request that is coming in with a problem, after the answers that are due before it; then end the
        connection.
        """
        if self._refusal is not None or self._is_closing:
            return
        refused = self._reader.newest
        if refused is not None and refused.is_complete:
            refused = None  # it is one whose head has not come
        elif refused is not None and refused is self._current:
            self._current = None
            self._detach()
            if self._answer_has_begun:
                self.close()
                return
        elif refused is not None:
            self._reader.requests.pop()
        self._refusal = self._rendered(error, refused)
        if self._current is None:
            self._send_refusal(*self._refusal)

    def _rendered(self, error: Exception, request: IncomingRequest | None) -> tuple[int, bytes]:
        """Status and bytes of the answer; None for a request whose head is not known."""
        scope: Scope = {"path": "", "headers": []}
        if request is not None:
            path = unquote(request.target.partition(b"?")[0].decode("latin-1"))
            client = self._transport.get_extra_info("peername")
            scope = {"path": path, "headers": request.headers, "client": client}
            self._state.prefix.route_path(scope)
        request_id = request_id_of(scope)
        token = current_request_id.set(request_id)
        try:
            response = render_problem(error, instance=scope["path"])
        finally:
            current_request_id.reset(token)
        headers = [
            *self._default_headers,
            *response.raw_headers,
            *self._state.cors.response_headers(scope),
            (REQUEST_ID_HEADER, request_id.encode("ascii")),
            (b"connection", b"close"),
        ]
        status_line = f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}\r\n".encode()
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return response.status_code, status_line + lines + b"\r\n" + bytes(response.body)

    def _send_refusal(self, status: int, content: bytes) -> None:
        self._state.metrics.refusals.labels(status).inc()
        self._transport.write(content)
        self.close()

    # Reading, deadlines and the end.

    def _pause_reading_where_needed(self) -> None:
        """Read no more where uvicorn wants that, or too much waits for its turn; else go on."""
        paused = not self._is_closing and (self._uvicorn_paused or self._is_far_ahead())
        if paused is not self._is_paused:
            self._is_paused = paused
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _is_far_ahead(self) -> bool:
        requests = self._reader.requests
        if len(requests) > READ_AHEAD_REQUESTS:
            return True
        return sum(request.untaken_bytes for request in requests) > READ_AHEAD_BYTES

    def _detach(self) -> None:
        """Tell uvicorn that the connection is lost: the application then knows that nobody waits for an answer.

        As if without an error, for only then uvicorn cancels its timer, which would keep the connection in memory.
        """
        if self._uvicorn_transport is not None:
            self._uvicorn_transport.detach()
            self._uvicorn_transport = None
            self._uvicorn.connection_lost(None)

    def _check_deadlines(self) -> None:
        """End a connection that has waited for its client for too long."""
        self._next_check = self._loop.call_later(self._check_seconds, self._check_deadlines)
        wait, now = self._awaited(), self._loop.time()
        check = wait, self._taken
        if wait is None or check != self._last_check:
            self._last_check, self._waits_since = check, now
            return
        settings = self._state.settings
        seconds = {
            _Wait.NEXT_REQUEST: settings.keep_alive_seconds,
            _Wait.HEAD: settings.head_deadline_seconds,
        }.get(wait, settings.body_deadline_seconds)
        if now - self._waits_since < seconds:
            return
        if wait is _Wait.READER:
            self._transport.abort()
        elif wait is _Wait.BODY or self._reader.in_head:
            self._refuse(HTTPException(408, f"expected {wait.value} within {seconds:g} s; received a part of it"))
        else:
            self.close()  # no request has begun, so nobody waits for an answer

    def _awaited(self) -> _Wait | None:
        """What the connection waits for; None while it is the server's turn."""
        if self._is_closing:
            return None
        if self._is_write_paused:
            return _Wait.READER
        if self._refusal is not None:
            return None
        if self._current is None:
            return _Wait.NEXT_REQUEST if self._is_idle else _Wait.HEAD
        return None if self._current.is_complete else _Wait.BODY


def with_connection(app: ASGIApp) -> ASGIApp:
    """The application for a server with `Config(http=Connection)`: it tells each connection when an answer is complete.

    An application that raises does not: uvicorn then ends the connection.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        connection: Connection = scope["state"]["connection"]
        await app(scope, receive, connection.answering(send))
        connection.answered()

    return answer
