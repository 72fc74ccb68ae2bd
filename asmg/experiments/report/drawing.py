"""The look of the figures: sizes, colours, markers; and how they are saved. matplotlib comes with the extra
`experiments`.
"""

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from asmg.experiments.report.results import label
from asmg.experiments.statistics import Array, Spread

__all__ = [
    "BLACK",
    "BLUE",
    "GREY",
    "LIGHT",
    "MAIN",
    "VERMILION",
    "Look",
    "draw_dots",
    "draw_line",
    "drawing",
    "matplotlib",
    "new_figure",
    "require_matplotlib",
    "save",
]

WIDTH = 8.0
"""Width of a figure in inches."""

GREY, LIGHT = "#595959", "#c4c4c4"

# One colour of Okabe and Ito's palette, which colour-blind readers can distinguish, for each family of methods. Within
# a family markers and dashes differ.
BLACK, SKY, ORANGE, GREEN, PURPLE, BLUE, VERMILION = (
    "#000000", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00",
)  # fmt: skip

BROWN = "#6B4226"
"""Colour of the yardsticks; the palette's yellow is invisible on white."""


class Look(NamedTuple):
    """How a method's line is drawn."""

    color: str
    marker: str
    linestyle: Any = "-"


LOOKS = {
    "iu": Look(BLACK, "o"),
    "bu-3": Look(SKY, "v"),
    "bu-5": Look(SKY, "^", "--"),
    "bu-7": Look(SKY, "<", ":"),
    "spmf": Look(ORANGE, "s", "--"),
    "incctr": Look(GREEN, "D", "-."),
    "sml": Look(PURPLE, "P", "--"),
    "sml-mf": Look(PURPLE, "X", ":"),
    "asmg-linear": Look(BLUE, "^", "-."),
    "asmg-gru-single": Look(VERMILION, "v", "--"),
    "asmg-gru-multi": Look(VERMILION, "o"),
    "asmg-gru-full": Look(VERMILION, "s", "-."),
    "asmg-gru-zero": Look(VERMILION, "D", ":"),
    "asmg-gru-unif": Look(VERMILION, "X", (0, (5, 1, 1, 1, 1, 1))),
    "popularity": Look(BROWN, "v", ":"),
    "item-ctr": Look(BROWN, "^", "-."),
    "logistic": Look(BROWN, "s", "--"),
    "lightgbm": Look(BROWN, "o"),
}

MAIN = ("iu", "bu-3", "spmf", "incctr", "sml", "asmg-linear", "asmg-gru-multi", "lightgbm")
"""One method of each family, drawn in colour when more lines would cover each other."""


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        ValueError: it is not.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it logs where its caches are
    try:
        matplotlib("figure")
    except ImportError:
        raise ValueError("a report needs matplotlib: pip install 'asmg-service[experiments]'") from None


def matplotlib(module: str = "") -> Any:
    """matplotlib, or one of its modules, imported when first needed."""
    return importlib.import_module(f"matplotlib.{module}".rstrip("."))


@contextmanager
def drawing() -> Iterator[None]:
    """Context in which figures look alike and equal numbers give equal bytes, independent of the user's settings."""
    library = matplotlib()
    with library.rc_context():
        library.rcdefaults()
        library.rcParams.update(
            {
                "axes.axisbelow": True,
                "axes.formatter.useoffset": False,
                "axes.grid": True,
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlelocation": "left",
                "axes.titlesize": 10.5,
                "axes.titleweight": "bold",
                "figure.constrained_layout.h_pad": 0.06,
                "figure.constrained_layout.use": True,
                "figure.constrained_layout.w_pad": 0.06,
                "figure.constrained_layout.wspace": 0.04,
                "font.size": 9.5,
                "grid.color": "#e2e2e2",
                "legend.frameon": False,
                "legend.handlelength": 2.8,  # as long as a pattern of dashes
                "lines.linewidth": 1.8,
                "lines.markersize": 5.5,
                "savefig.dpi": 150,
                "svg.fonttype": "none",  # text stays text
                "svg.hashsalt": "asmg",
            }
        )
        yield


def save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure as `NAME.svg` and `NAME.png`; return the files."""
    files = [folder / f"{name}.svg", folder / f"{name}.png"]
    figure.savefig(files[0], metadata={"Date": None})
    figure.set_layout_engine("none")  # it has one now, which took longer than to draw it
    figure.savefig(files[1])
    return files


def new_figure(height: float) -> Any:
    """An empty figure of a height in inches."""
    return matplotlib("figure").Figure(figsize=(WIDTH, height))


def _look(method: str) -> Look:
    return LOOKS.get(method, Look(GREY, "."))


def draw_line(axes: Any, x: Sequence[float] | Array, y: Sequence[float] | Array, method: str, **more: Any) -> None:
    """Draw the line of a method in its look; `more` overrides it."""
    look = _look(method)
    axes.plot(x, y, **{"label": label(method), **look._asdict(), **more})


def draw_dots(axes: Any, methods: Sequence[str], scores: Sequence[Spread | None], marked: set[str], ticks: int) -> None:
    """Draw a dot and a whisker for each method, the first at the top; `marked` ones in colour."""
    for y, (method, score) in enumerate(zip(methods, scores, strict=True)):
        if score is not None:
            colour = VERMILION if method in marked else BLACK if method == "iu" else BLUE
            axes.errorbar(score.mean, y, xerr=score.std, fmt="o", color=colour, capsize=3, elinewidth=1.4)
    axes.set_yticks(range(len(methods)), [label(method) for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    short = max(0.0, 0.002 - (high - low)) / 2  # smaller differences do not matter, and their tick labels would not fit
    axes.set_xlim(low - short, high + short)
    axes.xaxis.set_major_locator(matplotlib("ticker").MaxNLocator(ticks))
