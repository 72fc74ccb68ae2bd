"""Section: AUC in each test period (the paper's disentangled performance)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asmg.experiments.methods import BASE
from asmg.experiments.report.blocks import Block, Heading, Paragraph, Row, Table
from asmg.experiments.report.cells import best, fixed, nothing, signed
from asmg.experiments.report.drawing import BLACK, LIGHT, MAIN, draw_line, matplotlib, new_figure
from asmg.experiments.report.results import Results, label
from asmg.experiments.report.sections import Draw
from asmg.experiments.statistics import Array, mean

__all__ = ["by_period", "by_period_figure"]


def by_period_figure(periods: Sequence[int], auc: Mapping[str, Array], base: str | None) -> Any:
    """AUC of each method in each test period [periods], and below it the difference from the base method."""
    main = [m for m in auc if m in MAIN] if len(auc) > len(MAIN) else list(auc)
    compared = base is not None and len(auc) > 1
    figure = new_figure(6.6 if compared else 3.8)
    panels = figure.subplots(2 if compared else 1, 1, sharex=True, squeeze=False)[:, 0]
    for panel, axes in enumerate(panels):
        less = auc[base] if panel and base is not None else 0.0
        for method in (m for m in auc if m not in main):
            axes.plot(periods, auc[method] - less, color=LIGHT, linewidth=1, zorder=1)
        for method in main:
            draw_line(axes, periods, auc[method] - less, method, zorder=3 if method.startswith("asmg") else 2)
        # The coloured lines fill the panel; a grey line may leave it.
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
        line = matplotlib("lines").Line2D
        handles.append(line([], [], color=LIGHT, linewidth=1, label="the others"))
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def by_period(results: Results, draw: Draw) -> list[Block]:
    """The paper's disentangled performance: AUC in each test period."""
    methods, periods = results.methods, results.test_periods
    auc = {method: mean(results.values("auc", method), 0) for method in methods}
    compared = BASE in methods and len(methods) > 1
    blocks: list[Block] = [Heading("Period by period")]
    if np.isnan(np.concatenate(list(auc.values()))).all():
        return [*blocks, nothing("no test period has both classes, so there is no AUC")]
    caption = "AUC of each method in each test period, mean of the seeds."
    if compared:
        caption += " Below, the same less the AUC of IU: above 0 is better than IU."
    if len(methods) > len(MAIN):
        caption += " One method of each family is in colour; a grey line may leave the panel."
    figure = by_period_figure(periods, auc, BASE if compared else None)
    blocks.append(draw("periods", figure, "AUC over the test periods, a line for each method.", caption))
    columns = [f"period {period}" for period in periods]
    values = np.stack(list(auc.values()))
    cells = [best(column, [fixed(v) for v in column], highest=True) for column in values.T.tolist()]
    rows: list[Row] = [[label(method), *(column[n] for column in cells)] for n, method in enumerate(methods)]
    blocks.append(Table(["AUC", *columns], rows))
    if compared:
        gains = {method: 1000 * (auc[method] - auc[BASE]) for method in methods if method != BASE}
        rows = [[label(m), *(signed(v, 1) for v in [*gain, mean(gain)])] for m, gain in gains.items()]
        blocks += [Paragraph("AUC less that of IU, in thousandths:"), Table(["Method", *columns, "mean"], rows)]
    return blocks
