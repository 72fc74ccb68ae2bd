"""Our methods beside the authors' code: with their settings, on the very rows that it was run on.

    python -m benchmarks.parity --log FILE.parquet --start FILE.npz --methods iu,asmg-gru-multi --seeds 10

The log has the columns user, item (from 0), label, timestamp and period (1 … 31; others are left out). It may have
`order` (of the rows) and `history` (earlier positives, most recent first, separated by spaces; without it histories
follow from the timestamps). `asmg experiment run --settings paper` does the same with a log that it prepares itself;
here the rows, and the order of equal timestamps, are those of the authors.

A seed is lost where its last model gives everything the same score (AUC 0.5). Lost seeds are left out of the mean, and
counted.

--start is the pretrained model of the authors' code with its Adam. With it, seeds differ by the method's own randomness
alone. (SML-MF has another base model, which it pretrains.)
"""

import argparse
import itertools
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from asmg.adam import Adam, AdamState
from asmg.base_state import BaseState
from asmg.experiments.chain import run_chain
from asmg.experiments.jobs import run_method
from asmg.experiments.methods import MethodJob
from asmg.experiments.periods import Periods
from asmg.experiments.protocol import Protocol
from asmg.models import Params, table_sizes
from asmg.training import TrainingConfig
from asmg.updaters import UPDATERS
from benchmarks.learning.logs import table_rows


def read_periods(path: Path, count: int) -> Periods:
    """The periods 1 … of a prepared log. Row = id + 1, and every period knows all ids: row 0 is the cold row."""
    log = pl.read_parquet(path)
    users, items = int(log["user"].max()) + 2, int(log["item"].max()) + 2  # type: ignore[arg-type]
    log = log.filter(pl.col("period").is_between(1, count))  # 0 and 32 are what was left over
    log = log.sort("order") if "order" in log.columns else log.sort("period", "timestamp", maintain_order=True)
    user, item = (log[name].to_numpy() + 1 for name in ("user", "item"))
    whole = table_rows(user, item, log["label"].to_numpy(), log["timestamp"].cast(pl.Int64).to_numpy())
    whole = replace(whole, users=users, items=items, recent=None)
    if "history" in log.columns:
        lists = log["history"].str.split(" ").list.eval(pl.element().filter(pl.element() != "").cast(pl.Int32))
        history = lists.explode().drop_nulls().to_numpy() + 1
        offsets = np.concatenate([[0], lists.list.len().to_numpy().cumsum()]).astype(np.int64)
        whole = replace(whole, history=torch.from_numpy(history.astype(np.int32)), offsets=torch.from_numpy(offsets))
    ends = np.searchsorted(log["period"].to_numpy(), np.arange(count + 1), side="right").tolist()
    periods = [whole.slice(start, stop) for start, stop in itertools.pairwise(ends)]
    return Periods(periods, [users] * count, [items] * count)


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


def main() -> None:
    """Run the benchmark; see the docstring of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(UPDATERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # steps are small: a second thread of eager torch costs more than it gives
    protocol = Protocol(settings="paper")
    periods = read_periods(options.log, protocol.periods)
    start = read_pretrained(options.start) if options.start else None
    with tempfile.TemporaryDirectory(prefix="asmg-parity-") as folder:
        chains = [
            run_chain(Path(folder) / f"{seed}", periods, protocol, seed, start=start) for seed in range(options.seeds)
        ]
        for method in options.methods.split(","):
            rows = [
                [row for row in run_method(job, periods, protocol, seed, chain, matrix=False)["scores"] if counts(row)]
                for seed, chain in enumerate(chains)
                for job in [MethodJob(method)]
            ]
            found = np.array([[[row["auc"], row["logloss"]] for row in seed] for seed in rows])  # [seeds, periods, 2]
            lost = found[:, -1, 0] == 0.5  # a model that says the same of everything
            kept = found[~lost].mean(1)
            (auc, loss), (auc_std, loss_std) = kept.mean(0), kept.std(0)
            print(
                f"{method:16} AUC {auc:.4f} ± {auc_std:.4f}  LogLoss {loss:.4f} ± {loss_std:.4f}  {lost.sum()} lost  "
                + " ".join(f"{a:.4f}" for a in found.mean(1)[:, 0]),
                flush=True,
            )


def counts(row: dict[str, Any]) -> bool:
    """Whether a row of the scores is one of those that are averaged."""
    return bool(row["test"]) and row["slice"] == "all"


if __name__ == "__main__":
    main()
