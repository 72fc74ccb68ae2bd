"""The numbers of a report, recomputed row by row."""

import itertools
import math
import statistics
from pathlib import Path

import polars as pl
import pytest

from asmg.experiments.observations import BINS, SLICES
from asmg.experiments.report import write_report
from asmg.experiments.report.cells import best, signed
from asmg.experiments.report.results import LABELS
from asmg.updaters import UPDATERS
from asmg.yardsticks import YARDSTICKS
from tests.asmg.reports import (
    PERIODS,
    SHARES,
    TEST_FROM,
    fake_run,
    frame_rows,
    mean_and_std,
    plain,
    sections,
    seed_means,
    table,
    tables,
)

pytest.importorskip("matplotlib", reason="comes with the extra `experiments`")

pytestmark = pytest.mark.usefixtures("roughly_drawn")

COLD_AND_WARM = SLICES[1:5]


def test_labels_are_of_all_methods_in_their_order() -> None:
    assert list(LABELS) == [*UPDATERS, *YARDSTICKS]


class TestNumbers:
    """Every table, recomputed from the rows."""

    def test_comparison(self, full_report: Path) -> None:
        rows = frame_rows(full_report, "scores", variant="", slice="all", test=True)
        found = table(full_report, "Comparison of the methods")
        assert list(found) == list(LABELS.values())
        at = {(r["method"], r["seed"], r["period"]): r for r in rows}
        for method, name in LABELS.items():
            for metric, column, sign, again in (("auc", "AUC ↑", 1, ""), ("logloss", "LogLoss ↓", -1, " 2")):
                mine = seed_means([r for r in rows if r["method"] == method], metric)
                base = seed_means([r for r in rows if r["method"] == "iu"], metric)
                assert plain(found[name][column]) == mean_and_std(mine)
                by, wins = found[name][f"imp %{again}"], found[name][f"wins{again}"]
                if method == "iu":
                    assert (by, wins) == ("–", "–")
                    continue
                expected = sign * 100 * (statistics.fmean(mine) / statistics.fmean(base) - 1)
                assert by.split()[0].replace("−", "-") == f"{expected:+.2f}"
                keys = [(s, p) for s in range(5) for p in range(TEST_FROM + 1, PERIODS + 1)]
                won = sum(sign * (at[method, *key][metric] - at["iu", *key][metric]) > 0 for key in keys)
                assert wins == f"{won}/{len(keys)}"

    def test_significance(self, full_report: Path) -> None:
        """p over the periods by trying all signs, adjusted step by step; and the marks by their definition."""
        rows = frame_rows(full_report, "scores", variant="", slice="all", test=True)
        comparison, found = (
            table(full_report, "Comparison of the methods"),
            table(full_report, "How sure the differences are"),
        )
        assert list(found) == list(LABELS.values())[1:]
        for metric, again in (("AUC", ""), ("LogLoss", " 2")):
            columns: dict[str, list[float]] = {}
            for method, name in LABELS.items():
                for period in range(TEST_FROM + 1, PERIODS + 1):
                    mine, base = (
                        statistics.fmean(
                            r[metric.lower()] for r in rows if r["method"] == m and r["period"] == period
                        )
                        for m in (method, "iu")
                    )  # fmt: skip
                    columns.setdefault(name, []).append(mine - base)
            del columns["IU"]

            def far(name: str, signs: tuple[int, ...], columns: dict[str, list[float]] = columns) -> float:
                d = columns[name]
                return abs(sum(s * x for s, x in zip(signs, d, strict=True))) / math.sqrt(sum(x * x for x in d))

            patterns, identity = list(itertools.product((-1, 1), repeat=7)), (1,) * 7
            left, least, adjusted = sorted(columns, key=lambda name: -far(name, identity)), 0.0, {}
            while left:
                observed = far(left[0], identity) - 1e-9
                least = max(least, sum(max(far(n, p) for n in left) >= observed for p in patterns) / 128)
                adjusted[left.pop(0)] = least
            for name in columns:
                alone = sum(far(name, p) >= far(name, identity) - 1e-9 for p in patterns) / 128
                assert found[name][f"{metric}: periods"] == f"{alone:.3f}"
                assert found[name][f"{metric}: periods, adjusted"] == f"{adjusted[name]:.3f}"
                pairs = float(found[name][f"{metric}: pairs, adjusted"].removeprefix("< "))
                mark = comparison[name][f"imp %{again}"].partition(" ")[2]
                assert mark == ("" if pairs > 0.05 else "‡" if adjusted[name] < 0.05 else "†")
        assert "out of reach" not in sections(full_report)["Comparison of the methods"]

    def test_the_second_mark(self, tmp_path: Path) -> None:
        """With enough periods, what is better in every one of them has both p-values below 0.05."""
        out = fake_run(tmp_path / "out", ("iu", "asmg-linear", "asmg-gru-multi"), seeds=2, test_from=19, matrix=False)
        write_report(out)
        found = table(out, "Comparison of the methods")
        assert found["ASMG-GRU multi"]["imp %"].endswith(" ‡")
        assert found["ASMG-GRU multi"]["wins"] == "24/24"
        assert "out of reach" not in (out / "report.md").read_text(encoding="utf-8")

    def test_ties_are_told(self, tmp_path: Path) -> None:
        """A method that is IU in every period, and one that is IU in some."""
        out = fake_run(tmp_path / "out", ("iu", "asmg-linear", "asmg-gru-multi"), seeds=2, matrix=False)
        frame = pl.read_parquet(out / "scores.parquet")
        base = {(r["seed"], r["period"], r["slice"]): r for r in frame.filter(pl.col("method") == "iu").to_dicts()}
        rows = frame.to_dicts()
        for row in rows:
            if row["method"] == "asmg-linear" or (row["method"] == "asmg-gru-multi" and row["period"] == 31):
                row |= {metric: base[row["seed"], row["period"], row["slice"]][metric] for metric in ("auc", "logloss")}
        pl.DataFrame(rows, frame.schema).write_parquet(out / "scores.parquet")
        write_report(out)
        text, found = sections(out)["Comparison of the methods"], table(out, "Comparison of the methods")
        for column in ("wins", "wins 2"):
            assert found["ASMG-Linear"][column] == "0/14, 14 ties"
            assert found["ASMG-GRU multi"][column].endswith("/14, 2 ties")
        assert "to the last digit, in every pair of seed and period: ASMG-Linear." in text

    def test_by_period(self, full_report: Path) -> None:
        rows = frame_rows(full_report, "scores", variant="", slice="all", test=True)
        auc, gain = (table(full_report, "Period by period", n) for n in range(2))

        def of(method: str, period: int) -> float:
            return statistics.fmean(r["auc"] for r in rows if r["method"] == method and r["period"] == period)

        for method, name in LABELS.items():
            for period in range(25, 32):
                assert plain(auc[name][f"period {period}"]) == f"{of(method, period):.4f}"
                if method != "iu":
                    thousandths = 1000 * (of(method, period) - of("iu", period))
                    assert float(gain[name][f"period {period}"].replace("−", "-")) == pytest.approx(
                        thousandths, abs=0.0501
                    )
        assert "IU" not in gain

    def test_ablation(self, full_report: Path) -> None:
        rows = frame_rows(full_report, "scores", variant="", slice="all", test=True)
        found = table(full_report, "Ablation of ASMG-GRU")
        assert [name.removeprefix("ASMG-GRU ") for name in found] == ["full", "zero", "unif", "single", "multi"]
        for name, cells in found.items():
            mine = [r for r in rows if LABELS[r["method"]] == name]
            assert plain(cells["AUC ↑"]) == mean_and_std(seed_means(mine, "auc"))
            assert plain(cells["LogLoss ↓"]) == mean_and_std(seed_means(mine, "logloss"))

    def test_training_time(self, full_report: Path) -> None:
        rows = frame_rows(full_report, "timings", variant="", step=PERIODS - 1)
        found = table(full_report, "Training time")
        medians = {}
        for method, name in LABELS.items():
            for part, column in (("generator, s", "seconds"), ("generator, CPU s", "cpu_seconds")):
                taken = [r[column] for r in rows if r["method"] == method and r["stage"].startswith("train_")]
                assert len(taken) == (5 if method.startswith(("asmg", "sml")) else 0)
                medians[method, column] = statistics.median(taken) if taken else math.nan
                assert found[name][part] == (f"{statistics.median(taken):#.3g}" if taken else "–")
            for part, column in (("whole update, s", "seconds"), ("whole update, CPU s", "cpu_seconds")):
                sums = [sum(r[column] for r in rows if r["method"] == method and r["seed"] == s) for s in range(5)]
                assert found[name][part] == f"{statistics.median(sums):#.3g}"
        ratio = medians["asmg-gru-full", "seconds"] / medians["asmg-gru-multi", "seconds"]
        assert f"full took {ratio:.1f} times as long as that of multi" in sections(full_report)["Training time"]

    def test_sensitivity(self, full_report: Path) -> None:
        rows = frame_rows(full_report, "scores", method="asmg-gru-multi", slice="all", test=True)
        for number, (kind, own, others) in enumerate((("k", 3, (1, 5, 7)), ("hidden", 4, (1, 8, 16)))):
            found = table(full_report, "Sensitivity", number)
            values = sorted((own, *others))
            assert [int(name.split()[0]) for name in found] == values
            for value, (name, cells) in zip(values, found.items(), strict=True):
                assert name.endswith("(its own)") == (value == own)
                mine = [r for r in rows if r["variant"] == ("" if value == own else f"{kind}={value}")]
                assert plain(cells["AUC ↑"]) == mean_and_std(seed_means(mine, "auc"))
                assert plain(cells["LogLoss ↓"]) == mean_and_std(seed_means(mine, "logloss"))

    def test_slices(self, full_report: Path) -> None:
        found = table(full_report, "Cold and warm users and items")
        for part in COLD_AND_WARM:
            rows = frame_rows(full_report, "scores", variant="", slice=part, test=True)
            column = f"{part}s ({100 * SHARES[part]:.1f}% of events)"
            for method, name in LABELS.items():
                mine = seed_means([r for r in rows if r["method"] == method], "auc")
                assert plain(found[name][column]) == mean_and_std(mine)

    def test_beside_yardsticks(self, full_report: Path) -> None:
        rows = frame_rows(full_report, "scores", variant="", test=True)
        for number, yardstick in enumerate(("lightgbm", "logistic")):
            found = table(full_report, "Beside what a practitioner has", number)
            assert list(found) == [name for method, name in LABELS.items() if method != yardstick]
            for part, suffix in (("all", ""), ("no repeat", ", no repeat")):
                for metric, title in (("auc", "AUC ↑"), ("logloss", "LogLoss ↓")):
                    values = {
                        (r["method"], r["seed"], r["period"]): r[metric] for r in rows if r["slice"] == part
                    }  # fmt: skip
                    pairs = [(seed, period) for seed in range(5) for period in range(25, 32)]
                    for method in ("iu", "asmg-gru-multi", "popularity"):
                        cells = found[LABELS[method]]
                        apart = [values[method, *pair] - values[yardstick, *pair] for pair in pairs]
                        assert cells[f"{title}{suffix}"] == signed(statistics.fmean(apart), 4)
                        won = sum(d > 0 if metric == "auc" else d < 0 for d in apart)
                        assert cells[f"{title.split()[0]} wins{suffix}"] == f"{won}/35"

    def test_without_repeats(self, full_report: Path) -> None:
        rows = frame_rows(full_report, "scores", variant="", test=True)
        text, found = sections(full_report)["Without repeats"], table(full_report, "Without repeats")
        assert "10.0% of the events" in text
        for method, name in LABELS.items():
            for part, suffix in (("all", "all rows"), ("no repeat", "no repeat")):
                mine = [r for r in rows if (r["method"], r["slice"]) == (method, part)]
                assert plain(found[name][f"AUC ↑, {suffix}"]) == mean_and_std(seed_means(mine, "auc"))
                assert plain(found[name][f"LogLoss ↓, {suffix}"]) == mean_and_std(seed_means(mine, "logloss"))

    def test_calibration(self, full_report: Path) -> None:
        rows = frame_rows(full_report, "calibration", variant="")
        found = table(full_report, "Calibration")
        for method, name in LABELS.items():
            errors, ratios = [], []
            for seed in range(5):
                mine = [r for r in rows if r["method"] == method and r["seed"] == seed]
                error = total = 0.0
                for n in range(BINS):
                    pooled = [r for r in mine if r["bin"] == n]
                    assert len(pooled) == 7
                    # count × |Σ count·clicked / count − Σ count·predicted / count|
                    error += abs(sum(r["count"] * (r["clicked"] - r["predicted"]) for r in pooled))
                    total += sum(r["count"] for r in pooled)
                errors.append(error / total)
                ratios.append(
                    sum(r["count"] * r["predicted"] for r in mine) / sum(r["count"] * r["clicked"] for r in mine)
                )
            assert plain(found[name]["ECE ↓"]) == mean_and_std(errors)
            assert plain(found[name]["predicted / clicked"]) == mean_and_std(ratios, 3)

    def test_forgetting(self, full_report: Path) -> None:
        rows = [r for r in frame_rows(full_report, "forgetting") if r["step"] >= TEST_FROM]
        found = table(full_report, "Forgetting")
        assert list(found) == [LABELS[method] for method in UPDATERS]  # yardsticks are not in it
        for method in UPDATERS:
            name = LABELS[method]
            mine = [r for r in rows if r["method"] == method]
            groups = {
                "next period": [r for r in mine if r["period"] == r["step"] + 1],
                "last 5 learned": [r for r in mine if 0 <= r["step"] - r["period"] < 5],
                "all learned": [r for r in mine if r["period"] <= r["step"]],
            }
            assert [len(group) for group in groups.values()] == [5 * 7, 5 * 7 * 5, 5 * sum(range(24, 31))]
            for column, group in groups.items():
                assert plain(found[name][column]) == mean_and_std(seed_means(group, "auc"))

    def test_one_seed(self, small_report: Path) -> None:
        rows = frame_rows(small_report, "scores", method="sml", slice="all", test=True)
        cells = table(small_report, "Comparison of the methods")["SML"]
        assert plain(cells["AUC ↑"]) == f"{statistics.fmean(r['auc'] for r in rows):.4f}"
        assert cells["wins"].endswith("/7")

    def test_facts(self, full_report: Path) -> None:
        text = sections(full_report)["What was run"]
        facts = {name: cells["This run"] for name, cells in tables(text)[0].items()}
        assert facts["Rows"] == "124,000, of these 31,000 positives"
        assert facts["Users, items"] == "5,000 users, 1,234 items"
        assert facts["Dates"] == "2001-02-03 to 2002-03-04"
        assert facts["What the log is"] == "clicks only; nothing <else>"
        assert (facts["Seeds"], facts["Settings"]) == ("5", "default (ours)")
        assert "pretrained on periods 1 to 10 and updated on each of the periods 11 to 30" in text
        assert "The test periods are 25 to 31" in text


