"""A small protocol, and the results of a run without its times."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from asmg.experiments.options import ExperimentOptions
from asmg.experiments.protocol import Protocol

PROTOCOL = Protocol(periods=8, pretrain=3, test_from=5)

ROWS = 1_603
"""Of the small log: 8 periods of 200, and 3 left over."""


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
