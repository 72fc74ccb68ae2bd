"""`asmg bench serve`: that it counts and judges what it says. No test depends on how fast anything is."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import pytest
import torch
from typer.testing import CliRunner, Result

from benchmarks.serving.answers import WrongAnswers, check_scores, document_of, like_ours
from benchmarks.serving.contest import CLOSED, OPEN
from benchmarks.serving.fields import make_fields
from benchmarks.serving.forward import measure_forward
from benchmarks.serving.generator import Watched, ask
from benchmarks.serving.load import Answers, Load, Target
from benchmarks.serving.options import OURS, PEER_CELL, VARIANTS, Cell, ServeOptions
from benchmarks.serving.ours import Snapshots
from benchmarks.serving.peers.arguments import HOST
from benchmarks.serving.peers.noop import create_app, write_answers
from benchmarks.serving.peers.tutorial import Predictor
from benchmarks.serving.responses import BadResponse, parse_response
from benchmarks.serving.results import summaries
from benchmarks.serving.servers import MARK, Server, ServerFailed, cpu_seconds, free_port, memory_bytes
from benchmarks.serving.ticks import _LoopTimer, make_alarm
from benchmarks.serving.verdict import Swap, judge
from benchmarks.serving.workload import (
    WITH_FIELDS,
    WITH_STATISTICS,
    ServingSizes,
    expected_scores,
    item_id,
    make_workload,
    random_params,
    random_statistics,
    save_model,
    user_id,
)
from service.cli import app
from service.http.bodies.predict import parse_predict
from service.serving.id_hashes import hash_ids
from service.serving.snapshot import Snapshot

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ERROR = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\noops"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
REQUEST = b"POST /predict HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
SMALL = ServingSizes(users=20, items=60)

Reply = Callable[[int], tuple[bytes, bool]]
"""What the request with this number is answered with, and whether the connection is kept."""


@contextmanager
def answering(reply: Reply) -> Iterator[Target]:
    """A server in threads, which answers one request at a time."""
    numbers, turn = count(), threading.Lock()
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines, suppress(OSError):
            while line := lines.readline():
                if line == b"\r\n":
                    lines.read(2)
                    with turn:
                        data, keep = reply(next(numbers))
                    connection.sendall(data)
                    if not keep:
                        return

    def accept() -> None:
        with suppress(OSError):
            while True:
                connections.append(listener.accept()[0])
                threads.append(threading.Thread(target=serve, args=connections[-1:]))
                threads[-1].start()

    with socket.create_server((HOST, 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield Target(HOST, listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def always_ok(_: int) -> tuple[bytes, bool]:
    return OK, True


# --- reading answers


@pytest.mark.parametrize(
    ("data", "status", "body", "keep_alive"),
    [
        (OK, 200, b"ok", True),
        (ERROR, 500, b"oops", True),
        (CHUNKED, 200, b"abcde", True),
        (OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), 200, b"ok", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, b"", True),
    ],
)
def test_an_answer_is_read_whole_and_only_then(data: bytes, status: int, body: bytes, keep_alive: bool) -> None:
    assert parse_response(data) == (status, body, keep_alive)
    for end in range(len(data)):
        assert parse_response(data[:end]) is None, "a part of an answer is none"


@pytest.mark.parametrize(
    "data",
    [
        OK + b"x",
        CHUNKED + b"x",
        b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_response(data)


def test_what_is_expected_is_said() -> None:
    with pytest.raises(BadResponse, match=r"expected an answer of HTTP/1\.1; received b'SSH"):
        parse_response(b"SSH-2.0-OpenSSH\r\n\r\n")


# --- the load generator


@pytest.mark.parametrize("connections", [1, 3])
def test_a_closed_loop_asks_exactly_as_often_as_it_should(connections: int) -> None:
    requests = [REQUEST, REQUEST.replace(b"/predict", b"/other__")]
    with answering(always_ok) as target:
        found = ask(target, Load(requests=requests, connections=connections, count=50, seconds=10, keep_bodies=True))
    assert found.failed == 0
    assert len(found.done) == len(found.due) == len(found.sent) == len(found.bodies) == 50
    assert set(found.bodies) == {b"ok"}
    assert Counter(found.request) == {0: 25, 1: 25}
    assert set(found.connection) == set(range(1, connections + 1))
    assert list(found.done) == sorted(found.done)
    assert list(found.due) == list(found.sent), "in a closed loop"
    assert (found.latencies > 0).all()
    assert found.seconds == found.done[-1] - found.due[0]


def test_a_load_is_bounded_in_time_too() -> None:
    with answering(always_ok) as target:
        found = ask(target, Load(requests=[REQUEST], connections=2, count=10**9, seconds=0.2))
    assert 0 < len(found.done) < 10**9
    assert found.failed == 0
    assert max(found.sent) - found.sent[0] < 0.2


def test_errors_are_failures_and_the_rest_goes_on() -> None:
    def every_third_fails(number: int) -> tuple[bytes, bool]:
        return (ERROR if number % 3 == 0 else OK), True

    with answering(every_third_fails) as target:
        found = ask(target, Load(requests=[REQUEST], connections=2, count=30, seconds=10))
    assert found.faults == {"status 500": 10}
    assert len(found.done) == 20


def test_cut_connections_are_failures_and_others_take_their_place() -> None:
    def cut(number: int) -> tuple[bytes, bool]:
        return (OK[:-1], b"", OK, OK, OK)[number % 5], number % 5 > 1

    with answering(cut) as target:
        found = ask(target, Load(requests=[REQUEST], connections=3, count=50, seconds=10))
    assert found.faults == {"the connection broke before the answer was whole": 20}
    assert len(found.done) == 30
    assert max(found.connection) > 3


def test_a_connection_that_the_server_closes_in_good_order_is_no_failure() -> None:
    def once(_: int) -> tuple[bytes, bool]:
        return OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), False

    with answering(once) as target:
        found = ask(target, Load(requests=[REQUEST], connections=2, count=20, seconds=10))
    assert found.failed == 0
    assert len(found.done) == 20
    assert len(set(found.connection)) == 20


def test_answers_that_cannot_be_read_are_failures() -> None:
    def garbage(number: int) -> tuple[bytes, bool]:
        return (b"HTTP/1.1 200 OK\r\n\r\n" if number % 2 else OK), True

    with answering(garbage) as target:
        found = ask(target, Load(requests=[REQUEST], connections=1, count=10, seconds=10))
    assert found.failed == 5
    assert all(fault.startswith("no answer that can be read: expected Content-Length") for fault in found.faults)


def test_a_server_that_has_gone_fails_what_is_left() -> None:
    def once() -> None:
        with listener.accept()[0] as connection:
            listener.close()
            connection.recv(1000)

    listener = socket.create_server((HOST, 0))
    target = Target(HOST, listener.getsockname()[1])
    thread = threading.Thread(target=once)
    thread.start()
    found = ask(target, Load(requests=[REQUEST], connections=1, count=5, seconds=10))
    thread.join()
    assert found.faults == {
        "the connection broke before the answer was whole": 1,
        "no connection: ConnectionRefusedError": 4,
    }
    assert len(found.done) == 0


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConnectionRefusedError):
        ask(Target(HOST, free_port()), Load(requests=[REQUEST], connections=1, count=1, seconds=1))


def test_what_is_not_answered_in_time_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(number: int) -> tuple[bytes, bool]:
        return (b"" if number else OK), True

    monkeypatch.setattr("benchmarks.serving.generator.DRAIN_SECONDS", 0.2)
    with answering(silent) as target:
        found = ask(target, Load(requests=[REQUEST], connections=1, count=10, seconds=0.5, rate=20))
    assert len(found.done) == 1
    assert found.faults == {"no answer in time": 9}, "the one in flight and those that wait for it"


def test_an_open_loop_is_due_at_fixed_moments() -> None:
    with answering(always_ok) as target:
        found = ask(target, Load(requests=[REQUEST], connections=4, count=40, seconds=10, rate=200))
    assert found.failed == 0
    due = np.sort(np.frombuffer(found.due))
    assert np.allclose(np.diff(due), 1 / 200)
    assert (np.frombuffer(found.sent) >= np.frombuffer(found.due)).all(), "nothing is sent before it is due"
    assert len(found.late) == 40


def test_an_open_loop_ends_in_time_as_well() -> None:
    with answering(always_ok) as target:
        found = ask(target, Load(requests=[REQUEST], connections=4, count=10**6, seconds=0.25, rate=100))
    assert len(found.done) == 25


def test_an_open_loop_charges_a_stall_to_all_that_became_due_in_it() -> None:
    def stall_once(number: int) -> tuple[bytes, bool]:
        if number == 20:
            time.sleep(0.2)  # and nobody else is answered meanwhile
        return OK, True

    with answering(stall_once) as target:
        found = ask(target, Load(requests=[REQUEST], connections=2, count=60, seconds=10, rate=100))
        closed = ask(target, Load(requests=[REQUEST], connections=2, count=60, seconds=10))
    assert found.failed == 0
    in_order = found.latencies[np.argsort(np.frombuffer(found.due))]
    assert in_order.max() >= 0.2
    # Due 10 ms after each other: the next ones waited 190, 180, 170 … ms, though no more than two were in flight.
    for i in range(21, 29):
        assert in_order[i] >= 0.2 - (i - 20) / 100 - 0.02
    waited = np.frombuffer(found.sent) - np.frombuffer(found.due)
    assert np.sum(waited >= 0.1) >= 5, "most of it without a connection, which a closed loop would not have noticed"
    assert closed.failed == 0


def test_what_happens_beside_a_load_sees_the_answers_and_ends_it() -> None:
    def counting(number: int) -> tuple[bytes, bool]:
        body = b'{"model_version":%d}' % (1 if number < 30 else 2)
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), True

    seen: list[list[bytes | None]] = []

    async def beside(watched: Watched) -> None:
        while not all(body == b'{"model_version":2}' for body in watched.latest()):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        seen.append(watched.latest())

    load = Load(requests=[REQUEST], connections=2, count=10**6, seconds=30, rate=500, keep_bodies=True)
    with answering(counting) as target:
        found = ask(target, load, beside=beside)
    assert found.failed == 0
    assert seen[-1] == [b'{"model_version":2}'] * 2
    assert 30 < len(found.done) < 10**6


def test_what_fails_beside_a_load_ends_it() -> None:
    async def beside(_: Watched) -> None:
        raise RuntimeError("it broke")

    load = Load(requests=[REQUEST], connections=1, count=10**6, seconds=30, rate=10)
    with answering(always_ok) as target, pytest.raises(RuntimeError, match="it broke"):
        ask(target, load, beside=beside)


def test_a_load_can_be_ended() -> None:
    def check() -> None:
        raise KeyError("enough")

    with answering(always_ok) as target, pytest.raises(KeyError):
        ask(target, Load(requests=[REQUEST], connections=1, count=10**9, seconds=30), check=check)


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "::", "example.org", "10.0.0.1", ""])
def test_nothing_but_loopback_is_ever_asked(host: str) -> None:
    with pytest.raises(ValueError, match=r"host: expected a loopback address, .*; received "):
        Target(host, 80)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_is(host: str) -> None:
    assert Target(host, 80).host == host


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requests": []}, "requests: expected at least 1; received none"),
        ({"connections": 0}, "connections: expected at least 1; received 0"),
        ({"count": 0}, "count: expected at least 1; received 0"),
        ({"seconds": 0}, "seconds: expected more than 0; received 0"),
        ({"rate": -1.0}, r"rate: expected more than 0; received -1\.0"),
    ],
)
def test_a_load_has_bounds(changes: dict[str, object], message: str) -> None:
    values = {"requests": [REQUEST], "connections": 1, "count": 1, "seconds": 1.0, **changes}
    with pytest.raises(ValueError, match=message):
        Load(**values)


@pytest.mark.parametrize("make", [make_alarm, _LoopTimer])
async def test_an_alarm_rings_at_its_moment_and_only_the_last_one(make: Callable) -> None:
    rung: list[float] = []
    alarm = make(lambda: rung.append(time.perf_counter()))
    moment = time.perf_counter() + 0.03
    alarm.set(moment + 0.01)
    alarm.set(moment)
    await asyncio.sleep(0.1)
    assert len(rung) == 1
    assert rung[0] >= moment - 0.002, "the loop's own timer rounds to milliseconds"
    alarm.set(time.perf_counter() - 1)
    await asyncio.sleep(0.02)
    assert len(rung) == 2, "a moment that has passed is now"
    alarm.set(time.perf_counter() + 0.01)
    alarm.close()
    await asyncio.sleep(0.03)
    assert len(rung) == 2


# --- the workload


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
    workload, params = make_workload(SMALL, 0), random_params(SMALL, 0)
    pool = workload.requests(2, 3)
    found = expected_scores(params, pool)
    for r in range(3):
        for j in range(2):
            pooled = sum(params["item"][row] for row in pool.histories[r]) / 30
            x = torch.cat([params["user"][pool.users[r]], pooled, params["item"][pool.items[r, j]]])
            for i in range(3):
                x = params[f"mlp.{i}.weight"] @ x + params[f"mlp.{i}.bias"]
                x = torch.relu(x) if i < 2 else x
            assert found[r, j] == pytest.approx(float(1 / (1 + torch.exp(-x))), abs=1e-6)
    others = expected_scores(random_params(SMALL, 1), pool)
    assert np.abs(found - others).min() > 1e-5, "versions can be told apart by any score"


def test_the_service_with_statistics_scores_as_expected(tmp_path: Path) -> None:
    """Of users who have clicked 30 items and passed nothing, as the benchmark tells the service."""
    workload, statistics = make_workload(SMALL, 0), random_statistics(SMALL, 0, 5)
    params = random_params(SMALL, 0, WITH_STATISTICS)
    file = Snapshots(SMALL, tmp_path).make(params, statistics)
    assert file.path is not None
    snapshot, pool = Snapshot.open(file.path, 1, 1), workload.requests(9, 3)
    snapshot.check()
    expected = expected_scores(params, pool, statistics)
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
    workload, statistics = make_workload(SMALL, 0), random_statistics(SMALL, 0, 5)
    params = random_params(SMALL, 0, WITH_FIELDS, fields.size)
    file = Snapshots(SMALL, tmp_path).make(params, statistics, fields)
    assert file.path is not None
    snapshot, pool, contexts = Snapshot.open(file.path, 1, 1), workload.requests(9, 3), fields.contexts(3)
    snapshot.check()
    assert snapshot.fields is not None
    sums = fields.sums(params["field"], contexts, pool.users, pool.items)
    expected = expected_scores(params, pool, statistics, sums)
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
    [(without, with_statistics)] = measure_forward(tmp_path, SMALL, [3], neighbours=5, near=0.5, seconds=0.05)
    assert without > 0 and with_statistics > 0


def test_the_tutorial_scores_as_expected(tmp_path: Path) -> None:
    workload, params = make_workload(SMALL, 0), random_params(SMALL, 0)
    save_model(tmp_path, params, workload)
    threads = torch.get_num_threads()
    try:
        predictor = Predictor(tmp_path)
    finally:
        torch.set_num_threads(threads)
    pools = [workload.requests(n, 2) for n in (1, 9)]
    questions = [
        (user_id(user), [f"i{row}" for row in items])
        for pool in pools
        for user, items in zip(pool.users, pool.items, strict=True)
    ]
    wanted = [scores for pool in pools for scores in expected_scores(params, pool)]
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


# --- judging answers


def test_wrong_answers_are_noticed() -> None:
    wanted = np.array([[0.25, 0.5], [0.125, 0.75]])
    bodies = [like_ours(scores) for scores in wanted]
    check_scores(bodies, wanted)
    check_scores([b"[" + body + b"]" for body in bodies], wanted)
    for wrong, message in (
        (bodies[:1], "expected 2 answers; received 1"),
        ([bodies[0], like_ours(wanted[1] + 1e-4)], r"differ by 1\.0e-04"),
        ([bodies[0], like_ours(wanted[1][:1])], "expected 2 scores; received 1"),
        ([bodies[0], b"<html>"], "expected a JSON document; received b'<html>'"),
        ([bodies[0], b'{"detail": 1}'], "expected a document with scores"),
        ([bodies[0], b'{"scores": [null, 0.75]}'], "differ by nan"),
    ):
        with pytest.raises(WrongAnswers, match=message):
            check_scores(wrong, wanted)


def answers_of(*entries: tuple[float, float, int, int, bytes]) -> Answers:
    """Of (due, done, request, connection, body)."""
    found = Answers()
    for due, done, request, connection, body in sorted(entries, key=lambda entry: entry[1]):
        found.due.append(due)
        found.sent.append(due)
        found.done.append(done)
        found.request.append(request)
        found.connection.append(connection)
        found.bodies.append(body)
    return found


def body_of(version: int, *scores: float) -> bytes:
    return orjson.dumps({"model_version": version, "scores": scores})


BY_SNAPSHOT = [np.array([[0.2], [0.4]]), np.array([[0.6], [0.8]])]
"""Of versions 2, 4 … and of 1, 3 …: the score of requests 0 and 1."""


def test_answers_are_compared_with_the_version_that_they_name() -> None:
    right = [
        (0.0, 0.1, 0, 1, body_of(1, 0.6)),
        (0.1, 0.2, 1, 2, body_of(1, 0.8)),
        (1.2, 1.3, 0, 1, body_of(2, 0.2)),
        (1.3, 1.4, 1, 2, body_of(2, 0.4000001)),
        (2.2, 2.3, 1, 1, body_of(3, 0.8)),
    ]
    swaps = [Swap(2, 1.0, 1.25), Swap(3, 2.0, 2.25)]
    found = judge(answers_of(*right), swaps, BY_SNAPSHOT, settled=0.0, after=0.5)
    assert (found.mixed, found.went_back) == (0, 0)
    assert found.last_old == [0.0, 0.0]
    for wrong, fault in (
        (body_of(2, 0.6), "scores that are not those of its version"),
        (body_of(2, 0.200002), "scores that are not those of its version"),
        (body_of(2, 0.2, 0.2), "scores that are not those of its version"),
        (body_of(4, 0.2), "version 4, which was never published"),
        (body_of(0, 0.2), "version 0, which was never published"),
        (b'{"model_version": 2}', "expected a document with scores; received b'{\"model_version\": 2}'"),
    ):
        found = judge(answers_of(*right, (1.5, 1.6, 0, 9, wrong)), swaps, BY_SNAPSHOT, settled=0.0, after=0.5)
        assert found.faults == {fault: 1}
        assert found.mixed == 1


def test_a_version_that_goes_back_is_noticed() -> None:
    swaps = [Swap(2, 1.0, 1.2)]
    forth = [(1.1, 1.3, 0, 1, body_of(2, 0.2))]
    same = judge(
        answers_of(*forth, (1.4, 1.5, 0, 1, body_of(1, 0.6))), swaps, BY_SNAPSHOT, settled=0.0, after=0.5
    )  # fmt: skip
    assert same.faults == {"an older version than the answer before on the same connection": 1}
    assert same.went_back == 1
    other = judge(
        answers_of(*forth, (1.4, 1.5, 0, 2, body_of(1, 0.6))), swaps, BY_SNAPSHOT, settled=0.0, after=0.5
    )  # fmt: skip
    assert (other.mixed, other.went_back) == (0, 1)
    assert other.last_old == [pytest.approx(0.5)]
    beside = judge(
        answers_of(*forth, (1.2, 1.35, 0, 2, body_of(1, 0.6))), swaps, BY_SNAPSHOT, settled=0.0, after=0.5
    )  # fmt: skip
    assert (beside.mixed, beside.went_back) == (0, 0), "it was on its way when the newer one came"


def test_latencies_are_told_apart_by_when_their_requests_were_due() -> None:
    swaps = [Swap(2, 10.0, 11.0)]
    entries = [
        (due, due + seconds, 0, 1, body_of(1 if due + seconds < 11 else 2, 0.6 if due + seconds < 11 else 0.2))
        for due, seconds in ((4.0, 3.0), (9.9, 0.4), (10.0, 0.6), (12.0, 0.5), (12.1, 0.1))
    ]
    found = judge(answers_of(*entries), swaps, BY_SNAPSHOT, settled=5.0, after=1.0)
    assert (found.during.requests, found.between.requests) == (2, 2), "the first was due before it had settled"
    assert found.during.max_ms == pytest.approx(600)
    assert found.during.p50_ms == pytest.approx(600), "the higher one of two"
    assert found.between.max_ms == pytest.approx(400)
    nothing = judge(Answers(), [], BY_SNAPSHOT, settled=0.0, after=1.0)
    assert nothing.during.p99_ms is None and nothing.mixed == 0 and nothing.went_back == 0


# --- servers


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ASMG_")}


FAMILY = """
import subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_):
        pass

