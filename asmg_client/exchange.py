"""Requests and answers of httpx, without sending them: what both clients have in common."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar, cast

import httpx

from asmg_client import errors
from asmg_client.call import Call
from asmg_client.decoding import decoded
from asmg_client.errors import AsmgError, ConnectionFailed, InvalidAnswer, Problem, ProblemError, TimedOut

__all__ = [
    "STREAM_READ_SECONDS",
    "Pool",
    "Timeouts",
    "answer_of",
    "http_arguments",
    "problem_of",
    "raised",
    "request_arguments",
]

T = TypeVar("T")

KINDS: Mapping[str, type[ProblemError]] = {
    kind.slug: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ProblemError) and kind.slug is not None
}
"""The classes of problems by the last part of their type."""

URN = "urn:asmg:problem:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long one attempt waits, in seconds."""

    connect_seconds: float = 2.0
    """For a connection."""
    read_seconds: float = 10.0
    """For the next bytes of the answer. A rollback is answered after the lead of a swap, half a second by default."""
    write_seconds: float = 10.0
    """Until the next bytes of the request are taken."""
    pool_seconds: float = 2.0
    """For a connection of the pool to become free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The connections of a client."""

    connections: int = 100
    """Most at a time; calls above it wait."""
    idle_connections: int = 20
    """Most that are kept for later calls."""
    idle_seconds: float = 30.0
    """How long one is kept: less than `ASMG_KEEP_ALIVE_SECONDS` (75) and the idle time of most load balancers (60), so
    that no request goes into a connection which the other side is closing."""


STREAM_READ_SECONDS = 60.0
"""How long to wait for more of a stream of events; the service sends one every 15 s."""


def http_arguments(url: str, key: str | None, timeouts: Timeouts, pool: Pool) -> dict[str, Any]:
    """Arguments of an `httpx.Client` or an `httpx.AsyncClient`.

    Args:
        url: of the service.
        key: an API key; None for the one in `ASMG_KEY`, if there is one.
        timeouts: of each attempt.
        pool: of connections.
    """
    headers = {"Accept": "application/json", "User-Agent": f"asmg-client/{_version()}"}
    key = os.environ.get("ASMG_KEY") if key is None else key
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return {
        "base_url": url,
        "headers": headers,
        "timeout": _timeout(timeouts, float("inf")),
        "limits": httpx.Limits(
            max_connections=pool.connections,
            max_keepalive_connections=pool.idle_connections,
            keepalive_expiry=pool.idle_seconds,
        ),
    }


def _version() -> str:
    try:
        return version("asmg-client")
    except PackageNotFoundError:  # imported from the repository
        return "0"


def request_arguments(call: Call[Any], timeouts: Timeouts, most_seconds: float = float("inf")) -> dict[str, Any]:
    """Arguments of `build_request` of either client of httpx.

    Args:
        call: that is to be sent.
        timeouts: of the attempt.
        most_seconds: that the attempt may wait at one point; what is left until the deadline.
    """
    headers = dict(call.headers)
    if call.content is not None:
        headers["Content-Type"] = "application/json"
    return {
        "method": call.method,
        "url": call.path,
        "params": dict(call.params) or None,
        "headers": headers,
        "content": call.content,
        "timeout": _timeout(timeouts, most_seconds),
    }


def _timeout(timeouts: Timeouts, most: float) -> httpx.Timeout:
    return httpx.Timeout(
        connect=min(timeouts.connect_seconds, most),
        read=min(timeouts.read_seconds, most),
        write=min(timeouts.write_seconds, most),
        pool=min(timeouts.pool_seconds, most),
    )


def raised(error: httpx.HTTPError) -> AsmgError:
    """The client's error for one of httpx."""
    kind = TimedOut if isinstance(error, httpx.TimeoutException) else ConnectionFailed
    return kind(f"no answer: {type(error).__name__} {error}".rstrip())


def answer_of(call: Call[T], response: httpx.Response) -> T:
    """What the response to the call says; it has been read.

    Raises:
        ProblemError: it has a status of 400 or more.
        InvalidAnswer: it is no answer of the service.
    """
    if response.is_error:
        raise problem_of(response)
    if call.answer is type(None) and response.is_success:
        return None
    document = _json_object(response)
    if document is None or not response.is_success:
        kind = response.headers.get("content-type", "no content type")
        raise InvalidAnswer(f"expected a JSON object; received {response.status_code} with {kind}")
    return cast(T, document) if call.answer is dict else decoded(call.answer, document)


def problem_of(response: httpx.Response) -> ProblemError:
    """The error that a response with a status of 400 or more stands for; it has been read."""
    document = _json_object(response) or {}
    members = {"title": response.reason_phrase, **document, "status": response.status_code}
    try:
        problem = decoded(Problem, members)
    except InvalidAnswer:  # JSON of somebody else
        problem = Problem(response.status_code, title=response.reason_phrase)
    slug = str(problem.type).removeprefix(URN)
    return KINDS.get(slug, ProblemError)(problem, _retry_after(response.headers.get("retry-after")))


def _json_object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        document = json.loads(response.content)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _retry_after(value: str | None) -> float | None:
    """Seconds from now of a header `Retry-After`: a number of seconds, or a date."""
    if value is None:
        return None
    try:
        if value.strip().isdecimal():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
