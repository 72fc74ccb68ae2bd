"""`asmg bench guardrails`: what it plays; `test_collapse.py` and `test_canary.py` of the service look closely."""

import json
from pathlib import Path

import pytest

from asmg.datasets.synthetic import DriftConfig, drift_stream
from benchmarks.guardrails.streams import SETTLED, decayed, turned
from tests.bench_support import assert_one_line, bench


def test_a_case_that_there_is_not_is_named() -> None:
    message = "cases: expected some of collapse, decay, canary, clean; received drift"
    assert_one_line(bench("guardrails", "--cases", "clean,drift"), message)


def test_a_decay_turns_the_labels_of_more_and_more_users_round_and_a_broken_logger_all() -> None:
    shares = []
    for period, _ in zip(drift_stream(DriftConfig(users=400, events=2000)), range(SETTLED + 4), strict=False):
        changed = decayed(period).labels != period.labels
        users = {user for user, is_changed in zip(period.user_ids, changed, strict=True) if is_changed}
        assert all(changed[n] == (user in users) for n, user in enumerate(period.user_ids))
        shares.append(len(users) / len(set(period.user_ids)))
        assert (turned(period).labels != period.labels).all()
    assert shares[:SETTLED] == [0] * SETTLED
    assert shares[SETTLED:] == pytest.approx([0.05, 0.1, 0.15, 0.2], abs=0.04)


@pytest.mark.nightly
def test_a_period_of_noise_is_not_published(tmp_path: Path) -> None:
    report = tmp_path / "rails.json"
    done = bench("guardrails", "--cases", "collapse", "--periods", "12", "--events", "600", "--report", str(report))
    assert done.exit_code == 0, done.output
    found = json.loads(report.read_text())["collapse"]
    assert (found["published"], found["alerted"], found["in_metrics"]) == (False, True, True)
