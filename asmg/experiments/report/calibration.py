"""Section: whether predictions agree with what was clicked."""

from collections.abc import Mapping
from typing import Any

from asmg.experiments.report.blocks import Block, Heading, Paragraph, Table
from asmg.experiments.report.cells import best, best_scores, nothing, with_spread
from asmg.experiments.report.drawing import GREY, draw_line, matplotlib, new_figure
from asmg.experiments.report.results import Curve, Results, label
from asmg.experiments.report.sections import Draw

__all__ = ["calibration", "reliability_figure"]


def reliability_figure(curves: Mapping[str, Curve]) -> Any:
    """Share clicked over prediction, with the diagonal of a perfect forecast; below it the difference."""
    figure = new_figure(6.4)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    highest = max(float(max(curve.predicted.max(), curve.clicked.max())) for curve in curves.values())
    top.plot([0, highest], [0, highest], color=GREY, linestyle="--", linewidth=1, label="perfect")
    below.axhline(0, color=GREY, linestyle="--", linewidth=1)
    for method, curve in curves.items():
        draw_line(top, curve.predicted, curve.clicked, method, linewidth=1.4)
        draw_line(below, curve.predicted, curve.clicked - curve.predicted, method, linewidth=1.4)
    percent = matplotlib("ticker").FuncFormatter(lambda value, _: f"{100 * value:.4g} %".replace("-", "−"))
    top.set_title("What was clicked, by what was predicted")
    top.set_ylabel("share that was clicked")
    below.set_title("Clicked less predicted: above 0 too little was predicted")
    below.set_ylabel("clicked − predicted")
    below.set_xlabel("predicted click-through rate")
    for axis in (top.xaxis, top.yaxis, below.yaxis):
        axis.set_major_formatter(percent)
    figure.legend(handles=top.get_legend_handles_labels()[0], loc="outside right upper")
    return figure


RELIABLE = ("iu", "bu-3", "sml", "asmg-linear", "asmg-gru-multi")
"""Methods in the reliability figure if the run has many."""


def calibration(results: Results, draw: Draw) -> list[Block]:
    """Reliability curves and calibration errors."""
    blocks: list[Block] = [Heading("Calibration")]
    methods = results.methods
    few = [m for m in RELIABLE if m in methods] or methods[: len(RELIABLE)]
    curves = {m: curve for m in (few if len(methods) > len(RELIABLE) else methods) if (curve := results.reliability(m))}
    if not curves:
        return [*blocks, nothing("this run has no calibration curves")]
    caption = (
        "Predictions of all test periods and seeds, in bins of equally many within each period: the mean prediction of "
        "each bin, and the share that was clicked."
    )
    alt = "Reliability curves: clicked over predicted, with the diagonal, and the difference of the two."
    blocks.append(draw("reliability", reliability_figure(curves), alt, caption))
    found = {m: results.calibration_of(m) for m in methods}
    errors = best_scores([error for error, _ in found.values()], highest=False)
    # The best ratio is the one nearest to 1.
    away = [None if ratio is None else abs(ratio.mean - 1) for _, ratio in found.values()]
    ratios = best(away, [with_spread(ratio, 3) for _, ratio in found.values()], highest=False, digits=3)
    rows = list(zip(map(label, methods), errors, ratios, strict=True))
    text = (
        "ECE: the mean distance between predicted and clicked over the bins, those of the test periods put together. "
        "Predicted / clicked: sum of the predictions over the number of clicks, 1 is right."
    )
    return [*blocks, Table(["Method", "ECE ↓", "predicted / clicked"], rows), Paragraph(text)]
