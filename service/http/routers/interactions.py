"""The log of what happened: `POST /interactions`, or its halves `POST /impressions` and `POST /clicks`."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Request, Response
from numpy.typing import NDArray
from starlette.types import Receive, Scope

from service.http.bodies.impressions import parse_clicks, parse_impressions
from service.http.bodies.interactions import parse_interactions
from service.http.bodies.parse import refuse_future
from service.http.bodies.read import is_small, read_body
from service.http.dependencies import Parts, Requires, body_schema
from service.http.hot_routes import Answer
from service.http.schemas import ClicksRequest, ImpressionsRequest, IngestResponse, InteractionsRequest
from service.limits import MAX_BODY_BYTES
from service.storage.postgres.events import moments_of
from service.use_cases.ingest import IngestResult, ingest_clicks, ingest_impressions

__all__ = ["ANSWERS", "router"]

router = APIRouter(tags=["log"])

T = TypeVar("T")

_requires = Requires("ingest")


async def _interactions(parts: Parts, scope: Scope, receive: Receive) -> bytes:
    parse = partial(parse_interactions, schema=parts.schema)
    events = await _parsed(parse, await _body(parts, scope, receive), scope)
    _refuse_future(parts, "interactions", events.moments)
    return await _stored(parts, "interactions", parts.ingestion.ingest(events))


async def _impressions(parts: Parts, scope: Scope, receive: Receive) -> bytes:
    parse = partial(parse_impressions, schema=parts.schema)
    events = await _parsed(parse, await _body(parts, scope, receive), scope)
    _refuse_future(parts, "impressions", moments_of(event.shown_at for event in events))
    window = parts.settings.attribution_window
    return await _stored(parts, "impressions", ingest_impressions(parts.database, parts.histories, events, window))


async def _clicks(parts: Parts, scope: Scope, receive: Receive) -> bytes:
    events = await _parsed(parse_clicks, await _body(parts, scope, receive), scope)
    _refuse_future(parts, "clicks", moments_of(event.clicked_at for event in events))
    window = parts.settings.attribution_window
    return await _stored(parts, "clicks", ingest_clicks(parts.database, parts.histories, events, window))


async def _body(parts: Parts, scope: Scope, receive: Receive) -> bytes:
    """The body of a caller who may send one."""
    await _requires.key(parts, scope)
    return await read_body(scope, receive, MAX_BODY_BYTES, gzip=True)


def _refuse_future(parts: Parts, kind: str, moments: NDArray[np.int64]) -> None:
    refuse_future(kind, moments, parts.settings.future_tolerance_seconds)


async def _parsed(parse: Callable[[bytes, Scope], T], body: bytes, scope: Scope) -> T:
    return parse(body, scope) if is_small(body) else await asyncio.to_thread(parse, body, scope)


async def _stored(parts: Parts, kind: str, call: Coroutine[Any, Any, IngestResult]) -> bytes:
    """Carry out the call and count what became of its events."""
    result = await parts.writes.run(call)
    parts.metrics.note_events(kind, result.accepted, result.duplicates, len(result.conflicts))
    answer = {"accepted": result.accepted, "duplicates": result.duplicates, "period": result.period}
    return orjson.dumps({**answer, "conflicts": result.conflicts} if result.conflicts else answer)


@router.post(
    "/interactions",
    dependencies=[Depends(_requires)],
    response_model=IngestResponse,
    openapi_extra=body_schema(InteractionsRequest),
    summary="Add to the log of the open period",
)
async def post_interactions(request: Request) -> Response:
    """Store what happened; the answer comes after the commit, and sending a batch again changes nothing."""
    return await _answered(_interactions, request)


@router.post(
    "/impressions",
    dependencies=[Depends(_requires)],
    response_model=IngestResponse,
    openapi_extra=body_schema(ImpressionsRequest),
    summary="Report what users were shown",
)
async def post_impressions(request: Request) -> Response:
    """Store impressions, as interactions are stored. When a period is closed, those whose attribution window has passed
    become its interactions: each item a positive, where a click on it came within the window, else a negative.
    """
    return await _answered(_impressions, request)


@router.post(
    "/clicks",
    dependencies=[Depends(_requires)],
    response_model=IngestResponse,
    openapi_extra=body_schema(ClicksRequest),
    summary="Report what users clicked",
)
async def post_clicks(request: Request) -> Response:
    """Store clicks on items of impressions, as interactions are stored; a click may come before its impression."""
    return await _answered(_clicks, request)


async def _answered(answer: Answer, request: Request) -> Response:
    content = await answer(request.state.parts, request.scope, request.receive)
    return Response(content, media_type="application/json")


ANSWERS: dict[object, Answer] = {
    post_interactions: _interactions,
    post_impressions: _impressions,
    post_clicks: _clicks,
}
