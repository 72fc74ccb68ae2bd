"""The documents of `/admin/keys`. A key itself is only in the answer to its creation."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from service.http.schemas.types import TEXT_PATTERN, Reason, StrictModel, Timestamp
from service.limits import MAX_KEY_NAME_LENGTH, MAX_RATE

__all__ = ["KeyCreated", "KeyDocument", "KeyLimit", "KeyList", "KeyReason", "KeyRequest"]

KeyName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_KEY_NAME_LENGTH, pattern=TEXT_PATTERN)]
Rate = Annotated[
    float | None,
    Field(
        ge=0,
        le=MAX_RATE,
        allow_inf_nan=False,
        description="Requests a second, 0 for no limit; null for `ASMG_RATE_LIMIT`.",
    ),
]


class KeyRequest(StrictModel):
    """A key to be created."""

    name: KeyName = Field(description="What the key is for, or whose it is; the audit names it.")
    scopes: Annotated[list[Literal["predict", "ingest", "admin"]], Field(min_length=1, max_length=3)]
    rate_limit: Rate = None
    expires_at: Timestamp | None = Field(None, description="The key is refused from then on; null for never.")
    reason: Reason | None = Field(None, description="Written into the audit.")


class KeyCreated(BaseModel):
    """The new key. It is stored nowhere, and cannot be read again."""

    key_id: str
    key: str


class KeyDocument(BaseModel):
    """What is known of a key."""

    key_id: str
    name: str
    scopes: list[str]
    rate_limit: float | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    valid: bool = Field(description="Whether it is neither revoked nor expired.")


class KeyList(BaseModel):
    """All keys ever created, oldest first."""

    keys: list[KeyDocument]


class KeyReason(StrictModel):
    """Why a key is revoked."""

    reason: Reason


class KeyLimit(StrictModel):
    """The new rate limit of a key, and why."""

    rate_limit: Rate
    reason: Reason
