"""Problem documents (RFC 9457): one function turns every exception into a response.

ServiceError             its own status and document (`service.errors`)
RequestValidationError   422, the fields of a path, a query or a header
HTTPException            what the framework raises: 404, 405, and our 400 and 415
anything else            500 without details; the log has them
"""

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import Scope

from service.context import current_request_id
from service.errors import FieldError, InvalidInput, RateLimited, ServiceError
from service.limits import MAX_ID_LENGTH, MAX_INTEGER_ID, MIN_INTEGER_ID

__all__ = [
    "UNMATCHED_ROUTE",
    "install_problem_handlers",
    "invalid_fields",
    "invalid_input",
    "render_problem",
    "route_of",
]

log = logging.getLogger(__name__)

MAX_RECEIVED_LENGTH = 100
"""The most characters of a client's value that a problem document repeats."""
MAX_FIELD_ERRORS = 50
"""The most wrong fields that a problem document lists."""
RETRY_AFTER_SECONDS = 1
"""`Retry-After` of responses with status 503."""
UNMATCHED_ROUTE = "unmatched"
"""The route, for logs and metrics, of requests that no route matches."""

_EXPECTED = {
    "dict_type": "an object",
    "extra_forbidden": "no field of this name",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than_equal": "at least {ge}",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "int_type": "an integer",
    "less_than_equal": "at most {le}",
    "list_type": "an array",
    "literal_error": "{expected}",
    "missing": "a value",
    "model_type": "an object",
    "string_pattern_mismatch": "no NUL character",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} character",
    "string_type": "a string",
    "too_long": "at most {max_length} items",
    "too_short": "at least {min_length} item",
}
_PARTS_OF_A_REQUEST = ("body", "query", "path", "header")


def invalid_input(errors: Sequence[Mapping[str, Any]]) -> InvalidInput:
    """The error for what pydantic has found; it lists the first `MAX_FIELD_ERRORS` wrong fields."""
    fields = [
        FieldError(field=_path(error["loc"]), expected=_expected(error), received=_received(error))
        for error in errors[:MAX_FIELD_ERRORS]
    ]
    return invalid_fields(fields, len(errors))


def invalid_fields(fields: Sequence[FieldError], wrong: int) -> InvalidInput:
    """The error that lists `fields`, which are the first `MAX_FIELD_ERRORS` of `wrong` invalid fields."""
    shown = "" if wrong <= MAX_FIELD_ERRORS else f"; the first {MAX_FIELD_ERRORS} are listed"
    first = fields[0]
    detail = (
        f"{first.field or 'body'}: expected {first.expected}; received {first.received}"
        if wrong == 1
        else f"{wrong} fields are not as expected{shown}"
    )
    return InvalidInput(detail, errors=fields)


def _path(location: Sequence[str | int]) -> str:
    """`interactions[3].label` of `("body", "interactions", 3, "label")`."""
    if location and location[0] in _PARTS_OF_A_REQUEST:
        location = location[1:]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{_shortened(part)}" for part in location)
    return path.removeprefix(".")


def _expected(error: Mapping[str, Any]) -> str:
    if error["type"] == "no_id":
        return _expected_id(error["input"])
    if error["type"] == "no_item":
        value = error["input"]
        return "an id, or an object with an id and a context" if isinstance(value, dict) else _expected_id(value)
    template = _EXPECTED.get(error["type"])
    return template.format_map(error.get("ctx", {})) if template else str(error["msg"])


def _expected_id(value: Any) -> str:
    """What was expected of a value that is no id."""
    if type(value) is int:
        return f"an integer from {MIN_INTEGER_ID} to {MAX_INTEGER_ID}, or a string"
    if not isinstance(value, str):
        return "a string or an integer"
    if not value:
        return "at least 1 character"
    return f"at most {MAX_ID_LENGTH} characters" if len(value) > MAX_ID_LENGTH else "no NUL character"


def _received(error: Mapping[str, Any]) -> str:
    """The value as JSON, shortened; only the size of a list, which may hold megabytes."""
    value = error["input"]
    if error["type"] == "missing":
        return "nothing"
    if error["type"] == "repeated":
        return f"{json.dumps(error['ctx']['received'], ensure_ascii=False)[:MAX_RECEIVED_LENGTH]} twice"
    if error["type"] == "epoch_seconds":
        return f"{value}, which looks like epoch seconds"
    if isinstance(value, list):
        return f"{len(value)} items"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        value = value[:MAX_RECEIVED_LENGTH]
    return _shortened(json.dumps(value, ensure_ascii=False, default=str))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_RECEIVED_LENGTH else text[: MAX_RECEIVED_LENGTH - 1] + "…"


def render_problem(error: Exception, *, instance: str, route: str = "a request") -> Response:
    """The response to an error of the current request. An error of the service itself is logged here.

    Args:
        error: of the request.
        instance: path of the request, for the client; it is not logged, because it may hold an id.
        route: template of the path, for the log.
    """
    headers: dict[str, str] = {}
    if isinstance(error, RequestValidationError):
        error = invalid_input(error.errors())
    if isinstance(error, ServiceError) and error.status != HTTPStatus.INTERNAL_SERVER_ERROR:
        document = error.problem()
    elif isinstance(error, HTTPException):
        headers.update(error.headers or {})
        document = {
            "type": "about:blank",
            "title": HTTPStatus(error.status_code).phrase,
            "status": error.status_code,
            "detail": error.detail,
        }
    else:
        log.error("%s failed", route, exc_info=error)
        document = ServiceError("the service failed to answer; its log has the cause").problem()
    if document["status"] == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if document["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if isinstance(error, RateLimited):
        headers["Retry-After"] = str(error.retry_after)
    document["instance"] = instance
    document["request_id"] = current_request_id.get()
    return Response(
        json.dumps(document, ensure_ascii=False),
        status_code=document["status"],
        headers=headers,
        media_type="application/problem+json",
    )


def route_of(scope: Scope) -> str:
    """The template of the path, such as `/users/{user_id}`, for logs and metrics. The path itself may hold an id, and
    there are any number of paths.
    """
    return str(getattr(scope.get("route"), "path_format", UNMATCHED_ROUTE))


async def _handle(request: Request, error: Exception) -> Response:
    response = render_problem(error, instance=request.url.path, route=route_of(request.scope))
    if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The framework names the methods of one route, where a path may have one for each method.
        path = request.state.app.prefix.route_path(request.scope)
        routes = [r for r in iter_route_contexts(request.app.routes) if r.path and compile_path(r.path)[0].match(path)]
        response.headers["Allow"] = ", ".join(sorted({method for route in routes for method in route.methods or ()}))
    return response


def install_problem_handlers(app: FastAPI) -> None:
    """Have FastAPI render the errors of routes and dependencies; `service.http.middleware.Observe` renders others."""
    for kind in (ServiceError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _handle)
