"""Servers in processes of their own: started, waited for, measured as a whole tree, and stopped for certain."""

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import psutil

from benchmarks.serving.generator import Beside, ask
from benchmarks.serving.load import Answers, Load, Target
from service.errors import ServiceError
from service.processes.companion import Companion, CompanionFailed

__all__ = ["Server", "ServerFailed", "cpu_seconds", "free_port", "memory_bytes"]

HOST = "127.0.0.1"
MARK = "BENCH_SERVER_MARK"
"""Variable in the environment of a server's processes, by which those are found that have left its tree."""

START_SECONDS = 60.0
ANSWER_SECONDS = 10.0
STOP_SECONDS = 15.0
KILL_SECONDS = 5.0
TICK_SECONDS = 0.02
RETRY_SECONDS = 0.1
QUIET_SHARE = 0.3
"""A server that uses less of a core than this has done all that it does when it starts."""
QUIET_SECONDS = 0.3
LONGEST_QUIET_SECONDS = 15.0


class ServerFailed(ServiceError):
    """A server did not start, or ended by itself; the message holds the end of its output."""

    title = "Server failed"
    slug = "server-failed"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """User and system time of processes and of their children that have ended, as exact as the system tells."""
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            own = _clock_of(process.pid)
            total += times.user + times.system if own is None else own
            total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return total


def _clock_of(pid: int) -> float | None:
    """The CPU time of a process in nanosecond steps, where psutil's has steps of 10 ms; None where there is no such."""
    if psutil.LINUX:
        with suppress(OSError):
            return time.clock_gettime((~pid << 3) | 2)  # how Linux numbers the CPU-time clocks of processes
    return None


def memory_bytes(processes: Iterable[psutil.Process]) -> int:
    """Proportional memory (each shared page divided among those who map it); the resident one where that is unknown."""
    total = 0
    for process in processes:
        with suppress(psutil.Error, OSError):
            total += _proportional(process)
    return total


def _proportional(process: psutil.Process) -> int:
    if psutil.LINUX:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)


class Server:
    """A server and everything that it has started, for as long as the `with` block lasts.

    Args:
        name: in messages.
        command: starts it; it listens on `port`.
        port: of loopback.
        environment: its variables.
        log: receives its output.
        check: called while it is waited for; what it raises is let through.
        hurried: whether nothing should be waited for any more.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        *,
        environment: Mapping[str, str],
        log: Path,
        check: Callable[[], None] = lambda: None,
        hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = name
        self.target = Target(HOST, port)
        self._command, self._log = command, log
        self._check, self._hurried = check, hurried
        self._mark = uuid4().hex
        self._environment = {**environment, MARK: self._mark}
        self._seen: set[psutil.Process] = set()
        self._refused: dict[str, int] = {}

    def __enter__(self) -> "Server":
        self._child = Companion(self.name, self._command, environment=self._environment, log=self._log)
        self._root = next(iter(_marked(self._mark, psutil.Process().children())), None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.processes()
        try:
            self._child.stop(seconds=STOP_SECONDS, hurried=self._hurried)
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
        """Return when it is ready and has come to rest, so that all of its workers are.

        Raises:
            ServerFailed: it has ended, or was not ready in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            self._check()
            self._require_running()
            with suppress(OSError):
                if is_ready():
                    break
            if time.monotonic() > deadline:
                last = f"; its last answer was {self._refused}" if self._refused else ""
                raise ServerFailed(f"{self.name} was not ready within {START_SECONDS:.0f} s{last}:\n{self.tail()}")
            time.sleep(RETRY_SECONDS)
        deadline = time.monotonic() + LONGEST_QUIET_SECONDS
        share = 1.0
        while share > QUIET_SHARE and time.monotonic() < deadline:
            self._check()
            before = cpu_seconds(self.processes())
            time.sleep(QUIET_SECONDS)
            share = (cpu_seconds(self.processes()) - before) / QUIET_SECONDS
        self._require_running()

    def answers(self, request: bytes) -> bytes | None:
        """The body that it answers a request with; None where it does not with status 200.

        Raises:
            OSError: it does not listen.
        """
        load = Load(requests=[request], connections=1, count=1, seconds=ANSWER_SECONDS, keep_bodies=True)
        found = ask(self.target, load, check=self._check)
        self._refused = dict(found.faults)
        return found.bodies[0] if found.bodies else None

    def ask(self, load: Load, beside: Beside | None = None) -> Answers:
        """Send it a load; see `benchmarks.serving.generator.ask`.

        Raises:
            ServerFailed: it cannot be connected to.
        """
        try:
            return ask(self.target, load, check=self._check, beside=beside)
        except OSError as error:
            raise ServerFailed(f"{self.name} cannot be connected to: {error}\n{self.tail()}") from None

    def _require_running(self) -> None:
        try:
            self._child.check()
        except CompanionFailed as error:
            raise ServerFailed(str(error)) from None

    def tail(self) -> str:
        """The end of its output."""
        return "\n".join(self._child.output.splitlines()[-15:])

    def _kill_rest(self) -> None:
        """End what the server has left behind: what was in its tree, and what carries its mark."""
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
    """The variables of this process but for settings of the service, which are another installation's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ASMG_")}
