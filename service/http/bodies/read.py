"""Reads request bodies: counts their bytes against the limits, and inflates those that are compressed."""

import asyncio
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from service.errors import BodyTooLarge, NotReady
from service.http.headers import content_coding, declared_length
from service.limits import MAX_GZIP_MEMBERS

__all__ = ["SMALL_BYTES", "Bodies", "gunzipped", "is_small", "read_body"]

GZIP = ("gzip", "x-gzip")
"""Names of the only content coding that is accepted, and only by calls that store something."""

SMALL_BYTES = 64 * 1024
"""The largest body that is parsed on the event loop, which takes a fraction of a millisecond."""

GZIP_WINDOW = 16 + zlib.MAX_WBITS
"""Tells zlib that the stream has the header and the checksum of gzip."""
GZIP_INPUT_BYTES = 16 * 1024
"""Compressed bytes that are given to zlib at a time. At the end of a member zlib copies those that it has not used."""


def is_small(body: bytes) -> bool:
    """Whether a body is so small that it is parsed on the event loop, else in a thread."""
    return len(body) <= SMALL_BYTES


def _check_head(scope: Scope, max_bytes: int, *, gzip: bool) -> bool:
    """Check what the headers say about the body; returns whether it is compressed.

    Raises:
        BodyTooLarge: it is longer than `max_bytes`.
        HTTPException: 415, it is compressed although it may not be, or in another way than gzip.
    """
    coding = content_coding(scope)
    if coding is not None and not (gzip and coding.lower() in GZIP):
        expected, accepted = ("gzip, or none", "gzip") if gzip else ("none", "identity")
        raise HTTPException(
            415,
            f"expected {expected} as Content-Encoding; received {coding[:100]}",
            headers={"Accept-Encoding": accepted},
        )
    if declared_length(scope) > max_bytes:
        raise BodyTooLarge(max_bytes)
    return coding is not None


_COUNT = "asmg.count_bytes"


class Bodies:
    """Counts the bytes of the bodies of all calls that are under way, and limits their sum.

    Of a compressed body both the received and the inflated bytes count.

    Args:
        max_bytes: limit of the sum.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0

    @contextmanager
    def counted(self, scope: Scope, receive: Receive, max_bytes: int) -> Iterator[Receive]:
        """Count the body of one call while the `with` block lasts; gives a `receive` that does so.

        It raises BodyTooLarge as soon as this body has more than `max_bytes`, and NotReady as soon as the sum is too
        large; `read_body` raises the latter too, while it inflates.
        """
        received = counted = 0

        def count(length: int) -> None:
            nonlocal counted
            counted += length
            self._bytes += length
            if self._bytes > self._max_bytes:
                raise NotReady(f"the bodies of all calls have more than {self._max_bytes} bytes")

        async def receive_and_count() -> Message:
            nonlocal received
            message = await receive()
            length = len(message.get("body", b""))
            received += length
            if received > max_bytes:
                raise BodyTooLarge(max_bytes)
            count(length)
            return message

        scope[_COUNT] = count
        try:
            yield receive_and_count
        finally:
            self._bytes -= counted


async def read_body(scope: Scope, receive: Receive, max_bytes: int, *, gzip: bool = False) -> bytes:
    """Read the whole body of a request, and inflate it where it is compressed.

    Args:
        scope, receive: of the request.
        max_bytes: limit of the body, compressed and inflated.
        gzip: whether it may be compressed.

    Raises:
        ClientDisconnect: the client has disconnected.
        BodyTooLarge: the body is longer than `max_bytes`.
        HTTPException: 415, it is compressed although it may not be, or in another way than gzip; 400, it is no gzip
            stream.
        NotReady: the bodies of all calls together are too large.
    """
    compressed = _check_head(scope, max_bytes, gzip=gzip)
    parts: list[bytes] = []
    received, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        received += len(parts[-1])
        if received > max_bytes:
            raise BodyTooLarge(max_bytes)
        more = message.get("more_body", False)
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    return await _inflated(scope, body, max_bytes) if compressed else body


async def _inflated(scope: Scope, body: bytes, max_bytes: int) -> bytes:
    """Inflate a body: its pieces on the event loop while there are few, else each in a thread."""
    count: Callable[[int], None] = scope.get(_COUNT, lambda _: None)
    parts: list[bytes] = []
    inflated, pieces = 0, gunzipped(body)
    while True:
        on_the_loop = is_small(body) and inflated < SMALL_BYTES
        piece = next(pieces, None) if on_the_loop else await asyncio.to_thread(next, pieces, None)
        if piece is None:
            return b"".join(parts)
        inflated += len(piece)
        if inflated > max_bytes:
            raise BodyTooLarge(max_bytes)
        count(len(piece))
        parts.append(piece)


def gunzipped(body: bytes) -> Iterator[bytes]:
    """Inflate a gzip stream of one or more members (RFC 1952), in pieces of at most `SMALL_BYTES`.

    Raises:
        HTTPException: 400, it is no gzip stream, is cut short, is followed by something else, or has more than
            `MAX_GZIP_MEMBERS` members.
    """
    inflating, members = zlib.decompressobj(GZIP_WINDOW), 1
    taken, waiting = 0, b""
    while True:
        if not waiting:
            waiting = body[taken : taken + GZIP_INPUT_BYTES]
            taken += len(waiting)
        try:
            piece = inflating.decompress(waiting, SMALL_BYTES)
        except zlib.error as error:
            raise HTTPException(400, f"expected a gzip stream and nothing else; received one with: {error}") from None
        if piece:
            yield piece
        waiting = inflating.unused_data if inflating.eof else inflating.unconsumed_tail
        over = not waiting and taken == len(body)
        if inflating.eof:
            if over:
                return
            if members == MAX_GZIP_MEMBERS:
                raise HTTPException(400, f"expected at most {MAX_GZIP_MEMBERS} members of a gzip stream; received more")
            inflating, members = zlib.decompressobj(GZIP_WINDOW), members + 1
        elif over and not piece:
            raise HTTPException(400, "expected a whole gzip stream; received one that is cut short")
