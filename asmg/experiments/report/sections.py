"""Shared by the sections of a report."""

from collections.abc import Callable
from typing import Any

from asmg.experiments.report.blocks import Picture
from asmg.experiments.report.cells import counted
from asmg.experiments.report.results import Results
from asmg.experiments.statistics import Tally

__all__ = ["METRICS", "Draw", "several_seeds", "wins"]

METRICS = {"auc": "AUC", "logloss": "LogLoss"}
"""Metric → its name in reports."""

Draw = Callable[[str, Any, str, str], Picture]
"""Writes a figure's files: name, figure, alternative text and caption → picture."""


def several_seeds(results: Results) -> bool:
    """Whether the run has more than one seed, so that there are deviations."""
    return len(results.seeds) > 1


def wins(found: Tally) -> str:
    """Wins of all pairs, such as 5/7 or 5/7, 1 tie."""
    return f"{found.wins}/{found.pairs}" + (f", {counted(found.ties, 'tie')}" if found.ties else "")
