"""The documents of rollbacks and pins of model versions."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from service.http.schemas.types import Reason, StrictModel
from service.limits import MAX_CURSOR

__all__ = ["CanaryRequest", "PinRequest", "PinResponse", "RollbackRequest", "RollbackResponse"]


class RollbackRequest(StrictModel):
    """Serve an earlier version, or a later one again."""

    to_version: int
    sequence: Literal["keep", "excise"] = Field(
        description="`excise` also takes the versions that are rolled back out of the sequence from which the next "
        "update learns."
    )
    reason: Reason


class RollbackResponse(BaseModel):
    """Sent after the moment from which every api process serves `to_version`."""

    from_version: int
    to_version: int
    sequence: Literal["keep", "excise"]
    active_from: datetime
    reason: str


class PinRequest(StrictModel):
    """Why a version is pinned or unpinned."""

    reason: Reason


class PinResponse(BaseModel):
    """Sent after the commit."""

    version: int
    pinned: bool
    changed: bool = Field(description="Whether this call changed it.")
    reason: str


class CanaryRequest(StrictModel):
    """Why a canary is promoted or reverted."""

    version: int | None = Field(None, ge=0, le=MAX_CURSOR, description="Of the canary; null for whichever runs.")
    reason: Reason
