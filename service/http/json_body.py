"""The JSON body of a request as a model, for FastAPI's routes, and its description in OpenAPI."""

from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel

from service.http.bodies.parse import parse_json
from service.http.bodies.read import read_body
from service.limits import MAX_BODY_BYTES

__all__ = ["JsonBody", "body_schema"]

M = TypeVar("M", bound=BaseModel)


class JsonBody(Generic[M]):
    """A dependency that parses the body as a `model`, in one pass over its bytes.

    FastAPI parses its own body parameters before any dependency runs. This one runs after `Requires`, so that a caller
    without a key gets 401 whatever the body holds, and cannot make the service parse 8 MiB.

    Args:
        model: of the document.
        optional: whether a request without a body means the model's defaults.
        gzip: whether the body may be compressed.
    """

    def __init__(self, model: type[M], *, optional: bool = False, gzip: bool = False) -> None:
        self._model = model
        self._optional = optional
        self._gzip = gzip

    async def __call__(self, request: Request) -> M:
        """The parsed body; raises as `read_body` and `parse_json` do."""
        body = await read_body(request.scope, request.receive, MAX_BODY_BYTES, gzip=self._gzip)
        if not body and self._optional:
            return self._model()
        return parse_json(self._model, body, request.scope)


def body_schema(model: type[BaseModel], *, optional: bool = False) -> dict[str, Any]:
    """The part of an OpenAPI operation that describes the body which `JsonBody(model)` parses."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    content = {"application/json": {"schema": _inlined(schema, definitions)}}
    return {"requestBody": {"required": not optional, "content": content}}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """`node` with each `{"$ref": …}` replaced by its definition: inside OpenAPI the reference would be wrong."""
    if isinstance(node, list):
        return [_inlined(part, definitions) for part in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(part, definitions) for name, part in node.items()}
