"""How the commands that run for minutes show what they do, to people and to pipes alike.

One line a period with the scores of the models on its log, a second one with the seconds of its stages; in between, on
a terminal only, a progress bar. Nothing but plain text goes to a pipe or a file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

__all__ = ["PeriodLine", "ScoreLines", "StageBar", "make_console"]

WIDTH = 120
"""Columns where the output is no terminal."""

Numbers = Mapping[str, float | None]


def make_console() -> Console:
    """The standard output."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


@dataclass(frozen=True, kw_only=True)
class PeriodLine:
    """What there is to say of one period."""

    period: int
    events: int
    auc: Numbers
    """By model; None where it is not known."""
    logloss: Numbers
    serves: str
    """The version that its update made, or what went wrong."""
    seconds: Mapping[str, float]
    """Of each stage."""
    requests: tuple[int, int] | None = None
    """Predictions served and failed during the swap."""
    notes: Sequence[str] = field(default_factory=tuple)
    """More for the second line."""


class ScoreLines:
    """Prints periods, one below the other, with the scores of some models.

    Args:
        console: where to.
        models: keys of the scores, in the order in which they are shown.
        requests: whether there are predictions to count.
    """

    def __init__(self, console: Console, models: Sequence[str], *, requests: bool = False) -> None:
        self._console, self._models, self._requests = console, models, requests
        self._widths = [max(6, len(model)) for model in models]

    def header(self) -> None:
        """Print what the columns are."""
        scores = sum(self._widths) + len(self._widths) - 1
        self._print(f"{'':6}  {'':>9}   {'AUC':<{scores}}   {'LogLoss':<{scores}}", "bold")
        names = " ".join(f"{name:>{width}}" for name, width in zip(self._models, self._widths, strict=True))
        requests = f" {'served':>7} {'failed':>6}" if self._requests else ""
        self._print(f"{'period':>6}  {'events':>9}   {names}   {names}   {'model':<15}{requests}", "bold")

    def period(self, line: PeriodLine) -> None:
        """Print one period."""
        text = Text(f"{line.period:>6}  {line.events:>9,}   ")
        text.append(self._scores(line.auc)).append("   ").append(self._scores(line.logloss))
        text.append(f"   {line.serves:<15}")
        if line.requests is not None:
            served, failed = line.requests
            text.append(f" {served:>7,}").append(f" {failed:>6,}", "bold red" if failed else "green")
        self._console.print(text, soft_wrap=True)
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in line.seconds.items())
        notes = [f"seconds: {stages}"] if stages else []
        self._print("        " + "; ".join([*notes, *line.notes]), "dim")

    def means(self, title: str, auc: Numbers, logloss: Numbers) -> None:
        """Print averages below the periods."""
        text = Text(f"{title:>17}   ", "bold")
        self._console.print(text.append(self._scores(auc)).append("   ").append(self._scores(logloss)), soft_wrap=True)

    def _scores(self, scores: Numbers) -> Text:
        text = Text()
        for name, width in zip(self._models, self._widths, strict=True):
            value = scores.get(name)
            shown = f"{'-' if value is None else f'{value:.4f}':>{width}} "
            text.append(shown, "bold cyan" if name == "generated" else "")
        text.right_crop(1)
        return text

    def _print(self, line: str, style: str) -> None:
        self._console.print(Text(line, style), soft_wrap=True)


class StageBar:
    """A progress bar below the lines, on a terminal; elsewhere nothing."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)

    def begin(self, description: str) -> None:
        """Something new goes on: the clock starts again, and nobody knows yet how much of it is done."""
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=None)

    def show(self, description: str, fraction: float) -> None:
        """What goes on, and how much of it is done, 0 to 1."""
        self._progress.update(self._task, description=description, total=1.0, completed=fraction)

    def __enter__(self) -> "StageBar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
