"""The sections of a report that the paper's experiments have too."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from asmg.experiments import figures
from asmg.experiments.blocks import Block, Cell, Heading, Paragraph, Picture, Row, Table
from asmg.experiments.cells import (
    best,
    best_scores,
    counted,
    fixed,
    listed,
    nothing,
    p_value,
    pairs,
    seconds,
    signed,
)
from asmg.experiments.jobs import BASE, OWN, SENSITIVE
from asmg.experiments.results import Results, label
from asmg.experiments.statistics import (
    EXACT_UP_TO,
    FLIPS,
    Array,
    Tally,
    improvement,
    max_t_p,
    mean,
    sign_flip_p,
    tally,
)

__all__ = [
    "METRICS",
    "Draw",
    "ablation",
    "by_period",
    "comparison",
    "sensitivity",
    "training_time",
    "what_was_run",
    "wins",
]

METRICS = {"auc": "AUC", "logloss": "LogLoss"}

ABLATION = ("asmg-gru-full", "asmg-gru-zero", "asmg-gru-unif", "asmg-gru-single", "asmg-gru-multi")
"""The variants of the paper's ablation study, in its order."""

KINDS = {"k": ("sequence length k", OWN["k"]), "hidden": ("hidden size", OWN["hidden"])}
"""Settings of the sensitivity figures: what they are called, and the method's own value."""

GENERATOR = ("train_generator", "train_transfer")
"""Stages that train what makes a serving model of base models: ASMG's generator, SML's transfer."""

LEVEL = 0.05

Draw = Callable[[str, Any, str, str], Picture]
"""Name, figure, alternative text and caption → the picture, its files written."""


def _many(results: Results) -> bool:
    return len(results.seeds) > 1


def what_was_run(results: Results, _: Draw) -> list[Block]:
    """The log, the protocol, the settings."""
    card, options, test = results.card, results.options, results.test_periods
    periods, pretrain = options["periods"], options["pretrain"]
    settings = {"default": "default (ours)", "paper": "paper (those of its authors)"}
    unused = card["categories"] and not options["categories"]
    facts = {
        "Rows": f"{card['rows']:,}, of these {card['positives']:,} positives",
        "Users, items": f"{card['users']:,} users, {card['items']:,} items",
        "Categories": f"{card['categories']:,}" + (", not used" if unused else ""),
        "Dates": f"{card['first'][:10]} to {card['last'][:10]}",
        "What the log is": "; ".join(card["rule"]),
        "Methods": ", ".join(label(method) for method in results.methods),
        "Seeds": str(len(results.seeds)),
        "Settings": settings.get(options["settings"], str(options["settings"])),
        "Versions": "; ".join(pairs(versions) for versions in results.versions),
        "Machine": pairs(results.machine),
    }
    protocol = (
        f"The log is cut into {periods} periods of equally many rows. Models are pretrained on periods 1 to {pretrain} "
        f"and updated on each of the periods {pretrain + 1} to {periods - 1}; after each update the model is scored on "
        f"the following period, of which it has seen nothing. The test periods are {test[0]} to {test[-1]}: where "
        f"nothing else is said, scores are plain means over these {len(test)}."
    )
    seeds = "One seed: no ±, as there is nothing to take a deviation over."
    if _many(results):
        seeds = "± is the standard deviation over the seeds, of each seed's mean over the periods."
    blocks: list[Block] = [Heading("What was run"), Paragraph(protocol), Paragraph(seeds)]
    without = np.isnan(mean(results.values("auc", results.methods[0]), 0))
    if without.any():
        names = [str(period) for period, missing in zip(test, without, strict=True) if missing]
        blocks.append(
            Paragraph(f"No AUC in period {listed(names)}, where all rows are of one class: not in its means.")
        )
    return [*blocks, Table(("", "This run"), list(facts.items()), numeric=False)]


