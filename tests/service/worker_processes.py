"""`asmg worker` as processes to kill, forked from one that has imported it so that they start at once."""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from tests.forked import FORKED
from tests.service.programs import start

NUMBERS = count(1)
POLL_SECONDS = 0.05
"""`ASMG_WORKER_POLL_SECONDS`, with which the waits in trouble begin too."""


def work(log: Path, settings: dict[str, Any], silence_seconds: float | None) -> None:
    """What the program does; but for how long it may be silent before Postgres ends its sessions."""
    from service import worker
    from service.processes.logs import configure_logging
    from service.processes.worker import run_worker
    from service.settings import Settings
    from service.storage.postgres.engine import SESSION
    from service.storage.postgres.leadership import Leadership
    from service.telemetry.settings import TelemetrySettings

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    configure_logging(TelemetrySettings())
    if silence_seconds is not None:
        worker.Leadership = partial(Leadership, lease_seconds=silence_seconds)  # type: ignore[misc]
        SESSION["idle_in_transaction_session_timeout"] = str(int(silence_seconds * 1000))
    run_worker(Settings(**settings))


class ForkedWorker:
    """A running worker, with its log."""

    def __init__(
        self, dsn: str, redis_url: str, folder: Path, *, silence_seconds: float | None, **changes: Any
    ) -> None:
        self._log = folder / f"forked-{next(NUMBERS)}.log"
        settings = {"postgres_dsn": dsn, "redis_url": redis_url, "data_dir": folder / "data"}
        settings |= {"worker_poll_seconds": POLL_SECONDS, **changes}
        self._process = FORKED.Process(target=work, args=(self._log, settings, silence_seconds), daemon=True)
        self._process.start()

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join(20)
        assert self._process.exitcode == -signal.SIGKILL, self.log

    def stop(self) -> None:
        self._process.terminate()
        self._process.join(20)
        assert self._process.exitcode == 0, self.log


@contextmanager
def forked_worker(
    dsn: str, redis_url: str, folder: Path, *, silence_seconds: float | None = None, **changes: Any
) -> Iterator[ForkedWorker]:
    """A worker that is gone after the block, stopped in good order or not."""
    running = ForkedWorker(dsn, redis_url, folder, silence_seconds=silence_seconds, **changes)
    try:
        yield running
    finally:
        if running.alive:
            running.kill()


class WorkerProcess:
    """`asmg worker`, to be killed."""

    def __init__(self, dsn: str, redis_url: str, folder: Path, **changes: str) -> None:
        self._log = folder / f"worker-{random.randrange(10**9)}.log"
        variables = {"POSTGRES_DSN": dsn, "REDIS_URL": redis_url, "DATA_DIR": str(folder / "data")}
        variables |= {"WORKER_POLL_SECONDS": str(POLL_SECONDS)}
        self._log.touch()
        changes |= {f"ASMG_{name}": value for name, value in variables.items()}
        self.process = start(Path(os.devnull), self._log, "worker", **changes)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(20)
        assert self.process.exitcode == -signal.SIGKILL, self.log

    def stop(self) -> None:
        self.process.terminate()
        self.process.join(20)
        assert self.process.exitcode == 0, self.log


@contextmanager
def worker_process(dsn: str, redis_url: str, folder: Path, **changes: str) -> Iterator[WorkerProcess]:
    running = WorkerProcess(dsn, redis_url, folder, **changes)
    try:
        yield running
    finally:
        if running.process.is_alive():
            running.kill()
