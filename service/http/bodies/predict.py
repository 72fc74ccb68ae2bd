"""The bodies of `POST /predict` and `POST /predict/batch`."""

from contextlib import suppress
from typing import Annotated

import msgspec
from starlette.types import Scope

from asmg.features import DEFAULT, Schema
from service.errors import BodyTooLarge
from service.http.bodies.parse import (
    BAD,
    NUL,
    Context,
    Id,
    check_json,
    comes_once,
    faults_of_items,
    item_id_of,
    parse_json,
    refuse_faults,
    text_of,
)
from service.http.schemas import BatchedRequest, BatchRequest, PredictRequest
from service.limits import MAX_BATCH, MAX_ITEMS, MAX_PREDICT_BYTES, MAX_REQUEST_HISTORY
from service.use_cases.fields import allowed, cleaned, written
from service.use_cases.predict import Question, ToLog

__all__ = ["parse_batch", "parse_predict"]


class _PredictBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """The usual members. A body with `log_impressions` or `model_version`, or with an item that has a context of its
    own, has to go through the pydantic model.
    """

    items: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    user_id: Id | None = None
    history: Annotated[list[Id], msgspec.Meta(max_length=MAX_REQUEST_HISTORY)] | None = None
    request_id: Id | None = None
    context: Context | None = None


class _BatchBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    requests: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]


_predict = msgspec.json.Decoder(_PredictBody)
_batch = msgspec.json.Decoder(_BatchBody)


def parse_predict(body: bytes, scope: Scope, schema: Schema = DEFAULT) -> Question:
    """Parse the body of `POST /predict`.

    Args:
        body: inflated.
        scope: of the request.
        schema: of the fields that a context may have.

    Raises:
        HTTPException: 400, the body is not JSON; 415, its media type is another one.
        InvalidInput: it is not as `PredictRequest` and `schema` describe it.
    """
    check_json(scope)
    if NUL not in body:
        with suppress(*BAD):
            return _decode(body, schema)
    request = parse_json(PredictRequest, body, scope)
    refuse_faults(faults_of_items(request, schema, ""))
    return _question_of(request, request.model_version)


def parse_batch(body: bytes, scope: Scope, schema: Schema = DEFAULT) -> list[Question]:
    """Parse the body of `POST /predict/batch`; arguments and errors as of `parse_predict`.

    The requests are decoded one by one. A body of megabytes is parsed in a thread, and the event loop goes on between
    two of them.

    Raises:
        BodyTooLarge: one of the requests is larger than the body of `POST /predict` may be.
    """
    check_json(scope)
    with suppress(*BAD):
        parts = [bytes(part) for part in _batch.decode(body).requests]
        if any(len(part) > MAX_PREDICT_BYTES for part in parts):
            raise BodyTooLarge(MAX_PREDICT_BYTES)
        if NUL not in body and comes_once(b'"requests"', body):
            return [_decode(part, schema) for part in parts]
    batch = parse_json(BatchRequest, body, scope)
    refuse_faults(
        fault
        for n, request in enumerate(batch.requests)
        for fault in faults_of_items(request, schema, f"requests[{n}].")
    )
    return [_question_of(request, batch.model_version) for request in batch.requests]


def _decode(body: bytes, schema: Schema) -> Question:
    """Decode a usual body, about ten times as fast as the pydantic model. Raises one of `BAD` for any other."""
    request = _predict.decode(body)
    if request.context and not allowed(schema, "context", request.context):
        raise msgspec.ValidationError("context: expected values that the schema allows; received others")
    return Question(
        text_of(request.user_id),
        request.items,
        request.history,
        text_of(request.request_id),
        context=request.context or None,
    )


def _question_of(request: BatchedRequest, model_version: int | None) -> Question:
    item_ids = [item_id_of(item) for item in request.items]
    contexts = [{} if isinstance(item, str) else cleaned(item.context) for item in request.items]
    own_contexts = contexts if any(contexts) else None
    to_log = None
    if request.log_impressions:
        most = MAX_ITEMS if request.log_impressions is True else request.log_impressions
        own = None if own_contexts is None else [written(values) for values in own_contexts]
        to_log = ToLog(item_ids, most, written(request.context), own)
    return Question(
        request.user_id,
        item_ids,
        request.history,
        request.request_id,
        to_log,
        cleaned(request.context) or None,
        own_contexts,
        model_version,
    )
