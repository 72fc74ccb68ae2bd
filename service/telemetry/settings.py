"""The settings of logs and metrics, which every process reads before any other."""

from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["MULTIPROCESS_VARIABLE", "TelemetrySettings"]

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which the api processes of a host keep their metrics together. `prometheus_client` looks at it
when it is imported."""


class TelemetrySettings(BaseSettings):
    """How a process writes its log, and where it shows its metrics. `service.settings.Settings` has these too."""

    model_config = SettingsConfigDict(env_prefix="ASMG_", frozen=True, extra="forbid", hide_input_in_errors=True)

    log_format: Literal["text", "json"] = "text"
    """How log lines look: `text` for people, `json` for programs, one object a line."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least important lines that are written."""
    metrics_host: str = "127.0.0.1"
    """Address of the ports for metrics. They need no key and speak plain HTTP."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Port of `/metrics` for all api processes of `asmg serve`, then not on the API's port; unset for there."""
    worker_metrics_port: int | None = Field(None, ge=0, le=65535)
    """Port of the worker's `/metrics`; unset for none."""

    @field_validator("metrics_port", "worker_metrics_port", mode="before")
    @classmethod
    def _no_port_when_empty(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value
