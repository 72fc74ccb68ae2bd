"""The clients of the demo: what they send, and which answers they count as failures."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from asmg.datasets.synthetic import DriftConfig
from service.demo import client
from service.demo.client import Api, CallFailed, split_batches
from service.demo.scenario import contexts_for_prediction
from service.demo.streams import synthetic_stream
from service.demo.traffic import CLIENTS, Traffic, VersionOrder, Window

SMALL = DriftConfig(users=100, items=40, events=1_500, categories=4, fields=True)


def test_versions_go_forward_unless_they_were_announced() -> None:
    order = VersionOrder(0)
    assert order.accept(0, 0)
    assert order.accept(2, 0)
    assert not order.accept(1, 0)  # never seen, but older than one that was
    assert order.accept(0, 0)  # sent before version 2 was seen
    assert not order.accept(0, order.position)
    order.announce(1)
    before = order.position
    assert order.accept(2, before)
    assert order.accept(1, before)
    assert order.current == 1
    assert order.accept(2, before)
    assert not order.accept(2, order.position)
    order.announce(2)
    assert order.accept(2, order.position)
    assert order.accept(3, order.position)
    assert order.current == 3


def test_the_latency_that_most_stay_below() -> None:
    window = Window(seconds=[n / 1000 for n in range(100, 0, -1)])
    assert window.quantile_ms(0.5) == 51
    assert window.quantile_ms(0.99) == 100
    assert Window().quantile_ms(0.5) is None


Answer = Callable[[list[str]], httpx.Response]


def answer(scores: list[Any], version: int = 1) -> httpx.Response:
    return httpx.Response(200, json={"model_version": version, "scores": scores})


@pytest.mark.parametrize(
    ("respond", "fault"),
    [
        (lambda items: answer([0.5] * len(items)), None),
        (lambda items: answer([0.5] * len(items), version=0), "version 0 after version 1"),
        (lambda items: answer([0.5] * (len(items) - 1)), "4 scores for 5 items"),
        (lambda items: answer([0.5] * (len(items) - 1) + [1.0]), r"outside of \(0, 1\): \[1.0\]"),
        (lambda items: answer([0.5] * (len(items) - 1) + [None]), "TypeError"),
        (lambda items: httpx.Response(503, text="not ready"), "status 503: not ready"),
        (lambda items: httpx.Response(200, text="<html>"), "JSONDecodeError"),
        (lambda items: httpx.Response(200, json={"scores": []}), "0 scores for 5 items"),
    ],
)
async def test_every_answer_is_checked(respond: Answer, fault: str | None) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        items = orjson.loads(request.content)["items"]
        assert len(set(items)) == len(items)
        return respond(items)

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://asmg") as http:
        traffic = Traffic(http, VersionOrder(1), seed=0)
        traffic.offer(["u"], [f"i{n}" for n in range(5)])
        async with traffic.running():
            await asyncio.sleep(0.1)
    counted = (traffic.total.failed, traffic.total.served)[:: 1 if fault is None else -1]
    assert counted[0] == 0
    assert counted[1] >= CLIENTS
    assert (fault is None) == (traffic.faults == [])
    if fault is not None:
        assert re.search(fault, traffic.faults[0])


async def test_a_connection_that_breaks_is_a_failure() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("broken")

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://asmg") as http:
        traffic = Traffic(http, VersionOrder(1), seed=0)
        async with traffic.running():
            await asyncio.sleep(0.05)
        with pytest.raises(CallFailed, match="version 2 was published but version 1 still answers"):
            await traffic.wait_for_version(2, seconds=0.05)
    assert traffic.total.served == 0
    assert traffic.total.failed >= CLIENTS
    assert traffic.faults[0] == "ReadError broken"


def test_batches_keep_a_millisecond_together() -> None:
    times = np.repeat(np.arange(4_000), 3)
    rows = [(batch.start, batch.stop) for batch in split_batches(times)]
    assert rows == [(0, 4_998), (4_998, 9_996), (9_996, 12_000)]
    crowd = np.zeros(12_000, np.int64)  # they cannot be kept together
    assert [(batch.start, batch.stop) for batch in split_batches(crowd)] == [
        (0, 5_000),
        (5_000, 10_000),
        (10_000, 12_000),
    ]


async def test_a_batch_that_is_refused_ends_the_demo() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(422, text="no such label")

    stream = synthetic_stream(SMALL, 1, seed=0)
    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://asmg") as http:
        with pytest.raises(CallFailed, match="POST /interactions answered 422: no such label"):
            await Api(http).ingest("x", next(stream.periods))


async def test_an_update_without_news_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SILENCE_SECONDS", -1.0)
    stream = 'event: status\ndata: {"status": "updating"}\n\n: heartbeat\n\n'
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=stream))
    async with httpx.AsyncClient(transport=transport, base_url="http://asmg") as http:
        with pytest.raises(CallFailed, match="GET /periods/3: nothing has changed"):
            async for document in Api(http).watch(3):
                assert document["status"] == "updating"


async def test_features_hold_from_the_first_event_on_and_predictions_know_no_position() -> None:
    sent: dict[str, Any] = {}

    def handle(request: httpx.Request) -> httpx.Response:
        sent.setdefault(request.url.path, []).append(orjson.loads(request.content))
        return httpx.Response(200, json={})

    stream = synthetic_stream(SMALL, 2, seed=0)
    first, second = stream.periods
    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://asmg") as http:
        await Api(http).put_catalogue(first)
        await Api(http).ingest("x", first)
        [items], [users] = sent["/items"], sent["/users"]
        since = int(first.timestamps_ms[0])
        assert {document["timestamp"] for document in (*items["items"], *users["users"])} == {since}
        assert {document["item_id"]: document["features"] for document in items["items"]} == first.item_features
        assert {document["user_id"]: document["features"] for document in users["users"]} == first.new_users
        assert [event["context"] for call in sent["/interactions"] for event in call["interactions"]] == first.contexts
        await Api(http).put_catalogue(second)
        assert 0 < len(sent["/users"][1]["users"]) < len(users["users"])
    assert {name for context in first.contexts for name in context} == {"device", "position"}
    assert {name for context in contexts_for_prediction(first, stream.schema) for name in context} == {"device"}
