"""`asmg bench soak`: growth is found, and nothing else is taken for it; a short run measures what it says."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reports import exit_code
from benchmarks.soak import run
from benchmarks.soak.run import SoakOptions, bars, expected_left
from benchmarks.soak.verdict import FIGURES, Left, course, judge
from tests.bench_support import bench

PERIODS = 80
JUDGED = [figure for figure in FIGURES if figure.tolerance is not None]
Samples = list[dict[str, float]]


def flat() -> Samples:
    """Each figure as it should be: it grows at first, then it wavers."""
    return [{figure.key: 100.0 + min(n, 15) + n % 3 for figure in FIGURES} for n in range(PERIODS)]


def broken(samples: Samples, left: Left | None = None, *, wal_mb: float = 1000, connections: int = 200) -> list[str]:
    expected = expected_left(PERIODS)
    promises = judge(samples, left or expected, expected, most_wal_mb=wal_mb, most_connections=connections)
    assert exit_code(promises) == (0 if all(promise.held for promise in promises) else 1)
    return [promise.name for promise in promises if not promise.held]


def test_what_grows_at_first_only_is_flat() -> None:
    assert broken(flat()) == []


@pytest.mark.parametrize("figure", JUDGED, ids=lambda figure: figure.key)
def test_steady_growth_is_found(figure: Any) -> None:
    leaking = flat()
    for n, sample in enumerate(leaking):
        sample[figure.key] += 1.5 * figure.tolerance * 116 * n / (PERIODS / 2)
    assert broken(leaking) == [f"{figure.name}: flat"]
    shrinking = flat()
    for n, sample in enumerate(shrinking):
        sample[figure.key] -= n
    assert broken(shrinking) == []


@pytest.mark.parametrize("figure", JUDGED, ids=lambda figure: figure.key)
def test_single_periods_do_not_decide(figure: Any) -> None:
    samples = flat()
    for n in range(61, PERIODS, 4):
        samples[n][figure.key] *= 50
    assert broken(samples) == []


def test_wal_has_a_limit_and_may_grow_to_it() -> None:
    samples = flat()
    for n, sample in enumerate(samples):
        sample["wal_mb"] = 16 * n
    assert broken(samples, wal_mb=16 * (PERIODS - 1)) == []
    assert broken(samples, wal_mb=16 * (PERIODS - 1) - 1) == ["WAL: within max_wal_size, MB"]


def test_connections_have_a_limit() -> None:
    samples = flat()
    for n, sample in enumerate(samples):
        sample["connections"] = 25 if n == 5 else 20
    assert broken(samples, connections=25) == []
    assert broken(samples, connections=24) == ["connections: within the pools"]


def test_records_may_grow_by_so_much_a_period() -> None:
    samples = flat()
    for n, sample in enumerate(samples):
        sample["records_kb"] = 10 * n
    assert broken(samples) == []
    for n, sample in enumerate(samples):
        sample["records_kb"] = 11 * n
    assert broken(samples) == ["records: at most 10 kB a period"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda left: replace(left, versions=PERIODS - 1), "every version has its row and its scores"),
        (lambda left: replace(left, whole=left.whole - {run.PINNED}), "versions that are kept whole"),
        (lambda left: replace(left, whole=left.whole | {PERIODS // 2}), "versions that are kept whole"),
        (lambda left: replace(left, logs=left.logs | {1}), "logs that are kept"),
        (lambda left: replace(left, logs=left.logs - {PERIODS}), "logs that are kept"),
        (lambda left: replace(left, forgotten_events=1), "event ids of dropped logs"),
        (lambda left: replace(left, unnamed_artifacts=1), "artifacts that nothing names"),
    ],
)
def test_what_is_kept_is_neither_less_nor_more(change: Callable[[Left], Left], name: str) -> None:
    assert broken(flat(), change(expected_left(PERIODS))) == [name]


def test_what_has_to_be_left() -> None:
    """Five versions, the prior, the baseline and the pinned one; the logs of ten learned periods and the open one."""
    left = expected_left(80)
    assert left.whole == {0, 1, 2, 76, 77, 78, 79, 80}
    assert left.logs == set(range(71, 82))
    assert expected_left(4).whole == {0, 1, 2, 3, 4}
    assert expected_left(4).logs == {1, 2, 3, 4, 5}


def test_the_course_of_a_figure() -> None:
    found = course([9, 9, 2, 4, 5, 5, 5, 9])  # quarters of two: the medians of 2, 4 and of 5, 9 are 3 and 7
    assert (found.early, found.late) == (3, 7)
    assert found.change == pytest.approx(4 / 3)
    assert found.per_period == 1.0  # between the middles of the two there are four periods
    assert course([0.0] * 8).change == 0.0


def test_bars() -> None:
    assert bars([0, 0, 9, 4, 99, 4, 100, 8, 8], 3) == "▁▅█"  # of stretches of three the medians: 0, 4, 8
    assert bars([1, 2, 4, 8], 20) == "▂▃▅█"
    assert bars([0, 0], 2) == "▁▁"


@pytest.mark.parametrize("wrong", [{"periods": 4 * run.HORIZON - 1}, {"events": 0}, {"seed": -1}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected at least"):
        SoakOptions(**wrong)


def test_the_second_quarter_begins_when_all_is_let_go_of() -> None:
    """The log of period 1 is dropped after period 11, and version 1 would lose its snapshot after version 6."""
    assert 1 not in expected_left(run.HORIZON).logs
    assert 1 in expected_left(run.HORIZON - 1).logs


@pytest.mark.slow
def test_a_short_run_measures_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real servers and processes; too short for its figures to be judged, but what is kept can be.

    It takes 11 periods until a log is dropped.
    """
    monkeypatch.setattr(run, "HORIZON", 2)
    report = tmp_path / "report.json"
    done = bench("soak", "--periods", "11", "--events", "60", "--report", str(report))
    document = json.loads(report.read_text())
    assert done.exit_code == (0 if document["held"] else 1), done.output
    assert len(document["samples"]) == 11
    for sample in document["samples"]:
        assert sample.keys() == {"period", *(figure.key for figure in FIGURES)}
        assert min(sample.values()) > 0
    held = {promise["name"]: promise["held"] for promise in document["promises"]}
    for name in (
        "every version has its row and its scores",
        "versions that are kept whole",
        "logs that are kept",
        "event ids of dropped logs",
        "artifacts that nothing names",
        "WAL: within max_wal_size, MB",
    ):
        assert held[name], done.output
    assert document["figures"]["database_mb"]["early"] > 5
    assert "close to updated, s" in done.output
