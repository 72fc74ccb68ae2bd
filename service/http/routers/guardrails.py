"""`/admin/guardrails`: what is watched. `/admin/replay`, `/admin/samples`: what versions say of interactions that were
kept. `/admin/canary`: what becomes of canaries.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.http.app_state import AppState, State
from service.http.json_body import JsonBody, body_schema
from service.http.keys import Caller, Requires
from service.http.routers.numbers import Before, Limit
from service.http.schemas import CanaryRequest
from service.limits import MAX_CURSOR
from service.use_cases.guardrails.canary import end_canary
from service.use_cases.guardrails.replay import Replay, SampleMatrix, replay, sample_matrix
from service.use_cases.guardrails.state import GuardrailState, guardrail_state
from service.use_cases.model_status import CanaryDocument, CanaryPage, canary_document, list_canaries

router = APIRouter(prefix="/admin", tags=["admin"])

Admin = Annotated[Caller, Depends(Requires("admin"))]


@router.get("/guardrails", summary="What is watched, and how it is")
async def get_guardrails(state: State, _: Admin) -> GuardrailState:
    """Each rule about the newest period and the newest version: what it watches, what is usual, from where on it opens
    an alert, and whether one is open. Each shadow: the period that it has learned last, how many it is behind, and why
    it last had to start again.
    """
    return await guardrail_state(state.database, state.settings)


@router.get("/replay", summary="Had another version stayed in service")
async def get_replay(
    state: State,
    _: Admin,
    version: Annotated[int, Query(ge=0, le=MAX_CURSOR, description="The version to compare with what was served.")],
    from_period: Annotated[
        int | None, Query(ge=0, le=MAX_CURSOR, description="First period; by default the one after `version`.")
    ] = None,
    to_period: Annotated[
        int | None, Query(ge=0, le=MAX_CURSOR, description="Last period; by default the newest.")
    ] = None,
) -> Replay:
    """The LogLoss of a version on the logged interactions that were kept of each period, beside that of what was
    served, with 95 % confidence intervals. The worker computes what is missing: ask again while `status` is
    `computing`.
    """
    return await replay(state.database, version, first=from_period, last=to_period)


@router.get("/samples", summary="What versions still know of earlier periods")
async def get_samples(state: State, _: Admin) -> SampleMatrix:
    """The scores of versions on the interactions that were kept of each period: a cell for each version and period."""
    return await sample_matrix(state.database)


@router.get("/canary", summary="Canaries")
async def get_canary(state: State, _: Admin, limit: Limit = 50, before: Before = None) -> CanaryPage:
    """The version that answers a share of the users first, with what is known of it so far; a page of those before it
    and what became of them. `next` is `before` of the page that follows.
    """
    return await list_canaries(state.database, state.settings, limit=limit, before=before)


Decided = Annotated[CanaryRequest, Depends(JsonBody(CanaryRequest))]


@router.post("/canary/promote", openapi_extra=body_schema(CanaryRequest), summary="Serve the canary to everybody")
async def post_promote(state: State, caller: Admin, request: Decided) -> CanaryDocument:
    """Make the canary the champion before its time is over. The answer comes after the commit; the api processes switch
    together, as soon as they are ready.
    """
    return await _end(state, caller, request, promote=True)


@router.post("/canary/revert", openapi_extra=body_schema(CanaryRequest), summary="Take the canary out of service")
async def post_revert(state: State, caller: Admin, request: Decided) -> CanaryDocument:
    """Let the champion answer everybody again. The sequence from which the next update learns stays as it is."""
    return await _end(state, caller, request, promote=False)


async def _end(state: AppState, caller: Caller, request: CanaryRequest, *, promote: bool) -> CanaryDocument:
    ending = end_canary(
        state.database,
        state.notices,
        state.settings,
        promote=promote,
        reason=request.reason,
        actor=caller.name,
        version=request.version,
    )
    return canary_document(await state.writes.run(ending))
