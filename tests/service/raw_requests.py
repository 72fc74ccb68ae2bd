"""Requests that test where a request ends: how each is sent, and how it has to be answered."""

from collections.abc import Callable
from typing import NamedTuple

JDK = (
    "Connection: Upgrade, HTTP2-Settings",
    "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
    "Upgrade: h2c",
    "User-Agent: Java-http-client/17.0.15",
)
"""Of `java.net.http.HttpClient` of OpenJDK 17, as it sends them where nobody asked for HTTP/2."""

CURL = (
    "User-Agent: curl/7.88.1",
    "Accept: */*",
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
)
"""Of `curl --http2`."""

UPGRADE = ("Connection: Upgrade", "Upgrade: foo")
CHUNKED = "Transfer-Encoding: chunked"

TAKEN = ("taken", "last")
"""The request is answered, its body was its body, and the request behind it is answered too."""
TAKEN_LAST = ("taken",)
"""So is the request, and the connection ends."""
REFUSED = ("refused",)
"""The request is answered with a 4xx, and the connection ends."""
TAKEN_THEN_REFUSED = ("taken", "refused")
"""What comes behind a good request is refused."""


class Case(NamedTuple):
    """A request: its bytes for a body, and what is to be answered on a connection on which another one follows."""

    made: Callable[[bytes], bytes]
    answered: tuple[str, ...]


def head(*lines: str | bytes, call: str = "POST /predict HTTP/1.1", host: str = "Host: a") -> bytes:
    """A head with the id by which its answer is known, and with a key in the place of KEY."""
    known = ["X-API-Key: KEY", "X-Request-ID: outer", "Content-Type: application/json"]
    all_lines = [call, *([host] if host else []), *known, *lines]
    return b"".join((line if isinstance(line, bytes) else line.encode("latin-1")) + b"\r\n" for line in all_lines)


def sized(body: bytes, *lines: str | bytes, call: str = "POST /predict HTTP/1.1", host: str = "Host: a") -> bytes:
    """A request with a Content-Length."""
    return head(*lines, f"Content-Length: {len(body)}", call=call, host=host) + b"\r\n" + body


def chunked(
    body: bytes, *lines: str | bytes, size: bytes = b"%x", call: str = "POST /predict HTTP/1.1", trailers: bytes = b""
) -> bytes:
    """A request whose body is two chunks."""
    first, rest = body[:5], body[5:]
    chunks = b"".join(size % len(part) + b"\r\n" + part + b"\r\n" for part in (first, rest))
    return head(*lines, CHUNKED, call=call) + b"\r\n" + chunks + b"0\r\n" + trailers + b"\r\n"


def _sized(
    *lines: str | bytes, call: str = "POST /predict HTTP/1.1", host: str = "Host: a", then: bytes = b""
) -> Callable[[bytes], bytes]:
    return lambda body: sized(body, *lines, call=call, host=host) + then


def _chunked(*lines: str | bytes, size: bytes = b"%x", trailers: bytes = b"") -> Callable[[bytes], bytes]:
    return lambda body: chunked(body, *lines, size=size, trailers=trailers)


def _framed(*lines: str | bytes, call: str = "POST /predict HTTP/1.1") -> Callable[[bytes], bytes]:
    """With framing of its own; N is the length of the body."""
    return lambda body: (head(*lines, call=call) + b"\r\n").replace(b"NNN", str(len(body)).encode()) + body


def _chunks(chunks: bytes) -> Callable[[bytes], bytes]:
    """With chunks of its own; the body is behind them."""
    return lambda body: head(CHUNKED) + b"\r\n" + chunks + body


def _bytes(data: bytes) -> Callable[[bytes], bytes]:
    return lambda body: data + body


def _bare(find: bytes, put: bytes) -> Callable[[bytes], bytes]:
    """The plain request with other ends of lines."""
    return lambda body: sized(body, "X: y").replace(find, put, 1)


