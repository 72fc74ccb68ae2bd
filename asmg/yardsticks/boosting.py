"""LightGBM on the statistics and the fields of the last five periods, trained anew for each; usual settings, untuned.

(Ke et al., NeurIPS 2017.) Its package comes with the extra `peers`. A categorical field is a column of numbers, given
by first appearance, so that common values tend to have small ones; a multi field is several. LightGBM is not told that
they are categorical: with fields of thousands of values it then learns by heart (on KuaiRand's week an AUC of 0.706
instead of 0.730, and 0.730 with ten times its smoothing).
"""

import importlib
import importlib.metadata
from collections import deque
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asmg.datasets.log_fields import LogFields
from asmg.statistics import NAMES
from asmg.yardsticks.measured import Measured

__all__ = ["LightGBM", "lightgbm_version"]

PERIODS = 5
"""Newest closed periods that it is trained on."""

TREES = 200

SETTINGS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 50,
    "seed": 0,
    "deterministic": True,
    "force_row_wise": True,  # or it would choose by a time that it measures
    "num_threads": 1,
    "verbose": -1,
}
"""Parameters by LightGBM's names."""


@cache
def lightgbm_version() -> str | None:
    """Which LightGBM is installed; None where there is none, or where it lacks a library of the system."""
    try:
        importlib.import_module("lightgbm")
        return importlib.metadata.version("lightgbm")
    except (ImportError, OSError):
        return None


class LightGBM:
    """Gradient-boosted trees."""

    def __init__(self) -> None:
        self._periods: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=PERIODS)
        self._trees: Any = None
        self._columns = list(NAMES)

    @property
    def config(self) -> dict[str, Any]:
        """See Predictor."""
        return {"periods": PERIODS, "trees": TREES, **SETTINGS}

    def learn(self, period: Measured) -> None:
        """See Predictor."""
        self._columns = [*NAMES, *(f"{field.name}.{n}" for n, field in enumerate(period.fields.fields))]
        self._periods.append((_matrix(period), period.data.label.numpy()))

    def fit(self) -> None:
        """See Predictor."""
        import lightgbm

        rows, labels = (np.concatenate(part) for part in zip(*self._periods, strict=True))
        data = lightgbm.Dataset(rows, labels, feature_name=self._columns, free_raw_data=True)
        self._trees = lightgbm.train(SETTINGS, data, num_boost_round=TREES)

    def logits(self, period: Measured) -> Tensor:
        """See Predictor."""
        found = self._trees.predict(_matrix(period), raw_score=True, num_threads=1)
        return torch.from_numpy(np.asarray(found, np.float32))


def _matrix(period: Measured) -> np.ndarray:
    """[N, S + C] the statistics, and the fields as numbers; NaN where there is none."""
    fields = period.fields
    if not fields.fields:
        return period.raw.numpy()
    codes = np.append(_codes(fields), np.nan)  # of NOTHING, -1, the last
    numbers = np.where(np.isnan(fields.numbers), codes[fields.rows], fields.numbers)
    return np.concatenate([period.raw.double().numpy(), numbers], axis=1)


def _codes(fields: LogFields) -> np.ndarray:
    """By row what stands for a value: its bucket, or its number within its field; NaN for a number that is missing."""
    numeric = {field.name: field.kind == "numeric" for field in fields.fields}
    codes, counts = np.full(len(fields.values) + 1, np.nan), dict.fromkeys(numeric, 0)
    for row, (name, value) in enumerate(fields.values, start=1):
        if not numeric[name]:
            codes[row], counts[name] = counts[name], counts[name] + 1
        elif value.isdecimal():
            codes[row] = int(value)
    return codes
