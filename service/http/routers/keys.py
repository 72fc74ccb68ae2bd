"""`/admin/keys`: API keys."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from service.errors import KeyNotFound
from service.http.app_state import State
from service.http.json_body import JsonBody, body_schema
from service.http.keys import Caller, Requires
from service.http.schemas import KeyCreated, KeyDocument, KeyLimit, KeyList, KeyReason, KeyRequest
from service.use_cases.keys import create_key, limit_key, list_keys, revoke_key

__all__ = ["router"]

router = APIRouter(prefix="/admin/keys", tags=["admin"])

Admin = Annotated[Caller, Depends(Requires("admin"))]
KeyId = Annotated[str, Path(pattern="^[0-9a-f]{12}$")]


@router.get("", summary="API keys, oldest first")
async def get_keys(state: State, _: Admin) -> KeyList:
    """All keys ever created, without the keys themselves, which nobody can read."""
    found = await list_keys(state.database)
    return KeyList(keys=[KeyDocument.model_validate(key, from_attributes=True) for key in found])


@router.post("", status_code=201, openapi_extra=body_schema(KeyRequest), summary="Create an API key")
async def post_key(
    state: State, caller: Admin, request: Annotated[KeyRequest, Depends(JsonBody(KeyRequest))]
) -> KeyCreated:
    """The answer has the key, this once. From the first key on every call has to show one."""
    creating = create_key(
        state.database,
        request.name,
        request.scopes,
        rate_limit=request.rate_limit,
        expires_at=request.expires_at,
        reason=request.reason,
        actor=caller.name,
    )
    key_id, key = await state.writes.run(creating)
    return KeyCreated(key_id=key_id, key=key)


@router.post("/{key_id}/revoke", openapi_extra=body_schema(KeyReason), summary="Revoke an API key")
async def post_revoke(
    state: State, caller: Admin, key_id: KeyId, request: Annotated[KeyReason, Depends(JsonBody(KeyReason))]
) -> KeyDocument:
    """The key is revoked for ever; the api processes refuse it a second later."""
    revoking = revoke_key(state.database, key_id, reason=request.reason, actor=caller.name)
    return await _changed(state, key_id, await state.writes.run(revoking))


@router.post("/{key_id}/limit", openapi_extra=body_schema(KeyLimit), summary="Change the rate limit of an API key")
async def post_limit(
    state: State, caller: Admin, key_id: KeyId, request: Annotated[KeyLimit, Depends(JsonBody(KeyLimit))]
) -> KeyDocument:
    """The api processes apply the new limit a second later."""
    limiting = limit_key(state.database, key_id, request.rate_limit, reason=request.reason, actor=caller.name)
    return await _changed(state, key_id, await state.writes.run(limiting))


async def _changed(state: State, key_id: str, changed: bool) -> KeyDocument:
    """The key after a change.

    Raises:
        KeyNotFound: there was none to be changed.
    """
    if not changed:
        raise KeyNotFound(key_id)
    [key] = [key for key in await list_keys(state.database) if key.key_id == key_id]
    return KeyDocument.model_validate(key, from_attributes=True)
