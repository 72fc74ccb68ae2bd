"""The documents of alerts and webhooks that clients send."""

from typing import Annotated

from pydantic import Field, StringConstraints

from service.http.schemas.types import TEXT_PATTERN, Reason, StrictModel
from service.limits import MAX_URL_LENGTH
from service.use_cases.webhooks.announce import Event
from service.use_cases.webhooks.endpoints import MAX_OVERLAP_HOURS, OVERLAP_HOURS

__all__ = ["AcknowledgeRequest", "RotateRequest", "SwitchRequest", "WebhookRequest"]


class AcknowledgeRequest(StrictModel):
    """What somebody says to an alert."""

    reason: Reason
    close: bool = Field(False, description="Whether to close it too; it opens again when it is raised again.")


class WebhookRequest(StrictModel):
    """A new webhook."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=MAX_URL_LENGTH, pattern=TEXT_PATTERN)]
    events: list[Annotated[Event, Field(strict=False)]] | None = Field(
        None, min_length=1, max_length=len(Event), description="What it is told of; null for all."
    )


class RotateRequest(StrictModel):
    """How to change the secret of a webhook."""

    overlap_hours: float = Field(
        OVERLAP_HOURS, ge=0, le=MAX_OVERLAP_HOURS, description="For how long the secret before signs too."
    )


class SwitchRequest(StrictModel):
    """Why a webhook is switched on or off."""

    reason: Reason
