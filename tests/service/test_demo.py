"""`asmg demo`: what it plays and reports, and the whole program, which leaves nothing behind."""

import gzip
import io
import json
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from rich.console import Console

from service.cli.console import PeriodLine, ScoreLines
from service.demo.report import PeriodReport, Report, RollbackReport
from service.demo.run import DemoOptions, run_demo
from service.demo.streams import folder_stream
from service.demo.traffic import Window
from service.http.schemas import parse_timestamp
from tests.service.programs import asmg, start_call, wait_for
from tests.service.test_demo_traffic import SMALL

TINY: dict[str, Any] = {"drift": replace(SMALL, events=300), "workers": 1, "port": 0}
"""Options of a demo of which no more is wanted than that it is under way."""


def test_folders_as_streams(tmp_path: Path) -> None:
    shop, films = tmp_path / "shop", tmp_path / "films"
    for folder in (shop, films):
        folder.mkdir()
    for number in range(3):
        with gzip.open(shop / f"period_{number:02}.txt.gz", "wt") as file:
            file.writelines(f"{number}{line} {line % 7}\n" for line in range(20))
    stream = folder_stream(shop, None, seed=1)
    assert (stream.name, stream.count) == ("diginetica", 3)
    periods = list(stream.periods)
    assert [int(period.labels.sum()) for period in periods] == [20, 20, 20]
    times = np.concatenate([period.timestamps_ms for period in periods])
    assert (times.max() - times.min()) // 86_400_000 == 14, "a week a file"
    assert parse_timestamp(int(times[0])) < parse_timestamp(int(times[-1])) < datetime.now(UTC), (
        "the service takes them"
    )
    assert all(period.new_items == {} and period.best == {} for period in periods)
    assert folder_stream(shop, 2, seed=1).count == 2

    with gzip.open(films / "ml-100k.inter.gz", "wt") as file:
        file.write("user_id:token\titem_id:token\trating:float\ttimestamp:float\n")
        file.writelines(f"{n % 3}\t{n // 5}\t{1 + n % 5}\t{900_000_000 + n}\n" for n in range(20))
    (films / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        + "".join(f"{n}\tA film\t1990\t{'Drama Crime' if n else ''}\n" for n in range(4))
    )
    stream = folder_stream(films, 2, seed=1)
    assert (stream.name, stream.count) == ("ml-100k", 2)
    first, second = stream.periods
    assert first.new_items == {"1": ("Drama", "Crime")}  # film 0 has no genre
    assert second.new_items == {"2": ("Drama", "Crime"), "3": ("Drama", "Crime")}


def period_report(number: int, generated: float | None, failed: int = 0) -> PeriodReport:
    scores = {"generated": generated, "incremental": 0.6, "frozen": 0.5, "logistic": 0.55, "best": None}
    scores |= {} if generated is None else {"without_fields": 0.58, "best": 0.8, "best_of_pairs": 0.7}
    return PeriodReport(
        period=number,
        events=10,
        version=number,
        kind="generated",
        gate="fine",
        error=None,
        auc=scores,
        logloss=scores,
        seconds={"score": 0.1234},
        requests=Window(served=3, failed=failed),
    )


def rollback_report(restored: bool) -> RollbackReport:
    return RollbackReport(
        from_version=2, to_version=1, restored=restored, forward_restored=True, largest_change=0.1, requests=Window()
    )


def test_what_is_averaged_and_what_is_a_problem() -> None:
    periods = [period_report(number, None if number == 1 else number / 10) for number in range(1, 7)]
    values = {"seed": 0, "yardstick": "logistic", "periods": periods, "requests": Window(served=9), "faults": []}
    report = Report(data="synthetic", rollback=rollback_report(True), **values)
    assert report.to_json()["means"]["periods"] == [4, 5, 6]
    assert report.to_json()["means"]["auc"] == {
        "generated": pytest.approx(0.5),
        "incremental": pytest.approx(0.6),
        "frozen": pytest.approx(0.5),
        "logistic": pytest.approx(0.55),
        "best": pytest.approx(0.8),
        "without_fields": pytest.approx(0.58),
        "best_of_pairs": pytest.approx(0.7),
    }
    assert report.problems == []
    real = Report(data="ml-100k", rollback=rollback_report(False), **values)
    assert real.to_json()["means"]["periods"] == [2, 3, 4, 5, 6]
    assert real.to_json()["rollback"]["scores_restored"] is False
    assert len(real.problems) == 1
    bad = Report(data="ml-100k", rollback=None, **{**values, "requests": Window(failed=2), "faults": ["status 500"]})
    assert bad.problems == ["2 predictions failed: status 500", "there was no version to roll back from"]