def _closing(body: bytes) -> bytes:
    """Behind the last request of a connection comes what is a request anywhere else."""
    return sized(body, "Connection: close") + HIDDEN


HIDDEN = b"".join(
    b"%s HTTP/1.1\r\nHost: a\r\nX-API-Key: KEY\r\nX-Request-ID: hidden\r\n%s" % part
    for part in (
        (b"GET /admin/models", b"\r\n"),
        (b"POST /admin/models/0/pin", b'Content-Type: application/json\r\nContent-Length: 14\r\n\r\n{"reason":"x"}'),
    )
)
"""Requests that are the body of another one. The second one would stand in the audit."""

LAST = b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Request-ID: last\r\nConnection: close\r\n\r\n"
"""The request that follows every other one."""

TAKES = {
    # Lengths and chunks
    "Content-Length": Case(_sized(), TAKEN),
    "Content-Length with leading zeros": Case(_framed("Content-Length: 0000NNN"), TAKEN),
    "Content_Length beside Content-Length": Case(_sized("Content_Length: 5"), TAKEN),
    "chunks": Case(_chunked(), TAKEN),
    "chunks, in odd case": Case(
        lambda body: chunked(body).replace(CHUNKED.encode(), b"tRANSFER-eNCODING: CHUNKED"), TAKEN
    ),
    "chunk sizes with leading zeros, upper case": Case(_chunked(size=b"00000%X"), TAKEN),
    "chunk extensions": Case(_chunked(size=b'%x;a=b;c="d e";f'), TAKEN),
    "trailers": Case(_chunked(trailers=b"X: y\r\nHost: b\r\n"), TAKEN),
    "trailers that ask for an upgrade": Case(_chunked(trailers=b"Connection: Upgrade\r\nUpgrade: foo\r\n"), TAKEN),
    "Expect": Case(_sized("Expect: 100-continue"), TAKEN),
    "empty lines before": Case(lambda body: b"\r\n\r\n" + sized(body), TAKEN),
    "two requests": Case(lambda body: sized(body) * 2, ("taken", *TAKEN)),
    "a length, then chunks, then a length": Case(
        lambda body: sized(body) + chunked(body) + sized(body), ("taken", "taken", *TAKEN)
    ),
    # Upgrades
    "Upgrade": Case(_sized(*UPGRADE), TAKEN),
    "Upgrade, of the JDK": Case(_sized(*JDK), TAKEN),
    "Upgrade, of curl": Case(_sized(*CURL), TAKEN),
    "Upgrade to websocket": Case(
        _sized("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA=="),
        TAKEN,
    ),
    "Upgrade to one of several": Case(_sized("Connection: Upgrade", "Upgrade: h2c, websocket, foo/1"), TAKEN),
    "Upgrade to nothing": Case(_sized("Connection: Upgrade", "Upgrade:"), TAKEN),
    "Upgrade twice": Case(_sized(*UPGRADE, *UPGRADE), TAKEN),
    "Upgrade, among other connection options": Case(_sized("Connection: keep-alive, Upgrade", "Upgrade: foo"), TAKEN),
    "Upgrade, several Connection lines": Case(
        _sized("Connection: x", "Connection: upgrade", "Upgrade: foo", "Connection: keep-alive"), TAKEN
    ),
    "Upgrade, in odd case": Case(_sized("cOnNeCtIoN: uPgRaDe", "uPgRaDe: fOO"), TAKEN),
    "Upgrade without Connection": Case(_sized("Upgrade: foo"), TAKEN),
    "Connection: Upgrade alone": Case(_sized("Connection: Upgrade"), TAKEN),
    "Upgrade behind the length": Case(_framed("Content-Length: NNN", *UPGRADE), TAKEN),
    "Upgrade with chunks": Case(_chunked(*UPGRADE), TAKEN),
    "Upgrade with chunks, extensions, trailers": Case(
        _chunked(*UPGRADE, size=b"%x;a=b", trailers=b"X: y\r\nUpgrade: foo\r\n"), TAKEN
    ),
    "Upgrade with Expect": Case(_sized(*JDK, "Expect: 100-continue"), TAKEN),
    "Upgrade, again and again": Case(lambda body: sized(body, *JDK) * 3, ("taken", "taken", *TAKEN)),
    "Upgrade behind another request": Case(lambda body: sized(body) + sized(body, *JDK), ("taken", *TAKEN)),
    "Upgrade of PUT": Case(_sized(*UPGRADE, call="PUT /items HTTP/1.1"), TAKEN),
    # The last request of a connection
    "HTTP/1.0": Case(_sized(call="POST /predict HTTP/1.0"), TAKEN_LAST),
    "HTTP/1.0 without Host": Case(_sized(call="POST /predict HTTP/1.0", host=""), TAKEN_LAST),
    "HTTP/1.0 with Upgrade": Case(_sized(*UPGRADE, call="POST /predict HTTP/1.0"), TAKEN_LAST),
    "HTTP/1.0 with keep-alive and Upgrade": Case(
        _sized("Connection: keep-alive, Upgrade", "Upgrade: foo", call="POST /predict HTTP/1.0"), TAKEN_LAST
    ),
    "Connection: close, and more": Case(_closing, TAKEN_LAST),
    "Connection: close, and garbage": Case(_sized("Connection: close", then=b"x\0y"), TAKEN_LAST),
    "Connection: close with Upgrade, and more": Case(
        lambda body: sized(body, "Connection: close, Upgrade", "Upgrade: foo") + HIDDEN, TAKEN_LAST
    ),
    # Targets and hosts
    "a URL for a target": Case(_sized(call="POST http://A/predict HTTP/1.1"), TAKEN),
    "a host with a port": Case(_sized(host="Host: asmg_1.example:8000"), TAKEN),
    "an IPv6 host": Case(_sized(host="Host: [::1]:8000"), TAKEN),
    # What follows is no request
    "garbage behind": Case(_sized(then=b"x\r\n\r\n"), TAKEN_THEN_REFUSED),
    "garbage behind an Upgrade": Case(_sized(*JDK, then=b"x\r\n\r\n"), TAKEN_THEN_REFUSED),
}

