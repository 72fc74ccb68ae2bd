"""What yardsticks read, and what they do with it."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from asmg.batch import PeriodData
from asmg.datasets.log_fields import LogFields

__all__ = ["Measured", "Predictor"]


class Measured(NamedTuple):
    """A period's interactions with the statistics that were known before each of them happened."""

    data: PeriodData
    """In time order."""
    raw: Tensor
    """float32 [N, S], the statistics of `asmg.statistics.NAMES`."""
    inputs: Tensor
    """float32 [N, S], the same standardised."""
    fields: LogFields
    """Of the N interactions, C columns; C = 0 where there are no fields."""


class Predictor(Protocol):
    """Learns closed periods, and predicts the one after them."""

    @property
    def config(self) -> dict[str, Any]:
        """All settings, as plain JSON values."""
        ...

    def learn(self, period: Measured) -> None:
        """Take in one more closed period."""
        ...

    def fit(self) -> None:
        """The next call is for a prediction: do what is done once for all the periods taken in."""
        ...

    def logits(self, period: Measured) -> Tensor:
        """Predictions, float32 [N]; labels are not looked at."""
        ...