sleep = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
subprocess.Popen(sleep)
subprocess.Popen(sleep, start_new_session=True)
subprocess.run(["sh", "-c", '"$@" & echo left', "sh", *sleep])
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.slow
def test_a_server_goes_with_all_that_it_has_started(tmp_path: Path) -> None:
    port = free_port()
    server = Server(
        "family", [*script(FAMILY), str(port)], port, environment=environment(), log=tmp_path / "log"
    )  # fmt: skip
    with server:
        server.wait_ready(lambda: server.answers(REQUEST) == b"ok")
        processes = server.processes()
        assert len(processes) >= 3
        assert memory_bytes(processes) > 5e6
        before = cpu_seconds(processes)
        assert server.ask(Load(requests=[REQUEST], connections=1, count=20, seconds=10)).failed == 0
        assert cpu_seconds(processes) > before > 0
        mark = processes[0].environ()[MARK]
    for process in processes:
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    for process in psutil.process_iter():
        try:
            assert process.environ().get(MARK) != mark or process.status() == psutil.STATUS_ZOMBIE, "one got away"
        except psutil.Error:
            continue
    with pytest.raises(ServerFailed, match="family cannot be connected to"):
        server.ask(Load(requests=[REQUEST], connections=1, count=1, seconds=1))


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    server = Server(
        "broken", script("raise SystemExit('no good')"), free_port(), environment=environment(), log=tmp_path / "log"
    )  # fmt: skip
    with server, pytest.raises(ServerFailed, match=r"(?s)broken ended with code 1:.*no good"):
        server.wait_ready(lambda: False)


