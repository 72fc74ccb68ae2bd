"""What `asmg bench ranks` measures of reading: an excerpt of a large state, read by one rank and by several."""

from pathlib import Path

import numpy as np
import psutil
import torch

from asmg.batch import COLD_ROW, TABLES
from asmg.checkpoint import Checkpoint
from asmg.layers import Selection, Stack, excerpt_parts, read_together
from asmg.ranks import Ranks
from benchmarks.measuring import Samples

__all__ = ["read_rows", "write_state"]

PARTS = {"base": 1, "hidden": 4}
"""Part → the numbers that it has of an id, as a multiple of a vector's."""


def write_state(folder: Path, ids: int, dim: int) -> None:
    """Files with random vectors and hidden states of `ids` users."""
    rng = np.random.default_rng(0)
    for part, width in PARTS.items():
        rows = torch.from_numpy(rng.random((ids, dim * width), np.float32))
        (folder / part).write_bytes(Checkpoint(part, {}, {"user": rows}).to_bytes())


def read_rows(ranks: Ranks, folder: Path, ids: int, touched: int) -> dict[str, float]:
    """Read `touched` users drawn evenly from all; every rank calls this.

    Returns:
        seconds; megabytes of the files that are mapped into this process, and the same with each page divided by the
        number of processes that have it.
    """
    stacks = {part: Stack([Checkpoint.open(folder / part)]) for part in PARTS}
    rows = np.random.default_rng(1).choice(ids - 1, min(touched, ids - 1), replace=False) + 1
    known = dict.fromkeys(TABLES, np.array([COLD_ROW])) | {"user": np.append(COLD_ROW, np.sort(rows))}
    selection, samples = Selection(known, torch.empty(0), {}), Samples()
    if ranks.size == 1:
        samples.time(lambda: excerpt_parts(stacks, selection))
    else:
        outlines = {part: stack.outline(selection) for part, stack in stacks.items()}
        wanted = {part: stack.wanted(selection) for part, stack in stacks.items()}
        samples.time(lambda: read_together(ranks, outlines, wanted, stacks))
    ranks.add_up(torch.zeros(1))  # nobody lets go of the files before all are done
    mapped = [found for found in psutil.Process().memory_maps() if Path(found.path).parent == folder]
    megabytes = {name: sum(getattr(found, name) for found in mapped) / 1e6 for name in ("rss", "pss")}
    ranks.add_up(torch.zeros(1))
    return {"seconds": samples.median, "cpu_seconds": samples.cpu_median, **megabytes}
