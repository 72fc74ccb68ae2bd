"""Output of the commands that run for minutes (`asmg demo`, `asmg import`): score lines and a progress bar.

Two lines for each period: the scores of the models on its log, and the seconds of its stages. On a terminal a progress
bar is below them; a pipe or a file receives plain text. The table is printed line by line, because rich's `Table` shows
its rows only once all of them are known.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

__all__ = ["Numbers", "PeriodLine", "ScoreLines", "StageBar", "make_console"]

WIDTH = 120
"""Width in characters if the output is not a terminal and COLUMNS is not set."""

SCORE_WIDTH = 6
"""Width in characters of a score, and of the name of its model."""

SHORT_NAMES = {"generated": "gen.", "incremental": "incr.", "lightgbm": "LGBM", "logistic": "logit"}
MEANINGS = {
    "generated": "gen.    the model that was generated from the sequence of past models",
    "incremental": "incr.   the incremental model, trained on each period after the other",
    "frozen": "frozen  the first model, never updated",
    "lightgbm": "LGBM    LightGBM on statistics and fields of the same events, five periods: what a practitioner has",
    "logistic": "logit   logistic regression on statistics and fields of the same events: what a practitioner has",
    "best": "best    the true probabilities for all that is known beforehand, which no model can be expected to beat",
}
"""Model → its line in the legend."""

SHOWN_STAGES = 6
"""Stages of a period that are shown, those that took longest; more do not fit into WIDTH."""

INDENT = 4
"""Spaces before the second line of a period."""

Numbers = Mapping[str, float | None]


def make_console() -> Console:
    """A console for the standard output."""
    console = Console(highlight=False)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=WIDTH)


@dataclass(frozen=True, kw_only=True)
class PeriodLine:
    """What is printed about one period."""

    period: int
    events: int
    auc: Numbers
    """By model; None if unknown."""
    logloss: Numbers
    serves: str
    """The version that its update has published, or what went wrong."""
    seconds: Mapping[str, float]
    """Duration of each stage."""
    requests: tuple[int, int] | None = None
    """Predictions served and failed during the swap."""
    notes: Sequence[str] = field(default_factory=tuple)
    """Further parts of the second line."""


class ScoreLines:
    """Prints periods below each other, with the scores of some models.

    Args:
        console: for the output.
        models: keys of the scores, in the order of the columns.
        requests: whether to show how many predictions were served and failed.
    """

    def __init__(self, console: Console, models: Sequence[str], *, requests: bool = False) -> None:
        self._console, self._models, self._requests = console, models, requests

    def header(self) -> None:
        """Print the legend and the header of the table."""
        self._print("Scores on the log of each period, before anything has learned from it:", "dim")
        for name in self._models:
            self._print(f"  {MEANINGS[name]}", "dim")
        self._print("", "")
        names = " ".join(f"{SHORT_NAMES.get(name, name):>{SCORE_WIDTH}}" for name in self._models)
        auc, logloss = (f"{metric:<{len(names)}}" for metric in ("AUC", "LogLoss"))
        predictions = "predictions" if self._requests else ""
        self._print(f"{'':6}  {'':8}  {auc}  {logloss}  {'':15}  {predictions}", "bold")
        requests = f" {'served':>7} {'failed':>6}" if self._requests else ""
        self._print(f"{'period':>6}  {'events':>8}  {names}  {names}  {'model':<15}{requests}", "bold")

    def period(self, line: PeriodLine) -> None:
        """Print one period."""
        text = Text(f"{line.period:>6}  {line.events:>8,}  ")
        text.append(self._scores(line.auc)).append("  ").append(self._scores(line.logloss))
        text.append(f"  {line.serves:<{15 if line.requests else 0}}")
        if line.requests is not None:
            served, failed = line.requests
            text.append(f" {served:>7,}").append(f" {failed:>6,}", "bold red" if failed else "green")
        self._console.print(text, soft_wrap=True)
        # Shortened, so that the line fits into WIDTH.
        names = {name: name.removeprefix("train_").removeprefix("update_") for name in line.seconds}
        longest = sorted(line.seconds, key=lambda name: -line.seconds[name])[:SHOWN_STAGES]
        stages = " ".join(f"{names[name]} {line.seconds[name]:.1f}" for name in line.seconds if name in longest)
        notes = [f"{stages} s"] if stages else []
        self._print(" " * INDENT + "; ".join([*notes, *line.notes]), "dim")

    def means(self, title: str, auc: Numbers, logloss: Numbers) -> None:
        """Print averages below the periods."""
        text = Text(f"{title:>16}  ", "bold")
        self._console.print(text.append(self._scores(auc)).append("  ").append(self._scores(logloss)), soft_wrap=True)

    def _scores(self, scores: Numbers) -> Text:
        text = Text()
        for name in self._models:
            value = scores.get(name)
            shown = f"{'-' if value is None else f'{value:.4f}':>{SCORE_WIDTH}} "
            text.append(shown, "bold cyan" if name == "generated" else "")
        text.right_crop(1)
        return text

    def _print(self, line: str, style: str) -> None:
        self._console.print(Text(line.rstrip(), style), soft_wrap=True)


class StageBar:
    """A progress bar below the printed lines; invisible if the output is not a terminal."""

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
        """Show a new piece of work whose progress is not known yet; its clock starts at zero."""
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=None)

    def show(self, description: str, fraction: float) -> None:
        """Show the present step of the work and the fraction that is done, 0 to 1."""
        self._progress.update(self._task, description=description, total=1.0, completed=fraction)

    def __enter__(self) -> "StageBar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
