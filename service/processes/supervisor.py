"""`asmg serve`: the processes of one host, started, kept running and stopped in order.

    asmg serve ─┬─ embedded Postgres and Redis, where no servers are configured
                ├─ api 1 … api N, which share one listening socket
                └─ worker

The socket belongs to the parent: a port that is taken is one clear message, and while a child restarts its connections
wait for the others instead of being refused. The children are sessions of their own, so Ctrl-C reaches the parent
alone, which stops them in order: requests in flight end, then the worker, then the servers.

`python -m service.supervisor api|worker …` is such a child.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from prometheus_client.multiprocess import mark_process_dead

from service.addresses import in_url, is_loopback, parse_address
from service.context import NameRequest
from service.errors import ConfigurationError, NotReady
from service.http.metrics import MULTIPROCESS_VARIABLE
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.pooler import require_sessions
from service.tasks import end_tasks, start_for_caller

__all__ = [
    "Supervisor",
    "configure_logging",
    "environment_of",
    "installation",
    "listen",
    "require_redis",
    "run_worker",
    "serve",
    "server_config",
]

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
BACKLOG = 2048
TICK_SECONDS = 0.1
PROBE_SECONDS = 2.0
PARENT_CHECK_SECONDS = 0.5

POSTGRES_REFUSALS = {
    "28000": "does not let this user in",
    "28P01": "refuses the user name or password",
    "3D000": "has no database of this name",
}
"""What is wrong with a DSN, by SQLSTATE; whatever else it may be can pass by itself."""

API_GRACE_SECONDS = 20
"""How long requests in flight may take to end; the server cuts them off then."""
STOP_SECONDS = 30.0
"""How long a child may take to end; it is killed then."""

SWITCH_SECONDS = 0.0005
"""After how long a thread with larger work lets the event loop go on; Python's own 5 ms would be felt by requests."""

SPARE_FILES = 500
"""Open files of an api process beside the connections of its clients: to Postgres and Redis, snapshots, refusals."""

GC_THRESHOLD = 10_000
"""Objects between two looks for garbage in cycles, of which requests leave none."""

FIRST_DELAY_SECONDS = 0.5
LAST_DELAY_SECONDS = 30.0
STEADY_SECONDS = 30.0
"""A child that ran this long did not fail because of how it was started: its delays begin anew."""


