"""`asmg demo`: what its clients count as a failure, and the program from its start to an empty machine."""

import asyncio
import gzip
import io
import json
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import orjson
import psutil
import pytest
from rich.console import Console

from asmg.datasets.field_columns import By, FieldColumn
from asmg.datasets.prepared import PreparedLog
from asmg.datasets.synthetic import DriftConfig
from asmg.experiments.log import cut_periods
from asmg.features import Schema
from asmg.metrics import scores
from asmg.models import default_config
from asmg.progressive import progressive_validation
from asmg.statistics import NAMES, StatisticsConfig
from asmg.updaters import build_updater
from asmg.yardsticks import build_yardstick
from service.cli.console import PeriodLine, ScoreLines
from service.demo import client
from service.demo.client import Api, CallFailed, split_batches
from service.demo.comparison import WITHOUT_FIELDS, ComparisonModels
from service.demo.report import PeriodReport, Report, RollbackReport
from service.demo.run import DemoOptions, run_demo
from service.demo.scenario import contexts_for_prediction
from service.demo.streams import PlayedPeriod, folder_stream, synthetic_stream
from service.demo.traffic import CLIENTS, Traffic, VersionOrder, Window
from service.http.schemas import parse_timestamp
from tests.service.programs import asmg, start_call, wait_for

SMALL = DriftConfig(users=100, items=40, events=1_500, categories=4, fields=True)
TINY: dict[str, Any] = {"drift": replace(SMALL, events=300), "workers": 1, "port": 0}
"""Options of a demo of which no more is wanted than that it is under way."""


def test_versions_go_forward_unless_they_were_announced() -> None:
    order = VersionOrder(0)
    assert order.accept(0, 0)
    assert order.accept(2, 0)
    assert not order.accept(1, 0)  # never seen, but older than one that was
    assert order.accept(0, 0)  # sent before version 2 was seen
    assert not order.accept(0, order.position)
    order.announce(1)
    before = order.position
    assert order.accept(2, before)
    assert order.accept(1, before)
    assert order.current == 1
    assert order.accept(2, before)
    assert not order.accept(2, order.position)
    order.announce(2)
    assert order.accept(2, order.position)
    assert order.accept(3, order.position)
    assert order.current == 3


def test_the_latency_that_most_stay_below() -> None:
    window = Window(seconds=[n / 1000 for n in range(100, 0, -1)])
    assert window.quantile_ms(0.5) == 51
    assert window.quantile_ms(0.99) == 100
    assert Window().quantile_ms(0.5) is None


Answer = Callable[[list[str]], httpx.Response]


def answer(scores: list[Any], version: int = 1) -> httpx.Response:
    return httpx.Response(200, json={"model_version": version, "scores": scores})


@pytest.mark.parametrize(
    ("respond", "fault"),
    [
        (lambda items: answer([0.5] * len(items)), None),
        (lambda items: answer([0.5] * len(items), version=0), "version 0 after version 1"),
        (lambda items: answer([0.5] * (len(items) - 1)), "4 scores for 5 items"),
        (lambda items: answer([0.5] * (len(items) - 1) + [1.0]), r"outside of \(0, 1\): \[1.0\]"),
        (lambda items: answer([0.5] * (len(items) - 1) + [None]), "TypeError"),
        (lambda items: httpx.Response(503, text="not ready"), "status 503: not ready"),
        (lambda items: httpx.Response(200, text="<html>"), "JSONDecodeError"),
        (lambda items: httpx.Response(200, json={"scores": []}), "0 scores for 5 items"),
    ],
)
async def test_every_answer_is_checked(respond: Answer, fault: str | None) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        items = orjson.loads(request.content)["items"]
        assert len(set(items)) == len(items)
        return respond(items)

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://asmg") as http:
        traffic = Traffic(http, VersionOrder(1), seed=0)
        traffic.offer(["u"], [f"i{n}" for n in range(5)])
        async with traffic.running():
            await asyncio.sleep(0.1)
    counted = (traffic.total.failed, traffic.total.served)[:: 1 if fault is None else -1]
    assert counted[0] == 0
    assert counted[1] >= CLIENTS
    assert (fault is None) == (traffic.faults == [])
    if fault is not None:
        assert re.search(fault, traffic.faults[0])


async def test_a_connection_that_breaks_is_a_failure() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("broken")

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://asmg") as http:
        traffic = Traffic(http, VersionOrder(1), seed=0)
        async with traffic.running():
            await asyncio.sleep(0.05)
        with pytest.raises(CallFailed, match="version 2 was published but version 1 still answers"):
            await traffic.wait_for_version(2, seconds=0.05)
    assert traffic.total.served == 0
    assert traffic.total.failed >= CLIENTS
    assert traffic.faults[0] == "ReadError broken"


def test_batches_keep_a_millisecond_together() -> None:
    times = np.repeat(np.arange(4_000), 3)
    rows = [(batch.start, batch.stop) for batch in split_batches(times)]
    assert rows == [(0, 4_998), (4_998, 9_996), (9_996, 12_000)]
    crowd = np.zeros(12_000, np.int64)  # they cannot be kept together
    assert [(batch.start, batch.stop) for batch in split_batches(crowd)] == [
        (0, 5_000),
        (5_000, 10_000),
        (10_000, 12_000),
    ]


