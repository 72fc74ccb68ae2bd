"""`/admin/webhooks`: endpoints that are told of events, and what became of it."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.errors import FieldError, InvalidInput
from service.http.app_state import AppState, State
from service.http.json_body import JsonBody, body_schema
from service.http.keys import Caller, Requires
from service.http.routers.numbers import Before, Limit, Number
from service.http.schemas.notifications import RotateRequest, SwitchRequest, WebhookRequest
from service.limits import MAX_CURSOR
from service.storage.postgres.repositories import Delivery, DeliveryStatus
from service.use_cases.webhooks.endpoints import (
    DeliveryPage,
    WebhookDocument,
    WebhookList,
    WebhookSecret,
    add_webhook,
    delete_webhook,
    list_deliveries,
    list_webhooks,
    redeliver,
    rotate_secret,
    switch_webhook,
)

router = APIRouter(prefix="/admin/webhooks", tags=["webhooks"])

Admin = Annotated[Caller, Depends(Requires("admin"))]


@router.get("", summary="All webhooks")
async def get_webhooks(state: State, _: Admin) -> WebhookList:
    """Oldest first, without their secrets."""
    return await list_webhooks(state.database)


@router.post("", status_code=201, openapi_extra=body_schema(WebhookRequest), summary="Add a webhook")
async def post_webhook(
    state: State, caller: Admin, request: Annotated[WebhookRequest, Depends(JsonBody(WebhookRequest))]
) -> WebhookSecret:
    """It is told of what happens from now on. The secret that signs is shown only now."""
    adding = add_webhook(
        state.database,
        request.url,
        request.events,
        actor=caller.name,
        networks=state.settings.webhooks_reach,
    )
    try:
        return await state.writes.run(adding)
    except ValueError as error:
        fault = FieldError("url", str(error), "another")
        raise InvalidInput(f"url: {error}", errors=[fault]) from None


@router.delete("/{number:digits}", status_code=204, summary="Remove a webhook")
async def delete_one_webhook(state: State, caller: Admin, number: Number) -> None:
    """With what it was told, and what waits for it."""
    await state.writes.run(delete_webhook(state.database, number, actor=caller.name))


@router.post(
    "/{number:digits}/rotate", openapi_extra=body_schema(RotateRequest, optional=True), summary="Change the secret"
)
async def post_rotate(
    state: State,
    caller: Admin,
    number: Number,
    request: Annotated[RotateRequest, Depends(JsonBody(RotateRequest, optional=True))],
) -> WebhookSecret:
    """The new secret is shown only now; for a while messages are signed with both."""
    rotating = rotate_secret(state.database, number, actor=caller.name, overlap_hours=request.overlap_hours)
    return await state.writes.run(rotating)


@router.post("/{number:digits}/on", openapi_extra=body_schema(SwitchRequest), summary="Switch a webhook on")
async def post_on(
    state: State, caller: Admin, number: Number, request: Annotated[SwitchRequest, Depends(JsonBody(SwitchRequest))]
) -> WebhookDocument:
    """It is told of what happens from now on."""
    return await _switch(state, caller, number, request, on=True)


@router.post("/{number:digits}/off", openapi_extra=body_schema(SwitchRequest), summary="Switch a webhook off")
async def post_off(
    state: State, caller: Admin, number: Number, request: Annotated[SwitchRequest, Depends(JsonBody(SwitchRequest))]
) -> WebhookDocument:
    """It is told of nothing more, and what waits for it is given up."""
    return await _switch(state, caller, number, request, on=False)


async def _switch(state: AppState, caller: Caller, number: int, request: SwitchRequest, *, on: bool) -> WebhookDocument:
    switching = switch_webhook(state.database, number, on=on, reason=request.reason, actor=caller.name)
    return await state.writes.run(switching)


@router.get("/deliveries", summary="Deliveries, newest first")
async def get_deliveries(
    state: State,
    _: Admin,
    limit: Limit = 50,
    before: Before = None,
    webhook: Annotated[int | None, Query(ge=0, le=MAX_CURSOR, description="Only those to this webhook.")] = None,
    status: Annotated[DeliveryStatus | None, Query(description="Only those with this status.")] = None,
) -> DeliveryPage:
    """A page of what webhooks are told and what became of it; `next` is `before` of the page that follows."""
    return await list_deliveries(state.database, limit=limit, before=before, webhook=webhook, status=status)


@router.post("/deliveries/{number:digits}/redeliver", summary="Deliver again")
async def post_redeliver(state: State, caller: Admin, number: Number) -> Delivery:
    """It is sent again from now on, with all attempts, under the id that it had."""
    return await state.writes.run(redeliver(state.database, number, actor=caller.name))
