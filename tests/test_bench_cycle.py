"""`asmg bench cycle --first-learning`: a new installation learns many ids at once."""

import json
from pathlib import Path

import pytest

from benchmarks.cycle.run import CycleOptions, run_cycle


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
