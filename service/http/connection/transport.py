"""The transport that a connection gives to uvicorn's protocol.

uvicorn writes the head and the body of a response one after the other, and uvloop makes a system call of each, which
costs about as much as scoring 50 candidates. So what is written in one turn of the event loop is sent together.
"""

import asyncio
from collections.abc import Callable

__all__ = ["UvicornTransport"]

MAX_HELD_BYTES = 64 * 1024
"""Bytes that are held back until the end of the turn; more are sent at once, so that a stream meets back-pressure."""


class UvicornTransport(asyncio.Transport):
    """Writes to a client for uvicorn; the connection decides when it is closed, and whether it reads.

    Args:
        transport: of the client.
        loop: that runs it.
        close: closes the connection.
        is_closing: whether the connection ends.
        pause: stops reading for uvicorn (True), or continues (False).
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        *,
        close: Callable[[], None],
        is_closing: Callable[[], bool],
        pause: Callable[[bool], None],
    ) -> None:
        super().__init__()
        self._transport, self._loop, self._pause = transport, loop, pause
        self._held: list[bytes | bytearray | memoryview] = []
        self._held_bytes = 0
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.close = close  # type: ignore[method-assign]
        self.is_closing = is_closing  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send the data, together with what else is written in this turn of the event loop."""
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > MAX_HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what is held back; drop it where the client's transport was closed or aborted meanwhile."""
        if self._held:
            if not self._transport.is_closing():
                self._transport.write(b"".join(self._held))
            self._held.clear()
            self._held_bytes = 0

    def pause_reading(self) -> None:
        """Read no more for uvicorn."""
        self._pause(True)

    def resume_reading(self) -> None:
        """Go on reading for uvicorn."""
        self._pause(False)

    def detach(self) -> None:
        """Send what was written so far; ignore whatever uvicorn still writes, and that it closes the connection."""
        self.flush()
        self.write = self.close = _ignore  # type: ignore[method-assign, assignment]


def _ignore(*_: object) -> None:
    pass
