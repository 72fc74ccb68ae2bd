"""How long the service takes to start with a large snapshot in its local cache, and what its processes share of it.

    python -m benchmarks.serving.starting --rows 24000000 --workers 1,4

The memory of processes without a model is measured first, to tell what the snapshot adds.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.machine import MB, memory_bytes
from benchmarks.options import whole_numbers
from benchmarks.printing import print_table
from benchmarks.services import OwnStores, own_service, own_stores, processes_of
from benchmarks.serving.model import ServedModel
from benchmarks.serving.model_store import Snapshots, store
from benchmarks.serving.publishing import publish
from benchmarks.serving.requests import ServingSizes
from service.processes.stop_request import StopRequest

SETTLE_SECONDS = 1.0
"""After the service is ready its other workers may take so long."""


def start(stores: OwnStores, workers: int, version: int | None, stop: StopRequest) -> tuple[float, float]:
    """Seconds until `asmg serve` is ready with a version; bytes of proportional memory of its api processes then."""
    began = time.perf_counter()
    with own_service(stores, api_workers=workers, version=version, stop=stop) as server:
        ready = time.perf_counter()
        time.sleep(SETTLE_SECONDS)
        return ready - began, memory_bytes(processes_of(server, "api"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.starting", description=__doc__)
    parser.add_argument("--rows", type=int, default=24_000_000, help="Of both tables, half users and half items.")
    parser.add_argument("--workers", default="1,4", help="Api processes.")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    sizes = ServingSizes(users=options.rows // 2, items=options.rows - options.rows // 2)
    counts, rows = whole_numbers("workers", options.workers), []
    with (
        StopRequest() as stop,
        tempfile.TemporaryDirectory(prefix="asmg-starting-", ignore_cleanup_errors=True) as name,
        own_stores(Path(name)) as stores,
    ):
        bare = {workers: start(stores, workers, 0, stop)[-1] for workers in counts}
        snapshot = Snapshots(sizes, stores.folder).make(ServedModel.random(sizes, 0))
        publish(stores.settings, 1, store(stores, snapshot, here=True))
        for workers in counts:
            found = [start(stores, workers, 1, stop) for _ in range(options.repeats)]
            seconds, memory = (median(values) for values in zip(*found, strict=True))
            rows.append((str(workers), f"{seconds:.2f}", *(f"{b / MB:,.0f}" for b in (memory, memory - bare[workers]))))
    print_table(
        f"A snapshot of {snapshot.size / MB:,.0f} MB, medians of {options.repeats} starts",
        ("workers", "`asmg serve` ready, s", "MB of all", "above bare processes"),
        rows,
    )


if __name__ == "__main__":
    main()
