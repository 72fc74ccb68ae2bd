"""`/admin/alerts`: what is wrong now, and what was."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.http.app_state import State
from service.http.json_body import JsonBody, body_schema
from service.http.keys import Caller, Requires
from service.http.routers.numbers import Before, Limit, Number
from service.http.schemas.notifications import AcknowledgeRequest
from service.storage.postgres.repositories import Alert
from service.use_cases.alerts import AlertPage, acknowledge_alert, list_alerts

router = APIRouter(prefix="/admin/alerts", tags=["alerts"])

Admin = Annotated[Caller, Depends(Requires("admin"))]


@router.get("", summary="Alerts, newest first")
async def get_alerts(
    state: State,
    _: Admin,
    limit: Limit = 50,
    before: Before = None,
    is_open: Annotated[bool | None, Query(alias="open", description="Only open ones, or only closed ones.")] = None,
) -> AlertPage:
    """A page of what is wrong now and what was; `next` is `before` of the page that follows."""
    return await list_alerts(state.database, limit=limit, before=before, is_open=is_open)


@router.post(
    "/{number:digits}/acknowledge", openapi_extra=body_schema(AcknowledgeRequest), summary="Say that it was seen"
)
async def post_acknowledge(
    state: State,
    caller: Admin,
    number: Number,
    request: Annotated[AcknowledgeRequest, Depends(JsonBody(AcknowledgeRequest))],
) -> Alert:
    """The audit keeps who has seen it and why; the alert stays open until it is not wrong any more, or `close`."""
    acknowledging = acknowledge_alert(
        state.database, number, reason=request.reason, actor=caller.name, close=request.close
    )
    return await state.writes.run(acknowledging)