def configure_logging() -> None:
    """Log lines to the standard error, one format for all processes, with the id of the request that they belong to."""
    output = logging.StreamHandler()
    output.addFilter(NameRequest())
    line = "%(asctime)s %(levelname)s %(name)s[%(process)d] %(request_id)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=line, handlers=[output])
    logging.getLogger("alembic").setLevel(logging.WARNING)


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that make a child read exactly these settings."""
    values = settings.model_dump(exclude_none=True)
    lists = {name: value if isinstance(value, tuple) else (value,) for name, value in values.items()}
    return {f"ASMG_{name.upper()}": ",".join(map(str, value)) for name, value in lists.items()}


@contextmanager
def installation(settings: Settings, *, migrate_first: bool = False, any_schema: bool = False) -> Iterator[Settings]:
    """The servers of an installation, as settings with both DSNs; the schema is at its head, unless it may be `any`.

    Embedded servers run at least as long as the `with` block, and their schema is always brought up to date. A
    configured database is not touched unless `migrate_first`: it may be shared with processes of another release. With
    `any_schema` no database is touched, or looked at.

    Raises:
        ConfigurationError: the schema is not at its head, the embedded servers do not start, or a pooler is between
            that keeps no sessions.
        NotReady: Postgres does not answer.
    """
    from service.storage.embedded.servers import (
        EmbeddedServers,  # what the children, which import this module, do without
    )
    from service.storage.postgres.migrate import migrate

    with ExitStack() as stack:
        embedded = settings.embedded
        if embedded:
            servers = stack.enter_context(EmbeddedServers(settings.data_dir))
            settings = settings.model_copy(
                update={"postgres_dsn": servers.postgres_dsn, "redis_url": servers.redis_url}
            )
        dsn = settings.postgres_dsn
        assert dsn is not None  # both or neither, says Settings
        asyncio.run(_ping(dsn))
        if any_schema:
            pass
        elif embedded or migrate_first:
            migrate(dsn)
        else:
            _require_current_schema(dsn)
        yield settings


async def _ping(dsn: str) -> None:
    try:
        await require_sessions(dsn)
    except NotReady as error:
        reason = POSTGRES_REFUSALS.get(str(getattr(error.__cause__, "sqlstate", None)))
        if reason is None:
            raise
        raise ConfigurationError(f"the Postgres of ASMG_POSTGRES_DSN {reason}") from None


def require_redis(settings: Settings) -> None:
    """Return where Redis answers, or need not.

    Raises:
        ConfigurationError: it does not, and has to.
    """
    from service.storage.redis.connection import connection_problem  # the children import this module and not Redis

    assert settings.redis_url is not None
    if (reason := asyncio.run(connection_problem(settings.redis_url))) is None:
        return
    if not settings.start_without_redis:
        raise ConfigurationError(
            f"the Redis of ASMG_REDIS_URL {reason}; ASMG_START_WITHOUT_REDIS=true starts without it, slower"
        )
    logger.warning("the Redis of ASMG_REDIS_URL %s; the service starts without it, slower", reason)


def _require_current_schema(dsn: str) -> None:
    from alembic import command as alembic
    from alembic.util import CommandError

    from service.storage.postgres.migrate import alembic_config

    config = alembic_config(dsn)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        config.stdout = nowhere
        try:
            alembic.current(config, check_heads=True)
        except CommandError as error:
            raise ConfigurationError(
                f"the schema of the database is not that of this release ({error}); run `asmg migrate` first"
            ) from None


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 is any that is free. `::` takes IPv4 too, where the host can.

    Raises:
        ConfigurationError: the address is in use, or none of this host.
    """
    try:
        host = str(parse_address(host) or host)  # 127.0.0.1 also where it is written ::ffff:127.0.0.1
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((str(address[0]), port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {in_url(host)}:{port}: {error.strerror or error}") from None


@dataclass(slots=True)
class _Child:
    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    restart_at: float = field(default=0.0)


class Supervisor:
    """Keeps child processes running until told to stop them.

    Args:
        commands: name and arguments of each child; the first to be started is the first to be stopped.
        environment: of the children, over that of this process.
        pass_fds: open files that they inherit.
    """

    def __init__(
        self, commands: Mapping[str, Sequence[str]], *, environment: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        self._children = [_Child(name, command) for name, command in commands.items()]
        self._environment = {**os.environ, **environment}
        self._pass_fds = tuple(pass_fds)

    def tend(self) -> None:
        """Start what does not run: at once what never did, after a growing delay what died. To be called often."""
        now = time.monotonic()
        for child in self._children:
            if child.process is not None and (code := child.process.poll()) is not None:
                self._note_death(child, code, now)
            if child.process is None and now >= child.restart_at:
                child.process = subprocess.Popen(
                    child.command,
                    stdin=subprocess.DEVNULL,
                    env=self._environment,
                    pass_fds=self._pass_fds,
                    start_new_session=True,
                )
                child.started_at = now
                logger.info("%s runs as process %d", child.name, child.process.pid)

    def stop(self, hurry: threading.Event | None = None) -> None:
        """End all children: each is asked, and killed after `STOP_SECONDS`, or as soon as `hurry` is set."""
        running = [(child.name, child.process) for child in self._children if child.process is not None]
        for _, process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for name, process in running:
            while process.poll() is None and time.monotonic() < deadline and not (hurry and hurry.is_set()):
                time.sleep(TICK_SECONDS)
            if process.poll() is None:
                logger.warning("%s did not end; it is killed", name)
                process.kill()
                process.wait()
        for child in self._children:
            child.process = None

    def _note_death(self, child: _Child, code: int, now: float) -> None:
        assert child.process is not None
        if folder := self._environment.get(MULTIPROCESS_VARIABLE):
            mark_process_dead(child.process.pid, folder)  # type: ignore[no-untyped-call]  # has types in part
        if now - child.started_at > STEADY_SECONDS:
            child.failures = 0
        delay = min(FIRST_DELAY_SECONDS * 2**child.failures, LAST_DELAY_SECONDS)
        logger.error("%s ended with code %d; it is started again in %.1f s", child.name, code, delay)
        child.process = None
        child.failures += 1
        child.restart_at = now + delay


@contextmanager
def _stop_signals() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Two events: the first SIGINT or SIGTERM sets `stop`, a second one `hurry`."""
    stop, hurry = threading.Event(), threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        (hurry if stop.is_set() else stop).set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop, hurry
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(settings: Settings, *, worker: bool | None = None, migrate_first: bool = False) -> None:
    """Run the service until SIGINT or SIGTERM.

    Args:
        settings: with or without DSNs; without, the servers are embedded.
        worker: whether to run the worker too; by default with embedded servers only.
        migrate_first: bring the schema of a configured database up to date.

    Raises:
        ConfigurationError: something is set so that the service cannot start, or Redis does not answer.
        NotReady: Postgres does not answer.
    """
    with_worker = settings.embedded if worker is None else worker
    with ExitStack() as stack:
        stop, hurry = stack.enter_context(_stop_signals())
        settings = stack.enter_context(installation(settings, migrate_first=migrate_first))
        require_redis(settings)
        host = settings.host
        if not asyncio.run(_any_key_ever(settings)):
            host = host if is_loopback(host) else LOOPBACK
            print(
                f"asmg: there is no API key yet, so only this host can call the service ({host}); "
                "create one with `asmg keys create NAME --scope predict,ingest,admin` and start again",
                file=sys.stderr,
                flush=True,
            )
        _check_certificate(settings)
        settings.read_features()  # the same: what is wrong with it is one message
        listener = stack.enter_context(listen(host, settings.port))
        port = int(listener.getsockname()[1])
        environment = environment_of(settings)
        if settings.api_workers > 1:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="asmg-metrics-"))
            environment[MULTIPROCESS_VARIABLE] = folder
        api = _child_command("api", str(listener.fileno()))
        commands = {f"api {number}": api for number in range(1, settings.api_workers + 1)}
        if with_worker:
            commands["worker"] = _child_command("worker")
        supervisor = Supervisor(commands, environment=environment, pass_fds=[listener.fileno()])
        ready = False
        try:
            while not stop.is_set():
                supervisor.tend()
                if not ready and (ready := _is_ready(host, port, tls=settings.tls_cert is not None)):
                    scheme = "http" if settings.tls_cert is None else "https"
                    print(f"asmg: listening on {scheme}://{in_url(host)}:{port}", flush=True)
                stop.wait(TICK_SECONDS)
        finally:
            listener.close()  # first, so that new connections are refused rather than left waiting for nobody
            supervisor.stop(hurry)


def _child_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "service.processes.supervisor", *arguments, str(os.getpid())]


async def _any_key_ever(settings: Settings) -> bool:
    assert settings.postgres_dsn is not None
    database = Database(settings.postgres_dsn, pool_size=1)
    try:
        async with database.read() as session:
            return await session.keys.any_ever()
    finally:
        await database.close()


def _check_certificate(settings: Settings) -> None:
    """Return where the certificate and its key can be used, or there is none.

    Raises:
        ConfigurationError: they cannot: here it is one message, in a child one for each time that it is started again.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return
    try:
        # An empty password, so that a key that needs one is refused and not asked for at a terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, lambda: "")
    except OSError as error:  # as an ssl.SSLError is
        raise ConfigurationError(
            f"cannot serve HTTPS with {settings.tls_cert} and {settings.tls_key}: {error.strerror or error}"
        ) from None


def _is_ready(host: str, port: int, *, tls: bool) -> bool:
    address = parse_address(host)
    if address is not None and address.is_unspecified:
        host = "::1" if address.version == 6 else LOOPBACK
    connection: HTTPConnection
    if tls:
        # Asks its own child, whose certificate is made out to another name.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = HTTPSConnection(host, port, timeout=PROBE_SECONDS, context=context)
    else:
        connection = HTTPConnection(host, port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _end_with_parent(parent: int) -> None:
    """Ask this process to end when its parent is gone, however that ended.

    The pid of the parent is looked at, for `PR_SET_PDEATHSIG` exists on Linux alone.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch the parent", daemon=True).start()


def server_config(app: "FastAPI", *, tls_cert: Path | None = None, tls_key: Path | None = None) -> "uvicorn.Config":
    """How the application is served; with a certificate and its key by HTTPS."""
    import uvicorn

    from service.http.headers import SECURITY_HEADERS, STRICT_TRANSPORT
    from service.http.protocol import quick_protocol
    from service.http.routers.predict import answer_now

    return uvicorn.Config(
        app,
        http=quick_protocol({"/predict": lambda scope, body: answer_now(scope["state"]["parts"], scope, body)}),
        lifespan="on",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        # Of all that is written on a connection, also what no application sees.
        headers=[*SECURITY_HEADERS, STRICT_TRANSPORT] if tls_cert else list(SECURITY_HEADERS),
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        proxy_headers=False,  # who calls says the key; where none exists yet, a proxy is not this host's own caller
        timeout_graceful_shutdown=API_GRACE_SECONDS,
    )


def _allow_files(number: int) -> None:
    """Let this process open so many files, as far as the host lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        allowed = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))


def _run_api(settings: Settings, listener: int) -> None:
    # Only this kind of process needs them, and the parent starts faster without.
    import uvicorn

    from service.app import create_app

    _allow_files(settings.max_connections + SPARE_FILES)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what was imported stays, and need not be looked through again and again while requests wait
    gc.set_threshold(GC_THRESHOLD)
    app = create_app(settings, stopping=lambda: server.should_exit)
    server = uvicorn.Server(server_config(app, tls_cert=settings.tls_cert, tls_key=settings.tls_key))
    server.run(sockets=[socket.socket(fileno=listener)])


def run_worker(settings: Settings) -> None:
    """Run the worker of an installation until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: something is set so that the worker cannot work.
    """
    settings.read_features()
    from service.worker import run  # with the training library, which takes seconds to import

    async def until_signal() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        work, stopped = start_for_caller(run(settings)), start_for_caller(stop.wait())
        try:
            await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work  # for what it raised
        finally:
            await end_tasks(work, stopped)

    asyncio.run(until_signal())


def main(arguments: Sequence[str]) -> None:
    """Run as a child: `api FD PARENT` or `worker PARENT`, with the settings of the environment."""
    configure_logging()
    _end_with_parent(int(arguments[-1]))
    match arguments:
        case ["api", listener, _]:
            _run_api(Settings(), int(listener))
        case ["worker", _]:
            try:
                run_worker(Settings())
            except ConfigurationError as error:
                # One line each time that it is started again, ever less often: the api goes on without a worker.
                logger.error("the worker cannot work with these settings: %s", error)
                raise SystemExit(os.EX_CONFIG) from None
        case _:
            raise SystemExit(f"expected api FD PARENT or worker PARENT; received {' '.join(arguments)}")


if __name__ == "__main__":
    main(sys.argv[1:])
