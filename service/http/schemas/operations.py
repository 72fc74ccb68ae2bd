"""The documents of `GET /healthz` and `GET /readyz`."""

from typing import Literal

from pydantic import BaseModel

__all__ = ["Health", "Readiness"]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The process can predict and store."""

    status: Literal["ready"] = "ready"
    model_version: int
    period: int
    checks: dict[str, str]
