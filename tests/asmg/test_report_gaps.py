"""Reports of runs that lack something: sections say why they are empty."""

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from asmg.experiments.report import write_report
from tests.asmg.reports import (
    PERIODS,
    SHARES,
    fake_run,
    frame_rows,
    mean_and_std,
    pictures,
    plain,
    sections,
    seed_means,
    table,
    tables,
)

pytest.importorskip("matplotlib", reason="comes with the extra `experiments`")

pytestmark = pytest.mark.usefixtures("roughly_drawn")


class TestMissing:
    """What is not there is said, and the rest is shown."""

    def test_small_run(self, small_report: Path) -> None:
        found = sections(small_report)
        assert "One seed: no ±" in found["What was run"]
        assert "±" not in found["Comparison of the methods"]
        assert "One seed: pairs and periods are the same here" in found["Comparison of the methods"]
        assert "out of reach" not in found["Comparison of the methods"]  # 2 / 2⁷ of one method is
        assert "Nothing to show: this needs two or more of ASMG-GRU full, " in found["Ablation of ASMG-GRU"]
        assert "; this run has none." in found["Ablation of ASMG-GRU"]
        assert "No figure: this run has no ASMG method." in found["Training time"]
        assert "Nothing to show: these are runs of ASMG-GRU multi" in found["Sensitivity"]
        assert "Nothing to show: this run did not score its models on every period." in found["Forgetting"]
        assert "Nothing to show: this needs LightGBM or Logistic" in found["Beside what a practitioner has"]
        assert pictures(small_report) == {"periods", "slices", "reliability"}

    def test_one_seed_of_many_methods(self, tmp_path: Path) -> None:
        """2 / 2⁷ = 0.016 is within reach of 7 periods, whatever the number of methods."""
        out = fake_run(tmp_path / "out", ("iu", "bu-3", "spmf", "incctr", "sml"), seeds=1, matrix=False)
        write_report(out)
        text = sections(out)["Comparison of the methods"]
        assert "out of reach" not in text and "†" not in "".join(row["imp %"] for row in tables(text)[0].values())

    def test_too_few_periods_for_any_mark(self, tmp_path: Path) -> None:
        out = fake_run(tmp_path / "out", ("iu", "bu-3", "spmf"), seeds=1, test_from=PERIODS - 5, matrix=False)
        write_report(out)
        text = sections(out)["Comparison of the methods"]
        assert "† and ‡ are out of reach in this run: over 5 periods no p-value is below 0.062." in text
        assert not any(re.search("[†‡]", row["imp %"]) for row in tables(text)[0].values())

    def test_without_iu(self, tmp_path: Path) -> None:
        out = fake_run(tmp_path / "out", ("asmg-linear", "asmg-gru-multi"), seeds=2, sensitivity=False)
        write_report(out)
        found = sections(out)
        assert "This run has no IU, so the methods are compared with nothing" in found["Comparison of the methods"]
        assert list(table(out, "Comparison of the methods")["ASMG-Linear"]) == ["AUC ↑", "LogLoss ↓"]
        assert len(tables(found["Period by period"])) == 1
        assert "this run has ASMG-GRU multi." in found["Ablation of ASMG-GRU"]
        assert "Nothing to show: this run has no other sequence length k than 3." in found["Sensitivity"]
        assert "Nothing to show: this run has no other hidden size than 4." in found["Sensitivity"]
        assert "No figure: this run has no IU." in found["Forgetting"]
        assert list(table(out, "Forgetting")) == ["ASMG-Linear", "ASMG-GRU multi"]
        assert pictures(out) == {"periods", "training-time", "slices", "reliability"}

    def test_iu_alone(self, tmp_path: Path) -> None:
        out = fake_run(tmp_path / "out", ("iu",), seeds=1)
        write_report(out)
        found = sections(out)
        assert "nothing but IU, so there is nothing to compare" in found["Comparison of the methods"]
        assert "No figure: there is no method to compare with IU." in found["Forgetting"]
        assert "**" not in found["Comparison of the methods"]

    @pytest.mark.parametrize(
        ("methods", "other"),
        [(("iu", "sml", "asmg-linear", "asmg-gru-zero"), "ASMG-GRU zero"), (("iu", "bu-3", "sml"), "SML")],
    )
    def test_what_iu_is_compared_with_in_the_heat_maps(
        self, tmp_path: Path, methods: tuple[str, ...], other: str
    ) -> None:
        """The best ASMG method, or the best other one: those later in the list are better here."""
        out = fake_run(tmp_path / "out", methods, seeds=1)
        write_report(out)
        assert f"of IU and {other}, and their difference" in sections(out)["Forgetting"]

    @pytest.mark.parametrize(("share", "what"), [(0.0, "every"), (1.0, "no")])
    def test_only_repeats_or_none(
        self, tmp_path: Path, share: float, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(SHARES, "no repeat", share)
        out = fake_run(tmp_path / "out", ("iu", "lightgbm"), seeds=1, matrix=False)
        write_report(out)
        found = sections(out)
        assert f"Nothing to show: {what} row of the test periods is a repeat." in found["Without repeats"]
        assert ("no repeat" in found["Beside what a practitioner has"]) == (share < 1)

    def test_a_period_of_one_class(self, tmp_path: Path) -> None:
        """It has no AUC, and is in no mean of AUC; LogLoss has it."""
        out = fake_run(tmp_path / "out", ("iu", "asmg-linear"), seeds=2, one_class=(27,))
        write_report(out)
        rows = frame_rows(out, "scores", method="asmg-linear", slice="all", test=True)
        cells = table(out, "Comparison of the methods")["ASMG-Linear"]
        assert plain(cells["AUC ↑"]) == mean_and_std(seed_means([r for r in rows if r["period"] != 27], "auc"))
        assert plain(cells["LogLoss ↓"]) == mean_and_std(seed_means(rows, "logloss"))
        assert cells["wins"].endswith("/12") and cells["wins 2"].endswith("/14")
        assert table(out, "Period by period")["IU"]["period 27"] == "–"
        assert "No AUC in period 27, where all rows are of one class" in sections(out)["What was run"]

    def test_no_auc_at_all(self, tmp_path: Path) -> None:
        out = fake_run(tmp_path / "out", ("iu", "asmg-linear"), seeds=2, one_class=range(1, 32))
        write_report(out)
        found = sections(out)
        assert "Nothing to show: no test period has both classes" in found["Period by period"]
        assert table(out, "Comparison of the methods")["ASMG-Linear"]["AUC ↑"] == "–"
        assert "No AUC for cold users or warm users or" in found["Cold and warm users and items"]
        assert "Nothing to show" in found["Forgetting"]

    def test_a_method_that_the_paper_does_not_know(self, tmp_path: Path) -> None:
        out = fake_run(tmp_path / "out", ("iu", "sml"), seeds=1, matrix=False)
        for name in ("scores", "timings", "calibration"):
            file = out / f"{name}.parquet"
            pl.read_parquet(file).with_columns(pl.col("method").replace("sml", "mine")).write_parquet(file)
        write_report(out)
        assert list(table(out, "Comparison of the methods")) == ["IU", "mine"]

    @pytest.mark.parametrize("name", ["run.json", "scores.parquet", "forgetting.parquet"])
    def test_an_unfinished_run(self, small_report: Path, tmp_path: Path, name: str) -> None:
        out = shutil.copytree(
            small_report, tmp_path / "out", ignore=shutil.ignore_patterns("figures", "report.*", name)
        )
        with pytest.raises(ValueError, match=rf"out: expected the folder of a finished run .* has no {name}"):
            write_report(out)
        assert not (out / "figures").exists()

    def test_other_files(self, small_report: Path, tmp_path: Path) -> None:
        out = shutil.copytree(small_report, tmp_path / "out")
        (out / "run.json").write_text(json.dumps({"dataset": {}, "protocol": {}}))
        with pytest.raises(ValueError, match=r"run.json: expected options, .*; received dataset, protocol"):
            write_report(out)
        shutil.copy(small_report / "run.json", out)
        scores = pl.read_parquet(out / "scores.parquet")
        scores.drop("logloss").write_parquet(out / "scores.parquet")
        with pytest.raises(ValueError, match=r"scores.parquet: expected a column logloss; received seed, "):
            write_report(out)
        scores.with_columns(test=False).write_parquet(out / "scores.parquet")
        with pytest.raises(ValueError, match=r"scores.parquet: expected rows of test periods; received none"):
            write_report(out)
