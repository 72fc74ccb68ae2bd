"""A child process of the service: `python -m service.processes.child api FD [FD] PARENT` or `… worker PARENT`.

`asmg serve` starts api processes and the worker as such children, `asmg import` a worker. A child reads its settings
from the environment and ends by itself when its parent is gone.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from service.errors import ConfigurationError
from service.processes.logs import configure_logging
from service.settings import Settings
from service.telemetry.settings import MULTIPROCESS_VARIABLE, TelemetrySettings

__all__ = ["CHILD_MODULE", "child_command", "environment_of", "main"]

logger = logging.getLogger(__name__)

CHILD_MODULE = "service.processes.child"
"""The module that a child runs; in its command line it comes before the kind of the child."""

PARENT_CHECK_SECONDS = 0.5
"""Seconds between two looks whether the parent still lives."""


def child_command(kind: str, *arguments: str) -> list[str]:
    """The command that starts a child of this process.

    Args:
        kind: `api` or `worker`.
        arguments: for `api` the file descriptor of the listening socket, and of that for metrics if there is one.
    """
    return [sys.executable, "-m", CHILD_MODULE, kind, *arguments, str(os.getpid())]


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment variables from which a child reads exactly these settings."""
    values = settings.model_dump(exclude_none=True)
    lists = {name: value if isinstance(value, tuple) else (value,) for name, value in values.items()}
    return {f"ASMG_{name.upper()}": ",".join(map(str, value)) for name, value in lists.items()}


def main(arguments: Sequence[str]) -> None:
    """Run as a child.

    Args:
        arguments: `api`, the file descriptors of the listening socket and, where there is one, of that for metrics, and
            the parent's pid; or `worker` and the pid.
    """
    configure_logging(TelemetrySettings())
    _end_with_parent(int(arguments[-1]))
    match arguments:
        case ["api", listener, *metrics, _]:
            from service.processes.api import run_api  # the worker does without uvicorn and the routes

            run_api(Settings(), int(listener), int(metrics[0]) if metrics else None)
        case ["worker", _]:
            os.environ.pop(MULTIPROCESS_VARIABLE, None)  # its metrics are not the api's
            from service.processes.worker import run_worker  # an api process does without the training library

            try:
                run_worker(Settings())
            except ConfigurationError as error:
                # One line each time that it is started again, ever less often; the api goes on without a worker.
                logger.error("the worker cannot work with these settings: %s", error)
                raise SystemExit(os.EX_CONFIG) from None
        case _:
            raise SystemExit(f"expected api FD [FD] PARENT or worker PARENT; received {' '.join(arguments)}")


def _end_with_parent(parent: int) -> None:
    """Send SIGTERM to this process once its parent is gone, however the parent ended.

    A thread compares the parent's pid, because `PR_SET_PDEATHSIG` exists on Linux alone.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch the parent", daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
