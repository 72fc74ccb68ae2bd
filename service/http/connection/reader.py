"""Parse and check what a client sends, and write each request for uvicorn from what was parsed.

`service.http.connection.guard` feeds a reader for each connection and hands its requests on.

The head of a request is written anew without its `Upgrade`: no other protocol is spoken here, and RFC 9110 (7.8) has a
server ignore an `Upgrade` that it does not take. httptools reads no body behind a head that asks for one, so this head
is read again, by a new parser, without it. Only httptools decides whether a head asks for an upgrade. A body in chunks
is written without its trailers and chunk extensions.

Nothing is read behind the last request of a connection (`Connection: close`, HTTP/1.0; RFC 9112, 9.6).
"""

import re
from collections import deque
from functools import lru_cache
from http import HTTPStatus

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.exceptions import HTTPException

from service.limits import MAX_HEAD_BYTES, MAX_PIPELINED

__all__ = ["PIECE_BYTES", "IncomingRequest", "RequestReader"]

PIECE_BYTES = MAX_HEAD_BYTES
"""The most bytes that are parsed at a time, so that a head over the limit is noticed before all of it is in memory."""

SINGLE = (b"content-length", b"host", b"transfer-encoding")
"""Headers that decide where a request ends and whom it is for. Of two of them a proxy may believe the other one."""

HOST = re.compile(rb"(?:[\w.~%!$&'()*+;=-]+|\[[\dA-Fa-f:.]+\])(?::\d{0,5})?")
"""A host and perhaps a port (RFC 9110, 7.2). A comma, which a name might have, would be a list of two."""

SLASH = ord("/")
ABSOLUTE = re.compile(rb"https?://([^/?]+)/.*", re.IGNORECASE)
"""A request target in the form that is sent to a proxy: a URL with a host and a path."""

Headers = list[tuple[bytes, bytes]]


class IncomingRequest:
    """A request with a valid head, of which perhaps not all has come."""

    __slots__ = ("_body", "_method", "_version", "_whole", "headers", "is_complete", "keep_alive", "target")

    def __init__(self, method: bytes, target: bytes, version: str, headers: Headers, keep_alive: bool) -> None:
        self._method = method
        self.target = target
        self._version: str | None = version  # None when the head was taken
        self.headers = headers
        """Names in lower case."""
        self.keep_alive = keep_alive
        """Whether another request may follow."""
        self._body: list[bytes] = []
        self._whole: bytes | None = None
        self.is_complete = False

    def add(self, part: bytes) -> None:
        """Add a part of the body, as it is to be sent to uvicorn."""
        self._body.append(part)

    def use_received(self, data: bytes) -> None:
        """Have `take` give what the client has sent, which is this whole request and nothing else: quicker than to
        write it anew.
        """
        self._whole = data

    @property
    def untaken_bytes(self) -> int:
        """Bytes of the body that were not taken yet."""
        return sum(map(len, self._body))

    def take(self) -> bytes:
        """What has come since the last call, to be given to uvicorn."""
        data, self._whole = self._whole, None
        if data is None:
            data = b"".join(self._body)
            if self._version is not None:
                data = _written(self._method, self.target, self._version, self.headers) + data
        self._version = None
        self._body.clear()
        return data


