"""The limits of the layout: sizes of modules, floors of imports, no underscored names of other projects."""

import importlib
import inspect
import pkgutil
import re
import statistics
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("service", "asmg", "asmg_client", "benchmarks")
MOST_LINES = 400
MEDIAN_LINES = {"service": 120}
FLOORS = {"service": 8}


@pytest.fixture(scope="module")
def layout() -> Iterator[ModuleType]:
    """`scripts/layout.py`, which is no package."""
    spec = spec_from_file_location("layout", ROOT / "scripts" / "layout.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["layout"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["layout"]


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_are_short(layout: ModuleType, package: str) -> None:
    sizes = {path: layout.lines(path) for path in layout.modules(package)}
    assert {path.name: size for path, size in sizes.items() if size > MOST_LINES} == {}
    if package in MEDIAN_LINES:
        assert statistics.median(sizes.values()) <= MEDIAN_LINES[package]


@pytest.mark.parametrize(("package", "most"), FLOORS.items())
def test_imports_stand_on_few_floors(layout: ModuleType, package: str, most: int) -> None:
    assert layout.floors(package) <= most


def test_no_underscored_name_of_another_project_is_used(layout: ModuleType) -> None:
    of_tests = "tests/"  # one of them counts torch's calls by a mode that torch has no public name for
    assert [name for name in layout.foreign_private_names() if not name.startswith(of_tests)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_underscored_method_of_another_project_is_overridden(package: str) -> None:
    found = [
        f"{cls.__module__}.{cls.__qualname__}.{name}"
        for cls in _classes(package)
        for name, value in vars(cls).items()
        if inspect.isfunction(value) and re.fullmatch(r"_[^_].*[^_]", name) and _overrides(cls, name)
    ]
    assert found == []


def _classes(package: str) -> Iterator[type]:
    root = importlib.import_module(package)
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        if info.name.endswith(("__main__", "migrations.env")) or ".migrations.versions." in info.name:
            continue
        try:
            module = importlib.import_module(info.name)
        except ModuleNotFoundError as missing:  # of the extra `peers`
            assert missing.name is not None and missing.name.split(".")[0] in {"bentoml", "litserve", "ray"}
            continue
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == info.name:
                yield cls


def _overrides(cls: type, name: str) -> bool:
    """Whether a base class of another project has this name."""
    return any(name in vars(base) for base in cls.__mro__[1:] if base.__module__.split(".")[0] not in PACKAGES)
