"""What the layout of the packages looks like: sizes of modules, floors of imports, underscored names of other projects.

Run from the root of the repository: `python scripts/layout.py`. `tests/test_layout.py` holds the limits.
"""

import ast
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("service", "asmg", "asmg_client", "benchmarks", "tests")
OWN = PACKAGES
PUBLIC = {"_asdict", "_exit", "_fields", "_make", "_mapping", "_replace"}
"""Names with an underscore that are documented all the same: of named tuples, of SQLAlchemy's rows, and `os._exit`."""
PRIVATE = re.compile(r"\b_(?!_)")
"""Begins a name with one underscore."""


def modules(package: str) -> Sequence[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if path.is_file())


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def floors(package: str) -> int:
    """How many floors the children of a package stand on: the longest chain of imports between them.

    Children that import each other, directly or not, stand on one floor.
    """
    imports = {child: set(_imported(package, child)) for child in _children(package)}
    reach = {child: _reachable(child, imports) for child in imports}
    heights: dict[str, int] = {}

    def height(child: str) -> int:
        if child not in heights:
            below = [other for other in reach[child] if child not in reach[other]]
            heights[child] = 1 + max(map(height, below), default=0)
        return heights[child]

    return max(map(height, imports), default=0)


def foreign_private_names() -> list[str]:
    """Where we use an underscored name that none of our modules defines: `file:line name`."""
    own: set[str] = set()
    used: list[tuple[Path, int, str]] = []
    for path in (path for package in OWN for path in modules(package)):
        text = path.read_text(encoding="utf-8")
        if PRIVATE.search(text):  # half of the files have no such name
            nodes = list(ast.walk(ast.parse(text)))
            own.update(_defined(nodes))
            used += [(path, *found) for found in _underscored(nodes)]
    return [
        f"{path.relative_to(ROOT)}:{line} {name}" for path, line, name in used if name not in own and name not in PUBLIC
    ]


def _children(package: str) -> Sequence[str]:
    found = (ROOT / package).iterdir()
    return sorted(
        path.stem for path in found if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem[0] != "_"
    )


def _imported(package: str, child: str) -> Iterator[str]:
    folder = ROOT / package / child
    for path in [folder.with_suffix(".py")] if folder.with_suffix(".py").exists() else folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                if node.module == package:
                    yield from (alias.name for alias in node.names if alias.name in _children(package))
                elif node.module.startswith(f"{package}.") and (other := node.module.split(".")[1]) != child:
                    yield other


def _reachable(child: str, imports: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [child]
    while waiting:
        for other in imports[waiting.pop()] - found:
            found.add(other)
            waiting.append(other)
    return found


def _defined(nodes: Sequence[ast.AST]) -> Iterator[str]:
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name


def _underscored(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.Attribute) and PRIVATE.match(node.attr):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] not in OWN:
            if any(PRIVATE.match(part) for part in node.module.split(".")):
                yield node.lineno, node.module
            for alias in node.names:
                if PRIVATE.match(alias.name):
                    yield node.lineno, f"{node.module}.{alias.name}"


def main() -> None:
    print(f"{'package':<12}{'modules':>8}{'lines':>8}{'median':>8}{'90 %':>6}{'largest':>9}{'floors':>8}")
    for package in PACKAGES:
        sizes = sorted(map(lines, modules(package)))
        high = sizes[int(0.9 * len(sizes))]
        row = f"{package:<12}{len(sizes):>8}{sum(sizes):>8}{statistics.median(sizes):>8g}{high:>6}{sizes[-1]:>9}"
        print(f"{row}{floors(package):>8}" if package != "tests" else row)
    names = foreign_private_names()
    print(f"\nunderscored names of other projects: {len(names)}", *names, sep="\n  ")


if __name__ == "__main__":
    main()
