"""Experiments: the protocol's periods, the jobs, running and resuming."""

import fcntl
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from asmg.batch import NO_CATEGORY, PeriodData
from asmg.datasets.prepared import PreparedLog, read_prepared
from asmg.experiments.chain import Chain, run_chain
from asmg.experiments.jobs import run_method, run_yardstick
from asmg.experiments.methods import MethodJob
from asmg.experiments.observations import BINS, SLICES
from asmg.experiments.options import ExperimentOptions
from asmg.experiments.periods import Periods, cut_periods
from asmg.experiments.protocol import Protocol
from asmg.experiments.run import ExperimentError, run_experiment
from asmg.metrics import auc, logloss
from asmg.models import EmbeddingMLPConfig, default_config
from asmg.progressive import stage_rng
from asmg.statistics import NAMES, Statistics, StatisticsConfig
from asmg.training import evaluate, predict_logits
from asmg.updaters import UPDATERS
from asmg.yardsticks import YARDSTICKS, build_yardstick, installed_yardsticks
from tests.asmg.logs import prepare_small

PROTOCOL = Protocol(periods=8, pretrain=3, test_from=5)
ROWS = 1_603
"""Of the small log: 8 periods of 200, and 3 left over."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared log with categories."""
    return prepare_small(tmp_path_factory.mktemp("log") / "log", rows=ROWS)


@pytest.fixture(scope="module")
def log(folder: Path) -> PreparedLog:
    return read_prepared(folder)


class TestPeriods:
    """cut_periods, against the rows one by one."""

    @pytest.mark.parametrize("known", ["all", "so_far"])
    @pytest.mark.parametrize("categories", [False, True])
    def test_rows_histories_and_sizes(self, log: PreparedLog, known: Any, categories: bool) -> None:
        periods = cut_periods(log, 8, known=known, categories=categories)
        assert len(periods.data) == 8
        past: dict[int, list[tuple[int, int]]] = defaultdict(list)
        seen_users, seen_items = {0}, {0}
        position = 0
        for data, users, items in zip(periods.data, periods.users, periods.items, strict=True):
            assert len(data) == 200
            for n in range(200):
                user, item = int(log.user[position]) + 1, int(log.item[position]) + 1
                moment, label = int(log.timestamps_ms[position]), int(log.label[position])
                earlier = [i for t, i in past[user] if t < moment][::-1][:30]
                assert (int(data.user[n]), int(data.item[n]), int(data.label[n])) == (user, item, label)
                assert data.history[data.offsets[n] : data.offsets[n + 1]].tolist() == earlier
                if label:
                    past[user].append((moment, item))
                seen_users.add(user)
                seen_items.add(item)
                position += 1
            assert (users, items) == (len(seen_users), len(seen_items))
            whole = len(set(log.user[:1600].tolist())) + 1, len(set(log.item[:1600].tolist())) + 1
            assert (data.users, data.items) == ((users, items) if known == "so_far" else whole)
            assert (data.item_categories is not None) == categories

    def test_categories_are_numbered_with_their_items(self, log: PreparedLog) -> None:
        periods = cut_periods(log, 8, known="so_far", categories=True)
        names: dict[int, str] = {}
        for data in periods.data:
            assert data.item_categories is not None
            present = data.item_categories[data.item_categories != NO_CATEGORY]
            assert sorted(set(present.tolist())) == list(range(1, data.categories))
            for row in range(1, data.items):
                mine = [c for c in data.item_categories[row].tolist() if c != NO_CATEGORY]
                theirs = [log.categories[c] for c in log.item_categories[row - 1] if c >= 0]  # type: ignore[index]
                assert [names.setdefault(c, name) for c, name in zip(mine, theirs, strict=True)] == theirs
        assert len(set(names.values())) == len(names)

    @pytest.mark.parametrize("known", ["all", "so_far"])
    def test_cold_is_a_user_in_no_row_and_an_item_in_no_click_of_an_earlier_period(
        self, log: PreparedLog, known: Any
    ) -> None:
        periods = cut_periods(log, 8, known=known, categories=False)
        users, clicked = set(log.user[:1000].tolist()), set(log.item[:1000][log.label[:1000] == 1].tolist())
        cold_user, cold_item = periods.cold(5)
        assert cold_user.tolist() == [u not in users for u in log.user[1000:1200].tolist()]
        assert cold_item.tolist() == [i not in clicked for i in log.item[1000:1200].tolist()]
        assert cold_user.any() and cold_item.any() and not cold_user.all()

    def test_an_item_that_was_only_a_negative_is_cold(self) -> None:
        """Where negatives are drawn from all items of the log, all of them are in its first rows: by hand."""
        rows = [(0, 0, 1), (0, 1, 0), (0, 2, 0), (0, 3, 0), (1, 1, 1), (1, 0, 0), (1, 3, 0), (1, 2, 0)]
        user, item, label = (np.array(column) for column in zip(*rows, strict=True))
        periods = Periods(
            [
                PeriodData(
                    user=torch.from_numpy(user[part]).int() + 1, item=torch.from_numpy(item[part]).int() + 1,
                    history=torch.empty(0, dtype=torch.int32), offsets=torch.zeros(5, dtype=torch.int64),
                    label=torch.from_numpy(label[part]).float(), users=3, items=5,
                )
                for part in (slice(0, 4), slice(4, 8))
            ],
            [2, 3], [5, 5],
        )  # fmt: skip
        cold_user, cold_item = periods.cold(1)
        assert cold_user.tolist() == [True] * 4
        assert cold_item.tolist() == [True, False, True, True]

    def test_bad_input(self, log: PreparedLog) -> None:
        with pytest.raises(ValueError, match="periods: expected from 1 to 1603"):
            cut_periods(log, 1604, known="all", categories=False)
        with pytest.raises(ValueError, match="periods: expected from 1"):
            cut_periods(log, 0, known="all", categories=False)
        with pytest.raises(ValueError, match="categories: expected a log whose items have them"):
            cut_periods(replace(log, item_categories=None), 8, known="all", categories=True)


