"""What a command prints: paragraphs and tables on the standard output, its progress on the standard error."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 120
"""Columns where the output is no terminal."""


class Printer:
    """The output of one command."""

    def __init__(self) -> None:
        console = Console(highlight=False)
        self._console = console if console.is_terminal else Console(highlight=False, width=WIDTH)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        """Yield a function that shows what is being done now; it shows nothing where there is no terminal."""
        errors = Console(stderr=True)
        if not errors.is_terminal:
            yield lambda text: None
            return
        with errors.status("") as status:
            yield lambda text: status.update(Text(text))

    def line(self, text: str) -> None:
        """Print a paragraph."""
        self._console.print(Text(text))

    def machine(self, facts: dict[str, Any], more: str) -> None:
        """Print what the figures were taken on, of `machine_facts`, and a warning where other programs were running."""
        self.line(
            f"{facts['processor']}, {facts['cpus_usable']} of {facts['cpus']} processors; Python {facts['python']}, "
            f"{facts['torch_threads']} threads of torch {facts['versions']['torch']}. {more}"
        )
        load = facts["load_average"]
        if load and load[0] > facts["cpus_usable"] / 2:
            self.line(f"Other programs were running (load average {load[0]:.1f}): take the figures with care.")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> None:
        """Print a table; all columns but the first `words` hold numbers."""
        table = Table(box=box.SIMPLE_HEAD, title=Text(title, style="bold"), title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i < words else "right")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)


def seconds(value: float) -> str:
    """Seconds with three significant digits or so."""
    if value < 1e-3:
        return f"{value:.2g}"
    return f"{value:.3f}" if value < 10 else f"{value:,.1f}"


def times(ratio: float | None) -> str:
    """A ratio as "12 ×"; nothing for None."""
    if ratio is None:
        return ""
    return f"{ratio:.2f} ×" if ratio < 10 else f"{ratio:,.0f} ×"
