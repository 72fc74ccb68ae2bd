"""What the pages say about files, headings and tests is true: each link leads somewhere, each named test exists."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)")
MODULE = re.compile(r"`((?:service|asmg|asmg_client|benchmarks|tests|scripts|migrations)/[\w/.-]*)`")
TEST_NAME = re.compile(r"\b(Test[A-Z]\w+|test_\w+)(…?)(\.py)?")


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def prose(page: Path) -> str:
    """The page without its indented blocks, which are commands and output."""
    return "\n".join(line for line in page.read_text(encoding="utf-8").splitlines() if not line.startswith("    "))


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: Counter[str] = Counter()
    for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        found[re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")] += 1
    return {f"{anchor}-{n}" if n else anchor for anchor, times in found.items() for n in range(times)}


@cache
def names_of_tests() -> set[str]:
    """Names of the classes and functions of all tests, and of their files."""
    files = list((ROOT / "tests").rglob("*.py"))
    names = {path.stem for path in files}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(node.name)
    return names


def links(page: Path) -> Iterator[tuple[Path, str | None]]:
    for target, anchor in LINK.findall(prose(page)):
        if not re.match(r"\w+:", target):
            yield (page.parent / target if target else page), anchor or None


def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), f"{page.name} links to {target}, which is not there"
        if anchor is not None:
            assert anchor in anchors(target.resolve()), f"{page.name}: {target.name} has no heading #{anchor}"


def test_every_module_that_is_named_exists(page: Path) -> None:
    for name in MODULE.findall(prose(page)):
        assert (ROOT / name).exists(), f"{page.name} names {name}, which is not there"


def test_every_test_that_is_named_exists(page: Path) -> None:
    for name, more, _ in TEST_NAME.findall(prose(page)):
        found = any(known.startswith(name) for known in names_of_tests()) if more else name in names_of_tests()
        assert found, f"{page.name} names the test {name}{more}, which is not there"
