"""LightGBM (Ke et al., NeurIPS 2017) on statistics and fields of the last five periods, retrained for each period.

Usual settings, untuned; its package comes with the extra `peers`. A categorical field is a column of numbers by first
appearance, so common values tend to have small numbers; a multi field has several columns. They are not declared as
categorical, because LightGBM overfits fields with thousands of values (on KuaiRand's week an AUC of 0.706 instead of
0.730, and 0.730 with ten times its smoothing).
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
"""Number of newest closed periods on which it is trained."""

TREES = 200
"""Number of trees."""

SETTINGS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 50,
    "seed": 0,
    "deterministic": True,
    "force_row_wise": True,  # otherwise LightGBM would choose by measured time
    "num_threads": 1,
    "verbose": -1,
}
"""LightGBM's parameters."""


@cache
def lightgbm_version() -> str | None:
    """Version of the installed LightGBM; None if it is missing or cannot be loaded."""
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
    """[N, S + C], the statistics and the fields as numbers; NaN for missing ones."""
    fields = period.fields
    if not fields.fields:
        return period.raw.numpy()
    codes = np.append(_codes(fields), np.nan)  # NO_VALUE, -1, reads the last
    numbers = np.where(np.isnan(fields.numbers), codes[fields.rows], fields.numbers)
    return np.concatenate([period.raw.double().numpy(), numbers], axis=1)


def _codes(fields: LogFields) -> np.ndarray:
    """The number that encodes the value of each row: its bucket, or its number within its field; NaN if missing."""
    numeric = {field.name: field.kind == "numeric" for field in fields.fields}
    codes, counts = np.full(len(fields.values) + 1, np.nan), dict.fromkeys(numeric, 0)
    for row, (name, value) in enumerate(fields.values, start=1):
        if not numeric[name]:
            codes[row], counts[name] = counts[name], counts[name] + 1
        elif value.isdecimal():
            codes[row] = int(value)
    return codes