def test_a_server_that_is_never_ready_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.servers.START_SECONDS", 0.3)
    text = "import time; print('hm', flush=True); time.sleep(60)"
    server = Server("idle", script(text), free_port(), environment=environment(), log=tmp_path / "log")
    with server, pytest.raises(ServerFailed, match=r"(?s)idle was not ready within 0 s.*hm"):
        server.wait_ready(lambda: False)


# --- options and results


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "serve", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--items", "1,x"], "items: expected whole numbers separated by commas; received '1,x'"),
        (["--items", "0"], "items: expected distinct numbers of at least 1; received 0"),
        (["--items", "5,5"], "items: expected distinct numbers of at least 1; received 5, 5"),
        (["--items", "1001"], "items: expected at most 1000 of a request; received 1001"),
        (["--items", "200", "--catalogue", "100"], "items: expected at most 100 of a request; received 200"),
        (["--concurrency", "0"], "concurrency: expected distinct numbers of at least 1; received 0"),
        (["--workers", ""], "workers: expected whole numbers separated by commas; received ''"),
        (["--users", "0"], "users: expected at least 1; received 0"),
        (["--catalogue", "29"], "catalogue: expected at least the 30 of a history; received 29"),
        (["--requests", "0"], "requests: expected at least 1; received 0"),
        (["--rounds", "0"], "rounds: expected at least 1; received 0"),
        (["--seconds", "0"], "seconds: expected more than 0; received 0.0"),
        (["--seconds", "nan"], "seconds: expected more than 0; received nan"),
        (["--rate", "-5"], "rate: expected more than 0; received -5.0"),
        (["--warm-up", "-1"], "warm-up: expected at least 0; received -1"),
        (["--seed", "-1"], "seed: expected at least 0; received -1"),
        (["--open-loop", "1"], "open-loop: expected a share of at least 0 and below 1; received 1.0"),
        (["--open-loop", "0", "--during-swap"], "open-loop: expected more than 0 with --during-swap; received 0"),
        (["--versions", "0"], "versions: expected at least 1; received 0"),
        (["--rows", "10", "--during-swap"], "rows: expected at least 1000; received 10"),
        (["--rows", "10000000000000", "--during-swap"], "rows: expected versions that fit; "),
        (
            ["--variants", "asmg,flask"],
            "variants: expected some of asmg, asmg-statistics, asmg-fields, plain, noop, litserve, ",
        ),
        (["--variants", "asmg-fields"], "fields: expected their number for asmg-fields; received none"),
        (["--fields", "0"], "fields: expected 1 to 54; received 0"),
        (["--fields", "55"], "fields: expected 1 to 54; received 55"),
        (["--report", "/no/such/folder/report.json"], "/no/such/folder/report.json: expected"),
    ],
)
def test_bad_input_gets_one_clear_line(arguments: list[str], message: str) -> None:
    done = bench(*arguments)
    assert done.exit_code == 1, done.output
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("asmg: ")
    assert message in done.stderr
    assert done.stdout == ""


