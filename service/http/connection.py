"""HTTP/1.1 as uvicorn speaks it, with bounds on what a client may do to a connection.

uvicorn waits for a head and a body for as long as a client likes, and gathers a head of any size. Here every wait for
the client has a deadline, everything that is gathered has a limit, and whoever goes too far is told so with a problem
document, after the answers that are due before it, and loses the connection.

A body is always a body. Where a head asks for another protocol (`Upgrade: h2c` of the JDK's client and of `curl
--http2`, `websocket`), httptools reads no body behind it and takes what follows for the next request; uvicorn leaves it
at that, so that a client could send requests inside a body. No other protocol is spoken here, and RFC 9110 (7.8) has a
server ignore an `Upgrade` that it does not take. So such a head is written again without its `Upgrade`, and a new
parser reads it and all that follows. Whether a head is one of these is for httptools alone to say: the other heads
never come this way, and no second reading of `Connection` can differ from its own.

Nothing is read behind the last request of a connection (`Connection: close`, HTTP/1.0; RFC 9112, 9.6).
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum
from http import HTTPStatus
from typing import Any, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.context import current_request_id
from service.errors import NotReady
from service.http.dependencies import Parts
from service.http.headers import REQUEST_ID_HEADER, head_fault, request_id_of
from service.http.problems import render_problem
from service.limits import MAX_HEAD_BYTES, MAX_PIPELINED

__all__ = ["BoundedProtocol"]

LOOK_SECONDS = 1.0
"""How often a connection looks whether it waits in vain; with shorter deadlines more often."""

LINGER_SECONDS = 2.0
"""How long a client that is still sending has to read why the connection ends. What it sends is dropped; closed at
once, the connection would be reset and the answer lost."""

LINGER_BYTES = 64 * 1024 * 1024
"""How much it may send meanwhile."""

SPARE_CONNECTIONS = 64
"""Of those over the limit so many are told so; others are just closed."""

PIECE_BYTES = MAX_HEAD_BYTES
"""What the parser is given at a time, so that a head is known to go too far before it is all gathered."""


class _Waits(Enum):
    """What of a client a connection waits for."""

    HEAD = "the head of a request"
    BODY = "the body of a request"
    READER = "the client to take in an answer"


class _Transport:
    """The connection as uvicorn uses it: to close it is up to `close`."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write, self.get_extra_info = transport.write, transport.get_extra_info
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading
        self.close, self.is_closing = close, transport.is_closing


