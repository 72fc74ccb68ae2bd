"""`POST /interactions`."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from service.bodies import is_small, parse_interactions
from service.dependencies import Requires, Service, body_schema
from service.schemas import InteractionsRequest, InteractionsResponse
from service.storage.repositories import EventBatch
from service.use_cases.ingest import ingest

router = APIRouter(tags=["log"])


async def _events(request: Request) -> EventBatch:
    body = await request.body()
    if is_small(body):
        return parse_interactions(body, request.scope)
    return await asyncio.to_thread(parse_interactions, body, request.scope)


@router.post(
    "/interactions",
    dependencies=[Depends(Requires("ingest"))],
    openapi_extra=body_schema(InteractionsRequest),
    response_model_exclude_none=True,
    summary="Add to the log of the open period",
)
async def post_interactions(service: Service, events: Annotated[EventBatch, Depends(_events)]) -> InteractionsResponse:
    """Store what happened; the answer comes after the commit, and sending a batch again changes nothing."""
    result = await service.writes.run(ingest(service.database, service.histories, events))
    service.metrics.interactions.labels("accepted").inc(result.accepted)
    service.metrics.interactions.labels("duplicate").inc(result.duplicates)
    service.metrics.interactions.labels("conflict").inc(len(result.conflicts))
    return InteractionsResponse(
        accepted=result.accepted,
        duplicates=result.duplicates,
        conflicts=result.conflicts or None,
        period=result.period,
    )
