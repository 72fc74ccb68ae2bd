"""What the tests of the benchmarks share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from typer.testing import CliRunner, Result

from benchmarks.learning.workload import StreamSizes
from service.cli import app

SIZES = StreamSizes(users=40, items=25, rows=600, history=3)
TINY_STREAM = ["--users", "40", "--items", "25", "--rows", "600", "--history", "3"]


def bench(*arguments: str) -> Result:
    """Run `asmg bench …` in this process. It may set torch's threads, which are set back."""
    with same_threads():
        return CliRunner().invoke(app, ["bench", *arguments])


@contextmanager
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def assert_one_line(done: Result, message: str, code: int = 1) -> None:
    """A command that was called wrongly says so in one line, and prints nothing else."""
    assert done.exit_code == code, done.output
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("asmg: ")
    assert message in done.stderr
    assert done.stdout == ""
