"""Time and memory of reading a large log: a made-up file is prepared or imported in a process of its own.

    python -m benchmarks.preparing --source tmall --rows 55000000
    python -m benchmarks.preparing --source log --rows 55000000
    python -m benchmarks.preparing --source clicks --rows 33000000
    python -m benchmarks.preparing --source import --rows 4000000

`tmall` has the form and size of the public log, whose rule keeps few rows. `log` is a CSV with labels, whose rows are
all kept; `clicks` is one without labels, each row of which gets a negative (as many rows as YOOCHOOSE has). `import` is
what `asmg import --by day` does with a CSV with labels besides storing it: read, sort and cut it, and read the days
back. The files are made in a temporary folder and removed.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from asmg.datasets.generic import LogOptions, find_form
from asmg.datasets.prepare import PrepareOptions, prepare
from service.cli.import_log.sorting import sort_log
from service.cli.import_log.temporary_database import temporary_database

CHUNK = 1_000_000
DAYS = np.array([100 * month + day for month in range(5, 12) for day in range(1, 31)])


def write(source: str, rows: int, file: BinaryIO) -> None:
    """Write the raw file."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, CHUNK):
        n = min(CHUNK, rows - start)
        if source == "tmall":
            item = (1_090_390 * rng.random(n) ** 4).astype(np.int64)  # few are popular
            columns = {
                "user_id": (424_170 * rng.random(n) ** 2).astype(np.int64),
                "item_id": item,
                "cat_id": item % 1_658,
                "seller_id": item % 4_995,
                "brand_id": item % 8_444,
                "time_stamp": rng.choice(DAYS, size=n),
                "action_type": rng.choice(4, size=n, p=(0.88, 0.01, 0.05, 0.06)),
            }
        else:
            columns = {
                "user_id": rng.integers(100_000 if source == "import" else 5_000_000, size=n),
                "item_id": rng.integers(50_000 if source == "import" else 1_000_000, size=n),
                **({"label": rng.integers(2, size=n)} if source != "clicks" else {}),
                "timestamp": 1_400_000_000 + rng.integers(30_000_000, size=n),
            }
        pl.DataFrame(columns).write_csv(file, include_header=start == 0)


def measure(options: PrepareOptions) -> None:
    """Prepare the log, and print time and memory."""
    started = time.perf_counter()
    card = prepare(options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    print(
        f"{options.name}: {card.rows_read:,} rows read, {card.rows:,} rows written, "
        f"{time.perf_counter() - started:.0f} s, peak {peak:.2f} GiB"
    )


def measure_import(file: Path) -> None:
    """Sort a log on disk as an import does, read it again, and print what that took."""
    started = time.perf_counter()
    with temporary_database(lambda: None) as database:
        form = find_form(file, LogOptions())
        log = sort_log(form, "day", database, malformed="error", negatives=1, seed=0, progress=lambda fraction: None)
        pieces = log.cut("day", 1)
        rows = sum(1 for piece in pieces for _ in log.interactions(piece))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"import: {rows:,} rows in {len(pieces)} days, {time.perf_counter() - started:.0f} s, peak {peak:.0f} MiB")


def main() -> None:
    """Run the benchmark; see the docstring of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=["tmall", "log", "clicks", "import"], default="tmall")
    parser.add_argument("--rows", type=int, default=55_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asmg-preparing-") as folder:
        raw = Path(folder) / ("user_log_format1.csv" if options.source == "tmall" else "log.csv")
        with raw.open("wb") as file:
            write(options.source, options.rows, file)
        name = options.source if options.source == "tmall" else "log"
        job = PrepareOptions(name=name, raw=raw, out=Path(folder) / "prepared")
        spawn = multiprocessing.get_context("spawn").Process
        importing = options.source == "import"
        process = spawn(target=measure_import, args=(raw,)) if importing else spawn(target=measure, args=(job,))
        process.start()
        process.join()
    raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