class BoundedProtocol(HttpToolsProtocol):
    """One connection; its settings are those of the application that the server's lifespan yields."""

    # None before the first head; uvicorn's annotation leaves that out.
    cycle: RequestResponseCycle | None  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        parts: Parts = self.app_state["parts"]
        self._settings, self._metrics, self._front = parts.settings, parts.metrics, parts.front
        self.timeout_keep_alive = parts.settings.keep_alive_seconds
        self._active: RequestResponseCycle | None = None  # the request whose answer is due next
        self._piece = 0  # bytes that the parser was given last
        self._gathered = 0  # bytes of earlier pieces that it holds back, of a head or of what comes with chunks
        self._fault: HTTPException | None = None  # for which a callback of the parser stopped it
        self._without_upgrade = b""  # a head that asked for an upgrade, without that, until it is read again
        self._refusal: tuple[int, bytes] | None = None  # status and answer, which ends the connection
        self._is_over = False  # nothing more is read
        self._dropped = 0
        self._end: asyncio.TimerHandle | None = None
        self._waits: _Waits | None = _Waits.HEAD
        self._waits_since, self._waits_in = self.loop.time(), self.scope

    # What comes in.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, or refuse to where too many have begun."""
        self._raw = transport
        super().connection_made(cast(asyncio.Transport, _Transport(transport, self._close)))
        settings = self._settings
        deadline = min(settings.head_deadline_seconds, settings.body_deadline_seconds)
        self._look_seconds = min(LOOK_SECONDS, deadline / 4)
        self._look_again = self.loop.call_later(self._look_seconds, self._look)
        over = len(self.connections) - settings.max_connections
        if over > SPARE_CONNECTIONS:
            self._raw.abort()
        elif over > 0:
            self._refuse(NotReady(f"the process has {settings.max_connections} connections, and takes no more"))

    def data_received(self, data: bytes) -> None:
        """Parse what came, or drop it where the end has come."""
        # The event loop calls this in the context of whoever last resumed reading: an earlier request, it may be.
        current_request_id.set(None)
        if len(data) > PIECE_BYTES:
            for start in range(0, len(data), PIECE_BYTES):
                self.data_received(data[start : start + PIECE_BYTES])
            return
        if self._refusal is not None or self._is_over:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self._raw.abort()
            return
        before = self.cycle
        had = 0 if before is None else len(before.body)
        self._piece = len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            self._unset_keepalive_if_required()  # a head may have begun behind a request that was answered at once
        elif not cycle.more_body or cycle is not before or len(cycle.body) > had:
            self._gathered = 0
            return
        self._gathered += len(data)
        if self._gathered > MAX_HEAD_BYTES + PIECE_BYTES:  # the first piece may hold much else
            self._refuse(_head_too_large())

    def _parse(self, data: bytes) -> None:
        """Parse to the end; behind a head that asks for an upgrade with a new parser, from that head on."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserUpgrade as upgrade:
                (end_of_head,) = upgrade.args
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                data, self._without_upgrade = self._without_upgrade + data[end_of_head:], b""
            except HttpParserError:
                if self._is_behind_the_last():
                    self._is_over = True
                else:
                    unclear = HTTPException(400, "expected requests of HTTP/1.1; received something else")
                    self._refuse(self._fault or unclear)
                return

    def on_headers_complete(self) -> None:
        """Begin with a request whose head is as it has to be, unless the connection ends with the one before."""
        if self._is_behind_the_last():
            raise HttpParserError
        if self._gathered + self._piece > MAX_HEAD_BYTES and _head_bytes(self.url, self.headers) > MAX_HEAD_BYTES:
            self._stop(_head_too_large())
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop(HTTPException(400, f"expected at most {MAX_PIPELINED} requests ahead of their answers"))
        scope: Any = self.scope
        version = self.parser.get_http_version()
        if (fault := head_fault(scope, self.url, version)) is not None:
            self._stop(HTTPException(400, fault))
        if self.parser.should_upgrade():
            method = self.parser.get_method()
            if method == b"CONNECT":
                self._stop(HTTPException(405, "expected no CONNECT: this is no proxy", headers={"Allow": ""}))
            lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
            self._without_upgrade = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version.encode(), b"".join(lines))
            return  # `_parse` has it read again
        self._gathered = 0
        super().on_headers_complete()
        self.headers = []  # the parser puts trailers there, and they are no part of the head

    def _is_behind_the_last(self) -> bool:
        """Whether what is parsed comes behind the last request of the connection."""
        cycle = self.cycle
        return cycle is not None and not cycle.keep_alive and cycle.scope is not self.scope

    def _stop(self, fault: HTTPException) -> None:
        """Stop the parser, from one of its callbacks; `_parse` then refuses the request."""
        self._fault = fault
        raise fault

    def on_message_complete(self) -> None:
        """Note that a body is complete, which that of an upgrade is only when it was read again."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    # What goes out.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, cast(Any, _ending_early(app, cycle)) if cycle.more_body else app)

    def on_response_complete(self) -> None:
        """Go on with the next request, or end where that was refused."""
        was_last = not self.pipeline
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if was_last and self._refusal is not None:
            self._send_refusal(*self._refusal)
        elif was_last and self.cycle is not None and self.scope is not self.cycle.scope:
            self._unset_keepalive_if_required()  # the next head has begun

    def _refuse(self, error: Exception) -> None:
        """Answer the request that is coming in with a problem, after what is due before it, and end the connection."""
        if self._refusal is not None or self.transport.is_closing():
            return
        cycle = self.cycle
        scope: Any = {"path": "", "headers": []}  # where the head is not known
        is_due = cycle is not None and not cycle.response_complete
        if cycle is not None and is_due and cycle.scope is self.scope and cycle.more_body:  # it is what is refused
            scope = cycle.scope
            cycle.disconnected = True
            cycle.message_event.set()
            is_due = bool(self.pipeline)
            if is_due:
                self.pipeline.popleft()  # it came last
            elif cycle.response_started:
                self.transport.close()
                return
        token = current_request_id.set(request_id_of(scope))
        try:
            response = render_problem(error, instance=scope["path"])
        finally:
            current_request_id.reset(token)
        own = [(REQUEST_ID_HEADER, request_id_of(scope).encode("ascii")), (b"connection", b"close")]
        said = self._front.origin_headers(scope)
        headers = [*self.server_state.default_headers, *response.raw_headers, *said, *own]
        head = STATUS_LINE[response.status_code] + b"".join(b"%s: %s\r\n" % header for header in headers)
        self._refusal = response.status_code, head + b"\r\n" + bytes(response.body)
        if not is_due:
            self._send_refusal(*self._refusal)

    def _send_refusal(self, status: int, content: bytes) -> None:
        self._metrics.refusals.labels(status).inc()
        self._unset_keepalive_if_required()
        self.transport.write(content)
        self.transport.close()

    # How it ends.

    def _close(self) -> None:
        if self.transport.is_closing():
            return
        self._is_over, was_over = True, self._is_over
        self.transport.is_closing = lambda: True  # type: ignore[method-assign]
        seconds = self._settings.body_deadline_seconds
        cycle = self.cycle
        if self._refusal is not None or was_over or (cycle is not None and cycle.more_body):  # more may come
            seconds = LINGER_SECONDS
            if self._raw.can_write_eof():
                self._raw.write_eof()
            self.flow.resume_reading()
        else:
            self._raw.close()
        self._end = self.loop.call_later(seconds, self._raw.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever still works for it."""
        self._is_over = True
        self._look_again.cancel()
        if self._end is not None:
            self._end.cancel()
        if self._active is not None:  # uvicorn tells the newest request, which may wait behind it
            self._active.disconnected = True
            self._active.message_event.set()
        super().connection_lost(exc)

    def _look(self) -> None:
        """End a connection that waits for its client for too long."""
        self._look_again = self.loop.call_later(self._look_seconds, self._look)
        waits, now = self._awaited(), self.loop.time()
        is_same = waits is self._waits and (self._waits_in is self.scope or self._waits_in is None)
        self._waits, self._waits_in = waits, self.scope
        if waits is None or not is_same:
            self._waits_since = now
            return
        settings = self._settings
        seconds = settings.head_deadline_seconds if waits is _Waits.HEAD else settings.body_deadline_seconds
        if now - self._waits_since < seconds:
            return
        if waits is _Waits.READER:
            self._raw.abort()
        elif waits is _Waits.HEAD and not self._in_head():
            self.transport.close()  # nothing was asked, so nobody waits for an answer
        else:
            self._refuse(HTTPException(408, f"expected {waits.value} within {seconds:g} s; received a part of it"))

    def _awaited(self) -> _Waits | None:
        """What is waited for; None while it is the server's turn, and where the keep-alive timer runs."""
        if self._refusal is not None or self.transport.is_closing():
            return None
        if self.flow.write_paused:
            return _Waits.READER
        if self.pipeline:
            return None
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            return _Waits.BODY if cycle.more_body else None
        return _Waits.HEAD if self.timeout_keep_alive_task is None else None

    def _in_head(self) -> bool:
        """Whether a head has begun and not ended."""
        scope, cycle = cast(Scope | None, self.scope), self.cycle
        return scope is not None and (cycle is None or cycle.scope is not scope)


def _ending_early(app: ASGIApp, cycle: RequestResponseCycle) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An answer that begins before the body is all there ends the connection, so that nobody reads the rest."""

    async def ending_early(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_end(message: Message) -> None:
            if cycle.more_body and message["type"] == "http.response.start":
                cycle.keep_alive = False
            await send(message)

        await app(scope, receive, send_and_end)

    return ending_early


def _head_bytes(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(value) + len(": \r\n") for name, value in headers)


def _head_too_large() -> HTTPException:
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    return HTTPException(status, f"expected a head of at most {MAX_HEAD_BYTES} bytes; received more")