class RequestReader:
    """Reads the requests of one connection."""

    def __init__(self) -> None:
        self.requests = deque[IncomingRequest]()
        """Requests that nobody has taken from here yet; the last one may be incomplete."""
        self.newest: IncomingRequest | None = None
        """The request whose head was read last."""
        self.is_answering = False
        """Whether a request that was taken is not answered yet; the connection sets it."""
        self.in_head = False
        """Whether a head has begun and not ended."""
        self.is_over = False
        """Whether the last request of the connection has been read."""
        self.has_surplus = False
        """Whether anything came after it."""
        self._parser = HttpRequestParser(self)
        self._target = b""
        self._headers: Headers = []
        self._is_chunked = False
        self._begun = 0  # heads that have begun
        self._kept = 0  # bytes since a head, or the last part of a body, began: at most so many the parser may keep
        self._without_upgrade = b""  # a head that asked for an upgrade, written without it, until it is read again
        self._fault: HTTPException | None = None  # why a callback has stopped the parser

    def feed(self, data: bytes) -> None:
        """Parse at most `PIECE_BYTES`. Not to be called again after it has raised, or when `is_over`.

        Raises:
            HTTPException: the request that is coming in is to be refused. `requests` are to be answered before.
        """
        self._kept += len(data)
        received, begun = data, self._begun
        starts_with_head = not self.in_head and (self.newest is None or self.newest.is_complete)
        while True:
            try:
                self._parser.feed_data(data)
                break
            except HttpParserUpgrade as upgrade:
                (end_of_head,) = upgrade.args
                self._parser = HttpRequestParser(self)
                data, self._without_upgrade = self._without_upgrade + data[end_of_head:], b""
            except HttpParserError:
                if self.is_over:
                    self.has_surplus = True
                    return
                unclear = HTTPException(400, "expected requests of HTTP/1.1; received something else")
                raise self._fault or unclear from None
        if self._kept > MAX_HEAD_BYTES + PIECE_BYTES:  # the first piece may hold other requests too
            raise _head_too_large()
        request = self.newest
        has_one_head = starts_with_head and self._begun == begun + 1
        if has_one_head and request is not None and request.is_complete and not self._is_chunked:
            request.use_received(received)

    # Callbacks of the parser. What they raise stops it, and reaches `feed` as an HttpParserError.

    def on_message_begin(self) -> None:
        """Begin with a head."""
        if self.is_over:
            raise HttpParserError("nothing is read behind the last request")
        self.in_head = True
        self._begun += 1
        self._target, self._headers = b"", []

    def on_url(self, part: bytes) -> None:
        """Add a part of the request target."""
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header, but no trailer."""
        if self.in_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Check the head and begin with the request, or have the head read again without its `Upgrade`."""
        parser, target, headers = self._parser, self._target, self._headers
        if self._kept > MAX_HEAD_BYTES and _head_bytes(target, headers) > MAX_HEAD_BYTES:
            self._stop(_head_too_large())
        if len(self.requests) + self.is_answering > MAX_PIPELINED:
            self._stop(HTTPException(400, f"expected at most {MAX_PIPELINED} requests ahead of their answers"))
        version, found = parser.get_http_version(), dict(headers)
        if (fault := _fault(target, version, headers, found)) is not None:
            self._stop(HTTPException(400, fault))
        method = parser.get_method()
        if parser.should_upgrade():
            if method == b"CONNECT":
                self._stop(HTTPException(405, "expected no CONNECT: this is no proxy", headers={"Allow": ""}))
            headers = [header for header in headers if header[0] != b"upgrade"]
            self._without_upgrade = _written(method, target, version, headers)  # `feed` has it read again
            return
        self.in_head, self._kept = False, 0
        self._target, self._headers = b"", []
        self._is_chunked = b"transfer-encoding" in found
        keep_alive = version != "1.0" and parser.should_keep_alive()
        self.newest = request = IncomingRequest(method, target, version, headers, keep_alive)
        self.requests.append(request)

    def on_body(self, part: bytes) -> None:
        """Add a part of the body."""
        self._kept = 0
        assert self.newest is not None  # its head comes first
        self.newest.add(b"%x\r\n%b\r\n" % (len(part), part) if self._is_chunked else part)

    def on_message_complete(self) -> None:
        """End the request; one that asked for an upgrade ends when it is read again."""
        if self._without_upgrade:
            return
        self._kept = 0
        request = self.newest
        assert request is not None  # its head comes first
        if self._is_chunked:
            request.add(b"0\r\n\r\n")
        request.is_complete = True
        self.is_over = not request.keep_alive

    def _stop(self, fault: HTTPException) -> None:
        self._fault = fault
        raise fault


def _fault(target: bytes, version: str, headers: Headers, found: dict[bytes, bytes]) -> str | None:
    """What was expected of a head that could be understood in two ways; None where it is clear.

    The parser has checked the rest of RFC 9112: the ends of lines, names and values of headers, that a length has only
    digits, and that there are not both a length and chunks.

    Args:
        target: of the request line.
        version: of HTTP, such as `1.1`.
        headers: names in lower case, and values.
        found: the same by name; of several headers with one name the last.
    """
    if version != "1.1" and version != "1.0":
        return f"expected HTTP/1.1 or HTTP/1.0; received HTTP/{version}"
    if len(found) < len(headers):
        names = [name for name, _ in headers]
        for name in SINGLE:
            if (times := names.count(name)) > 1:
                return f"expected one {name.decode().title()} header; received {times}"
    coding = found.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or version != "1.1"):
        return "expected no Transfer-Encoding but chunked, of HTTP/1.1"
    host = found.get(b"host")
    if host is None:
        if version == "1.1":
            return "expected a Host header; received none"
    elif not _is_host(host):
        return "expected a host, and perhaps a port, in the Host header; received something else"
    if b"#" in target:
        return "expected a path, and perhaps a query, in the request line; received a fragment, too"
    if target[0] != SLASH and target != b"*":
        authority = ABSOLUTE.fullmatch(target)
        if authority is None or (host is not None and authority[1].lower() != host.lower()):
            return "expected a path, or a URL with the host of the Host header and a path, in the request line"
    return None


@lru_cache(1024)
def _is_host(value: bytes) -> bool:
    return HOST.fullmatch(value) is not None  # 0.2 µs, and nearly all requests have one of a few hosts


def _written(method: bytes, target: bytes, version: str, headers: Headers) -> bytes:
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, version.encode(), lines)


def _head_bytes(target: bytes, headers: Headers) -> int:
    return len(target) + sum(len(name) + len(value) + len(": \r\n") for name, value in headers)


def _head_too_large() -> HTTPException:
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    return HTTPException(status, f"expected a head of at most {MAX_HEAD_BYTES} bytes; received more")
