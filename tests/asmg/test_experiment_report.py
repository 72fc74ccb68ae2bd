"""The report of a run: its numbers recomputed row by row, its files looked into."""

import itertools
import json
import math
import re
import shutil
import statistics
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from asmg.experiments.methods import METHODS
from asmg.experiments.observations import BINS, SLICES
from asmg.experiments.options import ExperimentOptions
from asmg.experiments.protocol import Protocol
from asmg.experiments.report.blocks import Cell, Heading, Paragraph, Table, to_html, to_markdown
from asmg.experiments.report.cells import best, counted, listed, p_value, seconds, signed
from asmg.experiments.report.results import LABELS
from asmg.experiments.report.training_time import training_time_figure
from asmg.experiments.run import run_experiment
from asmg.updaters import UPDATERS
from asmg.yardsticks import YARDSTICKS
from tests.asmg.logs import prepare_small

pytest.importorskip("matplotlib", reason="comes with the extra `experiments`")
from asmg.experiments.report import PICTURES, write_report

ALL = METHODS
PERIODS, PRETRAIN, TEST_FROM = 31, 10, 24
SHARES = {"all": 1.0, "cold user": 0.25, "warm user": 0.75, "cold item": 0.05, "warm item": 0.95, "no repeat": 0.9}
COLD_AND_WARM = SLICES[1:5]

Rows = list[dict[str, Any]]


def fake_run(
    out: Path,
    methods: Sequence[str] = ALL,
    *,
    seeds: int = 5,
    sensitivity: bool = True,
    matrix: bool = True,
    test_from: int = TEST_FROM,
    one_class: Iterable[int] = (),
    noise: float = 0.001,
) -> Path:
    """A folder as the runner writes it, with plausible numbers: periods differ, methods differ, seeds differ a little.

    Args:
        out: the folder, which is made.
        methods: of `METHODS`.
        seeds: how many.
        sensitivity: whether with other sequence lengths and hidden sizes.
        matrix: whether models were scored on every period.
        test_from: first update that counts.
        one_class: periods without an AUC.
        noise: how much seeds differ.
    """
    rng = np.random.default_rng(7)
    difficulty = 0.72 + 0.02 * rng.standard_normal(PERIODS + 1)
    good = {name: 0.002 * (n - 6) for n, name in enumerate(ALL)} | {"iu": 0.0}
    variants = [(name, "") for name in methods]
    if sensitivity and "asmg-gru-multi" in methods:
        variants += [("asmg-gru-multi", v) for v in ("k=1", "k=5", "k=7", "hidden=1", "hidden=8", "hidden=16")]
    rows: dict[str, Rows] = {"scores": [], "timings": [], "calibration": [], "forgetting": []}
    for seed, (method, variant) in itertools.product(range(seeds), variants):
        who = {"seed": seed, "method": method, "variant": variant}
        for step in range(PRETRAIN, PERIODS):
            period, test = step + 1, step >= test_from
            where = {**who, "step": step, "period": period}
            for part, share in SHARES.items():
                events, clicks = int(4_000 * share), int(1_000 * share)
                auc = difficulty[period] + good[method] + noise * rng.standard_normal()
                auc += 0.05 * (part.startswith("warm") - part.startswith("cold"))
                given = {"slice": part, "events": events, "clicks": clicks, "test": test}
                gone = None if period in one_class else auc
                rows["scores"].append(
                    {**where, **given, "auc": gone, "logloss": 1.1 - 0.8 * auc, "calibration": 1 + 0.1 * rng.normal()}
                )
            for n in range(BINS if test else 0):
                predicted = (n + 0.5) / BINS / 2 + 0.005 * rng.standard_normal()
                row = {"bin": n, "count": 200 - (n % 3), "predicted": predicted, "clicked": max(0.0, predicted - 0.02)}
                rows["calibration"].append({**who, "period": period, **row})
            for other in range(1, PERIODS + 1) if matrix and not variant and method in UPDATERS else ():
                known = 0.06 * math.exp((other - step) / 9) if other <= step else 0.0
                auc = difficulty[other] + good[method] + known + noise * rng.standard_normal()
                gone = None if other in one_class else auc
                rows["forgetting"].append({**who, "step": step, "period": other, "auc": gone, "logloss": 1 - auc})
            stages = {"update_base": 0.2, "commit": 0.001}
            if method.startswith("asmg"):
                stages |= {"train_generator": 0.1 * (step - 8 if "full" in method else 3), "generate": 0.01}
            elif method.startswith("sml"):
                stages |= {"train_transfer": 0.7}
            for stage, base in stages.items() if step > PRETRAIN else ():
                took = base * (1 + 0.2 * rng.random())
                row = {"stage": stage, "seconds": took, "cpu_seconds": 0.9 * took}
                rows["timings"].append({**who, "step": step, **row})
    out.mkdir(parents=True)
    types = {"seed": pl.Int32, "step": pl.Int32, "period": pl.Int32, "bin": pl.Int32, "auc": pl.Float64}
    empty = {name: pl.Float64 for name in ("auc", "logloss")} | {"variant": pl.String, "method": pl.String}
    for name, found in rows.items():
        schema = None if found else types | empty
        frame = pl.DataFrame(found, schema, infer_schema_length=None)
        frame = frame.cast({column: kind for column, kind in types.items() if column in frame.columns})
        frame.write_parquet(out / f"{name}.parquet")
    card = {
        "dataset": "fake_log", "rows": 124_000, "positives": 31_000, "users": 5_000, "items": 1_234, "categories": 0,
        "first": "2001-02-03T04:05:06Z", "last": "2002-03-04T05:06:07Z", "rule": ["clicks only", "nothing <else>"],
    }  # fmt: skip
    options = {
        "methods": list(methods), "seeds": seeds, "periods": PERIODS, "pretrain": PRETRAIN, "test_from": test_from,
        "settings": "default", "categories": False,
    }  # fmt: skip
    run = {"dataset": card, "options": options, "versions": [{"python": "3.11.7"}], "machine": {"cores": 2}}
    (out / "run.json").write_text(json.dumps(run))
    return out


