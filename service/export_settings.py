"""The settings of exports, a part of `service.settings`."""

from pydantic import field_validator
from pydantic_settings import BaseSettings

from service.addresses import check_artifacts_url

__all__ = ["ExportSettings"]


class ExportSettings(BaseSettings):
    """Where the worker exports to."""

    export_url: str | None = None
    """Place in an object store, of the same form as `artifacts_url`, to which the worker exports each period that was
    learned; unset for none. A log is then kept until it is exported."""

    @field_validator("export_url", mode="before")
    @classmethod
    def _no_export_when_empty(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("export_url")
    @classmethod
    def _check_export_url(cls, value: str | None) -> str | None:
        if value is not None:
            check_artifacts_url(value)
        return value
