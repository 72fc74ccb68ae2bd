"""The figures of a report. matplotlib comes with the extra `experiments`."""

import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asmg.experiments.results import Curve, label
from asmg.experiments.statistics import Array, Spread, mean

__all__ = [
    "ablation",
    "by_period",
    "drawing",
    "forgetting",
    "reliability",
    "require_matplotlib",
    "save",
    "sensitivity",
    "slices",
    "training_time",
]

WIDTH = 8.0
"""Inches."""

GREY, LIGHT = "#595959", "#c4c4c4"

# A colour of Okabe and Ito's palette for each family of methods, which the colour-blind can tell apart; within a family
# markers and dashes differ.
BLACK, SKY, ORANGE, GREEN, PURPLE, BLUE, VERMILION = (
    "#000000", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00",
)  # fmt: skip
BROWN = "#6B4226"
"""Of the yardsticks; the palette's yellow cannot be seen on white."""


class Look(NamedTuple):
    """How a method's line is drawn."""

    color: str
    marker: str
    linestyle: Any = "-"


LOOKS = {
    "iu": Look(BLACK, "o"),
    "bu-3": Look(SKY, "v"),
    "bu-5": Look(SKY, "^", "--"),
    "bu-7": Look(SKY, "<", ":"),
    "spmf": Look(ORANGE, "s", "--"),
    "incctr": Look(GREEN, "D", "-."),
    "sml": Look(PURPLE, "P", "--"),
    "sml-mf": Look(PURPLE, "X", ":"),
    "asmg-linear": Look(BLUE, "^", "-."),
    "asmg-gru-single": Look(VERMILION, "v", "--"),
    "asmg-gru-multi": Look(VERMILION, "o"),
    "asmg-gru-full": Look(VERMILION, "s", "-."),
    "asmg-gru-zero": Look(VERMILION, "D", ":"),
    "asmg-gru-unif": Look(VERMILION, "X", (0, (5, 1, 1, 1, 1, 1))),
    "popularity": Look(BROWN, "v", ":"),
    "item-ctr": Look(BROWN, "^", "-."),
    "logistic": Look(BROWN, "s", "--"),
    "lightgbm": Look(BROWN, "o"),
}

MAIN = ("iu", "bu-3", "spmf", "incctr", "sml", "asmg-linear", "asmg-gru-multi", "lightgbm")
"""One of each family: in colour where more lines would cover each other."""

METRICS = {"auc": "AUC", "logloss": "LogLoss"}


def require_matplotlib() -> None:
    """See that matplotlib is there.

    Raises:
        ValueError: it is not.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its caches
    try:
        _matplotlib("figure")
    except ImportError:
        raise ValueError("a report needs matplotlib: pip install 'asmg-service[experiments]'") from None


def _matplotlib(module: str = "") -> Any:
    return importlib.import_module(f"matplotlib.{module}".rstrip("."))


@contextmanager
def drawing() -> Iterator[None]:
    """Within it figures look alike and equal numbers give equal bytes, whatever the user's own settings."""
    matplotlib = _matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "axes.axisbelow": True,
                "axes.formatter.useoffset": False,
                "axes.grid": True,
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlelocation": "left",
                "axes.titlesize": 10.5,
                "axes.titleweight": "bold",
                "figure.constrained_layout.h_pad": 0.06,
                "figure.constrained_layout.use": True,
                "figure.constrained_layout.w_pad": 0.06,
                "figure.constrained_layout.wspace": 0.04,
                "font.size": 9.5,
                "grid.color": "#e2e2e2",
                "legend.frameon": False,
                "legend.handlelength": 2.8,  # as long as a pattern of dashes
                "lines.linewidth": 1.8,
                "lines.markersize": 5.5,
                "savefig.dpi": 150,
                "svg.fonttype": "none",  # text stays text
                "svg.hashsalt": "asmg",
            }
        )
        yield


