"""The inputs of yardsticks, and the interface of their predictors."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from asmg.batch import PeriodData
from asmg.datasets.log_fields import LogFields

__all__ = ["Measured", "Predictor"]


class Measured(NamedTuple):
    """A period's N interactions with the statistics that were known before each of them."""

    data: PeriodData
    """In time order."""
    raw: Tensor
    """float32 [N, S], the statistics of `asmg.statistics.NAMES`."""
    inputs: Tensor
    """float32 [N, S], the statistics standardised."""
    fields: LogFields
    """The fields in C columns; C = 0 without fields."""


class Predictor(Protocol):
    """Learns closed periods and predicts the next one."""

    @property
    def config(self) -> dict[str, Any]:
        """All settings, as plain JSON values."""
        ...

    def learn(self, period: Measured) -> None:
        """Add one closed period."""
        ...

    def fit(self) -> None:
        """Called before a prediction: do the work that is done once for all added periods."""
        ...

    def logits(self, period: Measured) -> Tensor:
        """Logits float32 [N] of the next period; its labels are not read."""
        ...
