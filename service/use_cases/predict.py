"""Score candidate items for a user."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.limits import MAX_HISTORY
from service.serving.snapshot import Prediction
from service.serving.swap import ServingModel
from service.storage.redis_state import HistoryStore

__all__ = ["PredictResult", "predict"]


@dataclass(frozen=True, slots=True)
class PredictResult:
    """A prediction and the one version that all of it is of."""

    model_version: int
    period: int
    prediction: Prediction


async def predict(
    serving: ServingModel, histories: HistoryStore, *, user_id: str, items: Sequence[str], history: Sequence[str] | None
) -> PredictResult:
    """The click probability of each of `items`, by the version that is served now.

    Args:
        serving: the model.
        histories: the clicks that the service remembers.
        user_id: known or not.
        items: known or not.
        history: items clicked before, newest first, in place of what the service remembers.

    Raises:
        NotReady: no model is loaded.
    """
    if history is None:
        history = await histories.get(user_id)
    # Taken once, after the last await: the request is of one version, and of the newest there is.
    snapshot = serving.current()
    prediction = snapshot.predict(user_id, items, history[:MAX_HISTORY])
    return PredictResult(snapshot.version, snapshot.period, prediction)
