"""The report of a finished run, `asmg experiment report`: the paper's tables and figures, and some of our own.

Each section is a function from the results to blocks; a section without content says why. The blocks are rendered to
`report.md` and, with embedded figures, to `report.html`.
"""

from pathlib import Path
from typing import Any

from asmg.experiments.report.ablation import ablation
from asmg.experiments.report.blocks import Block, Heading, Picture, to_html, to_markdown
from asmg.experiments.report.by_period import by_period
from asmg.experiments.report.calibration import calibration
from asmg.experiments.report.comparison import comparison
from asmg.experiments.report.drawing import drawing, require_matplotlib, save
from asmg.experiments.report.forgetting import forgetting
from asmg.experiments.report.overview import what_was_run
from asmg.experiments.report.results import Results
from asmg.experiments.report.sensitivity import sensitivity
from asmg.experiments.report.slices import cold_and_warm, without_repeats
from asmg.experiments.report.training_time import training_time
from asmg.experiments.report.yardsticks import beside_yardsticks

__all__ = ["write_report"]

SECTIONS = (
    what_was_run,
    comparison,
    beside_yardsticks,
    without_repeats,
    by_period,
    ablation,
    training_time,
    sensitivity,
    cold_and_warm,
    calibration,
    forgetting,
)

PICTURES = ("periods", "ablation", "training-time", "sensitivity", "slices", "reliability", "forgetting")
"""Names of all figures that a report can have."""


def write_report(out: Path) -> list[Path]:
    """Write `report.md`, `report.html` and `figures/` into the folder of a finished run.

    Equal results and an equal version of matplotlib give the same bytes. Figures of an earlier report that this one
    lacks are removed.

    Args:
        out: the folder that `asmg experiment run` wrote.

    Returns:
        the files written.

    Raises:
        ValueError: matplotlib is not installed, or `out` is not the folder of a finished run.
    """
    require_matplotlib()
    results = Results.read(out)
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    drawn: list[Path] = []

    def draw(name: str, figure: Any, alt: str, caption: str) -> Picture:
        drawn.extend(save(figure, folder, name))
        return Picture(name, alt, caption)

    with drawing():
        blocks: list[Block] = [Heading(f"Experiment on {results.card['dataset']}", 1)]
        for section in SECTIONS:
            blocks += section(results, draw)
    for file in {folder / f"{name}.{ending}" for name in PICTURES for ending in ("svg", "png")} - set(drawn):
        file.unlink(missing_ok=True)
    texts = {out / "report.md": to_markdown(blocks), out / "report.html": to_html(blocks, out)}
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
    return [*texts, *drawn]
