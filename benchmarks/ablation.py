"""What each statistic, each part of the base model and each setting of the generator contributes.

    python -m benchmarks.ablation --data DATA --seeds 3
    python -m benchmarks.ablation --data DATA --seeds 1 --parts base,generator

DATA is a folder of `asmg experiment prepare`. Each line is the default with one change, by the protocol of `asmg
experiment run`: AUC and LogLoss over the test periods, of IU and of what asmg-gru-multi serves, and the seconds of one
update, statistics included. Each change is compared with the default of the same seed.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asmg.datasets.prepared import PreparedLog, read_prepared
from asmg.experiments.chain import run_chain
from asmg.experiments.jobs import run_method
from asmg.experiments.methods import MethodJob
from asmg.experiments.protocol import Protocol
from asmg.statistics import NAMES

SERVED = "asmg-gru-multi"


@dataclass(frozen=True)
class Variant:
    """The default with one change."""

    name: str
    protocol: dict[str, Any] = field(default_factory=dict)
    """Fields of `Protocol` that differ."""
    generator: str = ""
    """The variant of the generator, see `MethodJob`."""


DEFAULT = Variant("default")
BASE = (
    Variant("no statistics", {"statistics": False}),
    Variant("no dot products", {"dot": False}),
    Variant("dim 8, hidden 12,6", {"dim": 8, "hidden": (12, 6)}),
    Variant("the paper's base model", {"statistics": False, "dot": False, "dim": 8, "hidden": (12, 6)}),
    Variant("dim 32, hidden 64,32", {"dim": 32, "hidden": (64, 32)}),
)
GENERATOR = tuple(
    Variant(name, generator=name)
    for name in ("lr=0.01", "lr=0.06", "dense_share=0.3", "epochs=3", "k=5", "hidden=8", "caution=2", "caution=0")
)
PARTS = {
    "statistics": tuple(Variant(f"without {name}", {"dropped": (name,)}) for name in NAMES),
    "base": BASE,
    "generator": GENERATOR,
}
"""The changes by part."""


def measure(log: PreparedLog, variant: Variant, seed: int, *, categories: bool, **protocol: Any) -> np.ndarray:
    """AUC and LogLoss of IU and of what is served, and the seconds of one update, [5]."""
    asked = Protocol(categories=categories, **{**protocol, **variant.protocol})
    started = time.perf_counter()
    periods = asked.cut(log)
    counting = (time.perf_counter() - started) / asked.periods
    with tempfile.TemporaryDirectory(prefix="asmg-ablation-") as folder:
        chain = run_chain(Path(folder, "chain"), periods, asked, seed)
        jobs = (MethodJob("iu"), MethodJob(SERVED, variant.generator))
        found = [run_method(job, periods, asked, seed, chain, matrix=False) for job in jobs]
    numbers = []
    for result in found:
        rows = [row for row in result["scores"] if row["test"] and row["slice"] == "all"]
        numbers += [float(np.mean([row[name] for row in rows])) for name in ("auc", "logloss")]
    tests = [row["seconds"] for row in found[1]["timings"] if row["step"] >= asked.test_from]
    updates = sum(tests) / (asked.periods - asked.test_from)
    return np.array([*numbers, counting + updates])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; see the docstring of the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder of `asmg experiment prepare`")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 …")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}, separated by commas")
    parser.add_argument("--categories", action="store_true", help="items have their categories")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"parts: expected some of {', '.join(PARTS)}; received {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    log, seeds = read_prepared(options.data), range(options.seeds)

    def of(variant: Variant) -> np.ndarray:
        return np.stack([measure(log, variant, seed, categories=options.categories) for seed in seeds])

    print(f"{log.card.dataset}, {options.seeds} seeds\n")
    print("| | IU AUC | LogLoss | served AUC | LogLoss | one update, s |\n| --- | --: | --: | --: | --: | --: |")
    default = of(DEFAULT)
    print(f"| default | {' | '.join(f'{v:.4f}' for v in default.mean(0)[:4])} | {default.mean(0)[4]:.2f} |", flush=True)
    for part in options.parts.split(","):
        for variant in PARTS[part]:
            found = of(variant)
            differences = (found - default).mean(0)[:4]
            cells = " | ".join(f"{v:+.4f}".replace("-", "−") for v in differences)
            print(f"| {variant.name} | {cells} | {found.mean(0)[4]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
