"""What every update method scores on a prepared log, with the authors' settings and with ours.

    python -m benchmarks.methods --log FILE.parquet --methods iu,asmg-gru-multi --settings reference,default --seeds 3

FILE.parquet has the columns user, item (from 0), label, timestamp and period (1 … 31; others are left out), and may
have `order` (of the rows) and `history` (earlier positives, most recent first, separated by spaces; otherwise it
follows from the timestamps). As in the paper: pretraining on the periods 1 … 10, of whose passes the one with the best
AUC on period 11 stays; updates on 11 … 30; the models after 24 … 30 are scored on the following period, before anything
learns it.

With --start FILE.npz the authors' settings start from a pretrained model of the authors' code, with its Adam, instead
of one of ours: what is left between seeds is then the method's own randomness. (SML-MF has another base model and
pretrains.)
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from asmg.adam import Adam, AdamState
from asmg.base_training import BaseState, TrainingConfig
from asmg.batch import PeriodData, build_histories
from asmg.models import EmbeddingMLPConfig, Params, table_sizes
from asmg.progressive import stage_rng
from asmg.training import evaluate
from asmg.updaters import build_updater
from asmg.updaters.base import Updater

PERIODS, PRETRAIN, FIRST_TEST = 31, 10, 24


def read_periods(path: Path) -> list[PeriodData]:
    """The periods 1 … of a prepared log. Row = id + 1, and every period knows all ids: row 0 is the cold row."""
    log = pl.read_parquet(path)
    users, items = int(log["user"].max()) + 2, int(log["item"].max()) + 2  # type: ignore[arg-type]
    log = log.filter(pl.col("period").is_between(1, PERIODS))  # 0 and 32 are what was left over
    log = log.sort("order") if "order" in log.columns else log.sort("period", "timestamp", maintain_order=True)
    user, item = (log[name].to_numpy() + 1 for name in ("user", "item"))
    label = log["label"].to_numpy()
    if "history" in log.columns:
        lists = log["history"].str.split(" ").list.eval(pl.element().filter(pl.element() != "").cast(pl.Int32))
        history = lists.explode().drop_nulls().to_numpy() + 1
        offsets = np.concatenate([[0], lists.list.len().to_numpy().cumsum()]).astype(np.int64)
    else:
        history, offsets = build_histories(user, item, label, log["timestamp"].cast(pl.Int64).to_numpy())
    periods = []
    for number in range(1, PERIODS + 1):
        rows = np.flatnonzero(log["period"].to_numpy() == number)
        start, stop = int(rows[0]), int(rows[-1]) + 1
        low, high = offsets[start], offsets[stop]
        periods.append(
            PeriodData(
                user=torch.from_numpy(user[start:stop].astype(np.int32)),
                item=torch.from_numpy(item[start:stop].astype(np.int32)),
                history=torch.from_numpy(history[low:high].astype(np.int32)),
                offsets=torch.from_numpy((offsets[start : stop + 1] - low).astype(np.int64)),
                label=torch.from_numpy(label[start:stop].astype(np.float32)),
                users=users,
                items=items,
            )
        )
    return periods


def read_pretrained(path: Path) -> BaseState:
    """The pretrained model of the authors' code with its optimizer: ids from 0, kernels [in, out], no cold row."""
    with np.load(path) as file:
        arrays = dict(file)

    def params(suffix: str = "") -> Params:
        tables = {table: torch.tensor(arrays[f"{table}_emb_w{suffix}"]) for table in ("user", "item")}
        found = {table: torch.cat([torch.zeros(1, rows.shape[1]), rows]) for table, rows in tables.items()}
        for i in range(3):
            found[f"mlp.{i}.weight"] = torch.tensor(arrays[f"fcn{i + 1}.kernel{suffix}"].T).contiguous()
            found[f"mlp.{i}.bias"] = torch.tensor(arrays[f"fcn{i + 1}.bias{suffix}"])
        return found

    model, step = params(), round(math.log(float(arrays["beta2_power"])) / math.log(0.999)) - 1
    moved = {table: torch.full((rows,), step, dtype=torch.int32) for table, rows in table_sizes(model).items()}
    adam = AdamState(step=step, first=params(".Adam"), second=params(".Adam_1"), moved=moved)
    optimizer = Adam(model, adam, lr=TrainingConfig.reference().lr)
    restless = {table: optimizer.restless(table) for table in moved}
    return BaseState(model, replace(adam, restless=restless), periods=1)


def run(updater: Updater[Any], periods: Sequence[PeriodData], seed: int, base: BaseState | None) -> dict[str, Any]:
    """Pretrain, update on every period, and score as the paper does."""
    started, rng = time.perf_counter(), stage_rng(seed, 0, "pretrain")
    if base is None:
        state = updater.pretrained(periods[:PRETRAIN], periods[PRETRAIN], rng=rng)
    else:
        state = updater.started(base, periods[:PRETRAIN], rng=rng)
    pretraining = time.perf_counter() - started
    steps: list[dict[str, Any]] = []
    for step in range(PRETRAIN + 1, len(periods)):
        seconds = {}
        for stage in updater.stages:
            started, cpu = time.perf_counter(), time.process_time()
            state = updater.run_stage(stage, state, periods[step - 1], rng=stage_rng(seed, step, stage))
            seconds[stage] = [time.perf_counter() - started, time.process_time() - cpu]
        models = updater.serving_models(state)
        served = models.get("generated", models["incremental"])
        scores = evaluate(updater.model, served, periods[step])
        steps.append({"step": step, "auc": scores.auc, "logloss": scores.logloss, "seconds": seconds})
    test = [s for s in steps if s["step"] >= FIRST_TEST]
    return {
        "auc": float(np.mean([s["auc"] for s in test])),
        "logloss": float(np.mean([s["logloss"] for s in test])),
        "pretraining_seconds": pretraining,
        "steps": steps,
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--methods", default="iu,asmg-gru-multi")
    parser.add_argument("--settings", default="reference,default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # steps are small: a second thread of eager torch costs more than it gives
    periods = read_periods(options.log)
    pretrained = read_pretrained(options.start) if options.start else None
    found: dict[str, Any] = {}
    for settings in options.settings.split(","):
        for method in options.methods.split(","):
            results = []
            for seed in range(options.seeds):
                updater = build_updater(method, EmbeddingMLPConfig(), reference=settings == "reference")
                base = pretrained if settings == "reference" and method != "sml-mf" else None
                results.append(run(updater, periods, seed, base))
            found[f"{settings}/{method}"] = results
            auc, loss = ([r[name] for r in results] for name in ("auc", "logloss"))
            last = np.median([sum(s[0] for s in r["steps"][-1]["seconds"].values()) for r in results])
            print(
                f"{settings:9} {method:16} AUC {np.mean(auc):.4f} ± {np.std(auc):.4f}  "
                f"LogLoss {np.mean(loss):.4f} ± {np.std(loss):.4f}  last update {last:.2f} s  "
                + " ".join(f"{a:.4f}" for a in auc),
                flush=True,
            )
    if options.report:
        options.report.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
