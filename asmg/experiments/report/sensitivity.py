"""Section: AUC and LogLoss of ASMG-GRU multi by sequence length and by hidden size."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from asmg.experiments.methods import OWN, SENSITIVE
from asmg.experiments.report.blocks import Block, Heading, Table
from asmg.experiments.report.cells import best_scores, listed, nothing
from asmg.experiments.report.drawing import BLUE, VERMILION, matplotlib, new_figure
from asmg.experiments.report.results import Results, label
from asmg.experiments.report.sections import METRICS, Draw, several_seeds
from asmg.experiments.statistics import Spread

__all__ = ["Sensitivity", "sensitivity", "sensitivity_figure"]


class Sensitivity(NamedTuple):
    """A metric at each value of a setting."""

    kind: str
    """Name of the setting, for the axis."""
    values: Sequence[int]
    """The values tried, ascending."""
    own: int
    """The method's own value."""
    scores: Mapping[str, Sequence[Spread | None]]
    """Metric → score at each value."""


def sensitivity_figure(settings: Sequence[Sensitivity]) -> Any:
    """AUC and LogLoss at each value of one or two settings, with deviations over seeds; the own value is filled."""
    figure = new_figure(5.6)
    panels = figure.subplots(2, len(settings), squeeze=False, sharey="row", sharex="col")
    for column, setting in enumerate(settings):
        for row, (metric, colour) in enumerate((("auc", VERMILION), ("logloss", BLUE))):
            axes = panels[row, column]
            found = [(v, s) for v, s in zip(setting.values, setting.scores[metric], strict=True) if s is not None]
            x = np.array([value for value, _ in found])
            y = np.array([score.mean for _, score in found])
            error = np.array([score.std or 0.0 for _, score in found])
            axes.errorbar(
                x, y, yerr=error, color=colour, marker="o", capsize=3, elinewidth=1.4, markerfacecolor="white"
            )
            axes.plot(x[x == setting.own], y[x == setting.own], "o", color=colour, markersize=8, zorder=4)
            # The values roughly double from one to the next.
            axes.set_xscale("log", base=2)
            axes.set_xticks(setting.values, [str(value) for value in setting.values])
            axes.xaxis.set_minor_locator(matplotlib("ticker").NullLocator())
            axes.set_ylabel((METRICS[metric] + (" (nats)" if row else "")) if column == 0 else "")
        panels[0, column].set_title(f"By {setting.kind} (its own: {setting.own})")
        panels[1, column].set_xlabel(setting.kind)
    return figure


KINDS = {"k": ("sequence length k", OWN["k"]), "hidden": ("hidden size", OWN["hidden"])}
"""Setting of a sensitivity figure → its name in reports and the method's own value."""


def sensitivity(results: Results, draw: Draw) -> list[Block]:
    """AUC and LogLoss of ASMG-GRU multi by sequence length and by hidden size."""
    blocks: list[Block] = [Heading("Sensitivity")]
    if SENSITIVE not in results.methods:
        return [*blocks, nothing(f"these are runs of {label(SENSITIVE)}, which this run does not have")]
    found: list[Sensitivity] = []
    tables: list[Block] = []
    for kind, (name, own) in KINDS.items():
        if variants := results.variants(kind):
            values = dict(sorted((variants | {own: ""}).items()))
            scores = {m: [results.score(m, SENSITIVE, variant=v) for v in values.values()] for m in METRICS}
            found.append(Sensitivity(name, list(values), own, scores))
            cells = [best_scores(scores[metric], highest=metric == "auc") for metric in METRICS]
            names = [f"{value} (its own)" if value == own else str(value) for value in values]
            rows = list(zip(names, *cells, strict=True))
            tables.append(Table([name[0].upper() + name[1:], "AUC ↑", "LogLoss ↓"], rows))
        else:
            tables.append(nothing(f"this run has no other {name} than {own}"))
    if found:
        kinds = listed([setting.kind for setting in found])
        caption = f"{label(SENSITIVE)} by {kinds}; filled: its own value." + (
            " Whiskers: standard deviations over the seeds." if several_seeds(results) else ""
        )
        alt = f"AUC and LogLoss of {label(SENSITIVE)} by {kinds}."
        blocks.append(draw("sensitivity", sensitivity_figure(found), alt, caption))
    return [*blocks, *tables]