class TestBold:
    """The best is bold, and nothing else."""

    def test_every_column_that_has_a_best(self, full_report: Path) -> None:
        parts = [f"{part}s ({100 * SHARES[part]:.1f}% of events)" for part in COLD_AND_WARM]
        judged = {
            ("Comparison of the methods", 0): (["AUC ↑"], ["LogLoss ↓"]),
            ("Period by period", 0): ([f"period {period}" for period in range(25, 32)], []),
            ("Ablation of ASMG-GRU", 0): (["AUC ↑"], ["LogLoss ↓"]),
            ("Sensitivity", 0): (["AUC ↑"], ["LogLoss ↓"]),
            ("Sensitivity", 1): (["AUC ↑"], ["LogLoss ↓"]),
            ("Cold and warm users and items", 0): (parts, []),
            ("Without repeats", 0): (
                ["AUC ↑, all rows", "AUC ↑, no repeat"],
                ["LogLoss ↓, all rows", "LogLoss ↓, no repeat"],
            ),
            ("Calibration", 0): ([], ["ECE ↓", "predicted / clicked"]),
            ("Forgetting", 0): (["next period", "last 5 learned", "all learned"], []),
        }
        for (heading, number), (highest, lowest) in judged.items():
            rows = table(full_report, heading, number).values()
            for column in next(iter(rows)):
                cells = [row[column] for row in rows]
                bold = [cell for cell in cells if cell.startswith("**")]
                if column not in highest + lowest:
                    assert not bold
                    continue
                value = {cell: float(plain(cell).split()[0]) for cell in cells}
                if column == "predicted / clicked":
                    value = {cell: round(abs(ratio - 1), 3) for cell, ratio in value.items()}
                top = (max if column in highest else min)(value.values())
                assert bold and bold == [cell for cell in cells if value[cell] == top]

    def test_ties_are_by_the_printed_digits(self) -> None:
        cells = best([0.82891, 0.82894, 0.8288, None], ["a", "b", "c", "–"], highest=True)
        assert [cell.best for cell in cells] == [True, True, False, False]
        cells = best([0.5001, 0.50005, 0.4999], ["a", "b", "c"], highest=False)
        assert [cell.best for cell in cells] == [False, False, True]

    def test_one_alone_is_not_the_best(self) -> None:
        assert [cell.best for cell in best([0.7, None], ["a", "–"], highest=True)] == [False, False]