def save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure as `NAME.svg` and `NAME.png`."""
    files = [folder / f"{name}.svg", folder / f"{name}.png"]
    figure.savefig(files[0], metadata={"Date": None})
    figure.savefig(files[1])
    return files


def _figure(height: float) -> Any:
    return _matplotlib("figure").Figure(figsize=(WIDTH, height))


def _look(method: str) -> Look:
    return LOOKS.get(method, Look(GREY, "."))


def _line(axes: Any, x: Sequence[float] | Array, y: Sequence[float] | Array, method: str, **more: Any) -> None:
    look = _look(method)
    axes.plot(x, y, **{"label": label(method), **look._asdict(), **more})


def by_period(periods: Sequence[int], auc: Mapping[str, Array], base: str | None) -> Any:
    """AUC of each method in each test period [periods], and below it by how much it is above the base method's."""
    main = [m for m in auc if m in MAIN] if len(auc) > len(MAIN) else list(auc)
    compared = base is not None and len(auc) > 1
    figure = _figure(6.6 if compared else 3.8)
    panels = figure.subplots(2 if compared else 1, 1, sharex=True, squeeze=False)[:, 0]
    for panel, axes in enumerate(panels):
        less = auc[base] if panel and base is not None else 0.0
        for method in (m for m in auc if m not in main):
            axes.plot(periods, auc[method] - less, color=LIGHT, linewidth=1, zorder=1)
        for method in main:
            _line(axes, periods, auc[method] - less, method, zorder=3 if method.startswith("asmg") else 2)
        # The methods in colour fill the panel; a grey line may leave it.
        shown = np.concatenate([auc[m] - less for m in main])
        shown = shown[~np.isnan(shown)]
        if len(shown):
            space = 0.06 * float(np.ptp(shown)) or 0.001
            axes.set_ylim(shown.min() - space, shown.max() + space)
        axes.set_ylabel("AUC" if not panel else f"AUC − AUC of {label(base or '')}")
    panels[0].set_title("AUC in each test period")
    if compared:
        panels[1].set_title(f"The same, less that of {label(base or '')}")
        panels[1].axhline(0, color=BLACK, linewidth=0.8, zorder=1)
    panels[-1].set_xlabel("period")
    panels[-1].set_xticks(periods)
    handles = panels[0].get_legend_handles_labels()[0]
    if len(main) < len(auc):
        line = _matplotlib("lines").Line2D
        handles.append(line([], [], color=LIGHT, linewidth=1, label="the others"))
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def ablation(scores: Mapping[str, tuple[Spread | None, Spread | None]]) -> Any:
    """AUC and LogLoss of the variants of ASMG-GRU, ± over seeds."""
    figure = _figure(0.9 + 0.36 * len(scores))
    panels = figure.subplots(1, 2, sharey=True)
    names = list(scores)
    for n, (axes, title) in enumerate(
        zip(panels, ("AUC (higher is better)", "LogLoss (lower is better)"), strict=True)
    ):
        _dots(axes, names, [scores[name][n] for name in names], {"asmg-gru-multi"}, 4)
        axes.set_title(title)
    panels[0].set_xlabel("AUC")
    panels[1].set_xlabel("LogLoss (nats)")
    return figure


