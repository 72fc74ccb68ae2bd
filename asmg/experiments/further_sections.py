"""The sections of a report that the paper's experiments do not have: yardsticks, slices, calibration, forgetting."""

import numpy as np

from asmg.experiments import figures
from asmg.experiments.blocks import Block, Heading, Paragraph, Row, Table
from asmg.experiments.cells import best, best_scores, nothing, signed, with_spread
from asmg.experiments.jobs import BASE, NO_REPEAT, SLICES
from asmg.experiments.paper_sections import METRICS, Draw, wins
from asmg.experiments.results import Results, label
from asmg.experiments.statistics import mean, spread, tally

__all__ = ["beside_yardsticks", "calibration", "cold_and_warm", "forgetting", "without_repeats"]

LEARNED = ("lightgbm", "logistic")
"""Yardsticks that learn, which every method is compared with."""

COLD_AND_WARM = tuple(part for part in SLICES if part.startswith(("cold", "warm")))

RELIABLE = ("iu", "bu-3", "sml", "asmg-linear", "asmg-gru-multi")
"""Methods of the reliability figure."""

LAST = 5
"""Periods that a model "has just learned"."""


def beside_yardsticks(results: Results, _: Draw) -> list[Block]:
    """How far every method is from each yardstick that learns, with all rows and with those that are no repeat."""
    blocks: list[Block] = [Heading("Beside what a practitioner has")]
    yardsticks = [name for name in LEARNED if name in results.methods]
    if not yardsticks or len(yardsticks) == len(results.methods):
        names = " or ".join(label(name) for name in LEARNED)
        return [*blocks, nothing(f"this needs {names}, and a method beside it")]
    parts = {"": "all"} | ({", no repeat": NO_REPEAT} if results.share(NO_REPEAT) < 1 else {})
    text = (
        "Scores less those of a yardstick, which is fed with the same statistics. Wins: pairs of seed and period in "
        "which the method is better."
    )
    blocks.append(Paragraph(text))
    for yardstick in yardsticks:
        columns, methods = [f"less {label(yardstick)}"], [m for m in results.methods if m != yardstick]
        rows: list[list[str]] = [[label(method)] for method in methods]
        for name, part in parts.items():
            for metric in METRICS:
                columns += [
                    f"{METRICS[metric]} {'↑' if metric == 'auc' else '↓'}{name}",
                    f"{METRICS[metric]} wins{name}",
                ]
                for row, method in zip(rows, methods, strict=True):
                    row += _against(results, metric, method, yardstick, part)
        blocks.append(Table(columns, rows))
    return blocks


def _against(results: Results, metric: str, method: str, other: str, part: str) -> list[str]:
    """The mean difference of two methods, and in how many pairs of seed and period the first is better."""
    difference = results.values(metric, method, part=part) - results.values(metric, other, part=part)
    better = difference if metric == "auc" else -difference
    return [signed(float(mean(mean(difference, 1))), 4), wins(tally(better))]


def without_repeats(results: Results, _: Draw) -> list[Block]:
    """Scores of the rows whose item the user has not clicked of late."""
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
    """AUC of users and items that are new and that are known."""
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
    blocks.append(draw("slices", figures.slices(shown, shares), alt, caption))
    columns = ["AUC", *(f"{part}s ({shares[part]:.1%} of events)" for part in parts)]
    cells = [best_scores(list(scores[part].values()), highest=True) for part in parts]
    rows: list[Row] = [[label(m), *(column[n] for column in cells)] for n, m in enumerate(methods)]
    return [*blocks, Table(columns, rows)]


def calibration(results: Results, draw: Draw) -> list[Block]:
    """Whether what was predicted is what was clicked."""
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
    blocks.append(draw("reliability", figures.reliability(curves), alt, caption))
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


def forgetting(results: Results, draw: Draw) -> list[Block]:
    """How well the model after each update does on every period, past and future."""
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
        blocks.append(draw("forgetting", figures.forgetting(steps, periods, pair, tested[0]), alt, caption))
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
