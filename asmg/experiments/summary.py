"""The summary of a run, summary.json."""

from typing import Any

import numpy as np
import polars as pl

from asmg.experiments.methods import BASE, MethodJob
from asmg.experiments.observations import NO_REPEAT
from asmg.experiments.options import ExperimentOptions
from asmg.experiments.statistics import Array, mean, spread, tally

__all__ = ["summarise"]


def summarise(dataset: str, options: ExperimentOptions, scores: pl.DataFrame, timings: pl.DataFrame) -> dict[str, Any]:
    """AUC and LogLoss of each method over the test periods, as plain JSON values.

    Of each metric: "mean" and "std" of the seeds' means over the periods, and "periods", the means over the seeds. A
    period of one class has no AUC and is left out. "no_repeat" has the same for the rows whose item is not among the
    user's last 30 clicks. "against_iu" and "against_lightgbm", if these were run, have for each metric the "wins" and
    "ties" among all "pairs" of seed and test period, and "worst_seed": the "seed" with the method's worst result and
    the mean by which the method is "better" there (lower LogLoss is better). "seconds" is the time of all updates of
    one seed, the mean over seeds.

    Args:
        dataset: name of the log.
        options: what was run.
        scores, timings: the tables.
    """
    tested = scores.filter(pl.col("test")).sort("seed", "period")

    def values_of(job: MethodJob, metric: str, part: str = "all") -> Array:
        """A metric of each seed in each test period [seeds, periods]."""
        mine = (pl.col("method") == job.method) & (pl.col("variant") == job.variant) & (pl.col("slice") == part)
        table = tested.filter(mine).pivot("period", index="seed", values=metric, sort_columns=False)
        return table.drop("seed").to_numpy().astype(float)

    def against(job: MethodJob, other: str, metric: str) -> dict[str, Any]:
        better = values_of(job, metric) - values_of(MethodJob(other), metric)
        found = tally(better if metric == "auc" else -better)
        worst = None if found.worst is None else {"seed": found.worst_seed, "better": found.worst}
        return {"wins": found.wins, "ties": found.ties, "pairs": found.pairs, "worst_seed": worst}

    def over(job: MethodJob, part: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for metric in ("auc", "logloss"):
            values = values_of(job, metric, part)
            over_seeds = spread(mean(values, 1))
            found[metric] = {
                "mean": over_seeds and over_seeds.mean,
                "std": over_seeds and (over_seeds.std or 0.0),
                "periods": [None if np.isnan(v) else float(v) for v in mean(values, 0)],
            }
        return found

    def of(job: MethodJob) -> dict[str, Any]:
        mine = (pl.col("method") == job.method) & (pl.col("variant") == job.variant)
        found = {**over(job, "all"), "no_repeat": over(job, NO_REPEAT)}
        for other in (BASE, "lightgbm"):
            if other in options.methods and job.method != other:
                found[f"against_{other}"] = {metric: against(job, other, metric) for metric in ("auc", "logloss")}
        found["seconds"] = timings.filter(mine)["seconds"].sum() / options.seeds
        return found

    summary = {
        "dataset": dataset,
        "settings": options.protocol.settings,
        "methods": {name: of(MethodJob(name)) for name in options.methods},
    }
    variants = [job for job in options.jobs if job.variant]
    if variants:
        summary["sensitivity"] = {str(job): of(job) for job in variants}
    return summary
