"""Section: every method beside the yardsticks that learn."""

from asmg.experiments.observations import NO_REPEAT
from asmg.experiments.report.blocks import Block, Heading, Paragraph, Table
from asmg.experiments.report.cells import nothing, signed
from asmg.experiments.report.results import Results, label
from asmg.experiments.report.sections import METRICS, Draw, wins
from asmg.experiments.statistics import mean, tally

__all__ = ["beside_yardsticks"]

LEARNED = ("lightgbm", "logistic")
"""Yardsticks that learn; every method is compared with them."""


def beside_yardsticks(results: Results, _: Draw) -> list[Block]:
    """The difference of every method from each yardstick that learns, over all rows and without repeats."""
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
    """The mean difference of two methods, and the wins of the first over pairs of seed and period."""
    difference = results.values(metric, method, part=part) - results.values(metric, other, part=part)
    better = difference if metric == "auc" else -difference
    return [signed(float(mean(mean(difference, 1))), 4), wins(tally(better))]
