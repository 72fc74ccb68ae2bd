"""`asmg bench cycle` measures periods of a real service whose tables were made larger, and a first period."""

import json
from pathlib import Path

import pytest

from benchmarks.cycle.run import CycleOptions, run_cycle
from tests.bench_support import bench


@pytest.mark.nightly
def test_a_short_run_measures_everything(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = bench("cycle", "--ids", "400", "--events", "50", "--periods", "3", "--report", str(report))
    assert done.exit_code == 0, done.output
    document = json.loads(report.read_text())
    assert document["events"] == 50
    (cell,) = document["cells"]
    assert json.loads(done.stdout) == cell
    assert (cell["ids"], cell["periods"], cell["compaction_mb"]) == (400, 2, 0)  # nothing is merged so early
    assert 0.2 < cell["stored_mb"] < cell["wal_mb"]  # the log and the catalogue are in the WAL besides the artifacts
    assert cell["seconds"] > 0
    assert cell["worker_mb"] > 50


@pytest.mark.nightly
def test_a_first_period_is_told_by_stage(tmp_path: Path) -> None:
    report = tmp_path / "first.json"
    assert run_cycle(CycleOptions(ids=[], first_learning=[400], report=report)) == 0
    (cell,) = json.loads(report.read_text())["cells"]
    assert cell["new_ids"] == 400
    assert 0 < cell["updated_seconds"] <= cell["seconds"]
    stages = cell["stages"]
    assert list(stages)[:4] == ["before", "resolve", "prepare", "score"]
    assert list(stages)[-2:] == ["publish", "after"]
    # The ids of events are merged when the version is served, and all of it is counted.
    assert cell["wal_mb"] == pytest.approx(sum(stage["wal_mb"] for stage in stages.values()), rel=0.3)
    assert cell["stored_mb"] > 0 and cell["cpu_seconds"] > 0 and cell["worker_mb"] > 0
