"""`/periods`: close the open period, list periods, watch one, retry or skip one."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import TypeAdapter

from service.http.app_state import State
from service.http.json_body import JsonBody, body_schema
from service.http.keys import Caller, Requires
from service.http.ping import within_time
from service.http.routers.numbers import Before, Limit, Number
from service.http.schemas import CloseRequest, CloseResponse, PeriodReason
from service.limits import MAX_ID_LENGTH
from service.storage.postgres.repositories import ENDED
from service.use_cases.close_period import close_period
from service.use_cases.quarantine import retry_period, skip_period
from service.use_cases.status import PeriodDocument, PeriodPage, get_period, list_periods

router = APIRouter(prefix="/periods", tags=["periods"])

Admin = Annotated[Caller, Depends(Requires("admin"))]
Why = Annotated[PeriodReason, Depends(JsonBody(PeriodReason))]
READER = Depends(Requires("admin", "ingest"))
PERIOD_JSON = TypeAdapter(PeriodDocument)


@router.post(
    "/close",
    status_code=202,
    openapi_extra=body_schema(CloseRequest, optional=True),
    summary="Close the open period",
)
async def post_close(
    state: State,
    caller: Admin,
    body: Annotated[CloseRequest, Depends(JsonBody(CloseRequest, optional=True))],
    request: Request,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=MAX_ID_LENGTH)] = None,
) -> CloseResponse:
    """Seal the log of the open period and open the next; the worker updates the model on it from then on."""
    closing = close_period(
        state.database,
        expected_period=body.expected_period,
        idempotency_key=idempotency_key,
        actor=caller.name,
        reason=body.reason,
    )
    period = await state.writes.run(closing)
    await within_time(state.notices.publish_sealed())  # a hint: the worker also looks by itself
    status_url = f"{request.scope.get('root_path', '')}/periods/{period.number}"
    response.headers["Location"] = status_url
    return CloseResponse(period=period.number, status="sealed", status_url=status_url)


@router.get("", dependencies=[READER], summary="Periods, newest first")
async def get_periods(
    state: State,
    limit: Limit = 50,
    before: Before = None,
) -> PeriodPage:
    """A page of periods; `next` is the `before` of the page that follows."""
    return await list_periods(state.database, state.notices, limit=limit, before=before)


@router.get("/{number:digits}", dependencies=[READER], summary="One period")
async def get_one_period(state: State, number: Number) -> PeriodDocument:
    """The period with the stages of its update and the scores of the models on its log."""
    return await get_period(state.database, state.notices, number)


@router.post("/{number:digits}/retry", openapi_extra=body_schema(PeriodReason), summary="Learn a period after all")
async def post_retry(state: State, caller: Admin, number: Number, request: Why) -> PeriodDocument:
    """A period in quarantine waits for its update again, with all attempts; it comes after those learned meanwhile."""
    await state.writes.run(retry_period(state.database, number, reason=request.reason, actor=caller.name))
    await within_time(state.notices.publish_sealed())  # a hint: the worker also looks by itself
    return await get_period(state.database, state.notices, number)


@router.post("/{number:digits}/skip", openapi_extra=body_schema(PeriodReason), summary="Never learn a period")
async def post_skip(state: State, caller: Admin, number: Number, request: Why) -> PeriodDocument:
    """No model will ever learn this closed period. That cannot be undone."""
    await state.writes.run(skip_period(state.database, number, reason=request.reason, actor=caller.name))
    return await get_period(state.database, state.notices, number)


async def watched(state: State, number: Number) -> AsyncIterator[AsyncIterator[PeriodDocument]]:
    """The documents of a stream. It is a dependency because a stream's response begins before its first event: a period
    that does not exist, or too many streams, must be found before.
    """
    async with state.periods.watch(number) as documents:
        yield documents


@router.get(
    "/{number:digits}/events",
    dependencies=[READER],
    response_class=EventSourceResponse,
    summary="One period as it changes",
)
async def get_period_events(
    documents: Annotated[AsyncIterator[PeriodDocument], Depends(watched)],
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `status` with the period now and after each change, then `end` when its update has ended."""
    async for document in documents:
        yield ServerSentEvent(event="status", raw_data=PERIOD_JSON.dump_json(document).decode())
        if document.status in ENDED:
            yield ServerSentEvent(event="end", raw_data="{}")
