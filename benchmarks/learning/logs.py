"""Whole logs as table rows, cut into periods. Row = 1 + the number of an id by its first appearance; no categories."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from asmg.batch import PeriodData, build_histories, build_recent
from asmg.datasets import open_folder


def numbered(ids: Iterable[str]) -> np.ndarray:
    """The table row of each id, int32 [N]."""
    rows: dict[str, int] = {}
    return np.array([rows.setdefault(key, len(rows) + 1) for key in ids], np.int32)


def table_rows(
    user: np.ndarray,
    item: np.ndarray,
    label: np.ndarray,
    timestamp: np.ndarray,
    *,
    sampled: np.ndarray | None = None,
) -> PeriodData:
    """A log in time order as one period; what users did before each interaction follows from the log itself.

    Args:
        user, item: table rows, int [N].
        label: 0 or 1, [N].
        timestamp: int64 [N], in any unit.
        sampled: bool [N], which interactions are sampled negatives; None for none.
    """
    history, offsets = build_histories(user, item, label, timestamp)
    return PeriodData(
        user=torch.from_numpy(user.astype(np.int32)),
        item=torch.from_numpy(item.astype(np.int32)),
        history=torch.from_numpy(history),
        offsets=torch.from_numpy(offsets),
        label=torch.from_numpy(label.astype(np.float32)),
        users=int(user.max()) + 1,
        items=int(item.max()) + 1,
        recent=torch.from_numpy(build_recent(user, label, timestamp, sampled=sampled)),
    )


def folder_periods(folder: Path, periods: int, seed: int) -> tuple[str, list[PeriodData]]:
    """The name of the public log in a folder, and the log in periods of equal row counts; what is left over is dropped.

    All ids of the log have their rows from the start.

    Args:
        folder: of a public log, see `asmg.datasets.open_folder`.
        periods: how many.
        seed: of DIGINETICA's negatives.

    Raises:
        LogFormatError: the folder holds no such log.
        OSError: it is no folder.
        ValueError: the log has fewer rows than periods.
    """
    name, log = open_folder(folder, np.random.default_rng(seed))
    if len(log) < periods:
        raise ValueError(f"periods: expected at most {len(log)}, the rows of the log; received {periods}")
    order, rows = log.time_order(), len(log) // periods
    sampled = (log.labels == 0)[order] if name == "diginetica" else None
    user, item = (numbered(ids)[order] for ids in (log.user_ids, log.item_ids))
    whole = table_rows(user, item, log.labels[order], log.timestamps_ms[order], sampled=sampled)
    return name, [_copied(whole.slice(number * rows, (number + 1) * rows)) for number in range(periods)]


def _copied(period: PeriodData) -> PeriodData:
    """The period with memory of its own, so that it can be pickled, or freed, without the rest of the log."""
    names = ("user", "item", "history", "offsets", "label", "recent")
    return replace(period, **{name: getattr(period, name).clone() for name in names})
