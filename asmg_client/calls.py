"""Calls of the API: how the request is made and the answer read, without any input or output; further ones for
operators are in `asmg_client.admin_calls`.

`Client` and `AsyncClient` have a method of the same name for each function here, with the same arguments; it sends the
call and returns the answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from asmg_client.answers import (
    Audit,
    Closed,
    Deletion,
    Health,
    Ingested,
    ModelDetail,
    Models,
    Period,
    Periods,
    Pinned,
    Prediction,
    Predictions,
    Processes,
    PutItems,
    PutUsers,
    Readiness,
    RolledBack,
    StoredItem,
    StoredUser,
)
from asmg_client.call import Call, changing, compressed, encoded, in_path, reading, storing
from asmg_client.questions import (
    Click,
    Fields,
    Id,
    Impression,
    Interaction,
    Item,
    ItemInContext,
    Question,
    User,
    new_id,
)


def predict(
    user_id: Id | None,
    items: Sequence[Id | ItemInContext],
    *,
    context: Fields | None = None,
    history: Sequence[Id] | None = None,
    request_id: Id | None = None,
    log_impressions: bool | int | None = None,
    model_version: int | None = None,
) -> Call[Prediction]:
    """Click probabilities of items for a user; `Question` says what the arguments are.

    `model_version` names the version to score with in place of the one that is served: for a key with the scope `admin`
    too, and without `log_impressions`.
    """
    question = Question(user_id, items, context, history, request_id, log_impressions)
    document = {**question.document(), **_chosen(model_version)}
    return storing("POST", "/predict", Prediction, document, compress=False)


def predict_batch(questions: Iterable[Question], *, model_version: int | None = None) -> Call[Predictions]:
    """Answers to 1 to 256 questions, all by one version: the one that is served, or `model_version` as of `predict`."""
    document = {"requests": [question.document() for question in questions], **_chosen(model_version)}
    return storing("POST", "/predict/batch", Predictions, document, compress=False)


def _chosen(model_version: int | None) -> dict[str, Any]:
    return {} if model_version is None else {"model_version": model_version}


def interactions(events: Iterable[Interaction]) -> Call[Ingested]:
    """Store 1 to 10,000 interactions, all or none; each counts once however often it is sent."""
    return storing("POST", "/interactions", Ingested, {"interactions": [event.document() for event in events]})


def impressions(events: Iterable[Impression]) -> Call[Ingested]:
    """Store 1 to 10,000 impressions, all or none."""
    return storing("POST", "/impressions", Ingested, {"impressions": [event.document() for event in events]})


def clicks(events: Iterable[Click]) -> Call[Ingested]:
    """Store 1 to 10,000 clicks on impressions, all or none."""
    return storing("POST", "/clicks", Ingested, {"clicks": [event.document() for event in events]})


def put_items(items: Iterable[Item]) -> Call[PutItems]:
    """Set the categories, and the features, of 1 to 10,000 items."""
    return storing("PUT", "/items", PutItems, {"items": [item.document() for item in items]})


def put_users(users: Iterable[User]) -> Call[PutUsers]:
    """Set the features of 1 to 10,000 users."""
    return storing("PUT", "/users", PutUsers, {"users": [user.document() for user in users]})


def get_item(item_id: Id, *, limit: int | None = None, before: int | None = None) -> Call[StoredItem]:
    """What is stored about an item, with at most `limit` periods, of those below `before`."""
    return reading(f"/items/{in_path(item_id)}", StoredItem, limit=limit, before=before)


def get_user(user_id: Id, *, limit: int | None = None, before: int | None = None) -> Call[StoredUser]:
    """What is stored about a user, with at most `limit` periods, of those below `before`."""
    return reading(f"/users/{in_path(user_id)}", StoredUser, limit=limit, before=before)


def delete_item(item_id: Id) -> Call[Deletion]:
    """Delete all that is stored about an item."""
    return Call("DELETE", f"/items/{in_path(item_id)}", Deletion, repeatable=True)


def delete_user(user_id: Id) -> Call[Deletion]:
    """Delete all that is stored about a user."""
    return Call("DELETE", f"/users/{in_path(user_id)}", Deletion, repeatable=True)


def close_period(
    *, expected_period: int | None = None, reason: str | None = None, idempotency_key: str | None = None
) -> Call[Closed]:
    """Close the open period, on which the worker then updates the model.

    Args:
        expected_period: number that the open period must have.
        reason: for the audit.
        idempotency_key: of this close. Closing again with the same key, also from another process, closes no further
            period. A new key is made where it is None, so the attempts of one call close one period.
    """
    given = {"expected_period": expected_period, "reason": reason}
    document = {name: value for name, value in given.items() if value is not None}
    headers = {"Idempotency-Key": new_id() if idempotency_key is None else idempotency_key}
    return replace(storing("POST", "/periods/close", Closed, document, compress=False), headers=headers)


def list_periods(*, limit: int | None = None, before: int | None = None) -> Call[Periods]:
    """A page of periods, newest first: at most `limit`, of those below `before`."""
    return reading("/periods", Periods, limit=limit, before=before)


def get_period(number: int) -> Call[Period]:
    """One period, its update and its scores."""
    return reading(f"/periods/{int(number)}", Period)


def retry_period(number: int, *, reason: str) -> Call[Period]:
    """Learn a period in quarantine after all. It is not repeated by itself."""
    return changing(f"/periods/{int(number)}/retry", Period, {"reason": reason})


def skip_period(number: int, *, reason: str) -> Call[Period]:
    """Never learn a closed period. It is not repeated by itself."""
    return changing(f"/periods/{int(number)}/skip", Period, {"reason": reason})


def list_models(*, limit: int | None = None, before: int | None = None) -> Call[Models]:
    """A page of versions, newest first: at most `limit`, of those below `before`."""
    return reading("/admin/models", Models, limit=limit, before=before)


def get_model(version: int) -> Call[ModelDetail]:
    """One version with the digests of its training state."""
    return reading(f"/admin/models/{int(version)}", ModelDetail)


def list_processes() -> Call[Processes]:
    """The api processes that run, and what they serve."""
    return reading("/admin/processes", Processes)


def list_audit(
    *, limit: int | None = None, before: int | None = None, actor: str | None = None, action: str | None = None
) -> Call[Audit]:
    """A page of the audit, newest first; of one actor or one action where these are given."""
    return reading("/admin/audit", Audit, limit=limit, before=before, actor=actor, action=action)


def rollback(to_version: int, *, sequence: Literal["keep", "excise"], reason: str) -> Call[RolledBack]:
    """Serve another version; the answer comes when every api process does. It is not repeated by itself.

    Args:
        to_version: an earlier version, or a later one again.
        sequence: `excise` also takes the versions that are rolled back out of what the next update learns from.
        reason: for the audit.
    """
    return changing("/admin/rollback", RolledBack, {"to_version": to_version, "sequence": sequence, "reason": reason})


def pin(version: int, *, reason: str) -> Call[Pinned]:
    """Keep the artifacts of a version however old it gets. It is not repeated by itself."""
    return changing(f"/admin/models/{int(version)}/pin", Pinned, {"reason": reason})


def unpin(version: int, *, reason: str) -> Call[Pinned]:
    """Let the artifacts of a version go when it is old enough. It is not repeated by itself."""
    return changing(f"/admin/models/{int(version)}/unpin", Pinned, {"reason": reason})


def health() -> Call[Health]:
    """Whether the process answers."""
    return reading("/healthz", Health)


def readiness() -> Call[Readiness]:
    """Whether the process can predict and store; raises `NotReady` where it cannot."""
    return replace(reading("/readyz", Readiness), repeatable=False)


def request(
    method: str,
    path: str,
    *,
    params: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
    repeatable: bool = False,
) -> Call[dict[str, Any]]:
    """A call that has no method here, such as one of a newer service; the answer is the JSON object as it is.

    Args:
        method: of HTTP. A GET is repeatable by itself.
        path: percent-encoded, such as `/admin/models`.
        params: of the query.
        body: sent as JSON.
        repeatable: whether the call may be sent again where it is not known what became of it.
    """
    content = None if body is None else encoded(body)
    return Call(method, path, dict, params or {}, {}, content, repeatable or method == "GET")


def ingest(kind: str, events: Iterable[bytes]) -> Call[Ingested]:
    """Store events of one kind (`interactions`, `impressions`, `clicks`) whose JSON is written already."""
    content = b'{"%s":[%s]}' % (kind.encode(), b",".join(events))
    return compressed(Call("POST", f"/{kind}", Ingested, content=content, repeatable=True))
