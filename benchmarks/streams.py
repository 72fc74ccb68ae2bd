"""What a method gains over the incremental model it builds on, over streams with known drift.

    python -m benchmarks.streams --method asmg-gru-multi --seeds 5

Each stream begins with its first period, without pretraining. Every model is scored on a period before anything learns
it, and the later half of the periods counts. A positive gain means that the generated model is ahead of the incremental
one of the same run. The base model is the one that is served by default; items have no categories.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from asmg.batch import PeriodData
from asmg.datasets.synthetic import DriftConfig, drift_stream
from asmg.progressive import progressive_validation
from benchmarks.learning.logs import numbered, table_rows
from benchmarks.learning.updaters import default_updater

PERIODS = 14
SMALL = DriftConfig(users=1_000, items=300, events=15_000)
STREAMS = {
    "tiny": DriftConfig(users=300, items=100, events=3_000),
    "small": SMALL,
    "large": DriftConfig(users=5_000, items=2_000, events=80_000),
    "one-off users": replace(SMALL, user_turnover=0.95),
    "slow drift": replace(SMALL, interest_persistence=0.97, popularity_persistence=0.97),
    "fast drift": replace(SMALL, interest_persistence=0.4, popularity_persistence=0.4),
}


def periods(config: DriftConfig, seed: int) -> Iterator[PeriodData]:
    """The periods of a stream as table rows; the tables grow as ids appear."""
    drift = list(itertools.islice(drift_stream(config, seed=seed), PERIODS))
    user = numbered(id_ for period in drift for id_ in period.user_ids)
    item = numbered(id_ for period in drift for id_ in period.item_ids)
    label, timestamp = (
        np.concatenate([getattr(period, name) for period in drift]) for name in ("labels", "timestamps_ms")
    )
    whole, start = table_rows(user, item, label, timestamp), 0
    for period in drift:
        end = start + len(period.labels)
        # Ids are numbered by first appearance, and histories hold items that appeared before.
        yield replace(whole.slice(start, end), users=int(user[:end].max()) + 1, items=int(item[:end].max()) + 1)
        start = end


def main() -> None:
    """Run the benchmark; see the docstring of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="asmg-gru-multi")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1_000)
    parser.add_argument("--reference", action="store_true", help="with the authors' settings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, config in STREAMS.items():
        found = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            updater = default_updater(options.method, reference=options.reference)
            reports = [report.scores for report, _ in progressive_validation(updater, periods(config, seed), seed=seed)]
            late = reports[PERIODS // 2 :]
            found.append(
                [
                    np.mean([getattr(scores[model], metric) for scores in late])
                    for model in ("incremental", "generated")
                    for metric in ("auc", "logloss")
                ]
            )
        auc, loss, auc_generated, loss_generated = np.array(found).T
        gain, less = auc_generated - auc, loss - loss_generated
        print(
            f"{name:14} incremental AUC {auc.mean():.4f} LogLoss {loss.mean():.4f}; generated gains AUC "
            f"{gain.mean():+.4f} (worst {gain.min():+.4f}) LogLoss {less.mean():+.4f} (worst {less.min():+.4f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
