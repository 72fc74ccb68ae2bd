"""One api process: uvicorn with the application, on the listening socket that it inherits from `asmg serve`."""

import gc
import resource
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from service.processes.garbage import collect_no_garbage
from service.processes.traces import traced_process
from service.settings import Settings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

__all__ = ["run_api", "server_config"]

API_GRACE_SECONDS = 20
"""Seconds that requests in flight may take to end when the process stops; uvicorn cuts them off then."""

SWITCH_SECONDS = 0.0005
"""Seconds after which a thread with longer work lets the event loop run; Python's 5 ms would delay requests."""

SPARE_FILES = 500
"""Open files of an api process beside its clients' connections: to Postgres and Redis, snapshots, refused clients."""

GC_THRESHOLD = 10_000
"""New objects after which Python looks for cyclic garbage: more than its default, because requests leave none."""


def run_api(settings: Settings, listener: int, metrics_listener: int | None = None) -> None:
    """Serve the API until SIGTERM.

    Args:
        settings: with both DSNs.
        listener: file descriptor of the listening socket.
        metrics_listener: file descriptor of the listening socket for metrics, if they have one of their own.
    """
    with collect_no_garbage():
        import uvicorn

        from service.app import create_app

    _raise_file_limit(settings.max_connections + SPARE_FILES)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # imported modules stay for good: the collector need not look at them while requests wait
    gc.set_threshold(GC_THRESHOLD)
    metrics = None if metrics_listener is None else socket.socket(fileno=metrics_listener)
    with traced_process("asmg-api"):
        app = create_app(settings, stopping=lambda: server.should_exit, metrics_listener=metrics)
        server = uvicorn.Server(server_config(app, tls_cert=settings.tls_cert, tls_key=settings.tls_key))
        server.run(sockets=[socket.socket(fileno=listener)])


def server_config(app: "FastAPI", *, tls_cert: Path | None = None, tls_key: Path | None = None) -> "uvicorn.Config":
    """How uvicorn serves the application of `create_app`; with a certificate and its key by HTTPS."""
    import uvicorn

    from service.http.connection import UVICORN_IDLE_SECONDS, Connection, with_connection
    from service.http.headers import SECURITY_HEADERS, STRICT_TRANSPORT

    return uvicorn.Config(
        with_connection(app),
        http=Connection,
        lifespan="on",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        # Of all that is written on a connection, also where the application is not asked.
        headers=[*SECURITY_HEADERS, STRICT_TRANSPORT] if tls_cert else list(SECURITY_HEADERS),
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        proxy_headers=False,  # the key tells who calls; before one exists, a proxy does not count as this host
        timeout_keep_alive=UVICORN_IDLE_SECONDS,
        timeout_graceful_shutdown=API_GRACE_SECONDS,
        reset_contextvars=True,  # a request does not inherit the context of the one before it on its connection
    )


def _raise_file_limit(number: int) -> None:
    """Let this process open `number` files, or as many as the host allows if those are fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        allowed = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
