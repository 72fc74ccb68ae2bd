"""HTTP/1.1 as raw bytes, for requests that no client library sends."""

import json
import socket
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

Answer = tuple[int, dict[str, str], Any]
"""Status, headers by lower-case name, and the JSON document; None where it is something else."""


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection:
    def __init__(self, url: str, *, seconds: float = 5, receive_buffer: int | None = None) -> None:
        place = urlsplit(url)
        self.socket = socket.socket()
        self.socket.settimeout(seconds)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect((place.hostname, place.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._left = b""

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.socket.sendall(part)

    def send_in_vain(self, *parts: bytes) -> bool:
        """Send; whether the other side took it all."""
        try:
            self.send(*parts)
        except OSError:
            return False
        return True

    def answer(self) -> Answer:
        while b"\r\n\r\n" not in self._left:
            self._left += self._more()
        head, _, rest = self._left.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(headers["content-length"])
        while len(rest) < length:
            rest += self._more()
        self._left = rest[length:]
        is_json = headers["content-type"].endswith("json")
        return int(status.split(" ")[1]), headers, json.loads(rest[:length]) if is_json else None

    def answers(self) -> list[Answer]:
        """All that come until the other side ends the connection, or says nothing more; without those that only say
        that the request may go on.
        """
        found = []
        with suppress(ConnectionError, TimeoutError):
            while True:
                while len(self._left) < len(CONTINUE):
                    self._left += self._more()
                if self._left.startswith(CONTINUE):
                    self._left = self._left.removeprefix(CONTINUE)
                else:
                    found.append(self.answer())
        return found

    def first_status(self, *, seconds: float) -> int | None:
        """That of the next answer, of which the rest is left; None where none begins within `seconds`."""
        self.socket.settimeout(seconds)
        with suppress(TimeoutError, ConnectionError):
            while True:
                while len(self._left) < len("HTTP/1.1 200"):
                    self._left += self._more()
                status = int(self._left.split(b" ", 2)[1])
                if status >= 200:
                    return status
                self._left = self._left.partition(b"\r\n\r\n")[2]
        return None

    def end(self) -> None:
        """Say that nothing more will be sent, and wait until the other side ends the connection too."""
        self.socket.settimeout(5)
        with suppress(ConnectionError):
            self.socket.shutdown(socket.SHUT_WR)
            while self.socket.recv(65536):
                pass

    def is_closed(self) -> bool:
        """Whether nothing comes any more; waits for that."""
        with suppress(ConnectionError):
            return self._left == b"" and self.socket.recv(1) == b""
        return True

    def _more(self) -> bytes:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError("the connection was closed")
        return data

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
