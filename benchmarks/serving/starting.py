"""How long the service takes to be ready with a large snapshot in its local cache, and what its processes share of it.

    python -m benchmarks.serving.starting --rows 24000000 --workers 1,4

The memory of processes without a model is measured first, so that what the snapshot adds can be told.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from benchmarks.printing import Printer
from benchmarks.serving.contest import service_server, wait_for_version
from benchmarks.serving.ours import Installation, Snapshots
from benchmarks.serving.servers import Server, memory_bytes
from benchmarks.serving.workload import ServingSizes, random_params
from service.processes.child import CHILD_MODULE
from service.processes.stop_request import StopRequest

__all__ = ["start"]

SETTLE_SECONDS = 1.0


def start(
    installation: Installation, folder: Path, workers: int, version: int, stop: StopRequest
) -> tuple[float, float]:
    """Seconds until `asmg serve` is ready with a version; bytes of proportional memory of its api processes then."""
    began = time.perf_counter()
    with service_server(installation, folder, workers, stop) as server:
        wait_for_version(server, version)
        ready = time.perf_counter()
        time.sleep(SETTLE_SECONDS)  # the other workers may be a moment later
        return ready - began, memory_bytes(_api_processes(server))


def _api_processes(server: Server) -> list[psutil.Process]:
    return [process for process in server.processes() if {CHILD_MODULE, "api"} <= set(process.cmdline())]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.starting", description=__doc__)
    parser.add_argument("--rows", type=int, default=24_000_000, help="Of both tables, half users and half items.")
    parser.add_argument("--workers", default="1,4", help="Api processes.")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    sizes = ServingSizes(users=options.rows // 2, items=options.rows - options.rows // 2)
    rows = []
    with (
        StopRequest() as stop,
        tempfile.TemporaryDirectory(prefix="asmg-starting-", ignore_cleanup_errors=True) as name,
        Installation(folder := Path(name)) as installation,
    ):
        counts = [int(part) for part in options.workers.split(",")]
        bare = {workers: start(installation, folder, workers, 0, stop)[-1] for workers in counts}
        snapshot = Snapshots(sizes, folder).make(random_params(sizes, 0))
        installation.publish(1, installation.store(snapshot, here=True))
        for workers in counts:
            found = [start(installation, folder, workers, 1, stop) for _ in range(options.repeats)]
            seconds, memory = (median(values) for values in zip(*found, strict=True))
            added = memory - bare[workers]
            rows.append((str(workers), f"{seconds:.2f}", *(f"{b / 1e6:,.0f}" for b in (memory, added))))
    Printer(None).table(
        f"A snapshot of {snapshot.size / 1e6:,.0f} MB, medians of {options.repeats} starts",
        ("workers", "`asmg serve` ready, s", "MB of all", "above bare processes"),
        rows,
    )


if __name__ == "__main__":
    main()
