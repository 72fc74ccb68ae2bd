"""Section: each model's AUC on every period, past and future."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asmg.experiments.methods import BASE
from asmg.experiments.report.blocks import Block, Heading, Paragraph, Row, Table
from asmg.experiments.report.cells import best_scores, nothing
from asmg.experiments.report.drawing import BLACK, draw_line, matplotlib, new_figure
from asmg.experiments.report.results import Results, label
from asmg.experiments.report.sections import Draw
from asmg.experiments.statistics import Array, mean, spread

__all__ = ["forgetting", "forgetting_figure"]


def forgetting_figure(steps: Sequence[int], periods: Sequence[int], auc: Mapping[str, Array], test_from: int) -> Any:
    """AUC of two methods after each step on each period, their difference, and the difference by distance.

    Args:
        steps: update steps, ascending.
        periods: ascending.
        auc: two methods → AUC [steps, periods]; the difference is the second minus the first.
        test_from: first step that enters the means by distance.
    """
    (first, a), (second, b) = auc.items()
    figure = new_figure(7.0)
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
        # The line between the last learned period and the next one.
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
            axis.set_major_locator(matplotlib("ticker").MaxNLocator(7, integer=True, steps=(1, 2, 5, 10)))
    age = np.subtract.outer(-np.array(steps), -np.array(periods))
    tested = np.array(steps) >= test_from
    found = sorted(set(age[tested].ravel().tolist()))
    ages.axvspan(0.5, max(found[-1], 1) + 0.5, color="#ececec", zorder=0)
    ages.axhline(0, color=BLACK, linewidth=0.9)
    draw_line(ages, found, [mean(less[tested][age[tested] == n]) for n in found], second, markersize=4)
    ages.set_title("The same by distance, test updates")
    ages.set_xlabel("period scored − update (grey: not yet learned)")
    ages.set_ylabel("AUC difference")
    return figure


LAST = 5
"""Number of periods that count as just learned."""


def forgetting(results: Results, draw: Draw) -> list[Block]:
    """The AUC of the model after each update on every period, past and future."""
    blocks: list[Block] = [Heading("Forgetting")]
    kept = {m: results.retention(m) for m in results.methods} if len(results.forgetting) else {}
    kept = {method: auc for method, auc in kept.items() if not np.isnan(auc).all()}
    if not kept:
        return [*blocks, nothing("this run did not score its models on every period")]
    steps, periods = results.looked_at
    tested = [period - 1 for period in results.test_periods]
    other = _other(results, list(kept))
    if BASE in kept and other:
        pair = {m: mean(kept[m], 0) for m in (BASE, other)}
        caption = (
            f"AUC of the model after each update (upwards) on each period (to the right), of {label(BASE)} and "
            f"{label(other)}, and their difference. Left of the line: periods that the model has learned; first right "
            "of it: the next period, for which it is used; further right: the future. Last panel: the same, of the "
            "test updates, by how far the period is from the update."
        )
        alt = f"Heat maps of AUC by update and period, of {label(BASE)}, {label(other)} and their difference."
        blocks.append(draw("forgetting", forgetting_figure(steps, periods, pair, tested[0]), alt, caption))
    else:
        why = "there is no method to compare with IU" if BASE in kept else "this run has no IU"
        blocks.append(Paragraph(f"No figure: {why}."))
    at = np.array(steps)[:, None], np.array(periods)[None, :]
    test = np.isin(at[0], tested)
    groups = {
        "next period": test & (at[1] == at[0] + 1),
        f"last {LAST} learned": test & (at[1] <= at[0]) & (at[1] > at[0] - LAST),
        "all learned": test & (at[1] <= at[0]),
    }
    columns = [
        best_scores([spread(mean(auc[:, group], 1)) for auc in kept.values()], highest=True)
        for group in groups.values()
    ]  # fmt: skip
    rows: list[Row] = [[label(m), *(column[n] for column in columns)] for n, m in enumerate(kept)]
    text = "AUC of the models after the test updates, mean over the periods named:"
    return [*blocks, Paragraph(text), Table(["AUC", *groups], rows)]


def _other(results: Results, methods: list[str]) -> str | None:
    """ASMG-GRU multi; else the best ASMG method, else the best other one."""
    if "asmg-gru-multi" in methods:
        return "asmg-gru-multi"
    others = [m for m in methods if m != BASE]
    among = [m for m in others if m.startswith("asmg")] or others
    scores = {m: score.mean for m in among if (score := results.score("auc", m))}
    return max(scores, key=scores.__getitem__, default=None)
