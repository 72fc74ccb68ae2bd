"""The model that `asmg bench serve` measures: every server of it has to give the scores of the formula."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from benchmarks.serving.answers import document_of, like_ours
from benchmarks.serving.fields import make_fields
from benchmarks.serving.forward import measure_forward
from benchmarks.serving.model import ServedModel, random_statistics
from benchmarks.serving.model_store import Snapshots
from benchmarks.serving.peers.noop import create_app, write_answers
from benchmarks.serving.peers.tutorial import Predictor, save_model
from benchmarks.serving.requests import ServingSizes, item_id, make_workload, user_id
from service.http.bodies.predict import parse_predict
from service.serving.id_hashes import hash_ids
from service.serving.snapshot import Snapshot
from tests.bench_support import same_threads

SMALL = ServingSizes(users=20, items=60)


def test_the_workload_is_what_its_seed_says() -> None:
    one, two, other = (make_workload(SMALL, seed) for seed in (3, 3, 4))
    assert (one.histories == two.histories).all()
    assert (one.histories != other.histories).any()
    assert one.users.tolist() == list(range(1, 21))
    assert all(len(set(history)) == 30 for history in one.histories.tolist())
    assert one.histories.min() >= 1 and one.histories.max() <= 60
    pool, again = one.requests(7, 40), two.requests(7, 40)
    assert (pool.items == again.items).all() and (pool.users == again.users).all()
    assert pool.n == 7
    assert all(len(set(items)) == 7 for items in pool.items.tolist())
    for user, history in zip(pool.users.tolist(), pool.histories.tolist(), strict=True):
        assert one.histories[user - 1].tolist() == history
    assert one.one_each().users.tolist() == one.users.tolist()


def test_few_of_many_users_ask() -> None:
    workload = make_workload(ServingSizes(users=100_000, items=100), 0, active=5)
    assert workload.users.shape == (5,)
    assert set(workload.requests(2, 100).users.tolist()) <= set(workload.users.tolist())
    assert workload.users.max() > 1000


def test_requests_are_whole_http_requests() -> None:
    pool = make_workload(SMALL, 0).requests(3, 2)
    head, _, body = pool.encode("key", before=b"[", after=b"]")[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /predict HTTP/1.1\r\n")
    assert b"Authorization: Bearer key\r\n" in head
    assert b"Content-Type: application/json\r\n" in head
    assert head.endswith(b"Content-Length: %d" % len(body))
    document = orjson.loads(body)[0]
    assert document == {"user_id": f"u{pool.users[0]}", "items": [f"i{row}" for row in pool.items[0]]}


def test_expected_scores_are_those_of_the_formula() -> None:
    workload, model = make_workload(SMALL, 0), ServedModel.random(SMALL, 0)
    pool, params = workload.requests(2, 3), model.params
    found = model.scores(pool)
    for r in range(3):
        for j in range(2):
            pooled = sum(params["item"][row] for row in pool.histories[r]) / 30
            x = torch.cat([params["user"][pool.users[r]], pooled, params["item"][pool.items[r, j]]])
            for i in range(3):
                x = params[f"mlp.{i}.weight"] @ x + params[f"mlp.{i}.bias"]
                x = torch.relu(x) if i < 2 else x
            assert found[r, j] == pytest.approx(float(1 / (1 + torch.exp(-x))), abs=1e-6)
    others = ServedModel.random(SMALL, 1).scores(pool)
    assert np.abs(found - others).min() > 1e-5, "versions can be told apart by any score"


def test_the_service_with_statistics_scores_as_expected(tmp_path: Path) -> None:
    """Of users who have clicked 30 items and passed nothing, as the benchmark tells the service."""
    workload = make_workload(SMALL, 0)
    model = ServedModel.random(SMALL, 0, statistics=random_statistics(SMALL, 0, 5))
    file = Snapshots(SMALL, tmp_path).make(model)
    assert file.path is not None
    snapshot, pool = Snapshot.open(file.path, 1, 1), workload.requests(9, 3)
    snapshot.check()
    expected = model.scores(pool)
    for user, items, history, wanted in zip(pool.users, pool.items, pool.histories, expected, strict=True):
        ids = user_id(user), [item_id(row) for row in items], [item_id(row) for row in history]
        assert snapshot.predict(*ids, np.array([30, 10, 30], np.int32)).scores == pytest.approx(wanted, abs=1e-6)
        assert snapshot.predict(*ids).scores != pytest.approx(wanted, abs=1e-3)  # what was done last has a say


def test_the_service_with_fields_scores_as_expected(tmp_path: Path) -> None:
    """Of fields of every kind, each of which has a say; read from the body as the service reads it."""
    fields = make_fields(11, SMALL.users, SMALL.items, 0)
    kinds = {(field.of, field.kind, field.enter) for field in fields.schema.fields}
    assert {(of, kind) for of, kind, _ in kinds} == {
        (of, kind) for of in ("context", "user", "item") for kind in ("categorical", "multi", "numeric")
    }
    assert {enter for of, _, enter in kinds if of == "context"} == {None, "log", "buckets"}
    workload = make_workload(SMALL, 0)
    model = ServedModel.random(SMALL, 0, statistics=random_statistics(SMALL, 0, 5), fields=fields)
    file = Snapshots(SMALL, tmp_path).make(model)
    assert file.path is not None
    snapshot, pool, contexts = Snapshot.open(file.path, 1, 1), workload.requests(9, 3), fields.contexts(3)
    snapshot.check()
    assert snapshot.fields is not None
    expected = model.scores(pool, contexts)
    requests = pool.encode("key", contexts=contexts)
    for n, (user, history, wanted) in enumerate(zip(pool.users, pool.histories, expected, strict=True)):
        _, _, body = requests[n].partition(b"\r\n\r\n")
        question = parse_predict(body, {"headers": [(b"content-type", b"application/json")]}, fields.schema)
        assert question.context == contexts[n]
        hashes = hash_ids([str(question.user_id), *question.item_ids])
        past = hash_ids([item_id(row) for row in history])

        def scores(context: Mapping[str, Any], features: Mapping[str, Any]) -> Any:
            values = snapshot.fields.read(context, features, timestamp_ms=0)  # type: ignore[union-attr]
            return snapshot.score(hashes, past, np.array([30, 10, 30], np.int32), values).scores  # noqa: B023

        assert scores(contexts[n], fields.users[user]) == pytest.approx(wanted, abs=1e-6)
        for name in contexts[n]:
            assert scores({**contexts[n], name: None}, fields.users[user]) != pytest.approx(wanted, abs=1e-5)
        for name in fields.users[user]:
            assert scores(contexts[n], {**fields.users[user], name: None}) != pytest.approx(wanted, abs=1e-5)


def test_what_statistics_cost_is_told_beside_the_pass_without(tmp_path: Path) -> None:
    [taken] = measure_forward(tmp_path, SMALL, [3], neighbours=5, near=0.5, changed=0.1, seconds=0.05)
    assert len(taken) == 4 and min(taken) > 0


def test_the_tutorial_scores_as_expected(tmp_path: Path) -> None:
    workload, model = make_workload(SMALL, 0), ServedModel.random(SMALL, 0)
    save_model(tmp_path, model.params, workload)
    with same_threads():
        predictor = Predictor(tmp_path)
    pools = [workload.requests(n, 2) for n in (1, 9)]
    questions = [
        (user_id(user), [f"i{row}" for row in items])
        for pool in pools
        for user, items in zip(pool.users, pool.items, strict=True)
    ]
    wanted = [scores for pool in pools for scores in model.scores(pool)]
    for question, scores, batched in zip(questions, wanted, predictor.predict_batch(questions), strict=True):
        assert predictor.predict(*question) == pytest.approx(scores, abs=1e-6)
        assert batched == pytest.approx(scores, abs=1e-6)
    document = predictor.document("u1", ["i1", "nothing"], [0.1, 0.2])
    assert document["cold_items"] == [1] and document["cold_user"] is False
    assert set(document) == set(document_of(like_ours(np.zeros(1))))


async def test_the_no_op_answers_by_the_length_of_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_answers(tmp_path, [(500, b"long"), (40, b"s")])
    monkeypatch.setenv("BENCH_FOLDER", str(tmp_path))
    noop = create_app()

    async def body_for(*parts: bytes) -> bytes:
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages.append({"type": "http.request"})
        sent: list = []

        async def receive() -> dict:
            return messages.pop(0)

        async def send(message: dict) -> None:
            sent.append(message)

        await noop({"type": "http"}, receive, send)
        assert not messages, "the whole request was read"
        assert dict(sent[0]["headers"])[b"content-length"] == b"%d" % len(sent[1]["body"])
        return sent[1]["body"]

    assert await body_for(b"x" * 40) == b"s"
    assert await body_for(b"x" * 40, b"y") == b"long"
    assert await body_for(b"x" * 600) == b"long"
