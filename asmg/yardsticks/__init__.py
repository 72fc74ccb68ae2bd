"""Yardsticks: what a practitioner has in an afternoon, to hold the update methods against.

They learn closed periods and predict the next one, as the update methods do, from the same statistics
(`asmg.statistics`). They are no update methods: nothing serves them.
"""

from collections.abc import Callable, Sequence
from typing import Any, final

from torch import Tensor

from asmg.batch import PeriodData
from asmg.statistics import NAMES, Statistics, StatisticsConfig
from asmg.yardsticks.boosting import LightGBM, lightgbm_version
from asmg.yardsticks.counts import ItemRate, Popularity
from asmg.yardsticks.logistic import LogisticRegression
from asmg.yardsticks.measured import Measured, Predictor

__all__ = ["LIGHTGBM_MISSING", "YARDSTICKS", "Yardstick", "build_yardstick", "installed_yardsticks"]

YARDSTICKS: dict[str, Callable[[], Predictor]] = {
    "popularity": Popularity,
    "item-ctr": ItemRate,
    "logistic": LogisticRegression,
    "lightgbm": LightGBM,
}
"""Name → what predicts."""

LIGHTGBM_MISSING = "lightgbm needs the package of that name: pip install 'asmg-service[peers]'"
"""What to do where LightGBM cannot be imported."""


def installed_yardsticks() -> tuple[str, ...]:
    """Those of YARDSTICKS that can be used here: "lightgbm" only where the package is installed."""
    return tuple(name for name in YARDSTICKS if name != "lightgbm" or lightgbm_version() is not None)


@final
class Yardstick:
    """A predictor with the statistics that it reads.

    Args:
        predictor: learns and predicts.
        dropped: columns of the statistics (of `asmg.statistics.NAMES`) that it reads zeros for.
    """

    def __init__(self, predictor: Predictor, dropped: Sequence[int] = ()) -> None:
        self._predictor, self._dropped = predictor, list(dropped)
        self._statistics = Statistics.initial(StatisticsConfig())

    @property
    def config(self) -> dict[str, Any]:
        """All settings of the predictor, and the statistics that it reads zeros for, as plain JSON values."""
        return {**self._predictor.config, "dropped": [NAMES[n] for n in self._dropped]}

    def learn(self, periods: Sequence[PeriodData]) -> None:
        """Learn the next closed periods, oldest first; each with the statistics that were known before it."""
        for data in periods:
            self._predictor.learn(self._measured(data))
            self._statistics = self._statistics.learned(data)
        self._predictor.fit()

    def logits(self, data: PeriodData) -> Tensor:
        """Predictions for the period after those learned, float32 [N]; its labels are not looked at."""
        return self._predictor.logits(self._measured(data))

    def _measured(self, data: PeriodData) -> Measured:
        raw, inputs = self._statistics.raw(data), self._statistics.inputs(data)
        raw[:, self._dropped] = 0
        inputs[:, self._dropped] = 0
        return Measured(data, raw, inputs)


def build_yardstick(name: str, *, dropped: Sequence[int] = ()) -> Yardstick:
    """The yardstick of this name.

    Args:
        name: one of YARDSTICKS.
        dropped: columns of the statistics that it reads zeros for.

    Raises:
        ValueError: there is no such yardstick, or LightGBM is not installed.
    """
    if name not in YARDSTICKS:
        raise ValueError(f"yardstick: expected one of {', '.join(YARDSTICKS)}; received {name!r}")
    if name not in installed_yardsticks():
        raise ValueError(LIGHTGBM_MISSING)
    return Yardstick(YARDSTICKS[name](), dropped)