def _dots(axes: Any, methods: Sequence[str], scores: Sequence[Spread | None], marked: set[str], ticks: int) -> None:
    """A dot and a whisker for each method, the first at the top; `marked` in colour."""
    for y, (method, score) in enumerate(zip(methods, scores, strict=True)):
        if score is not None:
            colour = VERMILION if method in marked else BLACK if method == "iu" else BLUE
            axes.errorbar(score.mean, y, xerr=score.std, fmt="o", color=colour, capsize=3, elinewidth=1.4)
    axes.set_yticks(range(len(methods)), [label(method) for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    short = max(0.0, 0.002 - (high - low)) / 2  # what differs less is the same, and its ticks would not fit
    axes.set_xlim(low - short, high + short)
    axes.xaxis.set_major_locator(_matplotlib("ticker").MaxNLocator(ticks))


def training_time(last: Mapping[str, tuple[float, float]], by_step: Mapping[str, Mapping[int, float]]) -> Any:
    """Seconds of the ASMG methods: generator and whole of the last update, and the generator update by update.

    Args:
        last: of each method, the generator and the whole update.
        by_step: of each method, update step → the generator.
    """
    figure = _figure(1.5 + 0.36 * max(4, len(last)))
    bars, lines = figure.subplots(1, 2, width_ratios=(1.15, 1))
    spans = np.array(list(last.values()))
    at = np.arange(len(last))
    for n, (colour, name) in enumerate(((VERMILION, "generator"), (BLUE, "whole update"))):
        y = at + (-0.19, 0.19)[n]
        bars.barh(y, spans[:, n], height=0.36, color=colour, label=name)
        for place, value in zip(y, spans[:, n], strict=True):
            note = f"{value:#.2g}" if value < 10 else f"{value:,.0f}"
            bars.annotate(
                note, (value, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8, color=GREY
            )
    bars.set_yticks(at, [label(method) for method in last])
    bars.set_ylim(len(last) - 0.5, -0.5)
    bars.grid(axis="y", visible=False)
    bars.set_xlabel("seconds" + _logarithmic(bars.xaxis, spans))
    if bars.get_xscale() == "linear":
        bars.set_xlim(0, 1.2 * float(spans.max()))
    else:
        bars.margins(x=0.15)
    bars.set_title("Last update\n")
    shown = [m for m in ("asmg-gru-full", "asmg-gru-multi") if m in by_step] or list(by_step)[:2]
    for method, seconds in by_step.items():
        if method not in shown:
            lines.plot(list(seconds), list(seconds.values()), color=LIGHT, linewidth=1, zorder=1)
    for method in shown:
        short = label(method).removeprefix("ASMG-")
        _line(lines, list(by_step[method]), list(by_step[method].values()), method, label=short)
    if len(by_step) > len(shown):
        lines.plot([], [], color=LIGHT, linewidth=1, label="the others")
    every = np.array([value for seconds in by_step.values() for value in seconds.values()])
    lines.set_ylabel("seconds" + _logarithmic(lines.yaxis, every))
    if lines.get_yscale() == "linear":
        lines.set_ylim(0, 1.1 * float(every.max()))
    lines.xaxis.set_major_locator(_matplotlib("ticker").MaxNLocator(5, integer=True))
    lines.set_xlabel("update")
    lines.set_title("Generator, update by update\n")
    for axes in (bars, lines):
        above = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.985), "borderaxespad": 0}
        axes.legend(**above, ncols=3, handlelength=1.6, columnspacing=1.2, handletextpad=0.5, fontsize=9)
    return figure


def _logarithmic(axis: Any, values: Array) -> str:
    """Make an axis logarithmic if its values lie far apart; what its label is then to say."""
    if values.max() <= 10 * values.min() or values.min() <= 0:
        return ""
    ticker = _matplotlib("ticker")
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(ticker.NullLocator())
    return " (logarithmic)"


class Sensitivity(NamedTuple):
    """A metric at each value of a setting."""

    kind: str
    """What is set, as the axis is named."""
    values: Sequence[int]
    """The values tried, in ascending order."""
    own: int
    """The method's own."""
    scores: Mapping[str, Sequence[Spread | None]]
    """Metric → score at each value."""


def sensitivity(settings: Sequence[Sensitivity]) -> Any:
    """AUC and LogLoss at each value of one or two settings, ± over seeds; the method's own value is filled."""
    figure = _figure(5.6)
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
            # The values are about doublings of one another.
            axes.set_xscale("log", base=2)
            axes.set_xticks(setting.values, [str(value) for value in setting.values])
            axes.xaxis.set_minor_locator(_matplotlib("ticker").NullLocator())
            axes.set_ylabel((METRICS[metric] + (" (nats)" if row else "")) if column == 0 else "")
        panels[0, column].set_title(f"By {setting.kind} (its own: {setting.own})")
        panels[1, column].set_xlabel(setting.kind)
    return figure


def slices(scores: Mapping[str, Mapping[str, Spread | None]], shares: Mapping[str, float]) -> Any:
    """AUC of each method (inner) in each slice (outer), ± over seeds; each slice has a scale of its own."""
    methods = list(next(iter(scores.values())))
    figure = _figure(1.3 + 0.27 * max(4, len(methods)))
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, (part, found) in zip(panels, scores.items(), strict=True):
        base = found.get("iu")
        if base is not None:
            axes.axvline(base.mean, color=BLACK, linewidth=0.9, linestyle="--")
        marked = {method for method in methods if method.startswith("asmg")}
        _dots(axes, methods, [found[method] for method in methods], marked, 3)
        axes.set_title(f"{part}s\n{shares[part]:.1%} of events")
        axes.set_xlabel("AUC")
    return figure


def reliability(curves: Mapping[str, Curve]) -> Any:
    """What was clicked over what was predicted, with the diagonal of a perfect forecast; below it the difference."""
    figure = _figure(6.4)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    highest = max(float(max(curve.predicted.max(), curve.clicked.max())) for curve in curves.values())
    top.plot([0, highest], [0, highest], color=GREY, linestyle="--", linewidth=1, label="perfect")
    below.axhline(0, color=GREY, linestyle="--", linewidth=1)
    for method, curve in curves.items():
        _line(top, curve.predicted, curve.clicked, method, linewidth=1.4)
        _line(below, curve.predicted, curve.clicked - curve.predicted, method, linewidth=1.4)
    percent = _matplotlib("ticker").FuncFormatter(lambda value, _: f"{100 * value:.4g} %".replace("-", "−"))
    top.set_title("What was clicked, by what was predicted")
    top.set_ylabel("share that was clicked")
    below.set_title("Clicked less predicted: above 0 too little was predicted")
    below.set_ylabel("clicked − predicted")
    below.set_xlabel("predicted click-through rate")
    for axis in (top.xaxis, top.yaxis, below.yaxis):
        axis.set_major_formatter(percent)
    figure.legend(handles=top.get_legend_handles_labels()[0], loc="outside right upper")
    return figure


def forgetting(steps: Sequence[int], periods: Sequence[int], auc: Mapping[str, Array], test_from: int) -> Any:
    """AUC of the models of two methods after each step on each period, their difference, and AUC by age of the period.

    Args:
        steps: update steps, ascending.
        periods: ascending.
        auc: two methods → AUC [steps, periods]; the difference is the second less the first.
        test_from: first step of which the ages are averaged.
    """
    (first, a), (second, b) = auc.items()
    figure = _figure(7.0)
    (left, right), (difference, ages) = figure.subplots(2, 2)
    both = np.concatenate([a[~np.isnan(a)], b[~np.isnan(b)]])
    same = {"vmin": both.min(), "vmax": both.max(), "cmap": "viridis"}
    less = b - a
    furthest = float(np.abs(less[~np.isnan(less)]).max(initial=1e-6))
    centred = {"vmin": -furthest, "vmax": furthest, "cmap": "PuOr_r"}
    for axes, values, colours, title in (
        (left, a, same, f"AUC of {label(first)}"),
        (right, b, same, f"AUC of {label(second)}"),
        (difference, less, centred, f"{label(second)} less {label(first)}"),
    ):
        edges = np.arange(len(periods) + 1) + periods[0] - 0.5, np.arange(len(steps) + 1) + steps[0] - 0.5
        image = axes.pcolormesh(*edges, values, rasterized=True, **colours)
        figure.colorbar(image, ax=axes)
        # Between the period learned last and the next one.
        corners = [(step + 0.5, step + side) for step in steps for side in (-0.5, 0.5)]
        axes.plot(*zip(*corners, strict=True), color="white", linewidth=3.2)
        axes.plot(*zip(*corners, strict=True), color="black", linewidth=1.4)
        axes.set_xlim(edges[0][0], edges[0][-1])
        for x, y, text, side in ((0.03, 0.96, "learned", "left"), (0.97, 0.04, "not yet", "right")):
            axes.text(
                x, y, text, transform=axes.transAxes, ha=side, va="top" if y > 0.5 else "bottom", fontsize=8.5,
                bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 2},
            )  # fmt: skip
        axes.grid(visible=False)
        axes.set_title(title)
        axes.set_xlabel("period scored")
        axes.set_ylabel("model after update")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(_matplotlib("ticker").MaxNLocator(7, integer=True, steps=(1, 2, 5, 10)))
    age = np.subtract.outer(-np.array(steps), -np.array(periods))
    tested = np.array(steps) >= test_from
    found = sorted(set(age[tested].ravel().tolist()))
    ages.axvspan(0.5, max(found[-1], 1) + 0.5, color="#ececec", zorder=0)
    ages.axhline(0, color=BLACK, linewidth=0.9)
    _line(ages, found, [mean(less[tested][age[tested] == n]) for n in found], second, markersize=4)
    ages.set_title("The same by distance, test updates")
    ages.set_xlabel("period scored − update (grey: not yet learned)")
    ages.set_ylabel("AUC difference")
    return figure
