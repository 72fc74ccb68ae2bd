"""The bodies of `POST /predict` and `POST /predict/batch`."""

from contextlib import suppress
from typing import Annotated

import msgspec
import numpy as np
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
    texts_of,
)
from service.http.schemas import (
    BatchRequest,
    PredictRequest,
)
from service.limits import (
    MAX_BATCH,
    MAX_HISTORY,
    MAX_ID_LENGTH,
    MAX_ITEMS,
    MAX_PREDICT_BYTES,
    MAX_REQUEST_HISTORY,
)
from service.serving.forward import hash_json
from service.serving.snapshot import hashes_of
from service.use_cases.fields import allowed, cleaned
from service.use_cases.predict import Question, hash_of_user

__all__ = ["parse_batch", "parse_predict", "quick_question"]


class _PredictBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    items: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    user_id: Id | None = None
    history: Annotated[list[Id], msgspec.Meta(max_length=MAX_REQUEST_HISTORY)] | None = None
    request_id: Id | None = None
    context: Context | None = None


class _QuickBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """The same with items that are not taken apart yet, and not looked at."""

    items: msgspec.Raw
    user_id: Id | None = None
    history: Annotated[list[Id], msgspec.Meta(max_length=MAX_REQUEST_HISTORY)] | None = None
    request_id: Id | None = None
    context: Context | None = None


class _BatchBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    requests: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]


_predict = msgspec.json.Decoder(_PredictBody)
_quick = msgspec.json.Decoder(_QuickBody)
_batch = msgspec.json.Decoder(_BatchBody)


def parse_predict(body: bytes, scope: Scope, schema: Schema = DEFAULT) -> Question:
    """The body of `POST /predict`; raises as `parse_json` does, and InvalidInput for what `schema` has no place for."""
    if (question := quick_question(body, scope, schema)) is not None:
        return question
    request = parse_json(PredictRequest, body, scope)
    refuse_faults(faults_of_items(request, schema, ""))
    return _question_of(request)


def quick_question(body: bytes, scope: Scope, schema: Schema = DEFAULT) -> Question | None:
    """The body of `POST /predict`, where it is plainly right; raises as `check_json` does."""
    check_json(scope)
    if NUL not in body:
        with suppress(*BAD):
            return _question(body, schema)
    return None


def parse_batch(body: bytes, scope: Scope, schema: Schema = DEFAULT) -> list[Question]:
    """The requests in the body of `POST /predict/batch`; raises as `parse_predict` does, and BodyTooLarge for one of
    them.

    They are parsed one by one, so that a thread that does this for megabytes lets the event loop go on in between.
    """
    check_json(scope)
    with suppress(*BAD):
        parts = [bytes(part) for part in _batch.decode(body).requests]
        if any(len(part) > MAX_PREDICT_BYTES for part in parts):
            raise BodyTooLarge(MAX_PREDICT_BYTES)
        if NUL not in body and comes_once(b'"requests"', body):
            return [_question(part, schema) for part in parts]
    requests = parse_json(BatchRequest, body, scope).requests
    refuse_faults(
        fault for n, request in enumerate(requests) for fault in faults_of_items(request, schema, f"requests[{n}].")
    )
    return [_question_of(request) for request in requests]


def _question(body: bytes, schema: Schema) -> Question:
    """Raises one of `BAD` for a body that is not right."""
    if not comes_once(b'"items"', body):
        return _question_of_ids(_predict.decode(body), schema)
    quick = _quick.decode(body)
    context = _allowed(quick.context, schema)
    raw = bytes(quick.items)
    asked = np.empty(1 + min(MAX_ITEMS, len(raw) // 2), dtype=np.uint64)
    n = hash_json(raw, MAX_ID_LENGTH, asked[1:])
    if n < 1:
        return _question_of_ids(_predict.decode(body), schema)
    user_id = text_of(quick.user_id)
    asked[0] = hash_of_user(user_id)
    history = None if quick.history is None else hashes_of(texts_of(quick.history[:MAX_HISTORY]))
    return Question(user_id, asked[: 1 + n], history, text_of(quick.request_id), context=context)


def _allowed(context: Context | None, schema: Schema) -> Context | None:
    """A context in which nothing is wrong, None for an empty one. Raises one of `BAD` where something is."""
    if context and not allowed(schema, "context", context):
        raise msgspec.ValidationError("context: expected values that the schema allows; received others")
    return context or None


def _question_of_ids(request: _PredictBody, schema: Schema) -> Question:
    history = None if request.history is None else texts_of(request.history)
    return Question.of(
        text_of(request.user_id),
        texts_of(request.items),
        history,
        text_of(request.request_id),
        context=_allowed(request.context, schema),
    )


def _question_of(request: PredictRequest) -> Question:
    history = None if request.history is None else texts_of(request.history)
    log = request.log_impressions
    contexts = [{} if isinstance(item, str) else cleaned(item.context) for item in request.items]
    return Question.of(
        request.user_id,
        [item_id_of(item) for item in request.items],
        history,
        request.request_id,
        log=MAX_ITEMS if log is True else log or None,
        context=cleaned(request.context) or None,
        item_contexts=contexts if any(contexts) else None,
    )
