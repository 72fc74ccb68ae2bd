"""The FastAPI application without its parts: what its description says, and what of the framework is switched off."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from asmg.features import Schema
from service import __version__
from service.http.schemas import Problem
from service.use_cases.fields import described

__all__ = ["DescribedApp"]

NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}

DESCRIPTION = """\
Click probabilities from a model that learns period by period (ASMG).

Ask with `POST /predict`, report what happened with `POST /interactions`, close a period with `POST /periods/close`,
and the next model takes over without a request failing. Errors are problem documents (RFC 9457). Ids are strings, or
integers of 64 bits, which are their decimal text. Calls that store take bodies with `Content-Encoding: gzip`.
"""


class DescribedApp(FastAPI):
    """A FastAPI application whose OpenAPI document lists the fields of a schema.

    Args:
        fields: that clients may send.
        lifespan: as FastAPI takes it.
    """

    def __init__(self, fields: Schema, lifespan: Callable[[FastAPI], Any]) -> None:
        super().__init__(
            title="asmg-service",
            version=__version__,
            description=DESCRIPTION,
            lifespan=lifespan,
            redirect_slashes=False,
            docs_url=None,  # `service.http.routers.docs` serves it, with a content security policy
            redoc_url=None,
            swagger_ui_oauth2_redirect_url=None,
            telemetry=NO_TELEMETRY,
            responses={"default": {"model": Problem, "description": "A problem document"}},
        )
        self._fields = fields

    def openapi(self) -> dict[str, Any]:
        """The description of the API, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = described(super().openapi(), self._fields)
        return self.openapi_schema
