"""`POST /predict` and `POST /predict/batch`."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.types import Receive, Scope

from service.errors import Forbidden
from service.http.app_state import AppState
from service.http.bodies.predict import parse_batch, parse_predict
from service.http.bodies.read import is_small, read_body
from service.http.headers import request_id_of
from service.http.hot_routes import hot_route
from service.http.keys import Requires
from service.http.schemas import BatchRequest, BatchResponse, PredictRequest, PredictResponse
from service.limits import MAX_BATCH_BYTES, MAX_PREDICT_BYTES, within_id_length
from service.serving.snapshot import Prediction, Snapshot
from service.storage.postgres.repositories import ApiKey
from service.use_cases.impressions import shown
from service.use_cases.predict import PredictResult, Question, predict

__all__ = ["answer_json", "post_predict", "router"]

router = APIRouter(tags=["predict"])

_requires = Requires("predict")
INGEST, ADMIN = "ingest", "admin"


@hot_route(
    router,
    "/predict",
    requires=_requires,
    request=PredictRequest,
    response=PredictResponse,
    summary="Click probabilities of items for a user",
)
async def post_predict(state: AppState, scope: Scope, receive: Receive) -> bytes:
    """Score the items for the user with the version served now, or with the one of `model_version`; unknown users and
    items get a sensible score too, and so does a visitor without an id.
    """
    key = await _requires.key(state, scope)
    body = await read_body(scope, receive, MAX_PREDICT_BYTES)
    parse = partial(parse_predict, body, scope, state.schema)
    question = parse() if is_small(body) else await asyncio.to_thread(parse)
    _check_may_log(key, [question])
    chosen = None if question.model_version is None else await _chosen(state, key, question.model_version)
    result = await predict(state.serving, state.histories, [question], chosen)
    state.metrics.predicted_items.inc(question.items)
    if any(result.without_history):
        state.metrics.without_history.inc()
    request_id, logged = question.request_id or request_id_of(scope), None
    if question.to_log is not None:
        [logged] = await _log_impressions(state, [question], result, [request_id])
    return answer_json(result, request_id, logged)


@hot_route(
    router,
    "/predict/batch",
    requires=_requires,
    request=BatchRequest,
    response=BatchResponse,
    summary="Click probabilities of items for several users",
)
async def post_predict_batch(state: AppState, scope: Scope, receive: Receive) -> bytes:
    """The same for up to 256 users in one call: all answers are of one model version, in the order of the requests,
    but for those of users in the share of a canary.
    """
    key = await _requires.key(state, scope)
    body = await read_body(scope, receive, MAX_BATCH_BYTES)
    small = is_small(body)
    parse = partial(parse_batch, body, scope, state.schema)
    questions = parse() if small else await asyncio.to_thread(parse)
    _check_may_log(key, questions)
    version = questions[0].model_version
    chosen = None if version is None else await _chosen(state, key, version)
    result = await predict(state.serving, state.histories, questions, chosen)
    state.metrics.predicted_items.inc(sum(question.items for question in questions))
    state.metrics.without_history.inc(sum(result.without_history))
    names = (f"{request_id_of(scope)}-{n}" for n in range(len(questions)))
    ids = [question.request_id or within_id_length(name) for question, name in zip(questions, names, strict=True)]
    logged = await _log_impressions(state, questions, result, ids)
    render = partial(_batch_json, result, ids, logged)
    return render() if small else await asyncio.to_thread(render)


def _check_may_log(key: ApiKey | None, questions: Sequence[Question]) -> None:
    """Raise Forbidden where a question is to be logged and the key may not."""
    if key is not None and INGEST not in key.scopes and any(question.to_log is not None for question in questions):
        raise Forbidden(INGEST)


async def _chosen(state: AppState, key: ApiKey | None, version: int) -> Snapshot:
    """The snapshot of a version that the caller chose; raises Forbidden where the key may not choose."""
    if key is not None and ADMIN not in key.scopes:
        raise Forbidden(ADMIN)
    found = state.chosen.find(version)
    return await state.lookups.run(state.chosen.snapshot(version)) if found is None else found


async def _log_impressions(
    state: AppState, questions: Sequence[Question], result: PredictResult, request_ids: Sequence[str]
) -> list[bool | None]:
    """Store the answers that are to be logged; for each whether that succeeded, None where it is not to be logged."""
    answered = enumerate(zip(questions, result.predictions, result.snapshots, request_ids, strict=True))
    impressions = {
        n: shown(question.user_id, question.to_log, prediction, request_id, snapshot.version)
        for n, (question, prediction, snapshot, request_id) in answered
        if question.to_log is not None and question.user_id is not None
    }
    if not impressions:
        return [None] * len(questions)
    stored = await state.impressions.add(list(impressions.values()))
    state.metrics.not_logged.inc(stored.count(False))
    logged = dict(zip(impressions, stored, strict=True))
    return [logged.get(n) for n in range(len(questions))]


def answer_json(result: PredictResult, request_id: str, logged: bool | None = None) -> bytes:
    """The answer to one question."""
    [prediction], [snapshot], [without_history] = result.predictions, result.snapshots, result.without_history
    return _to_json({**_versions(snapshot), **_members(prediction, without_history, request_id, logged)})


def _batch_json(result: PredictResult, request_ids: Sequence[str], logged: Sequence[bool | None]) -> bytes:
    """The answer to a batch, of answers that are written one by one: a thread that writes megabytes lets the event loop
    go on in between.
    """
    served = result.served
    versions = ({} if snapshot is served else _versions(snapshot) for snapshot in result.snapshots)
    members = map(_members, result.predictions, result.without_history, request_ids, logged)
    predictions = (_to_json({**each, **version}) for each, version in zip(members, versions, strict=True))
    head = b'{"model_version":%d,"period":%d,"predictions":[' % (served.version, served.period)
    return head + b",".join(predictions) + b"]}"


def _versions(snapshot: Snapshot) -> dict[str, int]:
    """What an answer says of the version that has made it."""
    return {"model_version": snapshot.version, "period": snapshot.period}


def _to_json(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _members(prediction: Prediction, without_history: bool, request_id: str, logged: bool | None) -> dict[str, Any]:
    """Members of the answer to one question. The scores stay float32, which takes half the digits of float64."""
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
