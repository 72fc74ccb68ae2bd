"""Predictions by one count: how often an item was clicked of late, or at which rate."""

from typing import Any

import torch
from torch import Tensor

from asmg.statistics import NAMES
from asmg.yardsticks.measured import Measured

__all__ = ["ItemRate", "Popularity"]

CLICKS, RATE = NAMES.index("item_clicks_late"), NAMES.index("item_rate_late")

SURE = 1e-6
"""A rate is at least so far from 0 and 1: its logit has to be finite."""

LEAST_SLOPE = 1e-3
"""Of the popularity's logit: more clicks never mean a lower prediction."""

NEWTON_STEPS = 30


class Popularity:
    """Items in the order of their clicks of late.

    The order makes the AUC. To have a LogLoss too, the logit is a + b · log(1 + clicks), b > 0, with the a and b that
    fit the last closed period best.
    """

    def __init__(self) -> None:
        self._line = 0.0, LEAST_SLOPE
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """See Predictor."""
        return {"statistic": NAMES[CLICKS], "least_slope": LEAST_SLOPE}

    def learn(self, period: Measured) -> None:
        """See Predictor."""
        self._last = period.raw[:, CLICKS].double(), period.data.label.double()

    def fit(self) -> None:
        """See Predictor."""
        if self._last is not None:
            self._line = _fitted_line(*self._last)

    def logits(self, period: Measured) -> Tensor:
        """See Predictor."""
        start, slope = self._line
        return (start + slope * period.raw[:, CLICKS].double()).float()


class ItemRate:
    """The click rate of the item of late, drawn towards the average where it was shown little."""

    @property
    def config(self) -> dict[str, Any]:
        """See Predictor."""
        return {"statistic": NAMES[RATE]}

    def learn(self, period: Measured) -> None:
        """Nothing: the statistic is the prediction."""

    def fit(self) -> None:
        """Nothing."""

    def logits(self, period: Measured) -> Tensor:
        """See Predictor."""
        return torch.logit(period.raw[:, RATE].double(), eps=SURE).float()


def _fitted_line(x: Tensor, label: Tensor) -> tuple[float, float]:
    """The a and b ≥ LEAST_SLOPE of the logit a + b · x with the least LogLoss, by Newton's method.

    (With a small ridge, so that there is one where all labels are equal, or all x.)
    """
    columns = torch.stack([torch.ones_like(x), x], 1)
    ridge = 1e-3 * torch.eye(2, dtype=torch.float64)
    weights = torch.zeros(2, dtype=torch.float64)
    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(columns @ weights)
        slope = columns.T @ (p - label) + ridge @ weights
        curvature = (columns * (p * (1 - p)).unsqueeze(1)).T @ columns + ridge
        step = torch.linalg.solve(curvature, slope)
        weights = weights - step.clamp(-1, 1)
    if weights[1] < LEAST_SLOPE:  # popular items were clicked less: the order stays, and what is predicted is the mean
        mean = (label.mean()).clamp(SURE, 1 - SURE)
        return float(torch.logit(mean) - LEAST_SLOPE * x.mean()), LEAST_SLOPE
    return float(weights[0]), float(weights[1])
