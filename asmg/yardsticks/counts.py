"""Predictions from a single statistic of the item: its recent clicks, or its recent click rate."""

from typing import Any

import torch
from torch import Tensor

from asmg.statistics import NAMES
from asmg.yardsticks.measured import Measured

__all__ = ["ItemRate", "Popularity"]

CLICKS, RATE = NAMES.index("item_clicks_late"), NAMES.index("item_rate_late")

SURE = 1e-6
"""Minimum distance of a rate from 0 and 1, so that its logit is finite."""

LEAST_SLOPE = 1e-3
"""Minimum slope of the logit of the popularity: more clicks never lower the prediction."""

NEWTON_STEPS = 30
"""Steps of Newton's method; it converges in far fewer."""


class Popularity:
    """Items ranked by their recent clicks.

    The logit is a + b · log(1 + clicks), b > 0, with the a and b that fit the last closed period best; they affect the
    LogLoss, but not the AUC.
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
    """The recent click rate of the item, close to the average if it has few impressions."""

    @property
    def config(self) -> dict[str, Any]:
        """See Predictor."""
        return {"statistic": NAMES[RATE]}

    def learn(self, period: Measured) -> None:
        """Do nothing: the statistic is the prediction."""

    def fit(self) -> None:
        """Do nothing."""

    def logits(self, period: Measured) -> Tensor:
        """See Predictor."""
        return torch.logit(period.raw[:, RATE].double(), eps=SURE).float()


def _fitted_line(x: Tensor, label: Tensor) -> tuple[float, float]:
    """The a and b ≥ LEAST_SLOPE of the logit a + b · x with the lowest LogLoss, by Newton's method.

    A small ridge makes the solution unique if all labels or all x are equal.
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
    if weights[1] < LEAST_SLOPE:  # popular items were clicked less: keep the order, predict the mean
        mean = (label.mean()).clamp(SURE, 1 - SURE)
        return float(torch.logit(mean) - LEAST_SLOPE * x.mean()), LEAST_SLOPE
    return float(weights[0]), float(weights[1])
