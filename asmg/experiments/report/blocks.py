"""A document as a list of blocks, and its rendering as Markdown and as a single HTML file."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

__all__ = ["Block", "Cell", "Heading", "Paragraph", "Picture", "Row", "Table", "to_html", "to_markdown"]


@dataclass(frozen=True)
class Heading:
    """A heading."""

    text: str
    """Plain text."""
    level: int = 2
    """1 for the title, 2 for sections, 3 below."""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str
    """Plain text without markup."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    """Plain text."""
    best: bool = False
    """Whether it is set in bold."""


Row = Sequence[str | Cell]
"""Row of a table: one cell per column."""


@dataclass(frozen=True)
class Table:
    """A table. Its first column has the names of the rows."""

    columns: Sequence[str]
    """Headings, plain text."""
    rows: Sequence[Row]
    """From top to bottom."""
    numeric: bool = True
    """Whether all columns except the first hold numbers, which are aligned to the right."""


@dataclass(frozen=True)
class Picture:
    """A figure, in the files `figures/NAME.svg` and `figures/NAME.png`."""

    name: str
    """File name without its ending."""
    alt: str
    """Alternative text for readers who cannot see the figure."""
    caption: str
    """What it shows and how to read it."""

    @property
    def file(self) -> str:
        """Path of the drawing relative to the document."""
        return f"figures/{self.name}.svg"


Block = Heading | Paragraph | Table | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """Render as GitHub's Markdown; pictures are links into `figures/`."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_plain(block.text)}"
        case Paragraph():
            return _plain(block.text)
        case Picture():
            return f"![{_plain(block.alt)}]({block.file})\n\n*{_plain(block.caption)}*"
        case Table():
            align = ["---"] + ["--:" if block.numeric else "---"] * (len(block.columns) - 1)
            rows = [[_plain(name) for name in block.columns], align]
            rows += [[f"**{_plain(c.text)}**" if c.best else _plain(c.text) for c in _cells(row)] for row in block.rows]
            return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_<>\[\]|~&])", r"\\\1", text)


def _cells(row: Row) -> list[Cell]:
    return [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]


STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --page: #ffffff; --soft: #595959; --line: #d4d4d4; --band: #f4f4f4; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --page: #17191c; --soft: #a9a9a9; --line: #3c4046; --band: #212429; }
}
body { margin: 0 auto; max-width: 52rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; text-wrap: balance; }
h2 { margin-top: 2.5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
nav ol { columns: 16rem; padding: 0; list-style: none; }
a { color: inherit; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; background: var(--band); }
tbody th { position: sticky; left: 0; background: var(--page); font-weight: normal; white-space: nowrap; }
.numbers td { white-space: nowrap; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; }
figure { margin: 1.5rem 0; }
figure img { display: block; width: 100%; min-width: 36rem; background: #ffffff; border-radius: .25rem; }
figcaption { margin-top: .5rem; font-size: .875rem; color: var(--soft); }
""".strip()


def to_html(blocks: Sequence[Block], folder: Path) -> str:
    """Render as one HTML page without other files; the pictures are read from the document's `folder` and embedded."""
    title = next((block.text for block in blocks if isinstance(block, Heading) and block.level == 1), "Report")
    sections = [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = "".join(f'<li><a href="#{_anchor(text)}">{escape(text)}</a></li>\n' for text in sections)
    nav = f"<nav><ol>\n{links}</ol></nav>"
    body = []
    for block in blocks:
        body.append(_html(block, folder))
        if isinstance(block, Heading) and block.level == 1:
            body.append(nav)
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>"
    )
    content = "\n".join(body)
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{content}\n</body>\n</html>\n'


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading():
            return f'<h{block.level} id="{_anchor(block.text)}">{escape(block.text)}</h{block.level}>'
        case Paragraph():
            return f"<p>{escape(block.text)}</p>"
        case Picture():
            data = base64.b64encode((folder / block.file).read_bytes()).decode("ascii")
            image = f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(block.alt)}">'
            caption = f"<figcaption>{escape(block.caption)}</figcaption>"
            return f'<figure>\n<div class="wide">{image}</div>\n{caption}\n</figure>'
        case Table():
            names = "".join(f'<th scope="col">{escape(name)}</th>' for name in block.columns)
            rows = "\n".join(_html_row(_cells(row)) for row in block.rows)
            numbers = ' class="numbers"' if block.numeric else ""
            table = f"<table{numbers}>\n<thead><tr>{names}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
            return f'<div class="wide">{table}</div>'


def _html_row(cells: list[Cell]) -> str:
    texts = [f"<strong>{escape(cell.text)}</strong>" if cell.best else escape(cell.text) for cell in cells]
    return f'<tr><th scope="row">{texts[0]}</th>{"".join(f"<td>{text}</td>" for text in texts[1:])}</tr>'


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
