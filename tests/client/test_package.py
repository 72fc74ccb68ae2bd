"""The distribution of the client: what is in its wheel, and what importing it brings along."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

import asmg_client

PACKAGE = Path(asmg_client.__file__).parent


def test_the_wheel_holds_the_package_its_types_and_its_licence(tmp_path: Path) -> None:
    (path,) = WheelBuilder(str(PACKAGE)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        licence = wheel.read("asmg_client-0.1.0.dist-info/licenses/LICENSE")
    modules = {f"asmg_client/{module.relative_to(PACKAGE).as_posix()}" for module in PACKAGE.rglob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == modules | {"asmg_client/py.typed"}
    assert licence == (PACKAGE.parent / "LICENSE").read_bytes()


def test_it_needs_httpx_alone() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [requirement.split(">=")[0] for requirement in project["dependencies"]] == ["httpx"]
    code = "import sys, asmg_client; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {"asmg_client", "httpx"} <= imported
    assert not imported & {"asmg", "numpy", "pydantic", "service", "torch"}


def test_the_names_of_the_package_are_sorted_and_there() -> None:
    assert asmg_client.__all__ == sorted(asmg_client.__all__)
    assert all(hasattr(asmg_client, name) for name in asmg_client.__all__)
