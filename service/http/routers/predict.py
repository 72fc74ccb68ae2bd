"""`POST /predict` and `POST /predict/batch`."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope

from service.errors import Forbidden, NotReady, RateLimited
from service.http.bodies.predict import parse_batch, parse_predict, quick_question
from service.http.bodies.read import is_small, read_body
from service.http.dependencies import Parts, Requires, body_schema
from service.http.headers import content_coding, request_id_of
from service.http.hot_routes import Answer
from service.http.problems import render_problem
from service.http.schemas import BatchRequest, BatchResponse, PredictRequest, PredictResponse
from service.limits import MAX_BATCH_BYTES, MAX_PREDICT_BYTES, within_id_length
from service.serving.snapshot import Prediction
from service.storage.postgres.repositories import ApiKey
from service.use_cases.impressions import shown
from service.use_cases.predict import PredictResult, Question, predict, predict_many, predict_now

__all__ = ["ANSWERS", "answer_json", "answer_now", "router"]

router = APIRouter(tags=["predict"])

_requires = Requires("predict")
INGEST = "ingest"


async def _predict(parts: Parts, scope: Scope, receive: Receive) -> bytes:
    key = await _requires.key(parts, scope)
    body = await read_body(scope, receive, MAX_PREDICT_BYTES)
    parse = partial(parse_predict, body, scope, parts.schema)
    question = parse() if is_small(body) else await asyncio.to_thread(parse)
    _may_log(key, [question])
    result = await predict(parts.serving, parts.histories, question)
    parts.metrics.predicted_items.inc(question.items)
    parts.metrics.without_history.inc(sum(result.without_history))
    request_id = question.request_id or request_id_of(scope)
    [logged] = await _logged(parts, [question], result, [request_id])
    return answer_json(result, request_id, logged)


def answer_now(parts: Parts, scope: Scope, body: bytes) -> bytes | Response | None:
    """What `_predict` answers, where nothing has to be waited for and nothing is wrong; else None.

    Whoever makes too many requests is told so here: a refusal shall not cost more than an answer.
    """
    started = time.perf_counter()
    try:
        if _requires.known(parts, scope) is None:
            return None
    except RateLimited as refusal:
        response = render_problem(refusal, instance=scope["path"])
        parts.metrics.note_request("/predict", response.status_code, time.perf_counter() - started)
        return response
    if content_coding(scope) is not None:
        return None
    try:
        question = quick_question(body, scope, parts.schema)
    except HTTPException:
        return None
    if question is None:
        return None
    try:
        result = predict_now(parts.serving, parts.histories, question)
    except NotReady:
        return None
    if result is None:
        return None
    content = answer_json(result, question.request_id or request_id_of(scope))
    parts.metrics.predicted_items.inc(question.items)
    parts.metrics.note_request("/predict", 200, time.perf_counter() - started)
    return content


def _may_log(key: ApiKey | None, questions: Sequence[Question]) -> None:
    """Raise Forbidden where a question is to be logged and the key may not."""
    if key is not None and INGEST not in key.scopes and any(question.to_log is not None for question in questions):
        raise Forbidden(INGEST)


async def _logged(
    parts: Parts, questions: Sequence[Question], result: PredictResult, request_ids: Sequence[str]
) -> list[bool | None]:
    """Log what is to be logged; for each question whether that is stored, None where it is not to be."""
    answered = enumerate(zip(questions, result.predictions, request_ids, strict=True))
    impressions = {
        n: shown(question.user_id, question.to_log, prediction, request_id)
        for n, (question, prediction, request_id) in answered
        if question.to_log is not None and question.user_id is not None
    }
    if not impressions:
        return [None] * len(questions)
    stored = await parts.impressions.add(list(impressions.values()))
    parts.metrics.not_logged.inc(stored.count(False))
    logged = dict(zip(impressions, stored, strict=True))
    return [logged.get(n) for n in range(len(questions))]


def answer_json(result: PredictResult, request_id: str, logged: bool | None = None) -> bytes:
    """The answer to one question."""
    [prediction], [without_history] = result.predictions, result.without_history
    versions = {"model_version": result.model_version, "period": result.period}
    return _to_json({**versions, **_members(prediction, without_history, request_id, logged)})


async def _predict_batch(parts: Parts, scope: Scope, receive: Receive) -> bytes:
    key = await _requires.key(parts, scope)
    body = await read_body(scope, receive, MAX_BATCH_BYTES)
    small = is_small(body)
    parse = partial(parse_batch, body, scope, parts.schema)
    questions = parse() if small else await asyncio.to_thread(parse)
    _may_log(key, questions)
    result = await predict_many(parts.serving, parts.histories, questions)
    parts.metrics.predicted_items.inc(sum(question.items for question in questions))
    parts.metrics.without_history.inc(sum(result.without_history))
    names = (f"{request_id_of(scope)}-{n}" for n in range(len(questions)))
    ids = [question.request_id or within_id_length(name) for question, name in zip(questions, names, strict=True)]
    logged = await _logged(parts, questions, result, ids)

    def render() -> bytes:
        # One by one, like the parsing.
        answers = zip(result.predictions, result.without_history, ids, logged, strict=True)
        predictions = (_to_json(_members(*each)) for each in answers)
        head = b'{"model_version":%d,"period":%d,"predictions":[' % (result.model_version, result.period)
        return head + b",".join(predictions) + b"]}"

    return render() if small else await asyncio.to_thread(render)


def _to_json(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _members(prediction: Prediction, without_history: bool, request_id: str, logged: bool | None) -> dict[str, Any]:
    """Of the answer to one question. The scores are written as what they are, float32: half the digits."""
    members = {
        "scores": prediction.scores,
        "cold_user": prediction.cold_user,
        "cold_items": prediction.cold_items if len(prediction.cold_items) else (),
        "history": "unavailable" if without_history else "used",
        "request_id": request_id,
    }
    if logged is not None:
        members["logged"] = logged
    return members


@router.post(
    "/predict",
    dependencies=[Depends(_requires)],
    response_model=PredictResponse,
    openapi_extra=body_schema(PredictRequest),
    summary="Click probabilities of items for a user",
)
async def post_predict(request: Request) -> Response:
    """Score the items for the user with the version served now; unknown users and items get a sensible score too, and
    so does a visitor without an id.
    """
    return Response(await _predict(request.state.parts, request.scope, request.receive), media_type="application/json")


@router.post(
    "/predict/batch",
    dependencies=[Depends(_requires)],
    response_model=BatchResponse,
    openapi_extra=body_schema(BatchRequest),
    summary="Click probabilities of items for several users",
)
async def post_predict_batch(request: Request) -> Response:
    """The same for up to 256 users in one call: all answers are of one model version, in the order of the requests."""
    content = await _predict_batch(request.state.parts, request.scope, request.receive)
    return Response(content, media_type="application/json")


ANSWERS: dict[object, Answer] = {post_predict: _predict, post_predict_batch: _predict_batch}
