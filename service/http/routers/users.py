"""`/users`: set features of users, show what is stored about a user, delete it."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from service.errors import FieldError, InvalidInput, NotReady
from service.http.app_state import AppState, State
from service.http.bodies.parse import refuse_faults, refuse_future
from service.http.json_body import JsonBody, body_schema
from service.http.keys import Caller, Requires
from service.http.schemas import DeletionResponse, Text, UsersRequest, UsersResponse
from service.storage.postgres.events import moments_of
from service.storage.postgres.repositories import Deletable, FeatureVersion
from service.use_cases.catalogue import put_users
from service.use_cases.fields import cleaned, faults
from service.use_cases.forget import carry_out, request_deletion
from service.use_cases.traces import UserDocument, get_user

__all__ = ["BEFORE", "ID", "PERIODS", "delete", "exact_id", "feature_versions", "router"]

logger = logging.getLogger(__name__)

router = APIRouter(tags=["stored data"])

ID = Path(description="Percent-encoded; a `/` in it may stand as it is.")
PERIODS = Query(ge=1, le=200, description="Periods of the log that are listed, newest first.")
BEFORE = Query(ge=0, le=2**31 - 1, description="Only periods below this one are listed.")

REPLACED = "\ufffd"
"""The character that the server writes in place of bytes that are no UTF-8."""


def exact_id(request: Request) -> None:
    """A dependency that refuses a path which is no UTF-8: the id in it would not be the one that the client has sent.

    Raises:
        InvalidInput: bytes of the path are no UTF-8.
    """
    sent = request.scope["raw_path"].upper()
    if request.scope["path"].count(REPLACED) != sent.count(b"%EF%BF%BD") + sent.count(REPLACED.encode()):
        error = FieldError("path", "percent-encoded UTF-8", "other bytes")
        raise InvalidInput("expected an id in percent-encoded UTF-8; received other bytes", errors=[error])


def feature_versions(
    state: AppState, of: Deletable, sent: Sequence[tuple[str, Mapping[str, Any] | None, datetime | None]]
) -> list[FeatureVersion]:
    """The features of a call, checked, as they are to be stored.

    Args:
        state: of the running application.
        of: whether they are features of users or of items.
        sent: the id of each user or item of the call, its features, and the time from which on they hold (None for
            now). Those without features are skipped.

    Raises:
        InvalidInput: the schema does not allow some of them, or their time is in the future.
    """
    now = datetime.now(UTC)
    refuse_faults(
        fault
        for n, (_, features, _) in enumerate(sent)
        for fault in faults(state.schema, of, features, f"{of}s[{n}].features")
    )
    refuse_future(f"{of}s", moments_of(at or now for _, _, at in sent), state.settings.future_tolerance_seconds)
    return [FeatureVersion(id_, at or now, cleaned(features)) for id_, features, at in sent if features is not None]


@router.put(
    "/users",
    dependencies=[Depends(Requires("ingest"))],
    tags=["catalogue"],
    openapi_extra=body_schema(UsersRequest),
    summary="Set features of users",
)
async def put_features_of_users(
    state: State, request: Annotated[UsersRequest, Depends(JsonBody(UsersRequest, gzip=True))]
) -> UsersResponse:
    """Set the features of each user, in place of those that it had; what happened before is learned with those."""
    features = feature_versions(state, "user", [(u.user_id, u.features or {}, u.timestamp) for u in request.users])
    changed = await state.writes.run(put_users(state.database, state.histories, features))
    return UsersResponse(users=len({user.user_id for user in request.users}), changed=changed)


@router.get("/users/{user_id:path}", dependencies=[Depends(exact_id)], summary="What is stored about a user")
async def get_one_user(
    state: State,
    _: Annotated[Caller, Depends(Requires("admin"))],
    user_id: Annotated[Text, ID],
    limit: Annotated[int, PERIODS] = 50,
    before: Annotated[int | None, BEFORE] = None,
) -> UserDocument:
    """Counts by period, the history, and whether models know the user; it takes a pass over all logs."""
    looking = get_user(state.database, state.serving.current(), user_id, limit=limit, before=before)
    return await state.lookups.run(looking)


@router.delete(
    "/users/{user_id:path}",
    dependencies=[Depends(exact_id)],
    responses={202: {"model": DeletionResponse, "description": "It is noted, and will be carried out"}},
    summary="Delete all that is stored about a user",
)
async def delete_user(
    state: State,
    caller: Annotated[Caller, Depends(Requires("admin"))],
    user_id: Annotated[Text, ID],
    response: Response,
) -> DeletionResponse:
    """Remove the user from logs, impressions, clicks, histories and the table of ids; the next model does not know
    them. Asking again changes nothing. What is sent about the id afterwards is about a stranger.
    """
    return await delete(state, caller, "user", user_id, response)


async def delete(state: AppState, caller: Caller, kind: Deletable, id_: str, response: Response) -> DeletionResponse:
    """Delete all that is stored about an id; status 202 where this takes longer than a caller should wait."""
    database = state.database
    deletion = await state.writes.run(request_deletion(database, kind, id_, actor=caller.name))
    try:
        deletion = await state.lookups.run(carry_out(database, state.histories, state.settings.journal, deletion))
    except NotReady as error:  # the deletion continues here, or the worker continues it
        logger.warning("deletion %s is not carried out yet: %s", deletion.deletion, error)
        response.status_code = 202
    status = "pending" if deletion.finished_at is None else "done"
    return DeletionResponse(deletion=deletion.deletion, status=status, removed=dict(deletion.removed))
