"""A server on loopback that webhooks are delivered to, and that answers as it is told."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event
from typing import Any


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: Message
    body: bytes


@dataclass
class Receiver:
    """What came, and what is answered."""

    port: int = 0
    received: list[Received] = field(default_factory=list)
    answers: list[int | Event] = field(default_factory=list)
    """Statuses of the next answers, then 200; an event is waited for, and nothing is answered."""


@contextmanager
def receiver(*answers: int | Event, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver that runs during the block."""
    made = Receiver(answers=list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.received.append(Received(self.path, self.headers, body))
            answer = made.answers.pop(0) if made.answers else 200
            if isinstance(answer, Event):
                answer.wait(30)
                return
            self.send_response(answer)
            if 300 <= answer < 400:
                self.send_header("Location", f"http://127.0.0.1:{made.port}/trap")
            self.end_headers()
            self.wfile.write(b"x" * 100_000 if answer >= 500 else b"")

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # a client that has gone

    server = Server(("127.0.0.1", port), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        for answer in made.answers:
            if isinstance(answer, Event):
                answer.set()
        server.shutdown()
        thread.join()
        server.server_close()
