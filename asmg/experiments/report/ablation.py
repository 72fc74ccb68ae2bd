"""Section: the paper's ablation study of ASMG-GRU."""

from collections.abc import Mapping
from typing import Any

from asmg.experiments.report.blocks import Block, Heading, Paragraph, Table
from asmg.experiments.report.cells import best_scores, listed, nothing
from asmg.experiments.report.drawing import draw_dots, new_figure
from asmg.experiments.report.results import Results, label
from asmg.experiments.report.sections import Draw, several_seeds
from asmg.experiments.statistics import Spread

__all__ = ["ablation", "ablation_figure"]


def ablation_figure(scores: Mapping[str, tuple[Spread | None, Spread | None]]) -> Any:
    """AUC and LogLoss of the variants of ASMG-GRU, with deviations over seeds."""
    figure = new_figure(0.9 + 0.36 * len(scores))
    panels = figure.subplots(1, 2, sharey=True)
    names = list(scores)
    for n, (axes, title) in enumerate(
        zip(panels, ("AUC (higher is better)", "LogLoss (lower is better)"), strict=True)
    ):
        draw_dots(axes, names, [scores[name][n] for name in names], {"asmg-gru-multi"}, 4)
        axes.set_title(title)
    panels[0].set_xlabel("AUC")
    panels[1].set_xlabel("LogLoss (nats)")
    return figure


ABLATION = ("asmg-gru-full", "asmg-gru-zero", "asmg-gru-unif", "asmg-gru-single", "asmg-gru-multi")
"""The variants of the paper's ablation study, in its order."""


def ablation(results: Results, draw: Draw) -> list[Block]:
    """The paper's ablation study of ASMG-GRU."""
    blocks: list[Block] = [Heading("Ablation of ASMG-GRU")]
    methods = [method for method in ABLATION if method in results.methods]
    if len(methods) < 2:
        names = listed([label(method) for method in ABLATION])
        have = label(methods[0]) if methods else "none"
        return [*blocks, nothing(f"this needs two or more of {names}; this run has {have}")]
    scores = {m: (results.score("auc", m), results.score("logloss", m)) for m in methods}
    caption = "The variants of ASMG-GRU" + (
        ": means and standard deviations of the seeds." if several_seeds(results) else "."
    )
    alt = "AUC and LogLoss of the variants of ASMG-GRU, a dot for each."
    blocks.append(draw("ablation", ablation_figure(scores), alt, caption))
    auc, logloss = (
        best_scores([score[n] for score in scores.values()], highest=n == 0) for n in range(2)
    )  # fmt: skip
    rows = list(zip(map(label, methods), auc, logloss, strict=True))
    meaning = (
        "multi: the method itself. full: learns from all earlier models, not the last 3. zero: starts from an empty "
        "hidden state, not the one it had before. unif: the losses of the periods count alike. single: only the loss "
        "of the last period counts."
    )
    return [*blocks, Table(["Variant", "AUC ↑", "LogLoss ↓"], rows), Paragraph(meaning)]