def test_lines_fit_whatever_a_period_took() -> None:
    """All models and many stages: the six that took longest are shown, in their order."""
    models = ["generated", "incremental", "frozen", "lightgbm", "best"]
    out = io.StringIO()
    lines = ScoreLines(Console(file=out, width=120), models, requests=True)
    seconds = dict(resolve=0.1, prepare=12.5, score=10.2, train_generator=61.3, update_base=9.4, count=0.2, publish=7.1)
    scores = dict.fromkeys(models, 0.12345)
    period = PeriodLine(
        period=31, events=100_000, auc=scores, logloss=scores, serves="v31 incremental", seconds=seconds,
        requests=(9_999, 0), notes=["p50/p99 100/1000 ms"],
    )  # fmt: skip
    lines.header()
    lines.period(period)
    lines.means("mean of 25-31", scores, scores)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 120
    assert "prepare 12.5 score 10.2 generator 61.3 base 9.4 count 0.2 publish 7.1 s; p50/p99 100/1000 ms" in text


def test_what_the_fields_are_worth_is_told_where_there_are_any() -> None:
    values = {"seed": 0, "yardstick": "logistic", "rollback": None, "requests": Window(), "faults": []}
    known = [period_report(number, None if number == 1 else 0.6) for number in range(1, 7)]
    assert Report(data="synthetic", periods=known, **values).value_of_fields() == [
        "incremental without the fields: AUC 0.5800, LogLoss 0.5800; with them AUC 0.6000, LogLoss 0.6000",
        "best that user and item alone allow: AUC 0.7000, LogLoss 0.7000; with the context AUC 0.8000, LogLoss 0.8000",
    ]
    assert Report(data="ml-100k", periods=[period_report(1, None)], **values).value_of_fields() == []


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for the demo's, with a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="asmg-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def left_behind(folder: Path) -> list[psutil.Process]:
    """Processes of a demo: its servers run in its folder or name it."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        place = " ".join([process.info["cwd"] or "", *(process.info["cmdline"] or [])])
        if f"{folder}/asmg-demo-" in place and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


class Demo:
    """A running demo."""

    def __init__(self, folder: Path, options: DemoOptions) -> None:
        self._folder, self._out, self._err = folder, folder / "out", folder / "err"
        changes = {"ASMG_SWAP_LEAD_SECONDS": "0.5", "TMPDIR": str(folder)}
        self._process = start_call(partial(run_demo, options), self._out, self._err, **changes)

    @property
    def out(self) -> str:
        return self._out.read_text() if self._out.exists() else ""

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def stop(self) -> None:
        """End it whatever it is doing."""
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(60)

    def wait_for(self, text: str) -> None:
        wait_for(lambda: text in self.out or not self._process.is_alive(), 180)
        assert text in self.out, self.err

    def end(self, code: int, number: int | None = None) -> None:
        if number is not None:
            os.kill(self.pid, number)
        self._process.join(180)  # where nothing is compiled yet, a minute goes by
        assert self._process.exitcode == code, self.err
        assert left_behind(self._folder) == []
        assert list(self._folder.glob("asmg-demo-*")) == []
        assert "\x1b" not in self.out


StartDemo = Callable[..., Demo]


@pytest.fixture
def start_demo(folder: Path) -> Iterator[StartDemo]:
    """Starts a demo with some options; one that a test has left running is stopped."""
    started: list[Demo] = []

    def start(**options: Any) -> Demo:
        started.append(Demo(folder, DemoOptions(**{"exit": True, **options})))
        return started[-1]

    yield start
    for demo in started:
        demo.stop()


@pytest.mark.slow
def test_the_whole_story(folder: Path, start_demo: StartDemo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        demo = start_demo(drift=SMALL, periods=3, report=folder / "r.json", port=port)
        demo.end(0)
    out = demo.out
    assert f"port {port} is taken" in out
    assert max(map(len, out.splitlines())) <= 120
    report = json.loads((folder / "r.json").read_text())
    assert [period["period"] for period in report["periods"]] == [1, 2, 3]
    assert [period["version"] for period in report["periods"]] == [1, 2, 3]
    assert report["yardstick"] == ("lightgbm" if find_spec("lightgbm") else "logistic")
    assert {"lightgbm": " LGBM ", "logistic": " logit "}[report["yardstick"]] in out
    models = {"generated", "incremental", "frozen", report["yardstick"], "without_fields", "best", "best_of_pairs"}
    for period in report["periods"]:
        assert period["events"] == SMALL.events
        assert (
            period["auc"].keys()
            == period["logloss"].keys()
            == (models - {"without_fields"} if period["period"] == 1 else models)
        )
        assert period["requests"]["failed"] == 0
        assert period["requests"]["served"] > 20
        assert {"prepare", "score", "update_base", "gate", "publish"} <= period["seconds"].keys()
        for metric in ("auc", "logloss"):
            known = {name for name, value in period[metric].items() if value is not None}
            assert known == ({"best", "best_of_pairs"} if period["period"] == 1 else models)
        assert period["auc"]["best"] > 0.7
    assert "incremental without the fields: AUC 0." in out and "; with the context AUC 0." in out
    assert report["rollback"]["from"] == 3
    assert report["rollback"]["to"] == 2
    assert report["rollback"]["scores_restored"] is True
    assert report["rollback"]["largest_change"] > 0
    assert report["problems"] == []


@pytest.mark.slow
@pytest.mark.nightly
def test_it_stays_up_and_wants_its_key(start_demo: StartDemo) -> None:
    demo = start_demo(periods=1, exit=False, **TINY)
    demo.wait_for("stays up until Ctrl-C")
    out = demo.out
    docs, key = re.search(r"^API docs: (\S+)$", out, re.M), re.search(r"^KEY=(\S+)$", out, re.M)
    assert docs is not None
    assert key is not None
    assert httpx.get(docs[1]).status_code == 200
    url, question = docs[1].removesuffix("/docs"), {"user_id": "u1", "items": ["i1"]}
    assert httpx.post(f"{url}/predict", json=question).status_code == 401
    headers = {"Authorization": f"Bearer {key[1]}"}
    assert httpx.post(f"{url}/predict", json=question, headers=headers).json()["model_version"] == 1
    demo.end(0, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.nightly
def test_interrupted_in_the_middle(start_demo: StartDemo) -> None:
    demo = start_demo(periods=50, **TINY)
    demo.wait_for("Scores on the log of each period")
    time.sleep(0.5)
    demo.end(130, signal.SIGINT)
    assert "interrupted; everything was stopped and removed" in demo.out
    assert demo.err == ""


@pytest.mark.slow
def test_a_service_that_dies_is_said_and_cleaned_up(start_demo: StartDemo) -> None:
    demo = start_demo(periods=50, **TINY)
    demo.wait_for("Scores on the log of each period")
    [server] = psutil.Process(demo.pid).children()
    server.kill()
    demo.end(1)
    assert "asmg serve ended with code -9" in demo.err


@pytest.mark.slow
def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    result = asmg("demo", "--exit", "--data", str(tmp_path), code=2)
    [line] = result.stderr.splitlines()
    assert line.startswith(f"asmg: {tmp_path}: expected period_NN.txt.gz (DIGINETICA) or ml-100k.inter.gz")
    # The rest without the seconds of another start: nothing is started for such a file.
    with pytest.raises(FileNotFoundError):
        run_demo(DemoOptions(data=tmp_path / "no", port=0))
    with pytest.raises(FileNotFoundError):
        run_demo(DemoOptions(report=tmp_path / "no" / "r.json", port=0))
