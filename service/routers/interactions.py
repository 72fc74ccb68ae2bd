"""The log of what happened: `POST /interactions`, or its halves `POST /impressions` and `POST /clicks`."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from starlette.types import Scope

from service.bodies import is_small, parse_clicks, parse_impressions, parse_interactions
from service.dependencies import Parts, Requires, Service, body_schema
from service.schemas import ClicksRequest, ImpressionsRequest, IngestResponse, InteractionsRequest
from service.storage.repositories import Click, EventBatch, Impression
from service.use_cases.ingest import IngestResult, ingest, ingest_clicks, ingest_impressions

router = APIRouter(tags=["log"])

T = TypeVar("T")


async def _interactions(request: Request) -> EventBatch:
    return await _parsed(parse_interactions, request)


async def _impressions(request: Request) -> list[Impression]:
    return await _parsed(parse_impressions, request)


async def _clicks(request: Request) -> list[Click]:
    return await _parsed(parse_clicks, request)


async def _parsed(parse: Callable[[bytes, Scope], T], request: Request) -> T:
    body = await request.body()
    return parse(body, request.scope) if is_small(body) else await asyncio.to_thread(parse, body, request.scope)


@router.post(
    "/interactions",
    dependencies=[Depends(Requires("ingest"))],
    openapi_extra=body_schema(InteractionsRequest),
    response_model_exclude_none=True,
    summary="Add to the log of the open period",
)
async def post_interactions(service: Service, events: Annotated[EventBatch, Depends(_interactions)]) -> IngestResponse:
    """Store what happened; the answer comes after the commit, and sending a batch again changes nothing."""
    return await _stored(service, "interactions", ingest(service.database, service.histories, events))


@router.post(
    "/impressions",
    dependencies=[Depends(Requires("ingest"))],
    openapi_extra=body_schema(ImpressionsRequest),
    response_model_exclude_none=True,
    summary="Report what users were shown",
)
async def post_impressions(
    service: Service, events: Annotated[list[Impression], Depends(_impressions)]
) -> IngestResponse:
    """Store impressions, as interactions are stored. When a period is closed, those whose attribution window has passed
    become its interactions: each item a positive, where a click on it came within the window, else a negative.
    """
    window = service.settings.attribution_window
    return await _stored(
        service, "impressions", ingest_impressions(service.database, service.histories, events, window)
    )


@router.post(
    "/clicks",
    dependencies=[Depends(Requires("ingest"))],
    openapi_extra=body_schema(ClicksRequest),
    response_model_exclude_none=True,
    summary="Report what users clicked",
)
async def post_clicks(service: Service, events: Annotated[list[Click], Depends(_clicks)]) -> IngestResponse:
    """Store clicks on items of impressions, as interactions are stored; a click may come before its impression."""
    window = service.settings.attribution_window
    return await _stored(service, "clicks", ingest_clicks(service.database, service.histories, events, window))


async def _stored(service: Parts, kind: str, call: Coroutine[Any, Any, IngestResult]) -> IngestResponse:
    """Carry out the call and count what became of its events."""
    result = await service.writes.run(call)
    service.metrics.note_events(kind, result.accepted, result.duplicates, len(result.conflicts))
    return IngestResponse(
        accepted=result.accepted,
        duplicates=result.duplicates,
        conflicts=result.conflicts or None,
        period=result.period,
    )
