"""LightGBM on the statistics of the last five periods, trained anew for each period; with its usual settings, untuned.

(Ke et al., NeurIPS 2017.) Its package comes with the extra `peers`.
"""

import importlib
import importlib.metadata
from collections import deque
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

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

    @property
    def config(self) -> dict[str, Any]:
        """See Predictor."""
        return {"periods": PERIODS, "trees": TREES, **SETTINGS}

    def learn(self, period: Measured) -> None:
        """See Predictor."""
        self._periods.append((period.raw.numpy(), period.data.label.numpy()))

    def fit(self) -> None:
        """See Predictor."""
        import lightgbm

        rows, labels = (np.concatenate(part) for part in zip(*self._periods, strict=True))
        data = lightgbm.Dataset(rows, labels, feature_name=list(NAMES), free_raw_data=True)
        self._trees = lightgbm.train(SETTINGS, data, num_boost_round=TREES)

    def logits(self, period: Measured) -> Tensor:
        """See Predictor."""
        found = self._trees.predict(period.raw.numpy(), raw_score=True, num_threads=1)
        return torch.from_numpy(np.asarray(found, np.float32))
