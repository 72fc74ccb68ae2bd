"""One job of an experiment gives the numbers of the method or the yardstick alone."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from asmg.datasets.prepared import PreparedLog
from asmg.experiments.chain import Chain, run_chain
from asmg.experiments.jobs import run_method, run_yardstick
from asmg.experiments.methods import MethodJob
from asmg.experiments.observations import BINS, SLICES
from asmg.experiments.options import ExperimentOptions
from asmg.experiments.run import run_experiment
from asmg.metrics import auc, logloss
from asmg.progressive import stage_rng
from asmg.training import evaluate, predict_logits
from asmg.updaters import UPDATERS
from asmg.yardsticks import YARDSTICKS, build_yardstick
from tests.asmg.experiments import PROTOCOL, QUICK, numbers, quiet


class TestJobs:
    """One method of one seed."""

    @pytest.mark.parametrize("settings", ["default", "paper"])
    @pytest.mark.parametrize("categories", [False, True])
    @pytest.mark.parametrize("method", ["iu", "bu-3", "asmg-gru-multi", "asmg-linear", "sml", "sml-mf"])
    def test_scores_are_those_of_the_method_alone(
        self, small_log: PreparedLog, tmp_path: Path, method: str, settings: Any, categories: bool
    ) -> None:
        """The shared chain changes nothing, and every number is that of a plain loop, to the bit."""
        protocol = replace(PROTOCOL, settings=settings, categories=categories)
        periods = protocol.cut(small_log)
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

    def test_slices_and_bins(self, small_log: PreparedLog, tmp_path: Path) -> None:
        periods = PROTOCOL.cut(small_log)
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

    def test_a_slice_without_events(self, small_log: PreparedLog, tmp_path: Path) -> None:
        periods = PROTOCOL.cut(small_log)
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


class TestYardsticks:
    """Methods that no service serves."""

    @pytest.mark.parametrize("name", YARDSTICKS)
    def test_scores_are_those_of_the_yardstick_alone(self, small_log: PreparedLog, name: str) -> None:
        if name == "lightgbm":
            pytest.importorskip("lightgbm")
        periods = replace(PROTOCOL, settings="paper").cut(
            small_log
        )  # they read statistics whatever the base model does
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

    def test_a_run_beside_methods_and_alone(self, small_log_folder: Path, finished_run: Path, tmp_path: Path) -> None:
        """They change nothing of the others' numbers, and need no chain."""
        options = replace(QUICK, methods=("popularity", "item-ctr"), seeds=1, processes=1)
        lines: list[str] = []
        run_experiment(small_log_folder, tmp_path / "out", options, say=lines.append)
        assert not [line for line in lines if "pretrained" in line] and len(lines) == 4
        alone = numbers(tmp_path / "out")["summary"]["methods"]
        run_experiment(
            small_log_folder, tmp_path / "out", replace(options, methods=("logistic", "iu", "item-ctr")), say=quiet
        )
        both = numbers(tmp_path / "out")
        assert both["summary"]["methods"]["item-ctr"].items() > alone["item-ctr"].items()  # and against IU
        mine = [row for row in both["scores"] if "iu" in row]
        assert mine and mine == [row for row in numbers(finished_run)["scores"] if "iu" in row and row[2] == 0]
        assert {row[1] for row in both["timings"]} == {"logistic", "iu", "item-ctr"}

    def test_summary_against_lightgbm(self, small_log_folder: Path, tmp_path: Path) -> None:
        pytest.importorskip("lightgbm")
        options = replace(QUICK, methods=("logistic", "lightgbm"), seeds=1, processes=1)
        summary = run_experiment(small_log_folder, tmp_path / "out", options, say=quiet)
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