def test_what_is_measured_of_whom() -> None:
    options = ServeOptions(workers=(1, 2))
    assert options.names == ("asmg",)
    assert len(options.cells(VARIANTS["asmg"], 2)) == 9
    options = ServeOptions(compare=True)
    assert options.names == tuple(name for name in VARIANTS if name != "asmg-fields")
    assert ServeOptions(compare=True, fields=10).names == tuple(VARIANTS)
    assert ServeOptions(fields=10).names == ("asmg-statistics", "asmg-fields")
    assert len(options.cells(VARIANTS["plain"], 1)) == len(options.cells(VARIANTS["noop"], 1)) == 9
    assert options.cells(VARIANTS["ray"], 1) == [PEER_CELL] == [Cell(50, 16, 1)]
    assert options.cells(VARIANTS["ray"], 2) == []
    assert len(ServeOptions(compare=True, all_cells=True).cells(VARIANTS["ray"], 2)) == 9
    assert ServeOptions(compare=True, variants=("noop", "asmg")).names == ("asmg", "noop")


def test_summaries_are_medians_and_sums() -> None:
    figures = {"p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "max_ms": 4.0, "memory_mb": 5.0, "rate": None}
    raw = {
        ("asmg", Cell(50, 16, 1), OPEN): [{**figures, "rps": 7.0, "cpu_us": 9.0, "failed": 0, "rate": 10.0}],
        ("plain", Cell(50, 16, 1), CLOSED): [{**figures, "rps": 5.0, "cpu_us": 9.0, "failed": 0}],
        ("asmg", Cell(50, 16, 1), CLOSED): [
            {**figures, "rps": rps, "cpu_us": 100 / rps, "failed": failed}
            for rps, failed in ((10.0, 0), (30.0, 2), (20.0, 1))
        ],
    }
    closed, plain, opened = summaries(raw)
    assert (closed["variant"], closed["loop"], closed["n"], closed["concurrency"], closed["workers"]) == (
        "asmg",
        "closed",
        50,
        16,
        1,
    )
    assert (closed["rps"], closed["cpu_us"], closed["failed"]) == (20.0, 5.0, 3)
    assert closed["rate"] is None and len(closed["rounds"]) == 3
    assert plain["variant"] == "plain"
    assert (opened["loop"], opened["rate"]) == ("open", 10.0)


# --- whole runs

TINY = [
    *("--users", "30", "--catalogue", "80", "--requests", "60", "--warm-up", "5", "--rounds", "1"),
    *("--items", "3", "--concurrency", "2", "--workers", "1"),
]


@pytest.mark.slow
def test_it_compares_and_reports(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    options = ["--variants", "asmg,plain,noop", "--rounds", "2", "--seconds", "0.5"]
    done = bench(*TINY, "--compare", *options, "--report", str(file))
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text(encoding="utf-8"))
    assert set(report) == {"cells", "swap", "machine", "options", "left_out"}
    assert report["swap"] is None and report["left_out"] == {}
    assert [(cell["variant"], cell["loop"]) for cell in report["cells"]] == [
        ("asmg", "closed"),
        ("plain", "closed"),
        ("noop", "closed"),
        ("asmg", "open"),
    ]
    for cell in report["cells"]:
        assert (cell["n"], cell["concurrency"], cell["workers"], cell["failed"]) == (3, 2, 1, 0)
        assert 0 < cell["p50_ms"] <= cell["p95_ms"] <= cell["p99_ms"] <= cell["max_ms"]
        assert cell["rps"] > 0 and cell["cpu_us"] > 0 and cell["memory_mb"] > 1
        for entry in cell["rounds"]:
            assert entry["requests"] == (60 if cell["loop"] == "closed" else int(entry["rate"] * 0.5))
    capacity = [entry["rps"] for entry in report["cells"][0]["rounds"]]
    assert [entry["rate"] for entry in report["cells"][3]["rounds"]] == pytest.approx([0.7 * rps for rps in capacity])
    assert report["cells"][0]["stores_cpu_us"] >= 0
    assert report["machine"]["versions"]["uvicorn"]
    assert report["options"]["variants"] == ["asmg", "plain", "noop"]
    for words in ("times the requests", "of no-op", "Closed loop, medians of 2 rounds", "Open loop", "plain"):
        assert words in done.stdout


@pytest.mark.slow
def test_fields_are_measured_beside_the_same_without(tmp_path: Path) -> None:
    """Their answers are compared with those of the torch model, so features of users have reached the service."""
    file = tmp_path / "report.json"
    done = bench(*TINY, "--fields", "10", "--open-loop", "0", "--report", str(file))
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["left_out"] == {} and report["options"]["fields"] == 10
    assert [cell["variant"] for cell in report["cells"]] == ["asmg-statistics", "asmg-fields"]
    assert [cell["failed"] for cell in report["cells"]] == [0, 0]
    assert "CPU of asmg-statistics" in done.stdout and "CPU of asmg  " not in done.stdout


@pytest.mark.slow
def test_versions_are_published_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.swap.BETWEEN_SECONDS", 0.5)
    file = tmp_path / "report.json"
    swap = ["--during-swap", "--versions", "2", "--rows", "3000", "--rate", "100", "--open-loop", "0.5"]
    done = bench(*TINY, *swap, "--report", str(file))
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text(encoding="utf-8"))["swap"]
    assert (found["versions"], found["failed"], found["mixed"], found["went_back"]) == (2, 0, 0, 0), found
    assert found["rows"] == 3000 and found["rate"] == 100
    assert found["p99_ratio"] == pytest.approx(found["p99_during_ms"] / found["p99_between_ms"])
    assert found["requests_during"] > 200 and found["requests_between"] > 50
    assert len(found["switch_seconds"]) == len(found["last_old_seconds"]) == 2
    assert all(0 < seconds < 60 for seconds in (*found["last_old_seconds"], *found["switch_seconds"]))
    assert "2 versions of 3,000 rows" in done.stdout


