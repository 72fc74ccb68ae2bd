"""Runs with made-up numbers, and what their reports say."""

import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from asmg.experiments.methods import METHODS
from asmg.experiments.observations import BINS
from asmg.updaters import UPDATERS

ALL = METHODS

PERIODS, PRETRAIN, TEST_FROM = 31, 10, 24

SHARES = {"all": 1.0, "cold user": 0.25, "warm user": 0.75, "cold item": 0.05, "warm item": 0.95, "no repeat": 0.9}

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


def pictures(out: Path) -> set[str]:
    """Names of the figures that are there, each in both forms."""
    files = sorted(file.name for file in (out / "figures").iterdir())
    names = {Path(file).stem for file in files}
    assert files == sorted(f"{name}.{ending}" for name in names for ending in ("png", "svg"))
    return names
