"""`asmg experiment report`: the paper's tables and figures, and some of our own, of a finished run.

Each section is a function of the results that gives blocks; one with nothing to show says why. The blocks are rendered
to `report.md` and, with the figures in it, to `report.html`.
"""

from pathlib import Path
from typing import Any

from asmg.experiments import figures, further_sections, paper_sections
from asmg.experiments.blocks import Block, Heading, Picture, to_html, to_markdown
from asmg.experiments.results import Results

__all__ = ["write_report"]

SECTIONS = (
    paper_sections.what_was_run,
    paper_sections.comparison,
    further_sections.beside_yardsticks,
    further_sections.without_repeats,
    paper_sections.by_period,
    paper_sections.ablation,
    paper_sections.training_time,
    paper_sections.sensitivity,
    further_sections.cold_and_warm,
    further_sections.calibration,
    further_sections.forgetting,
)

PICTURES = ("periods", "ablation", "training-time", "sensitivity", "slices", "reliability", "forgetting")
"""All that a report can have."""


def write_report(out: Path) -> list[Path]:
    """Write `report.md`, `report.html` and `figures/` into the folder of a finished run.

    Equal results give equal files, byte by byte (with the same matplotlib). Figures of an earlier report that this one
    does not have are removed.

    Args:
        out: what `asmg experiment run` wrote.

    Returns:
        the files written.

    Raises:
        ValueError: matplotlib is not installed, or `out` is not the folder of a finished run.
    """
    figures.require_matplotlib()
    results = Results.read(out)
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    drawn: list[Path] = []

    def draw(name: str, figure: Any, alt: str, caption: str) -> Picture:
        drawn.extend(figures.save(figure, folder, name))
        return Picture(name, alt, caption)

    with figures.drawing():
        blocks: list[Block] = [Heading(f"Experiment on {results.card['dataset']}", 1)]
        for section in SECTIONS:
            blocks += section(results, draw)
    for file in {folder / f"{name}.{ending}" for name in PICTURES for ending in ("svg", "png")} - set(drawn):
        file.unlink(missing_ok=True)
    texts = {out / "report.md": to_markdown(blocks), out / "report.html": to_html(blocks, out)}
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
    return [*texts, *drawn]
