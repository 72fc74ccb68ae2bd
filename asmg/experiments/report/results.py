"""The results of a finished run, read from its folder and aggregated over periods and seeds for a report."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from asmg.experiments.statistics import Array, Spread, calibration_error, mean, spread

__all__ = ["LABELS", "Curve", "Results", "label"]

LABELS = {
    "iu": "IU",
    "bu-3": "BU-3",
    "bu-5": "BU-5",
    "bu-7": "BU-7",
    "spmf": "SPMF",
    "incctr": "IncCTR",
    "sml": "SML",
    "sml-mf": "SML-MF",
    "asmg-linear": "ASMG-Linear",
    "asmg-gru-single": "ASMG-GRU single",
    "asmg-gru-multi": "ASMG-GRU multi",
    "asmg-gru-full": "ASMG-GRU full",
    "asmg-gru-zero": "ASMG-GRU zero",
    "asmg-gru-unif": "ASMG-GRU unif",
    "popularity": "Popularity",
    "item-ctr": "Item CTR",
    "logistic": "Logistic regression",
    "lightgbm": "LightGBM",
}
"""Method → its name in reports: the paper's names in the paper's order, then the yardsticks."""

# Columns of each table that a report reads.
_COLUMNS = {
    "scores": ("seed", "method", "variant", "step", "period", "test", "slice", "events", "auc", "logloss"),
    "timings": ("seed", "method", "variant", "step", "stage", "seconds", "cpu_seconds"),
    "calibration": ("seed", "method", "variant", "period", "bin", "count", "predicted", "clicked"),
    "forgetting": ("seed", "method", "step", "period", "auc"),
}


def label(method: str) -> str:
    """The name of a method in reports; an unknown method keeps its own."""
    return LABELS.get(method, method)


class Curve(NamedTuple):
    """A reliability curve: predictions in ascending order, in bins."""

    events: Array
    """Number of predictions in each bin [bins]."""
    predicted: Array
    """Mean predicted click-through rate [bins]."""
    clicked: Array
    """Share that was clicked [bins]."""


@dataclass(frozen=True, eq=False)
class Results:
    """A finished run. Unless stated otherwise, numbers are those of the test periods and without variants."""

    card: dict[str, Any]
    """The log's card."""
    options: dict[str, Any]
    """The options of the run."""
    versions: list[dict[str, str]]
    """Versions of Python and the libraries; several if the run was continued after an upgrade."""
    machine: dict[str, Any]
    """The machine that it ran on."""
    scores: pl.DataFrame
    """Tables of the run, see `asmg.experiments.run`."""
    timings: pl.DataFrame
    calibration: pl.DataFrame
    forgetting: pl.DataFrame

    @classmethod
    def read(cls, out: Path) -> "Results":
        """The results in the folder of a run.

        Raises:
            ValueError: it is no folder of a finished run, or the run has no test period.
        """
        for name in ("run.json", *(f"{name}.parquet" for name in _COLUMNS)):
            if not (out / name).is_file():
                raise ValueError(
                    f"out: expected the folder of a finished run of `asmg experiment run`; {out} has no {name}"
                )
        run = json.loads((out / "run.json").read_text(encoding="utf-8"))
        for name in ("dataset", "options", "versions", "machine"):
            if name not in run:
                raise ValueError(f"run.json: expected {name}, as in a finished run; received {', '.join(run)}")
        frames = {name: _table(out / f"{name}.parquet", columns) for name, columns in _COLUMNS.items()}
        if not frames["scores"]["test"].any():
            raise ValueError("scores.parquet: expected rows of test periods; received none")
        return cls(run["dataset"], run["options"], run["versions"], run["machine"], **frames)

    @cached_property
    def methods(self) -> list[str]:
        """Methods of the run in the order of LABELS, unknown ones last."""
        order = {name: n for n, name in enumerate(LABELS)}
        found = self.scores.filter(pl.col("variant") == "")["method"].unique().to_list()
        return sorted(found, key=lambda name: (order.get(name, len(order)), name))

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds of the run, ascending."""
        return sorted(self.scores["seed"].unique().to_list())

    @cached_property
    def _tested(self) -> pl.DataFrame:
        return self.scores.filter(pl.col("test"))

    @cached_property
    def test_periods(self) -> list[int]:
        """Test periods, ascending."""
        return sorted(self._tested["period"].unique().to_list())

    @cached_property
    def last_step(self) -> int:
        """Number of the last update."""
        return int(self.scores["step"].max())  # type: ignore[arg-type] # there are rows

    def values(self, metric: str, method: str, *, variant: str = "", part: str = "all") -> Array:
        """A metric of each seed in each test period [seeds, periods]; NaN without one.

        Args:
            metric: "auc" or "logloss".
            method: its name.
            variant: such as "k=5" or "hidden=8"; empty for none.
            part: the slice, such as "cold user".
        """
        mine = (pl.col("method") == method) & (pl.col("variant") == variant) & (pl.col("slice") == part)
        return _grid(self._tested.filter(mine), metric, ("seed", self.seeds), ("period", self.test_periods))

    def score(self, metric: str, method: str, *, variant: str = "", part: str = "all") -> Spread | None:
        """The mean over the test periods and its spread over the seeds; None without one."""
        return spread(mean(self.values(metric, method, variant=variant, part=part), 1))

    def variants(self, kind: str) -> dict[int, str]:
        """Value → variant of the sensitivity runs of one kind ("k" or "hidden"), ascending."""
        names = [name.partition("=") for name in self.scores["variant"].unique().to_list()]
        return dict(sorted((int(value), f"{kind}={value}") for name, _, value in names if name == kind))

    def share(self, part: str) -> float:
        """The share of the test periods' interactions that belong to a slice."""
        one = self._tested.filter((pl.col("method") == self.methods[0]) & (pl.col("variant") == ""))
        events = dict(one.group_by("slice").agg(pl.col("events").sum()).iter_rows())
        return float(events.get(part, 0) / events["all"])

    def seconds(self, method: str, stages: tuple[str, ...] = ()) -> tuple[float, float] | None:
        """Wall and CPU seconds of the last update, or of some of its stages, medians over seeds; None without such
        stages.
        """
        found = self.timings.filter((pl.col("method") == method) & (pl.col("variant") == ""))
        found = found.filter(pl.col("step") == self.last_step)
        if stages:
            found = found.filter(pl.col("stage").is_in(stages))
        if found.is_empty():
            return None
        by_seed = found.group_by("seed").agg(pl.col("seconds").sum(), pl.col("cpu_seconds").sum())
        return float(np.median(by_seed["seconds"])), float(np.median(by_seed["cpu_seconds"]))

    def seconds_by_step(self, method: str, stages: tuple[str, ...]) -> dict[int, float]:
        """Update step → seconds of some of its stages, medians over seeds."""
        found = self.timings.filter(
            (pl.col("method") == method) & (pl.col("variant") == "") & pl.col("stage").is_in(stages)
        )
        by_seed = found.group_by("step", "seed").agg(pl.col("seconds").sum())
        return dict(by_seed.group_by("step").agg(pl.col("seconds").median()).sort("step").iter_rows())

    def reliability(self, method: str, seed: int | None = None) -> Curve | None:
        """The reliability curve over all test periods; bins of equal rank are merged.

        Args:
            method: its name.
            seed: a single seed; None for all.
        """
        found = self.calibration.filter((pl.col("method") == method) & (pl.col("variant") == ""))
        if seed is not None:
            found = found.filter(pl.col("seed") == seed)
        if found.is_empty():
            return None
        of = (pl.col(name) * pl.col("count") for name in ("predicted", "clicked"))
        sums = found.group_by("bin").agg(pl.col("count").sum(), *(column.sum() for column in of)).sort("bin")
        events, predicted, clicked = (sums[name].to_numpy().astype(float) for name in ("count", "predicted", "clicked"))
        return Curve(events, predicted / events, clicked / events)

    def calibration_of(self, method: str) -> tuple[Spread | None, Spread | None]:
        """ECE, and predicted clicks divided by clicks: each over all test periods, with its spread over the seeds."""
        curves = [curve for seed in self.seeds if (curve := self.reliability(method, seed))]
        errors = [calibration_error(*curve) for curve in curves]
        totals = [((c.events * c.predicted).sum(), (c.events * c.clicked).sum()) for c in curves]
        return spread(errors), spread([predicted / clicked for predicted, clicked in totals if clicked])

    @cached_property
    def looked_at(self) -> tuple[list[int], list[int]]:
        """Update steps and periods of the table "forgetting", ascending."""
        return sorted(self.forgetting["step"].unique().to_list()), sorted(self.forgetting["period"].unique().to_list())

    def retention(self, method: str) -> Array:
        """AUC of the model after each step on each period of `looked_at` [seeds, steps, periods]; NaN without one."""
        steps, periods = self.looked_at
        mine = self.forgetting.filter(pl.col("method") == method)
        one_seed = [
            _grid(mine.filter(pl.col("seed") == seed), "auc", ("step", steps), ("period", periods))
            for seed in self.seeds
        ]
        return np.stack(one_seed)


def _table(file: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    frame = pl.read_parquet(file)
    for name in columns:
        if name not in frame.columns:
            raise ValueError(f"{file.name}: expected a column {name}; received {', '.join(frame.columns)}")
    return frame


def _grid(frame: pl.DataFrame, value: str, rows: tuple[str, list[int]], columns: tuple[str, list[int]]) -> Array:
    """The values of a column, arranged by two other columns [rows, columns]; NaN without a value."""
    at_row, at_column = ({key: n for n, key in enumerate(keys)} for _, keys in (rows, columns))
    grid = np.full((len(at_row), len(at_column)), np.nan)
    for row, column, number in frame.select(rows[0], columns[0], value).iter_rows():
        if number is not None:
            grid[at_row[row], at_column[column]] = number
    return grid