async def test_a_batch_that_is_refused_ends_the_demo() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(422, text="no such label")

    stream = synthetic_stream(SMALL, 1, seed=0)
    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://asmg") as http:
        with pytest.raises(CallFailed, match="POST /interactions answered 422: no such label"):
            await Api(http).ingest("x", next(stream.periods))


async def test_an_update_without_news_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SILENCE_SECONDS", -1.0)
    stream = 'event: status\ndata: {"status": "updating"}\n\n: heartbeat\n\n'
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=stream))
    async with httpx.AsyncClient(transport=transport, base_url="http://asmg") as http:
        with pytest.raises(CallFailed, match="GET /periods/3: nothing has changed"):
            async for document in Api(http).watch(3):
                assert document["status"] == "updating"


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


async def test_features_hold_from_the_first_event_on_and_predictions_know_no_position() -> None:
    sent: dict[str, Any] = {}

    def handle(request: httpx.Request) -> httpx.Response:
        sent.setdefault(request.url.path, []).append(orjson.loads(request.content))
        return httpx.Response(200, json={})

    stream = synthetic_stream(SMALL, 2, seed=0)
    first, second = stream.periods
    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://asmg") as http:
        await Api(http).put_catalogue(first)
        await Api(http).ingest("x", first)
        [items], [users] = sent["/items"], sent["/users"]
        since = int(first.timestamps_ms[0])
        assert {document["timestamp"] for document in (*items["items"], *users["users"])} == {since}
        assert {document["item_id"]: document["features"] for document in items["items"]} == first.item_features
        assert {document["user_id"]: document["features"] for document in users["users"]} == first.new_users
        assert [event["context"] for call in sent["/interactions"] for event in call["interactions"]] == first.contexts
        await Api(http).put_catalogue(second)
        assert 0 < len(sent["/users"][1]["users"]) < len(users["users"])
    assert {name for context in first.contexts for name in context} == {"device", "position"}
    assert {name for context in contexts_for_prediction(first, stream.schema) for name in context} == {"device"}


class TestComparisonModels:
    """The yardstick, and the incremental model without fields."""

    @pytest.mark.parametrize("name", ["lightgbm", "logistic"])
    @pytest.mark.parametrize("fields", [True, False])
    def test_it_is_the_yardstick_of_the_experiments(
        self, name: str, fields: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On the same events both have the numbers that `asmg experiment run` would give them."""
        if name == "lightgbm":
            pytest.importorskip("lightgbm")
        else:
            monkeypatch.setattr("asmg.yardsticks.lightgbm_version", lambda: None)
        stream = synthetic_stream(replace(SMALL, fields=fields), 3, seed=2)
        log = prepared(periods := list(stream.periods), stream.schema)
        cut = cut_periods(log, 3, known="so_far", categories=True, fields=True)
        yardstick, comparison = build_yardstick(name, fields=cut.fields), ComparisonModels(stream.schema, seed=5)
        updater = build_updater(
            "iu", default_config(categories=True, numeric=len(NAMES)), statistics=StatisticsConfig()
        )
        bare = [replace(data, fields=None) for data in cut.data]
        reports = [report.scores for report, _ in progressive_validation(updater, bare, seed=5)]
        assert comparison.name == name
        for number, (period, data) in enumerate(zip(periods, cut.data, strict=True)):
            found = comparison.score_and_learn(period)
            if number == 0:
                assert found == {}
            else:
                assert found[name] == scores(yardstick.logits(data), data.label)
                assert found[name].events == SMALL.events
                assert found.get(WITHOUT_FIELDS) == (reports[number]["incremental"] if fields else None)
            yardstick.learn([data])


def prepared(periods: Sequence[PlayedPeriod], schema: Schema) -> PreparedLog:
    """The log of a stream, as an experiment reads it."""
    users, items = (
        list(dict.fromkeys(id_ for period in periods for id_ in getattr(period, ids)))
        for ids in ("user_ids", "item_ids")
    )
    user_of, item_of = ({id_: n for n, id_ in enumerate(ids)} for ids in (users, items))
    names: dict[str, int] = {}
    categories = {item: names_of for period in periods for item, names_of in period.new_items.items()}
    matrix = np.full((len(items), 2), -1, np.int32)
    for row, item in enumerate(items):
        numbers = [names.setdefault(name, len(names)) for name in categories[item]]
        matrix[row, : len(numbers)] = numbers
    features: dict[str, Any] = {}
    for period in periods:
        features |= {**period.new_users, **period.item_features}
    columns = {}
    for field in schema.fields:
        if field.of == "context":
            given = [context for period in periods for context in period.contexts]
        else:
            given = [features[id_] for id_ in (users if field.of == "user" else items)]
        by: By = "row" if field.of == "context" else field.of
        columns[field.name] = FieldColumn.of(field, [values[field.name] for values in given], by)
    return PreparedLog(
        card=SimpleNamespace(negatives_per_positive=0),  # type: ignore[arg-type] # all that is asked of it
        user=np.array([user_of[id_] for period in periods for id_ in period.user_ids], np.uint32),
        item=np.array([item_of[id_] for period in periods for id_ in period.item_ids], np.uint32),
        label=np.concatenate([p.labels for p in periods]),
        timestamps_ms=np.concatenate([p.timestamps_ms for p in periods]),
        categories=tuple(names),
        item_categories=matrix,
        schema=schema,
        fields=columns,
    )


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
