"""Sections: scores without repeats, and of cold and warm users and items."""

from collections.abc import Mapping
from typing import Any

from asmg.experiments.methods import BASE
from asmg.experiments.observations import NO_REPEAT, SLICES
from asmg.experiments.report.blocks import Block, Heading, Paragraph, Row, Table
from asmg.experiments.report.cells import best_scores, nothing
from asmg.experiments.report.drawing import BLACK, draw_dots, new_figure
from asmg.experiments.report.results import Results, label
from asmg.experiments.report.sections import METRICS, Draw
from asmg.experiments.statistics import Spread

__all__ = ["cold_and_warm", "slices_figure", "without_repeats"]


def slices_figure(scores: Mapping[str, Mapping[str, Spread | None]], shares: Mapping[str, float]) -> Any:
    """AUC of each method (inner key) in each slice (outer key), with deviations over seeds; each slice has its own
    scale.
    """
    methods = list(next(iter(scores.values())))
    figure = new_figure(1.3 + 0.27 * max(4, len(methods)))
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, (part, found) in zip(panels, scores.items(), strict=True):
        base = found.get("iu")
        if base is not None:
            axes.axvline(base.mean, color=BLACK, linewidth=0.9, linestyle="--")
        marked = {method for method in methods if method.startswith("asmg")}
        draw_dots(axes, methods, [found[method] for method in methods], marked, 3)
        axes.set_title(f"{part}s\n{shares[part]:.1%} of events")
        axes.set_xlabel("AUC")
    return figure


COLD_AND_WARM = tuple(part for part in SLICES if part.startswith(("cold", "warm")))
"""Slices of new and known users and items."""


def without_repeats(results: Results, _: Draw) -> list[Block]:
    """Scores over the rows whose item is not among the user's last clicks."""
    blocks: list[Block] = [Heading("Without repeats")]
    methods, share = results.methods, results.share(NO_REPEAT)
    if share in (0, 1):
        return [*blocks, nothing(f"{'no' if share else 'every'} row of the test periods is a repeat")]
    cells = [
        best_scores([results.score(metric, m, part=part) for m in methods], highest=metric == "auc")
        for metric in METRICS
        for part in ("all", NO_REPEAT)
    ]
    columns = ["Method"]
    for metric, name in METRICS.items():
        arrow = "↑" if metric == "auc" else "↓"
        columns += [f"{name} {arrow}, all rows", f"{name} {arrow}, no repeat"]
    rows: list[Row] = [[label(m), *(column[n] for column in cells)] for n, m in enumerate(methods)]
    text = (
        f"A repeat is a row whose item is among the user's last 30 clicks: {1 - share:.1%} of the events of the test "
        "periods. Sampled negatives are items that their user has not had, so where negatives are sampled, to know a "
        "repeat is to know a click."
    )
    return [*blocks, Paragraph(text), Table(columns, rows)]


def cold_and_warm(results: Results, draw: Draw) -> list[Block]:
    """AUC over new (cold) and known (warm) users and items."""
    blocks: list[Block] = [Heading("Cold and warm users and items")]
    methods, parts = results.methods, COLD_AND_WARM
    scores = {part: {m: results.score("auc", m, part=part) for m in methods} for part in parts}
    shares = {part: results.share(part) for part in parts}
    shown = {part: found for part, found in scores.items() if any(found.values())}
    text = (
        "AUC within the events of users, or of items, that are new (cold: a user in no row, an item in no click of an "
        "earlier period) or known (warm)."
    )
    missing = [part for part in parts if part not in shown]
    if missing:
        text += f" No AUC for {' or '.join(f'{part}s' for part in missing)}: no test period has both classes there."
    blocks.append(Paragraph(text))
    if not shown:
        return blocks
    caption = "AUC in each slice" + (", ± over the seeds" if len(results.seeds) > 1 else "")
    caption += "; ASMG in colour" + ("; dashed: IU" if BASE in methods else "") + ". Each slice has a scale of its own."
    alt = "AUC of cold and of warm users and items, a dot for each method."
    blocks.append(draw("slices", slices_figure(shown, shares), alt, caption))
    columns = ["AUC", *(f"{part}s ({shares[part]:.1%} of events)" for part in parts)]
    cells = [best_scores(list(scores[part].values()), highest=True) for part in parts]
    rows: list[Row] = [[label(m), *(column[n] for column in cells)] for n, m in enumerate(methods)]
    return [*blocks, Table(columns, rows)]
