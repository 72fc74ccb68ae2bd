"""Draws the chart of `asmg bench scaling`. matplotlib comes with the extra `experiments`."""

import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Of the palette of Okabe and Ito, which the colour-blind can tell apart; the markers differ too.
TRAINING, TABLES, GREY = "#0072B2", "#D55E00", "#595959"


def require_matplotlib(file: Path) -> Any:
    """The class `matplotlib.figure.Figure`, for a file that is about to be drawn.

    Raises:
        ValueError: it is not installed, or it does not know the format that the file's name asks for.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its caches
    try:
        canvas = importlib.import_module("matplotlib.backend_bases").FigureCanvasBase
        figure = importlib.import_module("matplotlib.figure").Figure
    except ImportError:
        raise ValueError("a chart needs matplotlib: pip install 'asmg-service[experiments]'") from None
    known = sorted(canvas.get_supported_filetypes())
    if file.suffix[1:].lower() not in known:
        raise ValueError(f"chart: expected a name that ends in one of {', '.join(known)}; received {file.name!r}")
    return figure


class Line(NamedTuple):
    """One line of the chart."""

    label: str
    seconds: Sequence[float]
    """A value for each size of the tables."""


def draw(file: Path, *, rows: Mapping[int, int], training: Line, tables: Line, note: str) -> None:
    """Draw seconds over the rows of the tables, both axes logarithmic.

    Args:
        file: the image, in the format that its ending says.
        rows: rows of the tables → how many times as many as the traffic knows.
        training, tables: what is drawn.
        note: stands below the title.
    """
    figure = require_matplotlib(file)(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    lines = ((*training, TRAINING, "o"), (*tables, TABLES, "s"))
    for label, values, colour, marker in lines:
        axes.plot([*rows], values, color=colour, marker=marker, linewidth=2, markersize=7, label=label, clip_on=False)
    changes = [value / training.seconds[0] - 1 for value in training.seconds]
    for n, (_, values, colour, _) in enumerate(lines):
        other = lines[1 - n][1]
        for at, (x, y) in enumerate(zip(rows, values, strict=True)):
            note = f"{y:.2g} s" + (f" ({100 * changes[at]:+.1f} %)" if n == 0 and at else "")
            above = y >= other[at]
            axes.annotate(
                note, (x, y), xytext=(0, 9 if above else -9), textcoords="offset points", color=colour, fontsize=9,
                ha="center", va="bottom" if above else "top",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.12, y=0.2)
    axes.set_xticks([*rows], [f"{count:,}\n× {factor}" for count, factor in rows.items()])
    axes.xaxis.set_minor_locator(_ticker().NullLocator())
    axes.yaxis.set_major_formatter(_ticker().StrMethodFormatter("{x:g}"))
    axes.set_xlabel("rows of the user and item tables, and how many times as many as the traffic knows")
    axes.set_ylabel("seconds a period (logarithmic)")
    axes.set_title("Seconds of one update, by the size of the tables\n", loc="left", fontsize=13, fontweight="bold")
    axes.text(0, 1.02, note, transform=axes.transAxes, fontsize=9, color=GREY)
    axes.grid(axis="y", which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    # Text stays text; and equal numbers give equal bytes.
    with _settings({"svg.fonttype": "none", "svg.hashsalt": "asmg"}):
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)


def _ticker() -> Any:
    return importlib.import_module("matplotlib.ticker")


def _settings(values: dict[str, Any]) -> Any:
    return importlib.import_module("matplotlib").rc_context(values)
