"""Yardsticks: what a practitioner has in an afternoon, to hold the update methods against.

They learn closed periods and predict the next one, as the update methods do, from the same statistics
(`asmg.statistics`). They are no update methods: nothing serves them.
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
"""Name → what predicts."""

SEEN_WITHOUT = 10
"""Of so many interactions one is learned as if its `training_only` fields were missing: as all are predicted."""

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
        fields: those of all interactions, from the first of the first period on; None: it reads none.
    """

    def __init__(self, predictor: Predictor, dropped: Sequence[int] = (), fields: LogFields | None = None) -> None:
        self._predictor, self._dropped = predictor, list(dropped)
        self.fields = fields
        """Whoever has more interactions puts their fields, together with those of all before, in the place of these."""
        self._statistics = Statistics.initial(StatisticsConfig())
        self._learned = 0  # interactions

    @property
    def config(self) -> dict[str, Any]:
        """All settings of the predictor, the statistics that it reads zeros for, the fields; as plain JSON values."""
        names = [] if self.fields is None else list(dict.fromkeys(field.name for field in self.fields.fields))
        return {**self._predictor.config, "dropped": [NAMES[n] for n in self._dropped], "fields": names}

    def learn(self, periods: Sequence[PeriodData]) -> None:
        """Learn the next closed periods, oldest first; each with the statistics that were known before it."""
        for data in periods:
            self._predictor.learn(self._measured(data, slice(0, None, SEEN_WITHOUT)))
            self._learned += len(data)
            self._statistics = self._statistics.learned(data)
        self._predictor.fit()

    def logits(self, data: PeriodData) -> Tensor:
        """Predictions for the period after those learned, float32 [N]; its labels are not looked at."""
        return self._predictor.logits(self._measured(data, slice(None)))

    def _measured(self, data: PeriodData, neutral: slice) -> Measured:
        """What the predictor reads; the `training_only` fields of the interactions `neutral` are missing."""
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
        dropped: columns of the statistics that it reads zeros for.
        fields: of all interactions, from the first of the first period on; None: it reads none.

    Raises:
        ValueError: there is no such yardstick, or LightGBM is not installed.
    """
    if name not in YARDSTICKS:
        raise ValueError(f"yardstick: expected one of {', '.join(YARDSTICKS)}; received {name!r}")
    if name not in installed_yardsticks():
        raise ValueError(LIGHTGBM_MISSING)
    return Yardstick(YARDSTICKS[name](), dropped, fields)
