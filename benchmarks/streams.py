"""What a method gains over the incremental model it builds on, over streams with known drift.

    python -m benchmarks.streams --method asmg-gru-multi --seeds 5

Each stream is played from its first period on, without pretraining; every model is scored on a period before anything
learns it, and the last half of the periods counts. Positive: the generated model is ahead of the incremental one of the
same run. The base model is the one that is served by default; items have no categories.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from asmg.batch import PeriodData, build_histories, build_recent
from asmg.datasets.synthetic import DriftConfig, DriftPeriod, drift_stream
from asmg.progressive import progressive_validation
from benchmarks.workload import default_updater

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


class Encoder:
    """From the ids of a stream to table rows; the tables grow as ids appear."""

    def __init__(self) -> None:
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self.past = np.zeros((4, 0), np.int64)
        """User, item, label and time of all interactions so far."""

    def encode(self, period: DriftPeriod) -> PeriodData:
        """One period, with what its users did before."""
        user, item = (
            np.array([known.setdefault(i, len(known) + 1) for i in ids])
            for known, ids in ((self.users, period.user_ids), (self.items, period.item_ids))
        )
        label, time = period.labels, period.timestamps_ms
        users, items, labels, times = self.past
        clicked = labels == 1
        history, offsets = build_histories(
            user, item, label, time, earlier=(users[clicked], items[clicked], times[clicked])
        )
        recent = build_recent(user, label, time, earlier=(users, labels, times))
        self.past = np.concatenate([self.past, np.stack([user, item, label, time])], axis=1)
        return PeriodData(
            user=torch.from_numpy(user.astype(np.int32)),
            item=torch.from_numpy(item.astype(np.int32)),
            history=torch.from_numpy(history),
            offsets=torch.from_numpy(offsets),
            label=torch.from_numpy(label.astype(np.float32)),
            users=len(self.users) + 1,
            items=len(self.items) + 1,
            recent=torch.from_numpy(recent),
        )


def periods(config: DriftConfig, seed: int) -> Iterator[PeriodData]:
    """The periods of a stream as table rows."""
    encoder = Encoder()
    return map(encoder.encode, itertools.islice(drift_stream(config, seed=seed), PERIODS))


def main() -> None:
    """See the module."""
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
