"""A port of its own for the metrics of a process: plain HTTP, `GET /metrics` and nothing else, answered by threads.

Several api processes share one listening socket. Each can answer for all of them (`service.http.metrics`), so whoever
accepts a connection does.
"""

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["metrics_port"]

logger = logging.getLogger(__name__)

CLIENT_SECONDS = 10.0
"""How long a client may take to send its request and to read the answer."""
POLL_SECONDS = 0.1
"""Seconds after which the server sees that it is to end."""


@contextmanager
def metrics_port(listener: socket.socket, render: Callable[[], bytes]) -> Iterator[None]:
    """Answer `GET /metrics` on a socket as long as the block runs.

    Args:
        listener: a listening TCP socket; closed at the end.
        render: the metrics in the text format; called in a thread.
    """
    listener.setblocking(False)  # another process may have accepted a connection that this one was told of

    class Handler(BaseHTTPRequestHandler):
        timeout = CLIENT_SECONDS
        server_version, sys_version = "asmg", ""

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            try:
                content = render()
            except Exception:
                logger.exception("the metrics cannot be told")
                self.send_error(500)
                return
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            logger.debug(format, *args)

    server = _Server(listener.getsockname()[:2], Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    thread = Thread(target=server.serve_forever, args=(POLL_SECONDS,), name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    """A server whose threads do not keep the process alive."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Drop a connection whose client went away, without a word on the standard error."""
        logger.debug("a client of the metrics went away", exc_info=True)
