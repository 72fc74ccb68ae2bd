"""Events: `POST /interactions`, and `POST /impressions` and `POST /clicks`, of which interactions are made."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import numpy as np
import orjson
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.types import Receive, Scope

from service.http.app_state import AppState
from service.http.bodies.impressions import parse_clicks, parse_impressions
from service.http.bodies.interactions import parse_interactions
from service.http.bodies.parse import refuse_future
from service.http.bodies.read import is_small, read_body
from service.http.hot_routes import hot_route
from service.http.keys import Requires
from service.http.schemas import ClicksRequest, ImpressionsRequest, IngestResponse, InteractionsRequest
from service.limits import MAX_BODY_BYTES
from service.storage.postgres.events import moments_of
from service.use_cases.ingest import IngestResult, ingest_clicks, ingest_impressions

__all__ = ["router"]

router = APIRouter(tags=["log"])

T = TypeVar("T")

_requires = Requires("ingest")


@hot_route(
    router,
    "/interactions",
    requires=_requires,
    request=InteractionsRequest,
    response=IngestResponse,
    summary="Add to the log of the open period",
)
async def post_interactions(state: AppState, scope: Scope, receive: Receive) -> bytes:
    """Store what happened; the answer comes after the commit, and sending a batch again changes nothing."""
    parse = partial(parse_interactions, schema=state.schema)
    events = await _parsed(parse, await _body(state, scope, receive), scope)
    _refuse_future(state, "interactions", events.moments)
    return await _stored(state, "interactions", state.ingestion.ingest(events))


@hot_route(
    router,
    "/impressions",
    requires=_requires,
    request=ImpressionsRequest,
    response=IngestResponse,
    summary="Report what users were shown",
)
async def post_impressions(state: AppState, scope: Scope, receive: Receive) -> bytes:
    """Store impressions, as interactions are stored. When a period is closed, those whose attribution window has passed
    become its interactions: each item a positive, where a click on it came within the window, else a negative.
    """
    parse = partial(parse_impressions, schema=state.schema)
    events = await _parsed(parse, await _body(state, scope, receive), scope)
    _refuse_future(state, "impressions", moments_of(event.shown_at for event in events))
    window = state.settings.attribution_window
    return await _stored(state, "impressions", ingest_impressions(state.database, state.histories, events, window))


@hot_route(
    router,
    "/clicks",
    requires=_requires,
    request=ClicksRequest,
    response=IngestResponse,
    summary="Report what users clicked",
)
async def post_clicks(state: AppState, scope: Scope, receive: Receive) -> bytes:
    """Store clicks on items of impressions, as interactions are stored; a click may come before its impression."""
    events = await _parsed(parse_clicks, await _body(state, scope, receive), scope)
    _refuse_future(state, "clicks", moments_of(event.clicked_at for event in events))
    window = state.settings.attribution_window
    return await _stored(state, "clicks", ingest_clicks(state.database, state.histories, events, window))


async def _body(state: AppState, scope: Scope, receive: Receive) -> bytes:
    """The body of a caller who may send one."""
    await _requires.key(state, scope)
    return await read_body(scope, receive, MAX_BODY_BYTES, gzip=True)


def _refuse_future(state: AppState, kind: str, moments: NDArray[np.int64]) -> None:
    refuse_future(kind, moments, state.settings.future_tolerance_seconds)


async def _parsed(parse: Callable[[bytes, Scope], T], body: bytes, scope: Scope) -> T:
    return parse(body, scope) if is_small(body) else await asyncio.to_thread(parse, body, scope)


async def _stored(state: AppState, kind: str, call: Coroutine[Any, Any, IngestResult]) -> bytes:
    """Carry out the call and count what became of its events."""
    result = await state.writes.run(call)
    state.metrics.note_events(kind, result.accepted, result.duplicates, len(result.conflicts))
    answer = {"accepted": result.accepted, "duplicates": result.duplicates, "period": result.period}
    return orjson.dumps({**answer, "conflicts": result.conflicts} if result.conflicts else answer)