class TestJobs:
    """One method of one seed."""

    @pytest.mark.parametrize("settings", ["default", "paper"])
    @pytest.mark.parametrize("categories", [False, True])
    @pytest.mark.parametrize("method", ["iu", "bu-3", "asmg-gru-multi", "asmg-linear", "sml", "sml-mf"])
    def test_scores_are_those_of_the_method_alone(
        self, log: PreparedLog, tmp_path: Path, method: str, settings: Any, categories: bool
    ) -> None:
        """The shared chain changes nothing, and every number is that of a plain loop, to the bit."""
        protocol = replace(PROTOCOL, settings=settings, categories=categories)
        periods = protocol.cut(log)
        job = MethodJob(method)
        found = run_method(job, periods, protocol, 4, run_chain(tmp_path / "c", periods, protocol, 4))

        updater, data = job.build(protocol), periods.data
        rng = stage_rng(4, 0, "pretrain")
        if method == "sml-mf":
            state = updater.pretrained(data[:3], data[3], rng=rng)
        else:
            state = updater.started(
                updater.base.pretrained(data[:3], data[3], rng), data[:3], rng=stage_rng(4, 0, "start")
            )
        steps = {}
        for step in range(3, 8):
            if step > 3:
                for stage in updater.stages:
                    state = updater.run_stage(stage, state, data[step - 1], rng=stage_rng(4, step, stage))
            models = updater.serving_models(state)
            steps[step] = models.get("generated", models["incremental"])
            scored = evaluate(updater.model, steps[step], data[step])
            (row,) = [r for r in found["scores"] if r["step"] == step and r["slice"] == "all"]
            assert (row["auc"], row["logloss"], row["calibration"]) == (scored.auc, scored.logloss, scored.calibration)
            assert (row["period"], row["test"], row["events"]) == (step + 1, step >= 5, 200)
        cells = {(c["step"], c["period"]): (c["auc"], c["logloss"]) for c in found["forgetting"]}
        assert set(cells) == {(step, period) for step in range(3, 8) for period in range(1, 9)}
        for step, period in ((3, 1), (6, 8), (7, 8), (7, 2)):
            scored = evaluate(updater.model, steps[step], data[period - 1])
            assert cells[step, period] == (scored.auc, scored.logloss)
        stages = {(t["step"], t["stage"]) for t in found["timings"]}
        assert stages == {(step, stage) for step in range(4, 8) for stage in updater.stages}

    def test_slices_and_bins(self, log: PreparedLog, tmp_path: Path) -> None:
        periods = PROTOCOL.cut(log)
        found = run_method(MethodJob("iu"), periods, PROTOCOL, 0, run_chain(tmp_path / "c", periods, PROTOCOL, 0))
        updater = MethodJob("iu").build(PROTOCOL)
        chain = Chain(tmp_path / "c")
        state = chain.start(updater.base)
        for step in range(4, 7):
            state = updater.base.committed(chain.update(updater.base, state, step))
        logits, label = predict_logits(updater.model, state.params, periods.data[6]), periods.data[6].label
        cold_user, cold_item = periods.cold(6)
        data = periods.data[6]
        past = [data.history[start:end].tolist() for start, end in pairwise(data.offsets.tolist())]
        fresh = torch.tensor([item not in mine for item, mine in zip(data.item.tolist(), past, strict=True)])
        assert fresh.any() and not fresh.all()
        masks = [torch.ones(200, dtype=torch.bool), cold_user, ~cold_user, cold_item, ~cold_item, fresh]
        for name, mask in zip(SLICES, masks, strict=True):
            (row,) = [r for r in found["scores"] if r["step"] == 6 and r["slice"] == name]
            assert (row["events"], row["clicks"]) == (int(mask.sum()), int(label[mask].sum()))
            assert row["auc"] == auc(logits[mask], label[mask])
            assert row["logloss"] == logloss(logits[mask], label[mask])
        bins = [b for b in found["calibration"] if b["period"] == 7]
        assert [b["bin"] for b in bins] == list(range(BINS)) and [b["count"] for b in bins] == [10] * BINS
        ranked = sorted(zip(logits.tolist(), label.tolist(), strict=True), key=lambda pair: pair[0])
        for n, row in enumerate(bins):
            mine = ranked[10 * n : 10 * n + 10]
            assert row["predicted"] == pytest.approx(np.mean([1 / (1 + math.exp(-z)) for z, _ in mine]), rel=1e-9)
            assert row["clicked"] == pytest.approx(np.mean([y for _, y in mine]))
        assert {row["period"] for row in found["calibration"]} == {6, 7, 8}

    def test_a_slice_without_events(self, log: PreparedLog, tmp_path: Path) -> None:
        periods = PROTOCOL.cut(log)
        nobody_new = periods._replace(users=[10**6] * 8)
        found = run_method(MethodJob("iu"), nobody_new, PROTOCOL, 0, run_chain(tmp_path / "c", periods, PROTOCOL, 0))
        row = next(r for r in found["scores"] if r["slice"] == "cold user")
        assert (row["events"], row["auc"], row["logloss"], row["calibration"]) == (0, None, None, None)

    def test_variants(self) -> None:
        k = MethodJob("asmg-gru-multi", "k=5").build(PROTOCOL)
        hidden = MethodJob("asmg-gru-multi", "hidden=2").build(replace(PROTOCOL, settings="paper"))
        assert k.config.window == 5 and k.config.generator.hidden == 4  # type: ignore[attr-defined]
        assert hidden.config.window == 3 and hidden.config.generator.hidden == 2  # type: ignore[attr-defined]
        assert hidden.config.generator.output == "direct" and k.config.generator.output == "residual"  # type: ignore[attr-defined]
        for bad in (MethodJob("iu", "k=2"), MethodJob("asmg-gru-multi", "depth=2"), MethodJob("asmg-gru-multi", "k=x")):
            with pytest.raises(ValueError, match="variant: expected one of k=…, hidden=…, lr=…"):
                bad.build(PROTOCOL)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"pretrain": 0}, "pretrain: expected at least 1"),
            ({"test_from": 3}, "expected pretrain < test_from < periods"),
            ({"test_from": 8}, "expected pretrain < test_from < periods"),
            ({"settings": "mine"}, "settings: expected default or paper; received 'mine'"),
            ({"dropped": ("repeat", "mood")}, "dropped: expected some of user_interactions, .*; received 'mood'"),
            ({"dim": 0}, "expected positive widths; received dim=0"),
            ({"hidden": ()}, r"expected positive widths; received dim=.*, hidden=\(\)"),
        ],
    )
    def test_bad_protocols(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(PROTOCOL, **changes)


class TestShape:
    """What the base model is, and what it reads."""

    def test_settings_and_changes(self) -> None:
        ours, theirs = Protocol(), Protocol(settings="paper")
        assert ours.model == default_config(categories=False, numeric=len(NAMES))
        assert theirs.model == EmbeddingMLPConfig()
        plain = replace(default_config(categories=False, numeric=0), dot=False)
        assert replace(ours, statistics=False, dot=False).model == plain
        assert replace(theirs, statistics=True, dot=True).model == EmbeddingMLPConfig(numeric=len(NAMES), dot=True)
        other = replace(ours, dim=5, hidden=(7, 3), categories=True).model
        assert (other.dim, other.hidden, other.categories) == (5, (7, 3), True)

    def test_statistics_are_those_known_before_each_period(self, log: PreparedLog) -> None:
        assert {data.numeric for data in replace(PROTOCOL, settings="paper").cut(log).data} == {None}
        periods, known = PROTOCOL.cut(log).data, Statistics.initial(StatisticsConfig())
        less = replace(PROTOCOL, dropped=("repeat", "user_clicks")).cut(log).data
        for data, other in zip(periods, less, strict=True):
            expected = known.inputs(data)
            assert data.numeric is not None and torch.equal(data.numeric, expected)
            expected[:, [NAMES.index("repeat"), NAMES.index("user_clicks")]] = 0
            assert other.numeric is not None and torch.equal(other.numeric, expected)
            known = known.learned(data)

    def test_the_future_changes_nothing_that_is_read(self, log: PreparedLog) -> None:
        """Whatever happens after a moment, all that models read of the rows until then stays to the bit."""
        later = int(np.searchsorted(log.timestamps_ms, log.timestamps_ms[1_100], side="right"))
        order = np.arange(len(log.label))
        np.random.default_rng(1).shuffle(order[later:])
        label = np.where(np.arange(len(order)) < later, log.label, 1 - log.label)
        changed = PROTOCOL.cut(replace(log, item=log.item[order], label=label)).data
        until = later - 1_000
        assert 50 < until < 150
        for step, (one, two) in enumerate(zip(PROTOCOL.cut(log).data[:6], changed[:6], strict=True)):
            rows = until if step == 5 else 200
            assert one.numeric is not None and two.numeric is not None
            assert torch.equal(one.numeric[:rows], two.numeric[:rows])
            assert torch.equal(one.history[: one.offsets[rows]], two.history[: two.offsets[rows]])


class TestYardsticks:
    """Methods that no service serves."""

    @pytest.mark.parametrize("name", YARDSTICKS)
    def test_scores_are_those_of_the_yardstick_alone(self, log: PreparedLog, name: str) -> None:
        if name == "lightgbm":
            pytest.importorskip("lightgbm")
        periods = replace(PROTOCOL, settings="paper").cut(log)  # they read statistics whatever the base model does
        found, data = run_yardstick(MethodJob(name), periods, PROTOCOL), periods.data
        yardstick = build_yardstick(name)
        yardstick.learn(data[:3])
        for step in range(3, 8):
            if step > 3:
                yardstick.learn([data[step - 1]])
            (row,) = [r for r in found["scores"] if r["step"] == step and r["slice"] == "all"]
            logits = yardstick.logits(data[step])
            assert (row["auc"], row["logloss"]) == (auc(logits, data[step].label), logloss(logits, data[step].label))
            assert (row["period"], row["test"], row["events"]) == (step + 1, step >= 5, 200)
        assert {row["slice"] for row in found["scores"]} == set(SLICES)
        assert [(t["step"], t["stage"]) for t in found["timings"]] == [(step, "learn") for step in range(4, 8)]
        assert {row["period"] for row in found["calibration"]} == {6, 7, 8} and found["forgetting"] == []
        assert found["config"] == yardstick.config

    def test_a_run_beside_methods_and_alone(self, folder: Path, finished: Path, tmp_path: Path) -> None:
        """They change nothing of the others' numbers, and need no chain."""
        options = replace(QUICK, methods=("popularity", "item-ctr"), seeds=1, processes=1)
        lines: list[str] = []
        run_experiment(folder, tmp_path / "out", options, say=lines.append)
        assert not [line for line in lines if "pretrained" in line] and len(lines) == 4
        alone = numbers(tmp_path / "out")["summary"]["methods"]
        run_experiment(folder, tmp_path / "out", replace(options, methods=("logistic", "iu", "item-ctr")), say=quiet)
        both = numbers(tmp_path / "out")
        assert both["summary"]["methods"]["item-ctr"].items() > alone["item-ctr"].items()  # and against IU
        mine = [row for row in both["scores"] if "iu" in row]
        assert mine and mine == [row for row in numbers(finished)["scores"] if "iu" in row and row[2] == 0]
        assert {row[1] for row in both["timings"]} == {"logistic", "iu", "item-ctr"}

    def test_summary_against_lightgbm(self, folder: Path, tmp_path: Path) -> None:
        pytest.importorskip("lightgbm")
        options = replace(QUICK, methods=("logistic", "lightgbm"), seeds=1, processes=1)
        summary = run_experiment(folder, tmp_path / "out", options, say=quiet)
        scores = pl.read_parquet(tmp_path / "out" / "scores.parquet").filter(pl.col("slice") == "all", pl.col("test"))
        rows = {(row["method"], row["period"]): row for row in scores.to_dicts()}
        assert "against_lightgbm" not in summary["methods"]["lightgbm"]
        for metric, sign in (("auc", 1), ("logloss", -1)):
            better = [sign * (rows["logistic", p][metric] - rows["lightgbm", p][metric]) for p in (6, 7, 8)]
            found = summary["methods"]["logistic"]["against_lightgbm"][metric]
            assert (found["wins"], found["ties"], found["pairs"]) == (sum(b > 0 for b in better), 0, 3)
            assert found["worst_seed"] == {"seed": 0, "better": pytest.approx(np.mean(better), abs=1e-12)}

    def test_lightgbm_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("asmg.yardsticks.lightgbm_version", lambda: None)
        assert ExperimentOptions().methods == (*UPDATERS, "popularity", "item-ctr", "logistic")
        with pytest.raises(ValueError, match=r"methods: lightgbm needs .* pip install 'asmg-service\[peers\]'"):
            ExperimentOptions(methods=("iu", "lightgbm"))


QUICK = ExperimentOptions(methods=("iu", "sml-mf", "asmg-gru-multi"), seeds=2, protocol=PROTOCOL, processes=2)
TABLES = ("scores", "timings", "calibration", "forgetting")


def numbers(out: Path) -> dict[str, Any]:
    """All results of a run that are not times."""
    found: dict[str, Any] = {}
    for name in TABLES:
        frame = pl.read_parquet(out / f"{name}.parquet")
        found[name] = frame.drop([c for c in ("seconds", "cpu_seconds") if c in frame.columns]).rows()
    summary = json.loads((out / "summary.json").read_text())
    for part in ("methods", "sensitivity"):
        for result in summary.get(part, {}).values():
            del result["seconds"]
    return found | {"summary": summary}


def quiet(_: str) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end."""
    out = tmp_path_factory.mktemp("run") / "out"
    run_experiment(folder, out, QUICK, say=quiet)
    return out


class TestRun:
    """run_experiment."""

    def test_what_comes_out(self, finished: Path, log: PreparedLog) -> None:
        scores = pl.read_parquet(finished / "scores.parquet")
        jobs = scores.select("seed", "method", "variant").unique()
        variants = [f"k={k}" for k in (1, 2, 4, 5, 7)] + [f"hidden={d}" for d in (1, 2, 8, 16)]
        wanted = {(m, "") for m in QUICK.methods} | {("asmg-gru-multi", v) for v in variants}
        assert set(jobs.rows()) == {(seed, *job) for seed in (0, 1) for job in wanted}
        assert scores["dataset"].unique().to_list() == [log.card.dataset]
        for name, columns in {
            "scores": "dataset settings seed method variant step period test slice events clicks auc logloss "
            "calibration",
            "timings": "seed method variant step stage seconds cpu_seconds",
            "calibration": "seed method variant period bin count predicted clicked",
            "forgetting": "seed method variant step period auc logloss",
        }.items():
            assert pl.read_parquet(finished / f"{name}.parquet").columns == columns.split()
            about = json.loads(pl.read_parquet_metadata(finished / f"{name}.parquet")["asmg"])
            assert about == json.loads((finished / "run.json").read_text())
        assert set(pl.read_parquet(finished / "forgetting.parquet")["variant"]) == {""}
        run = json.loads((finished / "run.json").read_text())
        assert run["dataset"] == log.card.to_json()
        assert run["options"]["methods"] == list(QUICK.methods) and run["options"]["pretrain"] == 3
        assert run["versions"][0]["torch"] == torch.__version__.split("+")[0] or run["versions"][0]["torch"]
        assert run["configs"]["asmg-gru-multi k=5"]["method"]["window"] == 5
        assert not (finished / "chains").exists()
        assert not list(finished.rglob(".*"))

    def test_summary_by_hand(self, finished: Path) -> None:
        summary = json.loads((finished / "summary.json").read_text())
        scores = pl.read_parquet(finished / "scores.parquet")
        timings = pl.read_parquet(finished / "timings.parquet")
        tables: dict[tuple[str, str], np.ndarray] = {}
        assert list(summary["methods"]) == list(QUICK.methods)
        for method, found in summary["methods"].items():
            for metric in ("auc", "logloss"):
                table = [
                    [
                        row[metric]
                        for row in scores.to_dicts()
                        if (row["seed"], row["method"], row["variant"], row["slice"]) == (seed, method, "", "all")
                        and row["step"] == step
                    ]
                    for seed in (0, 1)
                    for step in (5, 6, 7)
                ]
                assert all(len(cell) == 1 for cell in table)
                values = np.array(table).reshape(2, 3)
                assert found[metric]["mean"] == pytest.approx(values.mean(), abs=1e-12)
                assert found[metric]["std"] == pytest.approx(values.mean(1).std(), abs=1e-12)
                assert found[metric]["periods"] == pytest.approx(values.mean(0).tolist(), abs=1e-12)
                tables[method, metric] = values
            mine = timings.filter((pl.col("method") == method) & (pl.col("variant") == ""))
            assert found["seconds"] == pytest.approx(sum(mine["seconds"]) / 2)
            fresh = scores.filter((pl.col("method") == method) & (pl.col("variant") == "") & pl.col("test"))
            fresh = fresh.filter(pl.col("slice") == "no repeat")
            for metric in ("auc", "logloss"):
                assert found["no_repeat"][metric]["mean"] == pytest.approx(np.mean(fresh[metric].to_numpy()), abs=1e-12)
                assert found["no_repeat"][metric]["mean"] != found[metric]["mean"]
        assert summary["sensitivity"]["asmg-gru-multi k=1"]["auc"]["mean"] > 0
        assert "against_iu" not in summary["methods"]["iu"]
        for (method, metric), values in tables.items():
            if method == "iu":
                continue
            better = (values - tables["iu", metric]) * (1 if metric == "auc" else -1)
            found = summary["methods"][method]["against_iu"][metric]
            assert (found["wins"], found["ties"]) == (int((better > 0).sum()), int((better == 0).sum()))
            assert found["pairs"] == 6
            by_seed = better.mean(1).tolist()
            assert found["worst_seed"]["seed"] == by_seed.index(min(by_seed))
            assert found["worst_seed"]["better"] == pytest.approx(min(by_seed), abs=1e-12)
        assert "against_iu" in summary["sensitivity"]["asmg-gru-multi k=1"]

    def test_goes_on_with_what_is_left(self, folder: Path, finished: Path, tmp_path: Path) -> None:
        """Fewer runs first, then all of them: the same numbers; and nothing is computed twice."""
        out = tmp_path / "out"
        run_experiment(folder, out, replace(QUICK, methods=("iu",), seeds=1), say=quiet)
        job = out / "jobs" / "seed-0" / "iu.json"
        before = job.stat().st_mtime_ns
        lines: list[str] = []
        run_experiment(folder, out, QUICK, say=lines.append)
        assert job.stat().st_mtime_ns == before and "24 runs, 1 of them done already" in lines[0]
        assert numbers(out) == numbers(finished)
        lines.clear()
        run_experiment(folder, out, QUICK, say=lines.append)
        assert "24 of them done already" in lines[0] and len(lines) == 2

    def test_one_process_gives_the_same(self, folder: Path, finished: Path, tmp_path: Path) -> None:
        run_experiment(folder, tmp_path / "out", replace(QUICK, processes=1), say=quiet)
        assert numbers(tmp_path / "out") == numbers(finished)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"test_from": 6}, "out: expected a new folder, or one with the same protocol; .* has test_from 5, not 6"),
            ({"settings": "paper"}, "has settings 'default', not 'paper'"),
        ],
    )
    def test_refuses_another_experiment(
        self, folder: Path, finished: Path, changes: dict[str, Any], message: str
    ) -> None:
        before = sorted((f, f.stat().st_mtime_ns) for f in finished.rglob("*"))
        with pytest.raises(ValueError, match=message):
            run_experiment(folder, finished, replace(QUICK, protocol=replace(PROTOCOL, **changes)), say=quiet)
        assert sorted((f, f.stat().st_mtime_ns) for f in finished.rglob("*")) == before

    def test_refuses_another_log_and_other_folders(self, finished: Path, folder: Path, tmp_path: Path) -> None:
        other = prepare_small(tmp_path / "log", rows=ROWS, seed=1)
        with pytest.raises(ValueError, match=r"one with the same dataset; .* has log_sha256"):
            run_experiment(other, finished, QUICK, say=quiet)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("x")
        for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
            with pytest.raises(ValueError, match="out: expected a new folder, or one of an earlier run"):
                run_experiment(folder, out, QUICK, say=quiet)
        assert [f.name for f in tmp_path.joinpath("mine").iterdir()] == ["thesis.txt"]

    def test_one_run_at_a_time_in_a_folder(self, folder: Path, finished: Path) -> None:
        before = sorted((f, f.stat().st_mtime_ns) for f in finished.rglob("*"))
        other = os.open(finished, os.O_RDONLY)
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="out: expected a folder that no other run is at work in"):
            run_experiment(folder, finished, QUICK, say=quiet)
        os.close(other)  # as when that process ends
        assert sorted((f, f.stat().st_mtime_ns) for f in finished.rglob("*")) == before
        run_experiment(folder, finished, QUICK, say=quiet)

    def test_a_chain_of_other_versions_is_not_used(self, folder: Path, log: PreparedLog, tmp_path: Path) -> None:
        """It is computed again, and the numbers are those of these versions."""
        out, options = tmp_path / "out", replace(QUICK, methods=("iu",), seeds=1)
        (out / "chains").mkdir(parents=True)
        chain = run_chain(out / "chains" / "seed-0", PROTOCOL.cut(log), PROTOCOL, seed=1)  # of another seed
        assert chain.complete
        note = json.loads((chain.folder / "chain.json").read_text())
        (chain.folder / "chain.json").write_text(json.dumps(note | {"versions": note["versions"] | {"torch": "1.0"}}))
        assert not chain.complete
        moved = out.rename(tmp_path / "chains-of-another-version")
        run_experiment(folder, out, options, say=quiet)
        expected = numbers(out)
        (out / "jobs" / "seed-0" / "iu.json").unlink()
        (moved / "chains").rename(out / "chains")
        run_experiment(folder, out, options, say=quiet)
        assert numbers(out) == expected

    def test_more_periods_than_rows(self, folder: Path, tmp_path: Path) -> None:
        options = replace(QUICK, protocol=Protocol(periods=5_000))
        with pytest.raises(ValueError, match="periods: expected at most 1603, the rows of the log; received 5000"):
            run_experiment(folder, tmp_path / "out", options, say=quiet)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"methods": ()}, "methods: expected at least one"),
            ({"methods": ("iu", "sgd")}, "methods: expected some of iu, .*; received 'sgd'"),
            ({"methods": ("iu", "iu")}, "methods: expected each once"),
            ({"seeds": 0}, "seeds: expected at least 1"),
            ({"processes": 0}, "processes: expected at least 1"),
        ],
    )
    def test_bad_options(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(QUICK, **changes)

    def test_all_methods_by_default(self) -> None:
        assert ExperimentOptions().methods == (*UPDATERS, *installed_yardsticks())
        assert not [job for job in ExperimentOptions(sensitivity=False).jobs if job.variant]


def test_a_method_that_diverges_is_named_and_the_others_stay(folder: Path, log: PreparedLog, tmp_path: Path) -> None:
    out, options = tmp_path / "out", replace(QUICK, methods=("iu",), seeds=1)
    run_experiment(folder, out, options, say=quiet)
    periods, training = PROTOCOL.cut(log), MethodJob("bu-3").build(PROTOCOL).base
    base = training.pretrained(periods.data[:3], periods.data[3], stage_rng(0, 0, "pretrain"))
    run_chain(out / "chains" / "seed-0", periods, PROTOCOL, 0, start=base)
    huge = replace(base, params={name: 1e30 * p.sign() for name, p in base.params.items()})
    part = training.dump(huge)["base"]
    (out / "chains" / "seed-0" / "base.safetensors").write_bytes(part.to_bytes())
    with pytest.raises(ExperimentError, match=r"seed 0, bu-3: .*expected .*finite"):
        run_experiment(folder, out, replace(options, methods=("iu", "bu-3")), say=quiet)
    assert (out / "jobs" / "seed-0" / "iu.json").is_file()


COMMAND = [
    sys.executable, "-m", "service.cli", "experiment", "run", "--methods", ",".join(QUICK.methods), "--seeds", "2",
    "--periods", "8", "--pretrain", "3", "--test-from", "5", "--no-categories", "--processes", "2",
]  # fmt: skip


@pytest.mark.slow
class TestInterrupted:
    """Real processes, really killed."""

    def test_killed_at_random_points_it_ends_with_the_same_numbers(
        self, folder: Path, finished: Path, tmp_path: Path
    ) -> None:
        out, draw = tmp_path / "out", random.Random(5)
        command = [*COMMAND, "--data", str(folder), "--out", str(out)]
        for signal_number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
            assert process.stdout is not None
            steps = draw.randint(1, 3)  # of 24 runs and 2 chains
            for line in process.stdout:
                steps -= "seed" in line and "runs" not in line
                if not steps:
                    break
            time.sleep(0.1 * draw.random())
            workers = children(process.pid)
            os.kill(process.pid, signal_number)
            code = process.wait(timeout=60)
            process.stdout.close()
            assert code != 0
            deadline = time.monotonic() + 30
            while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()], "processes were left behind"
        self.kill_a_worker(command)
        (out / "jobs" / "seed-0").mkdir(parents=True, exist_ok=True)
        (out / "jobs" / "seed-0" / ".iu.json.4711").write_text('{"scores": [')  # as a kill in the middle would leave
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
        assert numbers(out) == numbers(finished)
        assert not (out / "chains").exists() and not list(out.rglob(".*"))

    def kill_a_worker(self, command: list[str]) -> None:
        """As the system does when memory runs out: the run ends with one line."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        deadline = time.monotonic() + 60
        while not (workers := spawned(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(workers[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert errors == (
            "asmg: a process of the experiment was ended from outside (out of memory?); the same command goes on from "
            "here\n"
        )


def spawned(pid: int) -> list[int]:
    """The worker processes among the children of a run; the other one looks after semaphores."""
    return [child for child in children(pid) if b"spawn_main" in (Path("/proc") / str(child) / "cmdline").read_bytes()]


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    if not Path("/proc").is_dir():
        pytest.skip("expected /proc to find the processes of a run")
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found
