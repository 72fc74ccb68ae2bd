"""Section: the paper's main table, with wins and significance."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asmg.experiments.methods import BASE
from asmg.experiments.report.blocks import Block, Cell, Heading, Paragraph, Table
from asmg.experiments.report.cells import best_scores, counted, listed, p_value, signed
from asmg.experiments.report.results import Results, label
from asmg.experiments.report.sections import METRICS, Draw, several_seeds, wins
from asmg.experiments.statistics import EXACT_UP_TO, FLIPS, Array, improvement, max_t_p, mean, sign_flip_p, tally

__all__ = ["comparison"]

LEVEL = 0.05
"""A p-value below this is marked."""


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
    """By how much a method is better than IU, for each seed and test period [seeds, periods]."""
    difference = results.values(metric, method) - results.values(metric, BASE)
    return difference if metric == "auc" else -difference


def _equal_to_base(results: Results, methods: Sequence[str]) -> list[Block]:
    """A paragraph on methods that equal IU exactly, which rounded numbers do not show."""
    found = {method: tally(_better(results, "auc", method)) for method in methods}
    same = [label(method) for method, one in found.items() if one.pairs and one.ties == one.pairs]
    if not same:
        return []
    return [Paragraph(f"The same AUC as IU, to the last digit, in every pair of seed and period: {listed(same)}.")]


class _Test(NamedTuple):
    """p-values of a method's mean difference from IU."""

    pairs: float
    """Over all pairs of seed and period, adjusted for the number of methods."""
    periods: float
    """Over the periods, averaged over the seeds."""
    periods_adjusted: float
    """Over the periods, adjusted for the number of methods."""


def _tests(results: Results, metric: str, methods: Sequence[str]) -> dict[str, _Test]:
    """The test of each method; empty if no pair has a difference for all methods."""
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
    """What the marks mean, which of them this run can reach, and the p-values."""
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
    if not several_seeds(results):
        blocks.append(Paragraph("One seed: pairs and periods are the same here, and so are the two tests."))
    if least >= LEVEL:
        marks, sign = ("‡ is", "‡") if several_seeds(results) else ("† and ‡ are", "mark")
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
