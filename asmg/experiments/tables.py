"""The result tables of a run, see `asmg.experiments.run`."""

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from asmg.experiments.folder import job_file, write_whole
from asmg.experiments.options import ExperimentOptions, cores
from asmg.experiments.summary import summarise

__all__ = ["write_results"]

_SCHEMAS: dict[str, dict[str, Any]] = {
    "scores": {
        "step": pl.Int32, "period": pl.Int32, "test": pl.Boolean, "slice": pl.String, "events": pl.Int64,
        "clicks": pl.Int64, "auc": pl.Float64, "logloss": pl.Float64, "calibration": pl.Float64,
    },
    "timings": {"step": pl.Int32, "stage": pl.String, "seconds": pl.Float64, "cpu_seconds": pl.Float64},
    "calibration": {
        "period": pl.Int32, "bin": pl.Int32, "count": pl.Int64, "predicted": pl.Float64, "clicked": pl.Float64,
    },
    "forgetting": {"step": pl.Int32, "period": pl.Int32, "auc": pl.Float64, "logloss": pl.Float64},
}  # fmt: skip


def write_results(out: Path, dataset: str, options: ExperimentOptions) -> dict[str, Any]:
    """Write the tables, run.json and summary.json from the results of all jobs.

    Args:
        out: the folder of the run.
        dataset: name of the log.
        options: what was run; all of its jobs are done.

    Returns:
        the summary.
    """
    results = {
        (seed, job): json.loads(job_file(out, seed, job).read_text(encoding="utf-8"))
        for job in options.jobs
        for seed in range(options.seeds)
    }
    known = json.loads((out / "run.json").read_text(encoding="utf-8"))
    known = {name: known[name] for name in ("dataset", "protocol")}
    known["options"] = {
        "methods": list(options.methods),
        "seeds": options.seeds,
        **asdict(options.protocol),
        "sensitivity": options.sensitivity,
    }
    known["versions"] = sorted({json.dumps(found["versions"], sort_keys=True) for found in results.values()})
    known["versions"] = [json.loads(text) for text in known["versions"]]
    known["machine"] = {"system": platform.system(), "processor": platform.machine(), "cores": cores()}
    known["configs"] = {str(job): results[0, job]["config"] for job in options.jobs}
    frames = {}
    for name, schema in _SCHEMAS.items():
        parts = []
        for (seed, job), found in results.items():
            own = pl.DataFrame(found[name], schema=schema, orient="row")
            where = {"seed": pl.lit(seed, pl.Int32), "method": pl.lit(job.method), "variant": pl.lit(job.variant)}
            parts.append(own.select(**where, **{column: pl.col(column) for column in schema}))
        frame = pl.concat(parts)
        if name == "scores":
            given = {"dataset": pl.lit(dataset), "settings": pl.lit(options.protocol.settings)}
            frame = frame.select(**given, **{column: pl.col(column) for column in frame.columns})
        frames[name] = frame
        temporary = out / f".{name}.parquet"
        frame.write_parquet(temporary, metadata={"asmg": json.dumps(known)})
        temporary.replace(out / f"{name}.parquet")
    write_whole(out / "run.json", json.dumps(known, indent=1))
    summary = summarise(dataset, options, frames["scores"], frames["timings"])
    write_whole(out / "summary.json", json.dumps(summary, indent=1))
    return summary
