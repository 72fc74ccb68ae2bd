"""Yardsticks: simple predictors with which the update methods are compared, in experiments and in the demo.

They learn closed periods and predict the next one, as the update methods do, from the same statistics
(`asmg.statistics`). They are never served.
"""

from collections.abc import Callable, Sequence
from typing import Any, final

from torch import Tensor

from asmg.batch import PeriodData
from asmg.datasets.log_fields import LogFields, no_columns
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
"""Name → predictor."""

SEEN_WITHOUT = 10
"""One of this many interactions is learned with its `training_only` fields missing, as in predictions."""

LIGHTGBM_MISSING = "lightgbm needs the package of that name: pip install 'asmg-service[peers]'"
"""Error message if LightGBM cannot be imported."""


def installed_yardsticks() -> tuple[str, ...]:
    """The names of YARDSTICKS that can be used: "lightgbm" only if the package is installed."""
    return tuple(name for name in YARDSTICKS if name != "lightgbm" or lightgbm_version() is not None)


@final
class Yardstick:
    """A predictor together with the statistics that it reads.

    Args:
        predictor: learns and predicts.
        dropped: columns of the statistics (`asmg.statistics.NAMES`) that it reads as zeros.
        fields: of all interactions, from the first one of the first period on; None for none.
    """

    def __init__(self, predictor: Predictor, dropped: Sequence[int] = (), fields: LogFields | None = None) -> None:
        self._predictor, self._dropped = predictor, list(dropped)
        self.fields = fields
        """The fields of all interactions so far; a caller with new interactions replaces them before learning or
        scoring."""
        self._statistics = Statistics.initial(StatisticsConfig())
        self._learned = 0  # number of interactions

    @property
    def config(self) -> dict[str, Any]:
        """All settings as plain JSON values: of the predictor, the dropped statistics and the fields."""
        names = [] if self.fields is None else list(dict.fromkeys(field.name for field in self.fields.fields))
        return {**self._predictor.config, "dropped": [NAMES[n] for n in self._dropped], "fields": names}

    def learn(self, periods: Sequence[PeriodData]) -> None:
        """Learn the next closed periods, oldest first, each with the statistics known before it."""
        for data in periods:
            self._predictor.learn(self._measured(data, slice(0, None, SEEN_WITHOUT)))
            self._learned += len(data)
            self._statistics = self._statistics.learned(data)
        self._predictor.fit()

    def logits(self, data: PeriodData) -> Tensor:
        """Logits float32 [N] for the period after those learned; its labels are not read."""
        return self._predictor.logits(self._measured(data, slice(None)))

    def _measured(self, data: PeriodData, neutral: slice) -> Measured:
        """The predictor's inputs; the `training_only` fields of the interactions `neutral` are missing."""
        raw, inputs = self._statistics.raw(data), self._statistics.inputs(data)
        raw[:, self._dropped] = 0
        inputs[:, self._dropped] = 0
        fields = no_columns(len(data))
        if self.fields is not None:
            fields = self.fields.part(self._learned, self._learned + len(data)).neutralised(neutral)
        return Measured(data, raw, inputs, fields)


def build_yardstick(name: str, *, dropped: Sequence[int] = (), fields: LogFields | None = None) -> Yardstick:
    """The yardstick of this name.

    Args:
        name: one of YARDSTICKS.
        dropped: columns of the statistics that it reads as zeros.
        fields: of all interactions, from the first one of the first period on; None for none.

    Raises:
        ValueError: the name is unknown, or LightGBM is not installed.
    """
    if name not in YARDSTICKS:
        raise ValueError(f"yardstick: expected one of {', '.join(YARDSTICKS)}; received {name!r}")
    if name not in installed_yardsticks():
        raise ValueError(LIGHTGBM_MISSING)
    return Yardstick(YARDSTICKS[name](), dropped, fields)
