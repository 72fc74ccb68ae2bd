"""A server in a process of its own: started, waited for, asked, and stopped with all processes that it has started."""

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import psutil

from benchmarks.http_load.generator import Beside, ask
from benchmarks.http_load.load import Answers, Load, Target
from benchmarks.machine import cpu_seconds
from service.errors import ServiceError
from service.processes.companion import Companion, CompanionFailed
from service.processes.stop_request import StopRequest

HOST = "127.0.0.1"
"""The loopback address that every server here listens on."""
MARK = "BENCH_SERVER_MARK"
"""Environment variable of a server's processes. It finds those that are no longer children of the server."""

START_SECONDS = 180.0
"""How long a server may take until it is ready. Compiling machine code takes the very first one a minute or two."""
ANSWER_SECONDS = 10.0
STOP_SECONDS = 15.0
"""How long a server may take to stop before it is killed."""
KILL_SECONDS = 5.0
"""How long its processes may take to disappear once they were killed."""
TICK_SECONDS = 0.02
RETRY_SECONDS = 0.1
QUIET_SHARE = 0.3
"""Share of a core below which a server has finished starting."""
QUIET_SECONDS = 0.3
"""For how long its CPU time is watched to tell."""
LONGEST_QUIET_SECONDS = 15.0
"""After so long a server is measured even if it is still busy."""


class ServerFailed(ServiceError):
    """A server did not start, or ended by itself; the message holds the end of its output."""

    title = "Server failed"
    slug = "server-failed"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


class Server:
    """A server that runs as long as the `with` block lasts, with everything that it starts.

    Args:
        name: used in messages.
        command: starts the server, which listens on `port` of loopback.
        port: that port.
        environment: all of its environment variables.
        log: file that receives its output.
        stop: ends the waiting for it when the user wants the program to end; None for never.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        *,
        environment: Mapping[str, str],
        log: Path,
        stop: StopRequest | None = None,
    ) -> None:
        self.name = name
        self.target = Target(HOST, port)
        self._command = command
        self.log = log
        """The file that receives its output."""
        self._stop = stop or StopRequest()  # which nobody makes
        self._mark = uuid4().hex
        self._environment = {**environment, MARK: self._mark}
        self._seen: set[psutil.Process] = set()
        self._refused: dict[str, int] = {}

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.target.host}:{self.target.port}"

    def __enter__(self) -> "Server":
        self._child = Companion(self.name, self._command, environment=self._environment, log=self.log)
        self._root = next(iter(_marked(self._mark, psutil.Process().children())), None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.processes()
        try:
            self._child.stop(seconds=STOP_SECONDS, hurried=lambda: self._stop.hurried)
        finally:
            self._kill_rest()

    def processes(self) -> list[psutil.Process]:
        """All processes of the server that run now."""
        if self._root is not None:
            with suppress(psutil.Error):
                self._seen.add(self._root)
                self._seen.update(self._root.children(recursive=True))
        self._seen = {process for process in self._seen if _runs(process)}
        return sorted(self._seen, key=lambda process: process.pid)

    def wait_ready(self, is_ready: Callable[[], bool]) -> None:
        """Return when `is_ready` and the server has stopped using the CPU, so that all of its workers are ready too.

        Raises:
            ServerFailed: it ended, or was not ready in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            self._stop.check()
            self._require_running()
            with suppress(OSError):
                if is_ready():
                    break
            if time.monotonic() > deadline:
                last = f"; its last answer was {self._refused}" if self._refused else ""
                raise ServerFailed(f"{self.name} was not ready within {START_SECONDS:.0f} s{last}:\n{self._tail()}")
            time.sleep(RETRY_SECONDS)
        deadline = time.monotonic() + LONGEST_QUIET_SECONDS
        share = 1.0
        while share > QUIET_SHARE and time.monotonic() < deadline:
            self._stop.check()
            before = cpu_seconds(self.processes())
            time.sleep(QUIET_SECONDS)
            share = (cpu_seconds(self.processes()) - before) / QUIET_SECONDS
        self._require_running()

    def answers(self, request: bytes) -> bytes | None:
        """The body of its answer to a request; None where the status is not 200.

        Raises:
            OSError: it does not listen.
        """
        load = Load(requests=[request], connections=1, count=1, seconds=ANSWER_SECONDS, keep_bodies=True)
        found = ask(self.target, load, check=self._stop.check)
        self._refused = dict(found.faults)
        return found.bodies[0] if found.bodies else None

    def ask(self, load: Load, beside: Beside | None = None) -> Answers:
        """Send it a load; see `benchmarks.http_load.generator.ask`.

        Raises:
            ServerFailed: it cannot be connected to.
        """
        try:
            return ask(self.target, load, check=self._stop.check, beside=beside)
        except OSError as error:
            raise ServerFailed(f"{self.name} cannot be connected to: {error}\n{self._tail()}") from None

    def _require_running(self) -> None:
        try:
            self._child.check()
        except CompanionFailed as error:
            raise ServerFailed(str(error)) from None

    def _tail(self) -> str:
        """The end of its output."""
        return "\n".join(self._child.output.splitlines()[-15:])

    def _kill_rest(self) -> None:
        """Kill the processes that the server has left behind: its children, and those that carry its mark."""
        left = {process for process in self._seen if _runs(process)} | _marked(self._mark, psutil.process_iter())
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        deadline = time.monotonic() + KILL_SECONDS
        while any(map(_runs, left)) and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS)


def _marked(mark: str, processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    found = set()
    for process in processes:
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                found.add(process)
    return found


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def environment_without_settings() -> dict[str, str]:
    """The variables of this process without settings of the service, which are those of another installation."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ASMG_")}