def comparison(results: Results, _: Draw) -> list[Block]:
    """The paper's main table, with wins and significance."""
    blocks: list[Block] = [Heading("Comparison of the methods")]
    methods = results.methods
    others = [method for method in methods if method != BASE]
    compared = BASE in methods and bool(others)
    if BASE not in methods:
        blocks.append(Paragraph("This run has no IU, so the methods are compared with nothing: no imp %, no wins."))
    elif not others:
        blocks.append(Paragraph("This run has nothing but IU, so there is nothing to compare."))
    tests = {metric: _tests(results, metric, others) for metric in METRICS} if compared else {}
    columns = ["Method"]
    rows: list[list[str | Cell]] = [[label(method)] for method in methods]
    for metric, name in METRICS.items():
        higher = metric == "auc"
        scores = {method: results.score(metric, method) for method in methods}
        columns += [f"{name} {'↑' if higher else '↓'}", *(["imp %", "wins"] if compared else [])]
        cells = best_scores(list(scores.values()), highest=higher)
        for row, cell, (method, score) in zip(rows, cells, scores.items(), strict=True):
            row.append(cell)
            base = scores.get(BASE)
            if compared and (method == BASE or score is None or base is None):
                row += ["–", "–"]
            elif compared and score is not None and base is not None:
                by = improvement(score.mean, base.mean, higher_is_better=higher)
                row += [signed(by, 2) + _mark(tests[metric][method]), wins(tally(_better(results, metric, method)))]
    blocks.append(Table(columns, rows))
    if compared:
        blocks += _equal_to_base(results, others) + _explained(results, others, tests)
    return blocks


def _better(results: Results, metric: str, method: str) -> Array:
    """By how much a method is better than IU, of each seed in each test period [seeds, periods]."""
    difference = results.values(metric, method) - results.values(metric, BASE)
    return difference if metric == "auc" else -difference


def wins(found: Tally) -> str:
    """5/7, or 5/7, 1 tie."""
    return f"{found.wins}/{found.pairs}" + (f", {counted(found.ties, 'tie')}" if found.ties else "")


def _equal_to_base(results: Results, methods: Sequence[str]) -> list[Block]:
    """A word on those that never differed from IU, which a table of rounded numbers does not show."""
    found = {method: tally(_better(results, "auc", method)) for method in methods}
    same = [label(method) for method, one in found.items() if one.pairs and one.ties == one.pairs]
    if not same:
        return []
    return [Paragraph(f"The same AUC as IU, to the last digit, in every pair of seed and period: {listed(same)}.")]


class _Test(NamedTuple):
    """p-values of a method's mean difference from IU."""

    pairs: float
    """Over all pairs of seed and period, adjusted over the methods."""
    periods: float
    """Over the periods, with the seeds averaged."""
    periods_adjusted: float
    """The same, adjusted over the methods."""


def _tests(results: Results, metric: str, methods: Sequence[str]) -> dict[str, _Test]:
    """Of each method that has differences from IU."""
    better = np.stack([_better(results, metric, method) for method in methods], -1)
    by_period = mean(better, 0)
    over_pairs, over_periods = (
        values[~np.isnan(values).any(-1)] for values in (better.reshape(-1, len(methods)), by_period)
    )
    if not len(over_pairs):
        return {}
    alone = [sign_flip_p(differences) for differences in over_periods.T]
    found = zip(max_t_p(over_pairs), alone, max_t_p(over_periods), strict=True)
    return {method: _Test(*p) for method, p in zip(methods, found, strict=True)}


def _mark(test: _Test) -> str:
    if test.pairs >= LEVEL:
        return ""
    return " ‡" if test.periods_adjusted < LEVEL else " †"


def _explained(results: Results, methods: Sequence[str], tests: dict[str, dict[str, _Test]]) -> list[Block]:
    """What the marks mean, how far they can go in this run, and the p-values behind them."""
    count = len(results.test_periods)
    blocks: list[Block] = [
        Paragraph(
            "Bold: the best, as printed. imp %: relative to IU, above 0 is better. Wins: pairs of seed and period in "
            "which the method is better than IU, of how many; ties: pairs in which it is neither better nor worse."
        ),
        Paragraph(
            "†: the mean difference from IU is more than chance over the pairs of seed and period; ‡: also over the "
            "periods with the seeds averaged, the stricter test, because pairs of one period share its data and are "
            "not independent."
        ),
    ]
    least = 2 / 2**count if count <= EXACT_UP_TO else 1 / FLIPS
    if not _many(results):
        blocks.append(Paragraph("One seed: pairs and periods are the same here, and so are the two tests."))
    if least >= LEVEL:
        marks, sign = ("‡ is", "‡") if _many(results) else ("† and ‡ are", "mark")
        blocks.append(
            Paragraph(
                f"{marks} out of reach in this run: over {counted(count, 'period')} no p-value is below {least:.2g}. "
                f"So a missing {sign} says nothing against a method."
            )
        )
    how = (
        f"Two-sided sign-flip permutation tests of the mean difference from IU: all sign patterns of up to "
        f"{EXACT_UP_TO} differences, {FLIPS:,} random ones of more. Adjusted over the methods by Westfall and "
        "Young's step-down procedure, which flips the signs of all of them together."
    )
    columns = ["p-value"]
    for name in METRICS.values():
        columns += [f"{name}: pairs, adjusted", f"{name}: periods", f"{name}: periods, adjusted"]
    rows = [
        [label(method), *(p_value(p) for found in tests.values() for p in found.get(method, (None, None, None)))]
        for method in methods
    ]
    return [*blocks, Heading("How sure the differences are", 3), Paragraph(how), Table(columns, rows)]


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
    if len(methods) > len(figures.MAIN):
        caption += " One method of each family is in colour; a grey line may leave the panel."
    figure = figures.by_period(periods, auc, BASE if compared else None)
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