@pytest.mark.slow
def test_a_variant_that_is_not_installed_or_does_not_start_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = VARIANTS["ray"].__class__(name="ray", file="no_such_file", package="json")
    monkeypatch.setitem(VARIANTS, "ray", broken)
    absent = VARIANTS["litserve"].__class__(name="litserve", file="lit_serve", package="surely_not_installed")
    monkeypatch.setitem(VARIANTS, "litserve", absent)
    file = tmp_path / "report.json"
    done = bench(*TINY, "--variants", "noop,litserve,ray", "--all-cells", "--report", str(file))
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text(encoding="utf-8"))
    assert {cell["variant"] for cell in report["cells"]} == {"noop"}
    assert report["left_out"]["litserve"] == "not installed (pip install 'asmg-service[peers]')"
    assert "no_such_file" in report["left_out"]["ray"]
    assert "litserve: not installed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.package])
def test_each_peer_that_is_installed_gives_the_same_scores(name: str, tmp_path: Path) -> None:
    if not VARIANTS[name].installed:
        pytest.skip("not installed")
    file = tmp_path / "report.json"
    done = bench(*TINY, "--variants", name, "--all-cells", "--report", str(file))
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["left_out"] == {}
    assert [(cell["variant"], cell["failed"]) for cell in report["cells"]] == [(name, 0)]


@pytest.mark.slow
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, data_dir: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "bench", "serve", *TINY, "--rounds", "1000"]
    (folder := data_dir.parent / "t").mkdir()  # short enough for a Unix socket
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**environment(), "TMPDIR": str(folder)}
        )  # fmt: skip
    deadline = time.monotonic() + 90
    while not any("service.processes.supervisor" in " ".join(_command(one)) for one in _children(process.pid)):
        assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "out").read_text()
        time.sleep(0.05)
    assert [*folder.glob("asmg-bench-*")]
    mine = {one.pid for one in _children(process.pid)}
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, (tmp_path / "out").read_text()
    assert "interrupted; everything was stopped and removed" in (tmp_path / "out").read_text()
    assert not [*folder.glob("asmg-bench-*")]
    for pid in mine:
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_the_real_service_is_a_variant_of_its_own() -> None:
    assert VARIANTS[OURS].file is None
    assert [name for name, variant in VARIANTS.items() if variant.package is None] == [
        *("asmg", "asmg-statistics", "asmg-fields", "plain", "noop")
    ]
