"""The files of a report: HTML, Markdown, figures."""

import math
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from asmg.experiments.options import ExperimentOptions
from asmg.experiments.protocol import Protocol
from asmg.experiments.report import PICTURES, write_report
from asmg.experiments.report.blocks import Cell, Heading, Paragraph, Table, to_html, to_markdown
from asmg.experiments.report.cells import counted, listed, p_value, seconds, signed
from asmg.experiments.report.results import LABELS
from asmg.experiments.report.training_time import training_time_figure
from asmg.experiments.run import run_experiment
from tests.asmg.logs import prepare_small
from tests.asmg.reports import pictures, plain, table, tables

pytest.importorskip("matplotlib", reason="comes with the extra `experiments`")


class Page(HTMLParser):
    """Reads a page, and sees that every element that is opened is closed, in turn."""

    VOID = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


class TestFiles:
    """What is written."""

    @pytest.mark.parametrize("run", ["full_report", "small_report"])
    def test_html_is_one_whole_file(self, run: str, request: pytest.FixtureRequest) -> None:
        out = request.getfixturevalue(run)
        text = (out / "report.html").read_text(encoding="utf-8")
        assert text.startswith("<!doctype html>")
        page = Page()
        page.feed(text)
        page.close()
        assert page.open == []
        assert not re.search(r"https?://|url\(|@import|<script|<link", text)
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(set(ids)) == len(ids)
        links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
        assert len(links) == 11 and all(str(link).removeprefix("#") in ids for link in links)
        images = [attributes for tag, attributes in page.tags if tag == "img"]
        assert len(images) == len(pictures(out)) and all(image["alt"] for image in images)
        assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") for image in images)
        assert not any("src" in attributes for tag, attributes in page.tags if tag != "img")
        assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [a for _, a in page.tags]

    @pytest.mark.parametrize("run", ["full_report", "small_report"])
    def test_markdown_says_the_same(self, run: str, request: pytest.FixtureRequest) -> None:
        """Its links resolve, its tables are as wide as their headings, and its numbers are those of the page."""
        out = request.getfixturevalue(run)
        text = (out / "report.md").read_text(encoding="utf-8")
        links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
        assert {Path(link).stem for link in links} == pictures(out)
        assert all((out / link).is_file() for link in links)
        found = tables(text)  # zip(strict) sees the widths
        html = (out / "report.html").read_text(encoding="utf-8")
        cells = [plain(cell) for each in found for row in each.values() for cell in row.values()]
        in_page = re.findall(r"<td>(.*?)</td>", html)
        unescaped = [re.sub("</?strong>", "", cell).replace("&lt;", "<").replace("&gt;", ">") for cell in in_page]
        assert unescaped == cells and len(cells) > 50
        assert html.count("<strong>") == text.count("**") // 2

    def test_figures_are_what_their_names_say(self, full_report: Path) -> None:
        from matplotlib.image import imread

        for name in PICTURES:
            picture = imread(full_report / "figures" / f"{name}.png")
            assert picture.shape[1] == 1200 and picture.std() > 0.05
            root = ElementTree.parse(full_report / "figures" / f"{name}.svg").getroot()
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
            labels = {
                "periods": {"IU", "ASMG-GRU multi", "the others", "period", "AUC − AUC of IU"},
                "ablation": {"ASMG-GRU full", "LogLoss (nats)"},
                "training-time": {"generator", "GRU full", "seconds", "update"},
                "sensitivity": {"sequence length k", "hidden size", "AUC", "LogLoss (nats)"},
                "slices": {"BU-3", "cold users", "25.0% of events", "AUC"},
                "reliability": {"perfect", "SML", "predicted click-through rate"},
                "forgetting": {"AUC of IU", "AUC of ASMG-GRU multi", "period scored", "model after update"},
            }[name]
            assert labels <= texts

    @pytest.mark.parametrize(("slow", "scale"), [(9.0, "linear"), (90.0, "log")])
    def test_seconds_that_lie_far_apart_are_drawn_on_a_logarithmic_scale(self, slow: float, scale: str) -> None:
        last = {"asmg-linear": (1.0, 2.0), "asmg-gru-full": (slow / 2, slow)}
        figure = training_time_figure(last, {"asmg-linear": {1: 1.0, 2: 1.0}, "asmg-gru-full": {1: 1.0, 2: slow}})
        bars, lines = figure.axes
        assert bars.get_xscale() == lines.get_yscale() == scale
        assert ("logarithmic" in bars.get_xlabel()) == ("logarithmic" in lines.get_ylabel()) == (scale == "log")

    def test_the_same_again_whatever_the_users_settings(self, full_report: Path, tmp_path: Path) -> None:
        """Every file that is said to be written, byte by byte."""
        import matplotlib

        out = shutil.copytree(full_report, tmp_path / "out", ignore=shutil.ignore_patterns("figures", "report.*"))
        with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "black", "svg.hashsalt": None}):
            files = write_report(out)
            assert matplotlib.rcParams["lines.linewidth"] == 9
        drawn = {f"figures/{name}.{ending}" for name in PICTURES for ending in ("svg", "png")}
        assert {file.relative_to(out).as_posix() for file in files} == {"report.md", "report.html", *drawn}
        for file in files:
            assert file.read_bytes() == (full_report / file.relative_to(out)).read_bytes(), file.name

    def test_figures_of_an_earlier_report_go(self, small_report: Path, tmp_path: Path) -> None:
        out = shutil.copytree(small_report, tmp_path / "out")
        (out / "figures" / "ablation.svg").write_text("of an earlier run")
        (out / "figures" / "mine.svg").write_text("somebody's own")
        write_report(out)
        assert not (out / "figures" / "ablation.svg").exists()
        assert (out / "figures" / "mine.svg").read_text() == "somebody's own"

    def test_without_matplotlib(self, small_report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is said before anything is read or written."""
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ValueError, match=re.escape("a report needs matplotlib: pip install 'asmg-service[exper")):
            write_report(tmp_path)
        assert not list(tmp_path.iterdir())

    @pytest.mark.nightly
    def test_of_a_real_run(self, tmp_path: Path) -> None:
        """The runner's own files."""
        options = ExperimentOptions(
            methods=("iu", "asmg-gru-multi"), seeds=1, protocol=Protocol(periods=8, pretrain=3, test_from=5),
            sensitivity=False, processes=1,
        )  # fmt: skip
        data = prepare_small(tmp_path / "log", rows=1_600)
        summary = run_experiment(data, tmp_path / "out", options, say=lambda _: None)
        write_report(tmp_path / "out")
        found = table(tmp_path / "out", "Comparison of the methods")
        for method, values in summary["methods"].items():
            for metric, column in (("auc", "AUC ↑"), ("logloss", "LogLoss ↓")):
                assert plain(found[LABELS[method]][column]) == f"{values[metric]['mean']:.4f}"
        assert pictures(tmp_path / "out") == {"periods", "training-time", "slices", "reliability", "forgetting"}


class TestBlocks:
    """Rendering."""

    BLOCKS = (
        Heading("A_b <c>", 1),
        Paragraph("x * y < z & [a](b) | `c` ~d~ \\"),
        Heading("Part"),
        Table(("n", "v|w"), [("a_b", Cell("1 < 2", best=True))]),
    )

    def test_markdown_is_escaped(self) -> None:
        assert to_markdown(self.BLOCKS) == (
            "# A\\_b \\<c\\>\n\n"
            "x \\* y \\< z \\& \\[a\\](b) \\| \\`c\\` \\~d\\~ \\\\\n\n"
            "## Part\n\n"
            "| n | v\\|w |\n| --- | --: |\n| a\\_b | **1 \\< 2** |\n"
        )

    def test_html_is_escaped(self, tmp_path: Path) -> None:
        text = to_html(self.BLOCKS, tmp_path)
        assert "<title>A_b &lt;c&gt;</title>" in text and '<h1 id="a-b-c">A_b &lt;c&gt;</h1>' in text
        assert "<p>x * y &lt; z &amp; [a](b) | `c` ~d~ \\</p>" in text
        assert '<li><a href="#part">Part</a></li>' in text
        assert '<tr><th scope="row">a_b</th><td><strong>1 &lt; 2</strong></td></tr>' in text

    def test_numbers(self) -> None:
        assert [signed(v, 2) for v in (1.334, -0.891, -0.001, math.nan)] == ["+1.33", "−0.89", "0.00", "–"]
        assert [seconds(v) for v in (0.012345, 12.345, 1234.5, None)] == ["0.0123", "12.3", "1,234", "–"]
        assert [p_value(v) for v in (0.0156, 0.0004, 1.0, None)] == ["0.016", "< 0.001", "1.000", "–"]
        assert [listed(v) for v in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
        assert [counted(n, "period") for n in (1, 7)] == ["1 period", "7 periods"]