def ablation(results: Results, draw: Draw) -> list[Block]:
    """The paper's ablation study of ASMG-GRU."""
    blocks: list[Block] = [Heading("Ablation of ASMG-GRU")]
    methods = [method for method in ABLATION if method in results.methods]
    if len(methods) < 2:
        names = listed([label(method) for method in ABLATION])
        have = label(methods[0]) if methods else "none"
        return [*blocks, nothing(f"this needs two or more of {names}; this run has {have}")]
    scores = {m: (results.score("auc", m), results.score("logloss", m)) for m in methods}
    caption = "The variants of ASMG-GRU" + (": means and standard deviations of the seeds." if _many(results) else ".")
    alt = "AUC and LogLoss of the variants of ASMG-GRU, a dot for each."
    blocks.append(draw("ablation", figures.ablation(scores), alt, caption))
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
        + (": medians of the seeds. " if _many(results) else ". ")
        + "Generator: training of what makes the serving model of base models, which is ASMG's generator and SML's "
        "transfer. Where several runs shared a machine, CPU seconds compare better."
    )
    blocks.append(Paragraph(text))
    last = {m: (p[0], w[0]) for m in methods if m.startswith("asmg") and (p := parts[m]) and (w := whole[m])}
    if last:
        steps = {m: results.seconds_by_step(m, GENERATOR) for m in last}
        caption = (
            "ASMG: seconds of the last update, and seconds of training the generator at each update"
            + (", medians of the seeds." if _many(results) else ".")
        )  # fmt: skip
        alt = "Bars of seconds of each ASMG method, and lines of seconds over the updates."
        blocks.append(draw("training-time", figures.training_time(last, steps), alt, caption))
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


def sensitivity(results: Results, draw: Draw) -> list[Block]:
    """AUC and LogLoss of ASMG-GRU multi by sequence length and by hidden size."""
    blocks: list[Block] = [Heading("Sensitivity")]
    if SENSITIVE not in results.methods:
        return [*blocks, nothing(f"these are runs of {label(SENSITIVE)}, which this run does not have")]
    found: list[figures.Sensitivity] = []
    tables: list[Block] = []
    for kind, (name, own) in KINDS.items():
        if variants := results.variants(kind):
            values = dict(sorted((variants | {own: ""}).items()))
            scores = {m: [results.score(m, SENSITIVE, variant=v) for v in values.values()] for m in METRICS}
            found.append(figures.Sensitivity(name, list(values), own, scores))
            cells = [best_scores(scores[metric], highest=metric == "auc") for metric in METRICS]
            names = [f"{value} (its own)" if value == own else str(value) for value in values]
            rows = list(zip(names, *cells, strict=True))
            tables.append(Table([name[0].upper() + name[1:], "AUC ↑", "LogLoss ↓"], rows))
        else:
            tables.append(nothing(f"this run has no other {name} than {own}"))
    if found:
        kinds = listed([setting.kind for setting in found])
        caption = f"{label(SENSITIVE)} by {kinds}; filled: its own value." + (
            " Whiskers: standard deviations over the seeds." if _many(results) else ""
        )
        alt = f"AUC and LogLoss of {label(SENSITIVE)} by {kinds}."
        blocks.append(draw("sensitivity", figures.sensitivity(found), alt, caption))
    return [*blocks, *tables]
