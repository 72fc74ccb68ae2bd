"""The settings of the guardrails, a part of `service.settings.Settings`."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode

__all__ = ["GuardrailSettings"]


class GuardrailSettings(BaseSettings):
    """Settings of what watches over the models."""

    sample_events: int = Field(1000, ge=0, le=100_000)
    """Interactions that are kept of each period, to score later versions on them; 0 keeps none and switches all
    guardrails off that need them: forgetting, replay, drift, the live LogLoss."""
    sample_periods: int = Field(31, ge=2, le=1000)
    """Newest periods whose interactions are kept for that."""
    forgetting_bound: float = Field(0.1, gt=0, le=1)
    """Mean fall of the AUC on earlier periods, against the versions that had just learned them, beyond which an alert
    is opened."""
    rollback_after: int = Field(0, ge=0, le=12)
    """Periods in a row on which the served model was worse than a constant, after which the service rolls back by
    itself; 0: never."""
    canary_share: float = Field(0, ge=0, le=0.5)
    """Share of the users that a new version answers first; 0: it answers all of them at once."""
    canary_minutes: float = Field(30, gt=0, le=7 * 24 * 60)
    """After how many minutes it answers all of them, where it was not shown to be worse."""
    shadow: Annotated[tuple[str, ...], NoDecode] = ()
    """Update methods that run beside the served one and are scored on each period, separated by commas; none by
    default."""
