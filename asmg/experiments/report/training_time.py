"""Section: the time of training the generator and of the whole update."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from asmg.experiments.report.blocks import Block, Heading, Paragraph, Table
from asmg.experiments.report.cells import nothing, seconds
from asmg.experiments.report.drawing import BLUE, GREY, LIGHT, VERMILION, draw_line, matplotlib, new_figure
from asmg.experiments.report.results import Results, label
from asmg.experiments.report.sections import Draw, several_seeds
from asmg.experiments.statistics import Array

__all__ = ["training_time", "training_time_figure"]


def training_time_figure(last: Mapping[str, tuple[float, float]], by_step: Mapping[str, Mapping[int, float]]) -> Any:
    """Seconds of the ASMG methods: generator and whole update at the last step, and the generator at every step.

    Args:
        last: method → seconds of the generator and of the whole last update.
        by_step: method → update step → seconds of the generator.
    """
    figure = new_figure(1.5 + 0.36 * max(4, len(last)))
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
    for method, spent in by_step.items():
        if method not in shown:
            lines.plot(list(spent), list(spent.values()), color=LIGHT, linewidth=1, zorder=1)
    for method in shown:
        short = label(method).removeprefix("ASMG-")
        draw_line(lines, list(by_step[method]), list(by_step[method].values()), method, label=short)
    if len(by_step) > len(shown):
        lines.plot([], [], color=LIGHT, linewidth=1, label="the others")
    every = np.array([value for spent in by_step.values() for value in spent.values()])
    lines.set_ylabel("seconds" + _logarithmic(lines.yaxis, every))
    if lines.get_yscale() == "linear":
        lines.set_ylim(0, 1.1 * float(every.max()))
    lines.xaxis.set_major_locator(matplotlib("ticker").MaxNLocator(5, integer=True))
    lines.set_xlabel("update")
    lines.set_title("Generator, update by update\n")
    for axes in (bars, lines):
        above = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.985), "borderaxespad": 0}
        axes.legend(**above, ncols=3, handlelength=1.6, columnspacing=1.2, handletextpad=0.5, fontsize=9)
    return figure


def _logarithmic(axis: Any, values: Array) -> str:
    """Make an axis logarithmic if its values differ by more than a factor of 10; return the addition to its label."""
    if values.max() <= 10 * values.min() or values.min() <= 0:
        return ""
    ticker = matplotlib("ticker")
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(ticker.NullLocator())
    return " (logarithmic)"


GENERATOR = ("train_generator", "train_transfer")
"""Stages that train ASMG's generator or SML's transfer."""


def training_time(results: Results, draw: Draw) -> list[Block]:
    """Seconds of training the generator, and of the whole update."""
    blocks: list[Block] = [Heading("Training time")]
    methods = results.methods
    parts = {m: results.seconds(m, GENERATOR) for m in methods}
    whole = {m: results.seconds(m) for m in methods}
    step = results.last_step
    if not any(whole.values()):
        return [*blocks, nothing("this run has no timings of its last update")]
    text = (
        f"Of the last update, that of period {step}, whose model is scored on the last test period"
        + (": medians of the seeds. " if several_seeds(results) else ". ")
        + "Generator: training of what makes the serving model of base models, which is ASMG's generator and SML's "
        "transfer. Where several runs shared a machine, CPU seconds compare better."
    )
    blocks.append(Paragraph(text))
    last = {m: (p[0], w[0]) for m in methods if m.startswith("asmg") and (p := parts[m]) and (w := whole[m])}
    if last:
        steps = {m: results.seconds_by_step(m, GENERATOR) for m in last}
        caption = (
            "ASMG: seconds of the last update, and seconds of training the generator at each update"
            + (", medians of the seeds." if several_seeds(results) else ".")
        )  # fmt: skip
        alt = "Bars of seconds of each ASMG method, and lines of seconds over the updates."
        blocks.append(draw("training-time", training_time_figure(last, steps), alt, caption))
    else:
        blocks.append(Paragraph("No figure: this run has no ASMG method."))
    full, multi = parts.get("asmg-gru-full"), parts.get("asmg-gru-multi")
    if full and multi:
        blocks.append(
            Paragraph(
                f"Training the generator of full took {full[0] / multi[0]:.1f} times as long as that of multi "
                f"({full[1] / multi[1]:.1f} times the CPU seconds); in the paper it is 6.8 to 6.9 times."
            )
        )
    rows = [[label(m), *(seconds(n) for span in (parts[m], whole[m]) for n in (span or (None, None)))] for m in methods]
    columns = ["Method", "generator, s", "generator, CPU s", "whole update, s", "whole update, CPU s"]
    return [*blocks, Table(columns, rows)]
