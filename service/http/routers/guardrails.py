"""`/admin/replay` and `/admin/samples`: what versions say of interactions that were kept."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.http.app_state import State
from service.http.keys import Caller, Requires
from service.limits import MAX_CURSOR
from service.use_cases.guardrails.replay import Replay, SampleMatrix, replay, sample_matrix

router = APIRouter(prefix="/admin", tags=["admin"])

Admin = Annotated[Caller, Depends(Requires("admin"))]


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
