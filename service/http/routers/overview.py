"""`GET /admin/overview`: what an operator wants to know first, in one answer."""

from typing import Annotated

from fastapi import APIRouter, Depends

from service.http.app_state import State
from service.http.keys import Caller, Requires
from service.http.routers.ops import readiness_checks
from service.http.schemas import OverviewResponse
from service.use_cases.overview import get_overview

__all__ = ["router"]

router = APIRouter(prefix="/admin", tags=["admin"])


@router.get("/overview", summary="How the service is")
async def get_overview_document(state: State, _: Annotated[Caller, Depends(Requires("admin"))]) -> OverviewResponse:
    """The model in service, the open period and the newest closed ones, the api processes, the leading worker."""
    overview = await get_overview(state.database, state.notices, stall_seconds=state.settings.worker_stall_seconds)
    served = state.serving.current().version
    return OverviewResponse(checks=await readiness_checks(state), served_version=served, installation=overview)
