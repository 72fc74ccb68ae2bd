"""Starts, watches and stops the programs of the service for the tests."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil

from tests.forked import FORKED

ASMG = [sys.executable, "-m", "service.cli"]


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)
    return result


def environment(**changes: str) -> dict[str, str]:
    """Variables of the programs, without the settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ASMG_")}
    return {**kept, "ASMG_SWAP_LEAD_SECONDS": "1.5", **changes}


def asmg(*arguments: str, code: int = 0, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        process = start(out, err, *arguments, **changes)
        process.join(120)
        if process.is_alive():
            process.kill()
            process.join()
        assert process.exitcode == code, err.read_text()
        return subprocess.CompletedProcess(["asmg", *arguments], code, out.read_text(), err.read_text())


def start(out: Path, err: Path, *arguments: str, **changes: str) -> ForkServerProcess:
    """Start a program, with its output in files."""
    return start_call(partial(_asmg, arguments), out, err, **changes)


def start_call(call: Callable[[], int | None], out: Path, err: Path, **changes: str) -> ForkServerProcess:
    """Call a function in a process of its own, which ends with the exit code that the function returns."""
    process = FORKED.Process(target=_run, args=(call, environment(**changes), out, err))
    process.start()
    return process


def _run(call: Callable[[], int | None], variables: dict[str, str], out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None  # the process that this one was forked from may have looked for it
    sys.exit(call())


def _asmg(arguments: Sequence[str]) -> None:
    """What the program `asmg` does."""
    if "PYTHONPATH" in os.environ:  # only an interpreter that starts reads it
        os.execv(sys.executable, [*ASMG, *arguments])
    from service.cli import app

    sys.argv = ["asmg", *arguments]
    app()


class Program:
    """A running `asmg serve`."""

    def __init__(self, folder: Path, *arguments: str, scheme: str = "http", **changes: str) -> None:
        self._out, self._err = (Path(tempfile.mkstemp(dir=folder, suffix=name)[1]) for name in (".out", ".err"))
        self.process = start(self._out, self._err, "serve", "--port", "0", *arguments, **changes)
        self.listening = re.compile(rf"^asmg: listening on ({scheme}://(\S+):(\d+))$", re.MULTILINE)
        wait_for(lambda: self.listening.search(self.out) or not self.process.is_alive())
        match = self.listening.search(self.out)
        assert match is not None, self.err
        self.host, self.port = match[2], int(match[3])
        self.url = f"{scheme}://127.0.0.1:{self.port}"

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children()

    def stop(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.pid, number)
        self.process.join(40)
        assert self.process.exitcode == 0, self.err


@contextmanager
def program(folder: Path, *arguments: str, scheme: str = "http", **changes: str) -> Iterator[Program]:
    running = Program(folder, *arguments, scheme=scheme, **changes)
    try:
        yield running
    finally:
        if running.process.is_alive():
            running.stop()
