"""The log of what happened: `POST /interactions`, or its halves `POST /impressions` and `POST /clicks`."""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Depends, Request

from service.bodies import CLICKS, IMPRESSIONS, INTERACTIONS, EventsBody, is_small
from service.dependencies import Parts, Requires, Service, body_schema
from service.schemas import ClicksRequest, ImpressionsRequest, IngestResponse, InteractionsRequest
from service.storage.repositories import Click, Impression, Interaction
from service.use_cases.ingest import IngestResult, ingest, ingest_clicks, ingest_impressions

router = APIRouter(tags=["log"])

EventT = TypeVar("EventT")


class Events(Generic[EventT]):
    """A dependency that parses a body of events; it runs after `Requires`, as `JsonBody` does."""

    def __init__(self, body: EventsBody[EventT]) -> None:
        self._body = body

    async def __call__(self, request: Request) -> list[EventT]:
        """The events; raises as `parse_json` does."""
        body = await request.body()
        if is_small(body):
            return self._body.parse(body, request.scope)
        return await asyncio.to_thread(self._body.parse, body, request.scope)


@router.post(
    "/interactions",
    dependencies=[Depends(Requires("ingest"))],
    openapi_extra=body_schema(InteractionsRequest),
    response_model_exclude_none=True,
    summary="Add to the log of the open period",
)
async def post_interactions(
    service: Service, events: Annotated[list[Interaction], Depends(Events(INTERACTIONS))]
) -> IngestResponse:
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
    service: Service, events: Annotated[list[Impression], Depends(Events(IMPRESSIONS))]
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
async def post_clicks(service: Service, events: Annotated[list[Click], Depends(Events(CLICKS))]) -> IngestResponse:
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
