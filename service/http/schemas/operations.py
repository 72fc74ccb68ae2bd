"""The documents of `GET /healthz`, `GET /readyz` and `GET /admin/overview`."""

from typing import Literal

from pydantic import BaseModel, Field

from service.use_cases.overview import Overview

__all__ = ["Health", "OverviewResponse", "Readiness"]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The process can predict and store."""

    status: Literal["ready"] = "ready"
    model_version: int
    period: int
    checks: dict[str, str]


class OverviewResponse(BaseModel):
    """The state of the installation, and of the process that answers."""

    checks: dict[str, str] = Field(description="As in `GET /readyz`, of the process that answers.")
    served_version: int = Field(description="The model version that this process serves.")
    installation: Overview
