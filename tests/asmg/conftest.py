"""One thread for the library's tests, machine code of the current sources, and the logs, runs and reports that several
files read and none may change."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from asmg import kernels
from asmg.datasets.prepared import PreparedLog, read_prepared
from asmg.experiments.report import write_report
from asmg.experiments.run import run_experiment
from tests.asmg.experiments import QUICK, ROWS, quiet
from tests.asmg.logs import prepare_small
from tests.asmg.reports import fake_run
from tests.forked import FORKED


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other on busy cores made the contract suite four times as slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package", autouse=True)
def fresh_machine_code() -> None:
    """numba keeps a function's code until the function's own file changes. Code that was inlined from another file,
    such as the tanh of asmg/kernels/common.py, would be tested as it was before the change."""
    newest = max(source.stat().st_mtime for source in Path(kernels.__file__).parent.glob("*.py"))
    for index in Path(kernels.gru_forward.stats.cache_path).glob("*.nbi"):  # type: ignore[attr-defined]
        with suppress(FileNotFoundError):  # another process of the run does the same
            if index.stat().st_mtime < newest:
                index.unlink()


@pytest.fixture(scope="package", autouse=True)
def forked_workers() -> Iterator[None]:
    """Processes of experiments have imported the library when they begin, which takes each some seconds otherwise.
    Those of tests/test_experiment_cli.py begin as they do for users."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asmg.experiments.run.get_context", lambda _: FORKED)
        yield


@pytest.fixture(scope="package")
def small_log_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared log with categories."""
    return prepare_small(tmp_path_factory.mktemp("log") / "log", rows=ROWS)


@pytest.fixture(scope="package")
def small_log(small_log_folder: Path) -> PreparedLog:
    """The same log, read."""
    return read_prepared(small_log_folder)


@pytest.fixture(scope="package")
def finished_run(small_log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three methods on the small log."""
    out = tmp_path_factory.mktemp("run") / "out"
    run_experiment(small_log_folder, out, QUICK, say=quiet)
    return out


@pytest.fixture
def roughly_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of the reports that a test writes are drawn once, as SVG and without a layout, which takes a tenth."""
    figure = pytest.importorskip("matplotlib.figure", reason="comes with the extra `experiments`").Figure
    draw = figure.savefig

    def draw_roughly(drawn: Any, file: Path, **options: Any) -> None:
        drawn.set_layout_engine("none")
        if file.suffix == ".svg":
            draw(drawn, file, **options)
        else:
            file.touch()

    monkeypatch.setattr(figure, "savefig", draw_roughly)


@pytest.fixture(scope="package")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of all methods with five seeds, whose numbers are made up."""
    pytest.importorskip("matplotlib", reason="comes with the extra `experiments`")
    out = fake_run(tmp_path_factory.mktemp("full") / "out")
    write_report(out)
    return out


@pytest.fixture(scope="package")
def small_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of IU and one other method with one seed, without variants and without scores on other periods."""
    pytest.importorskip("matplotlib", reason="comes with the extra `experiments`")
    out = fake_run(tmp_path_factory.mktemp("small") / "out", ("iu", "sml"), seeds=1, matrix=False)
    write_report(out)
    return out
