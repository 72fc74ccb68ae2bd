"""What statistics and deltas cost in the forward pass: the model that is served by default beside the same model
without statistics, each as a base alone and with an overlay of changed rows.

    python -m benchmarks.serving.forward

scores the same requests with four snapshots in turn, in this process and without a server, thousands of times each, and
prints microseconds a request. The 10 % quantile of the calls counts: other programs on the machine can
only make a call slower.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.options import whole_numbers
from benchmarks.printing import print_table, times
from benchmarks.serving.model import NEIGHBOURS, ServedModel, random_statistics
from benchmarks.serving.model_store import Snapshots
from benchmarks.serving.requests import RequestPool, ServingSizes, item_id, make_workload, user_id
from service.serving.id_hashes import hash_ids
from service.serving.loading import load_snapshot
from service.serving.snapshot import Snapshot

QUESTIONS = 200
CALLS = 20
"""Calls that are timed together."""
QUICKEST = 0.1
"""Quantile of the timings that counts."""
RECENT = np.array([30, 10, 30], np.int32)
"""What each user did last: 30 interactions, all of them clicks."""

Question = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int32]]


def measure_forward(
    folder: Path,
    sizes: ServingSizes,
    items: Sequence[int],
    *,
    neighbours: int,
    near: float,
    changed: float,
    seconds: float,
) -> list[list[float]]:
    """Microseconds a request without and with statistics, each without and with an overlay, for each number of items.

    Args:
        folder: receives the snapshots.
        sizes: rows of the tables.
        items: numbers of candidates of a request.
        neighbours: items that were clicked beside each item.
        near: share of the candidates, 0 to 1, that are neighbours of the user's newest clicks.
        changed: share of the rows, 0 to 1, that the overlay has.
        seconds: duration of the measurement for each number of items.
    """
    statistics, workload = random_statistics(sizes, 0, neighbours), make_workload(sizes, 0)
    models = [ServedModel.random(sizes, 0, statistics=read) for read in (None, statistics)]
    rng, found, snapshots, made = np.random.default_rng(0), [], [], Snapshots(sizes, folder)
    rows = {
        table: np.sort(1 + rng.choice(count, max(1, round(changed * count)), replace=False))
        for table, count in (("user", sizes.users), ("item", sizes.items))
    }
    for model in models:
        base, delta = made.make(model).path, made.make_delta(model, rows).path
        assert base is not None and delta is not None
        snapshots += [load_snapshot(base, 1, 1), load_snapshot([base, delta], 1, 1)]
    for n in items:
        pool = workload.requests(n, QUESTIONS)
        for clicked, candidates in zip(pool.histories, pool.items, strict=True):
            beside = np.concatenate(
                [statistics.neighbours[statistics.starts[h] : statistics.starts[h + 1]].numpy() for h in clicked[:10]]
            )
            some = np.unique(beside)
            count = min(round(near * n), len(some))
            candidates[:count] = rng.choice(some, count, replace=False)
        found.append(_time(snapshots, _questions(pool), seconds))
    return found


def _questions(pool: RequestPool) -> list[Question]:
    ids = zip(pool.users.tolist(), pool.items.tolist(), pool.histories.tolist(), strict=True)
    return [
        (hash_ids([user_id(user), *map(item_id, items)]), hash_ids([*map(item_id, history)]), RECENT)
        for user, items, history in ids
    ]


def _time(snapshots: Sequence[Snapshot], questions: Sequence[Question], seconds: float) -> list[float]:
    taken: list[list[float]] = [[] for _ in snapshots]
    end, at = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        for snapshot, own in zip(snapshots, taken, strict=True):
            # Twice, of which the second time counts: a base and its overlay share pages, and one would warm the other.
            for _ in range(2):
                started = time.perf_counter()
                for call in range(at, at + CALLS):
                    snapshot.score(*questions[call % len(questions)])
                taken_now = time.perf_counter() - started
            own.append(taken_now / CALLS * 1e6)
        at += CALLS
    return [float(np.quantile(own, QUICKEST)) for own in taken]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.forward", description=__doc__)
    parser.add_argument("--items", default="1,50,500", help="Candidates of a question.")
    parser.add_argument("--catalogue", type=int, default=20_000, help="Items of the tables.")
    parser.add_argument("--neighbours", type=int, default=NEIGHBOURS, help="Of each item.")
    parser.add_argument("--near", type=float, default=0.3, help="Share of candidates beside the newest clicks.")
    parser.add_argument("--changed", type=float, default=0.1, help="Share of the rows that the overlay has.")
    parser.add_argument("--seconds", type=float, default=5.0, help="Of each number of candidates.")
    options = parser.parse_args()
    items = whole_numbers("items", options.items)
    sizes = ServingSizes(items=options.catalogue)
    with tempfile.TemporaryDirectory(prefix="asmg-forward-") as folder:
        found = measure_forward(
            Path(folder), sizes, items,
            neighbours=options.neighbours, near=options.near, changed=options.changed, seconds=options.seconds,
        )  # fmt: skip
    rows = [
        (f"{n}", *(f"{one:.1f}" for one in taken), times(taken[2] / taken[0]))
        for n, taken in zip(items, found, strict=True)
    ]
    heads = ("items", "without", "and overlay", "with statistics", "and overlay", "ratio of statistics")
    print_table("Microseconds of a forward pass", heads, rows, words=0)


if __name__ == "__main__":
    main()
