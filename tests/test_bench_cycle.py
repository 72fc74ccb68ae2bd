"""`asmg bench cycle` measures periods of a real service whose tables were made larger."""

import json
from pathlib import Path

import pytest

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