REFUSES = {
    # CL/TE
    "length and chunks": _framed("Content-Length: NNN", CHUNKED),
    "chunks and length": _framed(CHUNKED, "Content-Length: NNN"),
    "length and chunks with Upgrade": _framed(*UPGRADE, "Content-Length: NNN", CHUNKED),
    "length and something like chunks": _framed("Content-Length: NNN", "Transfer-Encoding: xchunked"),
    "length and chunks in a folded line": _framed("Content-Length: NNN", "X: y", " " + CHUNKED),
    "length and chunks with a space before the colon": _framed("Content-Length: NNN", "Transfer-Encoding : chunked"),
    "length and chunks behind a bare LF": _framed("Content-Length: NNN", b"X: y\n" + CHUNKED.encode()),
    "length and chunks behind a bare CR": _framed("Content-Length: NNN", b"X: y\r" + CHUNKED.encode()),
    "length and a tab in Transfer-Encoding": _framed("Content-Length: NNN", "Transfer-Encoding:\tchunked\t"),
    # TE/TE
    "chunked twice": _framed(CHUNKED, CHUNKED),
    "chunked and identity": _framed(CHUNKED, "Transfer-Encoding: identity"),
    "identity and chunked": _framed("Transfer-Encoding: identity", CHUNKED),
    "chunked and something, in a list": _framed("Transfer-Encoding: chunked, identity"),
    "gzip, chunked": _framed("Transfer-Encoding: gzip, chunked"),
    "gzip": _framed("Transfer-Encoding: gzip"),
    "identity": _framed("Transfer-Encoding: identity"),
    "xchunked": _framed("Transfer-Encoding: xchunked"),
    "chunked with a parameter": _framed("Transfer-Encoding: chunked;q=1"),
    "chunked in quotes": _framed('Transfer-Encoding: "chunked"'),
    "no coding": _framed("Transfer-Encoding:"),
    "chunked with a vertical tab": _framed("Transfer-Encoding: \x0bchunked"),
    "chunks of HTTP/1.0": lambda body: chunked(body, call="POST /predict HTTP/1.0"),
    # CL/CL
    "two lengths": _framed("Content-Length: NNN", "Content-Length: 5"),
    "the same length twice": _framed("Content-Length: NNN", "Content-Length: NNN"),
    "two lengths with Upgrade": _framed("Content-Length: NNN", *UPGRADE, "Content-Length: 5"),
    "a list of lengths": _framed("Content-Length: NNN, NNN"),
    "a negative length": _framed("Content-Length: -5"),
    "a signed length": _framed("Content-Length: +NNN"),
    "a hexadecimal length": _framed("Content-Length: 0x5"),
    "an empty length": _framed("Content-Length:"),
    "a length with a space": _framed("Content-Length: 5 5"),
    "a length with a point": _framed("Content-Length: 5.0"),
    "a length with an underscore": _framed("Content-Length: 1_0"),
    "a length beyond 64 bits": _framed("Content-Length: 99999999999999999999999"),
    "no number for a length": _framed("Content-Length: five"),
    # Lines
    "a folded line": _framed("X: y", " z", "Content-Length: NNN"),
    "a line folded with a tab": _framed("X: y", "\tz", "Content-Length: NNN"),
    "a folded line behind the request line": lambda body: sized(body).replace(b"\r\n", b"\r\n X: y\r\n", 1),
    "bare LF behind the request line": _bare(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
    "bare LF behind a header": _bare(b"X: y\r\n", b"X: y\n"),
    "bare LF for the empty line": _bare(b"\r\n\r\n", b"\r\n\n"),
    "two bare LF at the end": _bare(b"\r\n\r\n", b"\n\n"),
    "bare CR in a value": _bare(b"X: y", b"X: y\rz"),
    "bare CR in a name": _bare(b"X: y", b"X\rY: y"),
    "two CR at the end of a line": _bare(b"X: y\r\n", b"X: y\r\r\n"),
    "NUL in a value": _bare(b"X: y", b"X: \0y"),
    "NUL in a name": _bare(b"X: y", b"X\0: y"),
    "a line without a colon": _bare(b"X: y", b"X y"),
    "a line without a name": _bare(b"X: y", b": y"),
    "a space in a name": _bare(b"X: y", b"X y: z"),
    "a space before the colon": _bare(b"X: y", b"X : y"),
    # Chunks
    "a chunk size that is no number": _chunks(b"x\r\n"),
    "a negative chunk size": _chunks(b"-1\r\na\r\n"),
    "a signed chunk size": _chunks(b"+1\r\na\r\n0\r\n\r\n"),
    "a chunk size with 0x": _chunks(b"0x1\r\na\r\n0\r\n\r\n"),
    "a chunk size behind a space": _chunks(b" 1\r\na\r\n0\r\n\r\n"),
    "a chunk size before a space": _chunks(b"1 \r\na\r\n0\r\n\r\n"),
    "a chunk size with a comma": _chunks(b"1,1\r\na\r\n0\r\n\r\n"),
    "a chunk size beyond 64 bits": _chunks(b"f" * 17 + b"\r\n"),
    "no chunk size": _chunks(b"\r\n\r\n"),
    "less in a chunk than it says": _chunks(b"5\r\nab\r\n0\r\n\r\n"),
    "more in a chunk than it says": _chunks(b"1\r\nabc\r\n0\r\n\r\n"),
    "bare LF behind a chunk size": _chunks(b"1\na\r\n0\r\n\r\n"),
    "bare LF behind a chunk": _chunks(b"1\r\na\n0\r\n\r\n"),
    "bare LF behind the last chunk": _chunks(b"1\r\na\r\n0\n\r\n"),
    "bare LF behind the trailers": _chunks(b"1\r\na\r\n0\r\n\n"),
    "bare LF in a chunk extension": _chunks(b"1;a\nb\r\na\r\n0\r\n\r\n"),
    "bare LF in a quoted chunk extension": _chunks(b'1;a="\n"\r\na\r\n0\r\n\r\n'),
    "bare CR in a chunk extension": _chunks(b"1;a\rb\r\na\r\n0\r\n\r\n"),
    "a folded trailer": _chunks(b"0\r\nX: y\r\n z\r\n\r\n"),
    "a length in the trailers": _chunks(b"0\r\nContent-Length: 5\r\n\r\n"),
    "a chunk size that is no number, with Upgrade": lambda body: head(*JDK, CHUNKED) + b"\r\nx\r\n" + body,
    # Hosts
    "no Host": _sized(host=""),
    "no Host, with Upgrade": _sized(*JDK, host=""),
    "two Hosts": _sized("Host: b"),
    "the same Host twice": _sized("Host: a"),
    "two Hosts of HTTP/1.0": _sized("Host: b", call="POST /predict HTTP/1.0"),
    "an empty Host": _sized(host="Host:"),
    "a list of Hosts": _sized(host="Host: a, b"),
    "a list of Hosts without a space": _sized(host="Host: a,b"),
    "a path in Host": _sized(host="Host: a/b"),
    "a user in Host": _sized(host="Host: u@a"),
    "no number for a port": _sized(host="Host: a:b"),
    "letters beyond ASCII in Host": _sized(host="Host: gr\xfc\xdfe"),
    # Request lines
    "a URL of another host": _sized(call="POST http://b/predict HTTP/1.1"),
    "a URL with a user": _sized(call="POST http://u@a/predict HTTP/1.1"),
    "a URL without a path": _sized(call="POST http://a HTTP/1.1"),
    "a URL of FTP": _sized(call="POST ftp://a/predict HTTP/1.1"),
    "a fragment": _sized(call="POST /predict#x HTTP/1.1"),
    "no target": _sized(call="POST HTTP/1.1"),
    "letters beyond ASCII in the target": _sized(call="POST /gr\xf6\xdfe HTTP/1.1"),
    "a tab in the request line": _sized(call="POST\t/predict HTTP/1.1"),
    "a space behind the request line": _sized(call="POST /predict HTTP/1.1 "),
    "HTTP/0.9": _sized(call="POST /predict HTTP/0.9"),
    "no version": _sized(call="POST /predict"),
    "a GET without a version": _bytes(b"GET /healthz\r\n\r\n"),
    "HTTP/1.2": _sized(call="POST /predict HTTP/1.2"),
    "HTTP/2.0": _sized(call="POST /predict HTTP/2.0"),
    "HTTP/9.9": _sized(call="POST /predict HTTP/9.9"),
    "HTTP/1.10": _sized(call="POST /predict HTTP/1.10"),
    "http/1.1": _sized(call="POST /predict http/1.1"),
    "an unknown method": _sized(call="HACK /predict HTTP/1.1"),
    "a method in lower case": _sized(call="post /predict HTTP/1.1"),
    "CONNECT": _sized(call="CONNECT a:80 HTTP/1.1"),
    "CONNECT with Upgrade": _sized(*UPGRADE, call="CONNECT a:80 HTTP/1.1"),
    # No HTTP/1
    "HTTP/2 from the start": _bytes(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(6) + b"\x04" + bytes(8)),
    "TLS": _bytes(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256))),
    "any bytes": _bytes(bytes(range(256))),
    "NULs": _bytes(bytes(100)),
}

CASES = TAKES | {name: Case(made, REFUSED) for name, made in REFUSES.items()}
