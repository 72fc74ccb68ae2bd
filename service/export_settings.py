"""The settings of exports, a part of `service.settings`, which checks them."""

from pydantic_settings import BaseSettings

__all__ = ["ExportSettings"]


class ExportSettings(BaseSettings):
    """Where the worker exports to."""

    export_url: str | None = None
    """Place in an object store, of the same form as `artifacts_url`, to which the worker exports each period that was
    learned; unset for none. A log is then kept until it is exported."""
