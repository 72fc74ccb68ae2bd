"""What the update benchmarks learn, how they measure memory, and `asmg bench scaling`."""

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asmg.training import predict_logits
from asmg.updaters.asmg import AsmgState
from benchmarks.learning.updaters import learned_state
from benchmarks.learning.wider_tables import Places, spread
from benchmarks.learning.workload import BEFORE, Workload, folder_workload, synthetic_workload
from benchmarks.machine import need_memory
from benchmarks.measuring import Samples
from benchmarks.update import against_reference, memory, scaling
from tests.bench_support import SIZES, bench
from tests.bench_support import TINY_STREAM as TINY


@pytest.fixture(scope="module")
def workload() -> Workload:
    return synthetic_workload(SIZES, seed=0)


# --- what is learned


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log like DIGINETICA's: 71 clicks of 24 sessions, three clicks each but the last."""
    lines = [f"{n // 3} {(7 * n) % 10}" for n in range(71)]
    with gzip.open(tmp_path / "period_00.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return tmp_path


def test_a_folder_is_cut_into_equal_periods(folder: Path) -> None:
    found = folder_workload(folder, 7, seed=0)
    assert found.name == "diginetica"
    assert found.which == "period 7 of 7"
    assert len(found.periods) == BEFORE + 1
    assert {len(p) for p in found.periods} == {20}, "142 rows, negatives included; two are left over"
    assert {(p.users, p.items) for p in found.periods} == {(25, 11)}, "all ids from the start, and the cold row"
    data = found.measured
    # Rows 120 … 139 are the clicks 60 … 69, each before its negative; click l is session l // 3's on item 7l mod 10.
    row_of = {7 * n % 10: int(data.item[2 * (n - 60)]) for n in range(60, 70)}
    for n in range(60, 70):
        before = [row_of[7 * past % 10] for past in range(n - 1, 3 * (n // 3) - 1, -1)]
        for at in (2 * (n - 60), 2 * (n - 60) + 1):
            assert data.history[data.offsets[at] : data.offsets[at + 1]].tolist() == before
        assert data.label[2 * (n - 60) :][:2].tolist() == [1.0, 0.0]
        clicked = n % 3  # so far in the session; a drawn negative is nobody's interaction
        assert data.recent is not None
        assert data.recent[2 * (n - 60) :][:2].tolist() == [[clicked] * 3] * 2


def test_too_few_and_too_many_periods_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="periods: expected at least 6; received 5"):
        folder_workload(folder, 5, seed=0)
    with pytest.raises(ValueError, match="periods: expected at most 142, the rows of the log; received 143"):
        folder_workload(folder, 143, seed=0)


def test_a_synthetic_stream_has_the_sizes_asked_for() -> None:
    found = synthetic_workload(replace(SIZES, idle=4), seed=1)
    assert len(found.periods) == BEFORE + 1
    for data in found.periods:
        assert len(data) == 600
        assert (data.users, data.items) == (161, 101)
        assert data.offsets.diff().tolist() == [3] * 600
        assert 0 < float(data.label.mean()) < 1
        assert int(data.user.min()) > 0 and int(data.item.min()) > 0, "the cold rows are nobody's"
    first, second = found.periods[:2]
    assert first.recent is not None and second.recent is not None
    assert not first.recent.any(), "before the first period nobody did anything"
    mine = first.user == second.user[0]
    assert second.recent[0].tolist()[0] == min(30, int(mine.sum()))
    assert len(torch.unique(torch.cat([p.user for p in found.periods]))) <= 40
    again = synthetic_workload(replace(SIZES, idle=4), seed=1)
    assert all(torch.equal(a.user, b.user) for a, b in zip(found.periods, again.periods, strict=True))


def test_idle_ids_change_nothing_but_the_rows(workload: Workload) -> None:
    wide = synthetic_workload(replace(SIZES, idle=4), seed=0)
    place = Places.draw(workload.measured.sizes, 4, 0)
    for one, other in zip(workload.periods, wide.periods, strict=True):
        assert torch.equal(place.rows["user"][one.user.long()], other.user.long())
        assert torch.equal(place.rows["item"][one.history.long()], other.history.long())
        assert torch.equal(one.label, other.label)


def test_too_little_memory_is_said_beforehand() -> None:
    with pytest.raises(ValueError, match="the tables needs about 1000000"):
        need_memory("the tables", 1e15)


# --- memory


def test_the_peak_is_what_was_taken_and_given_back() -> None:
    if not memory.reset_peak():
        pytest.skip("the peak of memory cannot be set back here")
    old = {"table": torch.zeros(1000)}

    def work() -> dict[str, torch.Tensor]:
        passing = torch.ones(10_000_000)  # 40 MB
        return {**old, "new": torch.ones(5_000_000), "sum": passing.sum()}

    found = memory.peak_of(work, old)
    assert found["new_tables_mb"] == pytest.approx(20, abs=0.1)
    assert 35 < found["peak_mb"] < 60
    assert found["peak_rss_mb"] == pytest.approx(
        found["rss_before_mb"] + found["new_tables_mb"] + found["peak_mb"], abs=0.1
    )
    assert "VmHWM" in found["how"]


def test_without_a_peak_to_set_back_it_is_an_upper_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "reset_peak", lambda: False)
    found = memory.peak_of(lambda: None, None)
    assert found["peak_mb"] >= 0
    assert "upper bound" in found["how"]


# --- asmg bench scaling


def test_scaling_reports_and_learns_the_same_at_every_size(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = bench("scaling", *TINY, "--idle", "1,3", "--repeats", "2", "--report", str(file))
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text(encoding="utf-8"))
    assert [(p["factor"], p["table_rows"]) for p in report["points"]] == [(1, 65), (3, 195)]
    for point in report["points"]:
        seconds = {stage: found["seconds"] for stage, found in point["stages"].items()}
        assert set(seconds) == {"train_generator", "update_base", "generate"}
        assert len(point["training"]["repeats"]["seconds"]) == 2
        assert point["training"]["seconds"] == pytest.approx(seconds["train_generator"] + seconds["update_base"])
    assert report["points"][0]["training_change"] == 0
    assert "× 3" in done.stdout


def test_a_widened_state_serves_the_same_to_those_it_knows(workload: Workload) -> None:
    paper = against_reference.build("paper")
    state: AsmgState = learned_state(paper, workload.before, 0)
    place = Places.draw(workload.measured.sizes, 5, 0)
    wide, data = scaling.widened(state, place), spread(workload.periods, place)[-1]
    for params in ("generated", "incremental"):
        logits = [
            predict_logits(paper.model, paper.serving_models(s)[params], d)
            for s, d in ((state, workload.measured), (wide, data))
        ]
        assert torch.equal(*logits)
    assert {len(t) for t in (wide.base.adam.moved["user"], wide.hidden["user"], wide.base.params["user"])} == {201}
    nobody = np.setdiff1d(np.arange(201), place.rows["user"].numpy())
    assert torch.equal(wide.base.params["user"][nobody], wide.base.params["user"][:1].expand(len(nobody), -1))
    assert not wide.base.adam.first["user"][nobody].any()


def test_different_results_at_different_sizes_are_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    right = scaling.widened

    def wrong(state: AsmgState, places: Places) -> AsmgState:
        made = right(state, places)
        if places.sizes["user"] == 41:
            return made
        return replace(made, weights={name: w + 1e-3 for name, w in made.weights.items()})

    monkeypatch.setattr(scaling, "widened", wrong)
    done = bench("scaling", *TINY, "--idle", "1,3", "--repeats", "1")
    assert done.exit_code == 1
    assert "expected equal bits at every size of the tables" in done.stderr
    assert done.stdout == ""


@pytest.fixture
def points() -> list[scaling.ScalingPoint]:
    def samples(*seconds: float) -> Samples:
        return Samples([*seconds], [*seconds], [1] * len(seconds))

    return [
        scaling.ScalingPoint(
            factor,
            100 * factor,
            {"train_generator": samples(0.5, 0.5), "update_base": samples(0.1, 0.12), "generate": samples(tables)},
        )
        for factor, tables in ((1, 0.01), (10, 0.1))
    ]


def test_a_chart_is_drawn_with_its_units(tmp_path: Path, points: list[scaling.ScalingPoint]) -> None:
    pytest.importorskip("matplotlib", reason="comes with the extra `experiments`")
    for name in ("chart.svg", "chart.png"):
        scaling.draw_points(tmp_path / name, scaling.ScalingOptions(sizes=SIZES), points)
    text = (tmp_path / "chart.svg").read_text(encoding="utf-8")
    for words in (
        "seconds a period (logarithmic)",
        "rows of the user and item tables",
        "training:",
        "0.61 s",
        "+0.0 %",
    ):
        assert words in text
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_a_chart_of_an_unknown_format_is_refused_beforehand(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="comes with the extra `experiments`")
    done = bench("scaling", *TINY, "--chart", str(tmp_path / "chart.doc"))
    assert done.exit_code == 1
    assert "chart: expected a name that ends in one of" in done.stderr


def test_a_chart_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    done = bench("scaling", *TINY, "--chart", str(tmp_path / "chart.svg"))
    assert done.exit_code == 1
    assert done.stderr == "asmg: a chart needs matplotlib: pip install 'asmg-service[experiments]'\n"
