"""How a report prints numbers, and which ones are bold."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from asmg.experiments.report.blocks import Cell, Paragraph
from asmg.experiments.statistics import Spread

__all__ = [
    "best",
    "best_scores",
    "counted",
    "fixed",
    "listed",
    "nothing",
    "p_value",
    "pairs",
    "seconds",
    "signed",
    "with_spread",
]

NONE = "–"
"""Printed when there is no number."""


def fixed(value: float | None, digits: int = 4) -> str:
    """A number such as 0.8289."""
    return NONE if value is None or math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    """A number with its sign, such as +1.33 or −0.89; 0.00 has none."""
    if value is None or math.isnan(value):
        return NONE
    text = f"{value:+.{digits}f}"
    return (text if float(text) else text[1:]).replace("-", "−")


def with_spread(score: Spread | None, digits: int = 4) -> str:
    """A mean with its deviation, such as 0.8289 ± 0.0010; only the mean for a single seed."""
    if score is None:
        return NONE
    return fixed(score.mean, digits) + ("" if score.std is None else f" ± {score.std:.{digits}f}")


def seconds(value: float | None) -> str:
    """Seconds with three significant digits, such as 0.0123, 12.3 or 1,230."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def p_value(value: float | None) -> str:
    """A p-value such as 0.016 or < 0.001."""
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def best(values: Sequence[float | None], texts: Sequence[str], *, highest: bool, digits: int = 4) -> list[Cell]:
    """Cells with these texts; the best of two or more values, compared as printed, is bold."""
    printed = [None if value is None or math.isnan(value) else round(value, digits) for value in values]
    there = [value for value in printed if value is not None]
    top = (max if highest else min)(there) if len(there) > 1 else None
    return [Cell(text, value is not None and value == top) for value, text in zip(printed, texts, strict=True)]


def best_scores(scores: Sequence[Spread | None], *, highest: bool, digits: int = 4) -> list[Cell]:
    """Cells of scores with their spread, the best one bold."""
    values = [None if score is None else score.mean for score in scores]
    return best(values, [with_spread(score, digits) for score in scores], highest=highest, digits=digits)


def counted(number: int, what: str) -> str:
    """A count with its noun, such as 1 period or 7 periods."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """Names as a list in words, such as A, B and C."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def pairs(values: Mapping[str, Any]) -> str:
    """Names with values, such as Python 3.11, numpy 2.0."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def nothing(why: str) -> Paragraph:
    """The paragraph of a section without content."""
    return Paragraph(f"Nothing to show: {why}.")
