"""`asmg serve`: starts the processes of one host, keeps them running and stops them in order.

    asmg serve ─┬─ embedded Postgres and Redis, where no servers are configured
                ├─ api 1 … api N, which share one listening socket
                └─ worker

The parent owns the socket: a port that is taken is one clear message, and while an api process restarts, new
connections wait for the others instead of being refused. Ctrl-C reaches the parent alone. It closes the socket, asks
the api processes and the worker to stop, waits until they have ended, and stops the embedded servers.
"""

import asyncio
import signal
import ssl
import sys
import tempfile
import time
from contextlib import ExitStack

from service.addresses import in_url, is_loopback
from service.errors import ConfigurationError
from service.processes.child import child_command, environment_of
from service.processes.installation import installation, require_objects, require_redis
from service.processes.listening import LOOPBACK, is_ready, listen
from service.processes.stop_request import StopRequest
from service.processes.supervisor import Supervisor
from service.settings import Settings
from service.storage.postgres.database import Database
from service.telemetry.settings import MULTIPROCESS_VARIABLE

__all__ = ["serve"]

TICK_SECONDS = 0.1
"""Seconds between two looks at the children."""


def serve(settings: Settings, *, worker: bool | None = None, migrate_first: bool = False) -> None:
    """Run the service until SIGINT or SIGTERM; a second signal kills what has not ended yet.

    Args:
        settings: with the addresses of Postgres and Redis, or with neither: then embedded servers are started.
        worker: whether to run the worker too; by default with embedded servers only.
        migrate_first: bring the schema of a configured database up to date.

    Raises:
        ConfigurationError: the service cannot start with these settings, or Redis or the object store does not
            answer.
        NotReady: Postgres does not answer.
    """
    with_worker = settings.embedded if worker is None else worker
    with ExitStack() as stack:
        # Not SIGHUP: a service that was started with nohup goes on when its terminal is closed.
        stop = stack.enter_context(StopRequest((signal.SIGINT, signal.SIGTERM)))
        settings = stack.enter_context(installation(settings, migrate_first=migrate_first))
        require_redis(settings)
        require_objects(settings)
        host = _host_to_listen_on(settings)
        # The children read these files too. Checked here, an error is one message and not one for each restart.
        _check_certificate(settings)
        settings.read_features()
        listener = stack.enter_context(listen(host, settings.port))
        port = int(listener.getsockname()[1])
        environment = environment_of(settings)
        if settings.api_workers > 1:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="asmg-metrics-"))
            environment[MULTIPROCESS_VARIABLE] = folder
        sockets = [listener]
        if settings.metrics_port is not None:
            sockets.append(stack.enter_context(listen(settings.metrics_host, settings.metrics_port)))
        api = child_command("api", *(str(each.fileno()) for each in sockets))
        commands = {f"api {number}": api for number in range(1, settings.api_workers + 1)}
        if with_worker:
            commands["worker"] = child_command("worker")
        supervisor = Supervisor(commands, environment=environment, pass_fds=[each.fileno() for each in sockets])
        tls = settings.tls_cert is not None
        ready = False
        try:
            while not stop.requested:
                supervisor.start_missing()
                if not ready and (ready := is_ready(host, port, tls=tls)):
                    print(f"asmg: listening on {'https' if tls else 'http'}://{in_url(host)}:{port}", flush=True)
                time.sleep(TICK_SECONDS)
        finally:
            listener.close()  # first, so that new connections are refused rather than left waiting for nobody
            supervisor.stop(hurried=lambda: stop.hurried)


def _host_to_listen_on(settings: Settings) -> str:
    """The host of the settings; loopback as long as no API key was ever made, and then the reason is printed."""
    host = settings.host
    if asyncio.run(_any_key_ever(settings)):
        return host
    host = host if is_loopback(host) else LOOPBACK
    print(
        f"asmg: there is no API key yet, so only this host can call the service ({host}); "
        "create one with `asmg keys create NAME --scope predict,ingest,admin` and start again",
        file=sys.stderr,
        flush=True,
    )
    return host


async def _any_key_ever(settings: Settings) -> bool:
    assert settings.postgres_dsn is not None
    database = Database(settings.postgres_dsn, pool_size=1)
    try:
        async with database.read() as session:
            return await session.keys.any_ever()
    finally:
        await database.close()


def _check_certificate(settings: Settings) -> None:
    """Check that the certificate and its key can be used, if there are any.

    Raises:
        ConfigurationError: they cannot be used.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return
    try:
        # An empty password, so that an encrypted key is refused instead of asking for its password on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, lambda: "")
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"cannot serve HTTPS with {settings.tls_cert} and {settings.tls_key}: {error.strerror or error}"
        ) from None
