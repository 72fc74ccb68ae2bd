"""The data that the demo plays, period by period: a synthetic stream with known drift, or a public collection."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asmg.datasets import InteractionLog, cut, open_folder
from asmg.datasets.synthetic import FIELDS, DriftConfig, drift_stream
from asmg.features import DEFAULT, Schema
from asmg.metrics import Scores, scores

__all__ = ["BEST", "BEST_OF_PAIRS", "SYNTHETIC_PERIODS", "PlayedPeriod", "Stream", "folder_stream", "synthetic_stream"]

BEST = "best"
"""Key of the scores of the true click probabilities, given all that a prediction can know."""
BEST_OF_PAIRS = "best_of_pairs"
"""Key of the scores of the true click probabilities, given user and item alone."""

SYNTHETIC_PERIODS = 8
MOVIELENS_PERIODS = 31
"""Number of periods, as in the reference experiments (equal counts)."""

DIGINETICA_START_MS = 1_704_067_200_000
"""Start of DIGINETICA in the demo, 2024-01-01. Its files have no times and are read as if they began with 1970; the
service refuses such small numbers, because they are most likely seconds."""


@dataclass(frozen=True, kw_only=True)
class PlayedPeriod:
    """One period: its log in time order, its new catalogue entries, and the best possible scores."""

    user_ids: Sequence[str]
    """Length n."""
    item_ids: Sequence[str]
    """Length n."""
    labels: NDArray[np.uint8]
    """[n] 0 or 1."""
    timestamps_ms: NDArray[np.int64]
    """[n] ascending."""
    new_items: Mapping[str, tuple[str, ...]]
    """Categories of the items that had not appeared before and have any."""
    contexts: Sequence[Mapping[str, Any]] = ()
    """Context of each interaction; empty if the data has none."""
    new_users: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Features of the users who had not appeared before and have any."""
    item_features: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Features of the items that had not appeared before and have any."""
    best: Mapping[str, Scores] = field(default_factory=dict)
    """Scores of the true click probabilities, by `BEST` and, if the stream has fields, `BEST_OF_PAIRS`; empty if
    they are unknown."""


@dataclass(frozen=True)
class Stream:
    """Periods to play, in order."""

    name: str
    """`synthetic` or the name of the collection."""
    count: int
    """Number of periods."""
    periods: Iterator[PlayedPeriod]
    schema: Schema = DEFAULT
    """Schema of the fields."""


def synthetic_stream(config: DriftConfig, count: int, seed: int) -> Stream:
    """The first `count` periods of the stream with known drift."""
    return Stream("synthetic", count, islice(_synthetic(config, seed), count), FIELDS if config.fields else DEFAULT)


def folder_stream(folder: Path, count: int | None, seed: int) -> Stream:
    """The log of a folder: DIGINETICA in its own periods, `count` of them at most; MovieLens cut into `count`.

    Args:
        folder: of the collection's files.
        count: number of periods; None for all of DIGINETICA, 31 of MovieLens.
        seed: of DIGINETICA's negatives.

    Raises:
        LogFormatError: the folder holds neither, or a malformed file.
        OSError: it is not a folder.
    """
    name, log = open_folder(folder, np.random.default_rng(seed))
    pieces = cut(log, "periods", count or MOVIELENS_PERIODS) if log.period is None else cut(log, "column")[:count]
    return Stream(name, len(pieces), _replayed(log, pieces, DIGINETICA_START_MS if name == "diginetica" else 0))


def _synthetic(config: DriftConfig, seed: int) -> Iterator[PlayedPeriod]:
    for period in drift_stream(config, seed=seed):
        truths = {BEST: period.probabilities if period.predictable is None else period.predictable}
        if period.of_pairs is not None:
            truths[BEST_OF_PAIRS] = period.of_pairs
        yield PlayedPeriod(
            user_ids=period.user_ids,
            item_ids=period.item_ids,
            labels=period.labels,
            timestamps_ms=period.timestamps_ms,
            new_items=period.new_items,
            contexts=period.contexts,
            new_users=period.new_users,
            item_features=period.item_features,
            best={name: _scores_of(truth, period.labels) for name, truth in truths.items()},
        )


def _scores_of(probabilities: NDArray[np.float64], labels: NDArray[np.uint8]) -> Scores:
    return scores(torch.logit(torch.from_numpy(probabilities)), torch.from_numpy(labels))


def _replayed(log: InteractionLog, pieces: Sequence[NDArray[np.int64]], shift_ms: int) -> Iterator[PlayedPeriod]:
    seen: set[str] = set()
    for rows in pieces:
        items = log.item_ids[rows].tolist()
        fresh = dict.fromkeys(item for item in items if item not in seen)
        seen.update(fresh)
        yield PlayedPeriod(
            user_ids=log.user_ids[rows].tolist(),
            item_ids=items,
            labels=log.labels[rows],
            timestamps_ms=log.timestamps_ms[rows] + shift_ms,
            new_items={item: log.categories[item] for item in fresh if log.categories.get(item)},
        )