def frame_rows(out: Path, name: str, **where: Any) -> Rows:
    """Rows of one of the tables whose columns have these values."""
    found = pl.read_parquet(out / f"{name}.parquet").to_dicts()
    return [row for row in found if all(row[column] == value for column, value in where.items())]


def sections(out: Path) -> dict[str, str]:
    """Heading of level 2 or 3 → what follows it, in the Markdown."""
    parts = re.split(r"^#{2,3} (.*)$", (out / "report.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def tables(text: str) -> list[dict[str, dict[str, str]]]:
    """The tables of a piece of Markdown: name of the row → name of the column → cell; a second "wins" is "wins 2"."""
    found = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE):
        cells = [[cell.strip().replace("\\", "") for cell in line[1:-1].split("|")] for line in block.splitlines()]
        names: list[str] = []
        for name in cells[0]:
            names.append(f"{name} 2" if name in names else name)
        found.append({row[0].strip("*"): dict(zip(names[1:], row[1:], strict=True)) for row in cells[2:]})
    return found


def table(out: Path, heading: str, number: int = 0) -> dict[str, dict[str, str]]:
    return tables(sections(out)[heading])[number]


def mean_and_std(by_seed: Sequence[float], digits: int = 4) -> str:
    """As a report prints it."""
    text = f"{statistics.fmean(by_seed):.{digits}f}"
    return text + (f" ± {statistics.pstdev(by_seed):.{digits}f}" if len(by_seed) > 1 else "")


def seed_means(rows: Rows, column: str) -> list[float]:
    """Of each seed the mean of a column, in the order of the seeds."""
    seeds = sorted({row["seed"] for row in rows})
    return [statistics.fmean(row[column] for row in rows if row["seed"] == seed) for seed in seeds]


def plain(cell: str) -> str:
    return cell.strip("*")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All methods, five seeds."""
    out = fake_run(tmp_path_factory.mktemp("full") / "out")
    write_report(out)
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IU and one other, one seed, no sensitivity runs, no scores on other periods."""
    out = fake_run(tmp_path_factory.mktemp("small") / "out", ("iu", "sml"), seeds=1, matrix=False)
    write_report(out)
    return out


def test_labels_are_of_all_methods_in_their_order() -> None:
    assert list(LABELS) == [*UPDATERS, *YARDSTICKS]


class TestNumbers:
    """Every table, recomputed from the rows."""

    def test_comparison(self, full: Path) -> None:
        rows = frame_rows(full, "scores", variant="", slice="all", test=True)
        found = table(full, "Comparison of the methods")
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

    def test_significance(self, full: Path) -> None:
        """p over the periods by trying all signs, adjusted step by step; and the marks by their definition."""
        rows = frame_rows(full, "scores", variant="", slice="all", test=True)
        comparison, found = table(full, "Comparison of the methods"), table(full, "How sure the differences are")
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
        assert "out of reach" not in sections(full)["Comparison of the methods"]

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

    def test_by_period(self, full: Path) -> None:
        rows = frame_rows(full, "scores", variant="", slice="all", test=True)
        auc, gain = (table(full, "Period by period", n) for n in range(2))

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

    def test_ablation(self, full: Path) -> None:
        rows = frame_rows(full, "scores", variant="", slice="all", test=True)
        found = table(full, "Ablation of ASMG-GRU")
        assert [name.removeprefix("ASMG-GRU ") for name in found] == ["full", "zero", "unif", "single", "multi"]
        for name, cells in found.items():
            mine = [r for r in rows if LABELS[r["method"]] == name]
            assert plain(cells["AUC ↑"]) == mean_and_std(seed_means(mine, "auc"))
            assert plain(cells["LogLoss ↓"]) == mean_and_std(seed_means(mine, "logloss"))

    def test_training_time(self, full: Path) -> None:
        rows = frame_rows(full, "timings", variant="", step=PERIODS - 1)
        found = table(full, "Training time")
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
        assert f"full took {ratio:.1f} times as long as that of multi" in sections(full)["Training time"]

    def test_sensitivity(self, full: Path) -> None:
        rows = frame_rows(full, "scores", method="asmg-gru-multi", slice="all", test=True)
        for number, (kind, own, others) in enumerate((("k", 3, (1, 5, 7)), ("hidden", 4, (1, 8, 16)))):
            found = table(full, "Sensitivity", number)
            values = sorted((own, *others))
            assert [int(name.split()[0]) for name in found] == values
            for value, (name, cells) in zip(values, found.items(), strict=True):
                assert name.endswith("(its own)") == (value == own)
                mine = [r for r in rows if r["variant"] == ("" if value == own else f"{kind}={value}")]
                assert plain(cells["AUC ↑"]) == mean_and_std(seed_means(mine, "auc"))
                assert plain(cells["LogLoss ↓"]) == mean_and_std(seed_means(mine, "logloss"))

    def test_slices(self, full: Path) -> None:
        found = table(full, "Cold and warm users and items")
        for part in COLD_AND_WARM:
            rows = frame_rows(full, "scores", variant="", slice=part, test=True)
            column = f"{part}s ({100 * SHARES[part]:.1f}% of events)"
            for method, name in LABELS.items():
                mine = seed_means([r for r in rows if r["method"] == method], "auc")
                assert plain(found[name][column]) == mean_and_std(mine)

    def test_beside_yardsticks(self, full: Path) -> None:
        rows = frame_rows(full, "scores", variant="", test=True)
        for number, yardstick in enumerate(("lightgbm", "logistic")):
            found = table(full, "Beside what a practitioner has", number)
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

    def test_without_repeats(self, full: Path) -> None:
        rows = frame_rows(full, "scores", variant="", test=True)
        text, found = sections(full)["Without repeats"], table(full, "Without repeats")
        assert "10.0% of the events" in text
        for method, name in LABELS.items():
            for part, suffix in (("all", "all rows"), ("no repeat", "no repeat")):
                mine = [r for r in rows if (r["method"], r["slice"]) == (method, part)]
                assert plain(found[name][f"AUC ↑, {suffix}"]) == mean_and_std(seed_means(mine, "auc"))
                assert plain(found[name][f"LogLoss ↓, {suffix}"]) == mean_and_std(seed_means(mine, "logloss"))

    def test_calibration(self, full: Path) -> None:
        rows = frame_rows(full, "calibration", variant="")
        found = table(full, "Calibration")
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

    def test_forgetting(self, full: Path) -> None:
        rows = [r for r in frame_rows(full, "forgetting") if r["step"] >= TEST_FROM]
        found = table(full, "Forgetting")
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

    def test_one_seed(self, small: Path) -> None:
        rows = frame_rows(small, "scores", method="sml", slice="all", test=True)
        cells = table(small, "Comparison of the methods")["SML"]
        assert plain(cells["AUC ↑"]) == f"{statistics.fmean(r['auc'] for r in rows):.4f}"
        assert cells["wins"].endswith("/7")

    def test_facts(self, full: Path) -> None:
        text = sections(full)["What was run"]
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

    def test_every_column_that_has_a_best(self, full: Path) -> None:
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
            rows = table(full, heading, number).values()
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


class TestMissing:
    """What is not there is said, and the rest is shown."""

    def test_small_run(self, small: Path) -> None:
        found = sections(small)
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
        assert pictures(small) == {"periods", "slices", "reliability"}

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
    def test_an_unfinished_run(self, small: Path, tmp_path: Path, name: str) -> None:
        out = shutil.copytree(small, tmp_path / "out", ignore=shutil.ignore_patterns("figures", "report.*", name))
        with pytest.raises(ValueError, match=rf"out: expected the folder of a finished run .* has no {name}"):
            write_report(out)
        assert not (out / "figures").exists()

    def test_other_files(self, small: Path, tmp_path: Path) -> None:
        out = shutil.copytree(small, tmp_path / "out")
        (out / "run.json").write_text(json.dumps({"dataset": {}, "protocol": {}}))
        with pytest.raises(ValueError, match=r"run.json: expected options, .*; received dataset, protocol"):
            write_report(out)
        shutil.copy(small / "run.json", out)
        scores = pl.read_parquet(out / "scores.parquet")
        scores.drop("logloss").write_parquet(out / "scores.parquet")
        with pytest.raises(ValueError, match=r"scores.parquet: expected a column logloss; received seed, "):
            write_report(out)
        scores.with_columns(test=False).write_parquet(out / "scores.parquet")
        with pytest.raises(ValueError, match=r"scores.parquet: expected rows of test periods; received none"):
            write_report(out)


def pictures(out: Path) -> set[str]:
    """Names of the figures that are there, each in both forms."""
    files = sorted(file.name for file in (out / "figures").iterdir())
    names = {Path(file).stem for file in files}
    assert files == sorted(f"{name}.{ending}" for name in names for ending in ("png", "svg"))
    return names


class Page(HTMLParser):
    """Reads a page, and sees that every element that is opened is closed, in turn."""

    VOID = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


class TestFiles:
    """What is written."""

    @pytest.mark.parametrize("run", ["full", "small"])
    def test_html_is_one_whole_file(self, run: str, request: pytest.FixtureRequest) -> None:
        out = request.getfixturevalue(run)
        text = (out / "report.html").read_text(encoding="utf-8")
        assert text.startswith("<!doctype html>")
        page = Page()
        page.feed(text)
        page.close()
        assert page.open == []
        assert not re.search(r"https?://|url\(|@import|<script|<link", text)
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(set(ids)) == len(ids)
        links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
        assert len(links) == 11 and all(str(link).removeprefix("#") in ids for link in links)
        images = [attributes for tag, attributes in page.tags if tag == "img"]
        assert len(images) == len(pictures(out)) and all(image["alt"] for image in images)
        assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") for image in images)
        assert not any("src" in attributes for tag, attributes in page.tags if tag != "img")
        assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [a for _, a in page.tags]

    @pytest.mark.parametrize("run", ["full", "small"])
    def test_markdown_says_the_same(self, run: str, request: pytest.FixtureRequest) -> None:
        """Its links resolve, its tables are as wide as their headings, and its numbers are those of the page."""
        out = request.getfixturevalue(run)
        text = (out / "report.md").read_text(encoding="utf-8")
        links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
        assert {Path(link).stem for link in links} == pictures(out)
        assert all((out / link).is_file() for link in links)
        found = tables(text)  # zip(strict) sees the widths
        html = (out / "report.html").read_text(encoding="utf-8")
        cells = [plain(cell) for each in found for row in each.values() for cell in row.values()]
        in_page = re.findall(r"<td>(.*?)</td>", html)
        unescaped = [re.sub("</?strong>", "", cell).replace("&lt;", "<").replace("&gt;", ">") for cell in in_page]
        assert unescaped == cells and len(cells) > 50
        assert html.count("<strong>") == text.count("**") // 2

    def test_figures_are_what_their_names_say(self, full: Path) -> None:
        from matplotlib.image import imread

        for name in PICTURES:
            picture = imread(full / "figures" / f"{name}.png")
            assert picture.shape[1] == 1200 and picture.std() > 0.05
            root = ElementTree.parse(full / "figures" / f"{name}.svg").getroot()
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
            labels = {
                "periods": {"IU", "ASMG-GRU multi", "the others", "period", "AUC − AUC of IU"},
                "ablation": {"ASMG-GRU full", "LogLoss (nats)"},
                "training-time": {"generator", "GRU full", "seconds", "update"},
                "sensitivity": {"sequence length k", "hidden size", "AUC", "LogLoss (nats)"},
                "slices": {"BU-3", "cold users", "25.0% of events", "AUC"},
                "reliability": {"perfect", "SML", "predicted click-through rate"},
                "forgetting": {"AUC of IU", "AUC of ASMG-GRU multi", "period scored", "model after update"},
            }[name]
            assert labels <= texts

    @pytest.mark.parametrize(("slow", "scale"), [(9.0, "linear"), (90.0, "log")])
    def test_seconds_that_lie_far_apart_are_drawn_on_a_logarithmic_scale(self, slow: float, scale: str) -> None:
        last = {"asmg-linear": (1.0, 2.0), "asmg-gru-full": (slow / 2, slow)}
        figure = training_time_figure(last, {"asmg-linear": {1: 1.0, 2: 1.0}, "asmg-gru-full": {1: 1.0, 2: slow}})
        bars, lines = figure.axes
        assert bars.get_xscale() == lines.get_yscale() == scale
        assert ("logarithmic" in bars.get_xlabel()) == ("logarithmic" in lines.get_ylabel()) == (scale == "log")

    def test_the_same_again_whatever_the_users_settings(self, full: Path, tmp_path: Path) -> None:
        """Every file that is said to be written, byte by byte."""
        import matplotlib

        out = shutil.copytree(full, tmp_path / "out", ignore=shutil.ignore_patterns("figures", "report.*"))
        with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "black", "svg.hashsalt": None}):
            files = write_report(out)
            assert matplotlib.rcParams["lines.linewidth"] == 9
        drawn = {f"figures/{name}.{ending}" for name in PICTURES for ending in ("svg", "png")}
        assert {file.relative_to(out).as_posix() for file in files} == {"report.md", "report.html", *drawn}
        for file in files:
            assert file.read_bytes() == (full / file.relative_to(out)).read_bytes(), file.name

    def test_figures_of_an_earlier_report_go(self, small: Path, tmp_path: Path) -> None:
        out = shutil.copytree(small, tmp_path / "out")
        (out / "figures" / "ablation.svg").write_text("of an earlier run")
        (out / "figures" / "mine.svg").write_text("somebody's own")
        write_report(out)
        assert not (out / "figures" / "ablation.svg").exists()
        assert (out / "figures" / "mine.svg").read_text() == "somebody's own"

    def test_without_matplotlib(self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is said before anything is read or written."""
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ValueError, match=re.escape("a report needs matplotlib: pip install 'asmg-service[exper")):
            write_report(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_of_a_real_run(self, tmp_path: Path) -> None:
        """The runner's own files."""
        options = ExperimentOptions(
            methods=("iu", "asmg-gru-multi"), seeds=1, protocol=Protocol(periods=8, pretrain=3, test_from=5),
            sensitivity=False, processes=1,
        )  # fmt: skip
        data = prepare_small(tmp_path / "log", rows=1_600)
        summary = run_experiment(data, tmp_path / "out", options, say=lambda _: None)
        write_report(tmp_path / "out")
        found = table(tmp_path / "out", "Comparison of the methods")
        for method, values in summary["methods"].items():
            for metric, column in (("auc", "AUC ↑"), ("logloss", "LogLoss ↓")):
                assert plain(found[LABELS[method]][column]) == f"{values[metric]['mean']:.4f}"
        assert pictures(tmp_path / "out") == {"periods", "training-time", "slices", "reliability", "forgetting"}


class TestBlocks:
    """Rendering."""

    BLOCKS = (
        Heading("A_b <c>", 1),
        Paragraph("x * y < z & [a](b) | `c` ~d~ \\"),
        Heading("Part"),
        Table(("n", "v|w"), [("a_b", Cell("1 < 2", best=True))]),
    )

    def test_markdown_is_escaped(self) -> None:
        assert to_markdown(self.BLOCKS) == (
            "# A\\_b \\<c\\>\n\n"
            "x \\* y \\< z \\& \\[a\\](b) \\| \\`c\\` \\~d\\~ \\\\\n\n"
            "## Part\n\n"
            "| n | v\\|w |\n| --- | --: |\n| a\\_b | **1 \\< 2** |\n"
        )

    def test_html_is_escaped(self, tmp_path: Path) -> None:
        text = to_html(self.BLOCKS, tmp_path)
        assert "<title>A_b &lt;c&gt;</title>" in text and '<h1 id="a-b-c">A_b &lt;c&gt;</h1>' in text
        assert "<p>x * y &lt; z &amp; [a](b) | `c` ~d~ \\</p>" in text
        assert '<li><a href="#part">Part</a></li>' in text
        assert '<tr><th scope="row">a_b</th><td><strong>1 &lt; 2</strong></td></tr>' in text

    def test_numbers(self) -> None:
        assert [signed(v, 2) for v in (1.334, -0.891, -0.001, math.nan)] == ["+1.33", "−0.89", "0.00", "–"]
        assert [seconds(v) for v in (0.012345, 12.345, 1234.5, None)] == ["0.0123", "12.3", "1,234", "–"]
        assert [p_value(v) for v in (0.0156, 0.0004, 1.0, None)] == ["0.016", "< 0.001", "1.000", "–"]
        assert [listed(v) for v in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
        assert [counted(n, "period") for n in (1, 7)] == ["1 period", "7 periods"]
