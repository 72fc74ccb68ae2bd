"""Reads HTTP/1.1 responses in a few microseconds each: as much of the protocol as the measured servers use."""

from typing import NamedTuple

HEAD_END = b"\r\n\r\n"
BODILESS = (204, 304)


class BadResponse(ValueError):
    """Bytes that are not one response of HTTP/1.1, or one with a feature that is not read here."""


class Response(NamedTuple):
    """One whole response."""

    status: int
    body: bytes
    keep_alive: bool
    """Whether the connection can be used again."""


def parse_response(data: bytes) -> Response | None:
    """The response in `data`; None while it is incomplete.

    Raises:
        BadResponse: it is no response, or more than one.
    """
    end = data.find(HEAD_END)
    if end < 0:
        return None
    if not data.startswith(b"HTTP/1.1 "):
        raise BadResponse(f"expected an answer of HTTP/1.1; received {data[:20]!r}")
    status = int(data[9:12])
    head = data[: end + 2].lower()
    keep_alive = b"\r\nconnection: close\r\n" not in head
    start = end + len(HEAD_END)
    if (at := head.find(b"\r\ncontent-length:")) >= 0:
        length = int(head[at + 17 : head.index(b"\r\n", at + 17)])
        body: bytes | None = data[start : start + length]
        stop = start + length
    elif b"\r\ntransfer-encoding: chunked\r\n" in head:
        body, stop = _dechunked(data, start)
    elif status in BODILESS:
        body, stop = b"", start
    else:
        raise BadResponse("expected Content-Length or a chunked body; received neither")
    if body is None or len(data) < stop:
        return None
    if len(data) > stop:
        raise BadResponse("expected one answer; received more bytes than that")
    return Response(status, body, keep_alive)


def _dechunked(data: bytes, start: int) -> tuple[bytes | None, int]:
    """The body of the chunks from `start` on and where it ends; None where chunks are missing."""
    parts: list[bytes] = []
    while (end := data.find(b"\r\n", start)) >= 0:
        size = int(data[start:end].partition(b";")[0], 16)
        start = end + 2
        if size == 0:
            # No trailers: none of the servers sends any.
            return (b"".join(parts), start + 2) if len(data) >= start + 2 else (None, start)
        parts.append(data[start : start + size])
        start += size + 2
    return None, start
