"""The documents of `POST /periods/close`, and of retrying or skipping a period."""

from typing import Literal

from pydantic import BaseModel, Field

from service.http.schemas.types import Reason, StrictModel

__all__ = ["CloseRequest", "CloseResponse", "PeriodReason"]


class CloseRequest(StrictModel):
    """Says which period is meant to be closed, so that a repeated call does not close the next one, and why."""

    expected_period: int | None = None
    reason: Reason | None = Field(None, description="Written into the audit log.")


class CloseResponse(BaseModel):
    """The period is sealed. `status_url` tells how its update goes on."""

    period: int
    status: Literal["sealed"]
    status_url: str


class PeriodReason(StrictModel):
    """Why a period is retried or skipped."""

    reason: Reason
