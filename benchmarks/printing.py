"""What a command prints: paragraphs and tables on the standard output, its progress on the standard error."""

import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 120
"""Columns where the output is no terminal."""


def progress(text: str) -> None:
    """Print what is being done now, on a terminal. A spinner would take CPU time from what is measured."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def print_line(text: str) -> None:
    """Print a paragraph."""
    _console().print(Text(text))


def print_machine(facts: dict[str, Any], more: str) -> None:
    """Print what the figures were taken on, of `machine_facts`, and a warning where other programs were running."""
    print_line(
        f"{facts['processor']}, {facts['cpus_usable']} of {facts['cpus']} processors; Python {facts['python']}, "
        f"{facts['torch_threads']} threads of torch {facts['versions']['torch']}. {more}"
    )
    load = facts["load_average"]
    if load and load[0] > facts["cpus_usable"] / 2:
        print_line(f"Other programs were running (load average {load[0]:.1f}): take the figures with care.")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> None:
    """Print a table; all columns but the first `words` hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, title=Text(title, style="bold"), title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < words else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _console().print(table)


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


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
