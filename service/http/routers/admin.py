"""`/admin`: model versions, rollback to one of them, and the audit."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.http.app_state import AppState, State
from service.http.json_body import JsonBody, body_schema
from service.http.keys import Caller, Requires
from service.http.routers.numbers import Before, Limit, Number
from service.http.schemas import PinRequest, PinResponse, RollbackRequest, RollbackResponse, Text
from service.limits import MAX_CURSOR
from service.use_cases.audit import AuditPage, list_audit
from service.use_cases.breakdown import Breakdown, get_breakdown
from service.use_cases.model_status import ModelDetail, ModelPage, get_model, list_models
from service.use_cases.pins import set_pinned
from service.use_cases.processes import ProcessList, list_processes
from service.use_cases.rollback import rollback

router = APIRouter(prefix="/admin", tags=["admin"])

Admin = Annotated[Caller, Depends(Requires("admin"))]


@router.get("/models", summary="Model versions, newest first")
async def get_models(
    state: State,
    _: Admin,
    limit: Limit = 50,
    before: Before = None,
) -> ModelPage:
    """A page of versions with lineage, scores and the gate's decision; `next` is `before` of the page that follows."""
    return await list_models(state.database, limit=limit, before=before)


@router.get("/models/{version:digits}", summary="One model version")
async def get_one_model(state: State, _: Admin, version: Number) -> ModelDetail:
    """The version with the digests of its training state."""
    return await get_model(state.database, version)


@router.get("/models/{version:digits}/breakdown", summary="Scores of a version by parts of a period")
async def get_model_breakdown(
    state: State,
    _: Admin,
    version: Number,
    period: Annotated[
        int | None,
        Query(ge=1, le=MAX_CURSOR, description="One of `periods`; by default the first after the version was made."),
    ] = None,
) -> Breakdown:
    """The calibration curve, the scores on new and known users and items and by the values of fields, and the items of
    which the version says other things than the version before it, on a period that it had not learned.
    """
    return await get_breakdown(state.database, version, period=period)


@router.get("/processes", summary="Api processes that run, and what they serve")
async def get_processes(state: State, _: Admin) -> ProcessList:
    """All that Postgres has seen lately, of all hosts, by host and start."""
    return await list_processes(state.database)


@router.get("/audit", summary="Who did what, newest first")
async def get_audit(
    state: State,
    _: Admin,
    limit: Limit = 50,
    before: Before = None,
    actor: Annotated[Text | None, Query(description="Only what this one did, by the whole name.")] = None,
    action: Annotated[Text | None, Query(description="Only this action, such as `rollback`.")] = None,
) -> AuditPage:
    """A page of the audit, to which rows are only added; `next` is `before` of the page that follows."""
    return await list_audit(state.database, limit=limit, before=before, actor=actor, action=action)


@router.post("/models/{version:digits}/pin", openapi_extra=body_schema(PinRequest), summary="Keep a version whole")
async def post_pin(
    state: State, caller: Admin, version: Number, request: Annotated[PinRequest, Depends(JsonBody(PinRequest))]
) -> PinResponse:
    """The version keeps its artifacts however old it gets, so that one can always go back to it."""
    return await _pin(state, caller, request, version, pinned=True)


@router.post("/models/{version:digits}/unpin", openapi_extra=body_schema(PinRequest), summary="Let a version go")
async def post_unpin(
    state: State, caller: Admin, version: Number, request: Annotated[PinRequest, Depends(JsonBody(PinRequest))]
) -> PinResponse:
    """The version loses its artifacts after the next update, where it is too old by then."""
    return await _pin(state, caller, request, version, pinned=False)


async def _pin(state: AppState, caller: Caller, request: PinRequest, version: int, *, pinned: bool) -> PinResponse:
    pinning = set_pinned(state.database, version, pinned=pinned, reason=request.reason, actor=caller.name)
    changed = await state.writes.run(pinning)
    return PinResponse(version=version, pinned=pinned, changed=changed, reason=request.reason)


@router.post("/rollback", openapi_extra=body_schema(RollbackRequest), summary="Serve another version")
async def post_rollback(
    state: State, caller: Admin, request: Annotated[RollbackRequest, Depends(JsonBody(RollbackRequest))]
) -> RollbackResponse:
    """Make a version the champion; the answer comes when every api process serves it. A later version rolls forward."""
    result = await rollback(
        state.database,
        state.notices,
        to_version=request.to_version,
        sequence=request.sequence,
        reason=request.reason,
        actor=caller.name,
        settings=state.settings,
        objects=state.objects,
        calls=state.writes,
    )
    await asyncio.sleep(max(0.0, result.active_from.timestamp() - state.clock.now()))
    return RollbackResponse(
        from_version=result.from_version,
        to_version=result.to_version,
        sequence=request.sequence,
        active_from=result.active_from,
        reason=request.reason,
    )
