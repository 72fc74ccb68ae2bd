"""The FastAPI application without its parts: what its description says, and what of the framework is switched off."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from asmg.features import Schema
from service import __version__
from service.http.schemas import Problem
from service.limits import MAX_INTEGER_ID, MIN_INTEGER_ID
from service.use_cases.fields import described

__all__ = ["DescribedApp"]

NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}

PROBLEM_JSON = "application/problem+json"

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
            generate_unique_id_function=lambda route: route.name,  # the names of functions in generated clients
            responses={"default": {"model": Problem, "description": "A problem document"}},
        )
        self._fields = fields

    def openapi(self) -> dict[str, Any]:
        """The description of the API, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = described(_as_generators_read_it(super().openapi()), self._fields)
        return self.openapi_schema


def _as_generators_read_it(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the media types that are really sent, and without what only OpenAPI 3.2 has; generators of
    clients make types of both.
    """
    for methods in document["paths"].values():
        for operation in methods.values():
            answers = operation["responses"]
            answers["default"]["content"] = {PROBLEM_JSON: next(iter(answers["default"]["content"].values()))}
            stream = answers.get("200", {}).get("content", {}).get("text/event-stream", {})
            if stream.pop("itemSchema", None) is not None:
                stream["schema"] = {"type": "string"}
    return {name: _with_whole_bounds(part) for name, part in document.items()}


def _with_whole_bounds(node: Any) -> Any:
    """The node with bounds of integers as integers; FastAPI makes floats of them, of which 2⁶³ - 1 is none."""
    if isinstance(node, list):
        return [_with_whole_bounds(part) for part in node]
    if not isinstance(node, dict):
        return node
    node = {name: _with_whole_bounds(part) for name, part in node.items()}
    if node.get("type") == "integer":
        bounds = {name: node[name] for name in ("minimum", "maximum") if name in node}
        node |= {name: max(MIN_INTEGER_ID, min(int(bound), MAX_INTEGER_ID)) for name, bound in bounds.items()}
    return node
