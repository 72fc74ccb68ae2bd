"""`POST /interactions`."""

from typing import Annotated

from fastapi import APIRouter, Depends

from service.dependencies import JsonBody, Requires, Service, body_schema
from service.schemas import InteractionsRequest, InteractionsResponse
from service.storage.repositories import Interaction
from service.use_cases.ingest import ingest

router = APIRouter(tags=["log"])


@router.post(
    "/interactions",
    dependencies=[Depends(Requires("ingest"))],
    openapi_extra=body_schema(InteractionsRequest),
    summary="Add to the log of the open period",
)
async def post_interactions(
    service: Service, request: Annotated[InteractionsRequest, Depends(JsonBody(InteractionsRequest))]
) -> InteractionsResponse:
    """Store what happened; the answer comes after the commit, and sending a batch again changes nothing."""
    events = [
        Interaction(e.event_id, e.user_id, e.item_id, e.label, e.timestamp, e.request_id) for e in request.interactions
    ]
    result = await ingest(service.database, service.histories, events)
    service.metrics.interactions.labels("accepted").inc(result.accepted)
    service.metrics.interactions.labels("duplicate").inc(result.duplicates)
    return InteractionsResponse(accepted=result.accepted, duplicates=result.duplicates, period=result.period)
