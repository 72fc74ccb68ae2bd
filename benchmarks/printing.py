"""How the benchmarks print: tables on the standard output, what is going on on the standard error."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Printer", "check_writable", "seconds", "times"]

WIDTH = 120
"""Columns where the output is no terminal."""


class Printer:
    """The output of one command."""

    def __init__(self, threads: int | None) -> None:
        """Set torch's threads first, where a number is given."""
        if threads is not None:
            torch.set_num_threads(threads)
        console = Console(highlight=False)
        self.console = console if console.is_terminal else Console(highlight=False, width=WIDTH)

    @contextmanager
    def busy(self) -> Iterator[Callable[[str], None]]:
        """Yields what shows a line about what is going on, on a terminal only."""
        errors = Console(stderr=True)
        if not errors.is_terminal:
            yield lambda text: None
            return
        with errors.status("") as status:
            yield lambda text: status.update(Text(text))

    def line(self, text: str) -> None:
        """A paragraph."""
        self.console.print(Text(text))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> None:
        """A table; all columns but the first `words` hold numbers."""
        table = Table(box=box.SIMPLE_HEAD, title=Text(title, style="bold"), title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i < words else "right")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)


def check_writable(file: Path | None) -> None:
    """Raise ValueError where a file could not be written in the end: its folder is not there, or it is a folder."""
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise ValueError(f"{file}: expected the name of a file in a folder that is there")


def seconds(value: float) -> str:
    """With three digits that mean something."""
    if value < 1e-3:
        return f"{value:.2g}"
    return f"{value:.3f}" if value < 10 else f"{value:,.1f}"


def times(ratio: float) -> str:
    """A ratio as "12 ×"."""
    return f"{ratio:.2f} ×" if ratio < 10 else f"{ratio:,.0f} ×"
