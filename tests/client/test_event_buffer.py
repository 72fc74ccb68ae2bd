"""Events in a buffer: sent in batches, through outages, to the last one at exit; what is not stored is reported."""

import asyncio
import gzip
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from asmg_client import (
    AsyncClient,
    AsyncEventBuffer,
    BufferFull,
    Click,
    Client,
    Event,
    EventBuffer,
    EventConflict,
    Impression,
    Interaction,
)
from asmg_client.errors import InvalidInput, ProblemError
from tests.client.conftest import Service
from tests.service.api_support import eventually, served_app, settings_for
from tests.service.programs import program, wait_for

ROOT = Path(__file__).resolve().parent.parent.parent
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def clicks(count: int) -> list[Interaction]:
    return [Interaction(f"u{n % 7}", f"i{n % 5}", n % 2, NOON) for n in range(count)]


def stored(client: Client) -> int:
    """Interactions in the log of the open period."""
    return client.list_periods().periods[0].events


class Recorder:
    """A service in memory that answers as `answer` says, and what it was sent."""

    def __init__(self, answer: Callable[[list[Any]], httpx.Response | None] | None = None) -> None:
        self.batches: list[list[Any]] = []
        self.down = False
        self._answer = answer

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("refused")
        body = request.content
        body = gzip.decompress(body) if request.headers.get("content-encoding") == "gzip" else body
        [events] = json.loads(body).values()
        refusal = None if self._answer is None else self._answer(events)
        if refusal is not None:
            return refusal
        self.batches.append(events)
        return httpx.Response(200, json={"accepted": len(events), "duplicates": 0, "period": 1})

    def client(self) -> Client:
        return Client("http://service", transport=httpx.MockTransport(self))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asmg_client.pending.FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr("asmg_client.pending.MOST_PAUSE_SECONDS", 0.1)


@pytest.mark.slow
def test_events_survive_a_killed_service(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    variables = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}
    events = clicks(300)
    with program(tmp_path, "--no-worker", **variables) as running:
        port, client = running.port, Client(running.url)
        buffer = EventBuffer(client, capacity=200, batch_size=50, interval_seconds=0.01, when_full="raise")
        for event in events[:100]:
            buffer.add(event)
        assert buffer.flush()
        for process in [psutil.Process(running.pid), *running.children()]:
            process.send_signal(signal.SIGKILL)
        running.process.join()
    for event in events[100:]:
        buffer.add(event)
    with pytest.raises(BufferFull):
        buffer.add(events[0])
    wait_for(lambda: buffer.counts.failures > 2)
    assert buffer.last_error is not None
    with served_app(settings_for(postgres_dsn, redis_url, tmp_path), port), client:
        assert buffer.flush(60)
        counts = buffer.close()
        assert (counts.added, counts.accepted + counts.duplicates) == (300, 300)
        assert (counts.turned_away, counts.lost, counts.pending, counts.refused) == (1, 0, 0, 0)
        assert stored(client) == 300


def test_invalid_events_are_reported_and_the_others_stored(service: Service) -> None:
    refused: list[tuple[Event, Exception]] = []
    valid, twice = clicks(20), Interaction("u", "i", 1, NOON)
    wrong: list[Event] = [Interaction("u", "i", 7), Impression("u", ["i", "i"]), Interaction("", "i", 1)]
    other = Interaction("u", "i", 0, NOON, event_id=twice.event_id)
    shown = Impression("u", ["a", "b"])
    with Client(service.url, service.key) as client:
        with EventBuffer(client, batch_size=100, on_refused=lambda *told: refused.append(told)) as buffer:
            for event in [*valid[:10], wrong[0], *wrong[1:], *valid[10:], twice, other, twice, shown]:
                buffer.add(event)
            buffer.add(Click(shown.request_id, "a"))
        assert stored(client) == 21
        assert client.get_item("a").log.clicks == 1
    assert {id(event) for event, _ in refused} == {id(event) for event in [*wrong, other]}
    by_event = {id(event): error for event, error in refused}
    assert isinstance(by_event[id(other)], EventConflict)
    error = by_event[id(wrong[0])]
    assert isinstance(error, InvalidInput)
    assert [(field.expected, field.received) for field in error.errors] == [("0 or 1", "7")]
    counts = buffer.counts
    assert (counts.added, counts.accepted, counts.duplicates, counts.refused) == (28, 23, 1, 4)


def test_where_no_event_is_named_halves_are_sent() -> None:
    """Fifteen of sixteen come through, in order."""
    refused: list[Event] = []
    service = Recorder(lambda events: httpx.Response(400) if any(e["item_id"] == "bad" for e in events) else None)
    events = [Interaction("u", "bad" if n == 11 else f"i{n}", 0) for n in range(16)]
    with EventBuffer(service.client(), batch_size=16, on_refused=lambda event, _: refused.append(event)) as buffer:
        for event in events:
            buffer.add(event)
    assert refused == [events[11]]
    assert [event["item_id"] for batch in service.batches for event in batch] == [f"i{n}" for n in range(16) if n != 11]
    assert buffer.counts.accepted == 15


def test_a_batch_on_which_the_service_fails_does_not_block_the_others() -> None:
    service = Recorder(lambda events: httpx.Response(500) if events[0]["item_id"] == "poison" else None)
    lost: list[Event] = []
    poison, events = Interaction("u", "poison", 0), clicks(30)
    buffer = EventBuffer(service.client(), batch_size=1, close_seconds=0.05, on_lost=lost.extend)
    for event in [poison, *events]:
        buffer.add(event)
    wait_for(lambda: buffer.counts.accepted == 30)
    counts = buffer.close()
    assert (lost, counts.accepted, counts.lost) == ([poison], 30, 1)
    assert counts.failures > 0


@pytest.mark.parametrize("error", [401, 403, 404, 429, 503])
def test_other_answers_keep_the_events(error: int) -> None:
    answers = iter([httpx.Response(error)])
    service = Recorder(lambda _: next(answers, None))
    with EventBuffer(service.client()) as buffer:
        buffer.add(clicks(1)[0])
    assert (buffer.counts.accepted, buffer.counts.failures, len(service.batches)) == (1, 1, 1)


def test_a_full_buffer_blocks_until_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    service = Recorder()
    service.down = True
    buffer = EventBuffer(service.client(), capacity=2, batch_size=2, interval_seconds=0, block_seconds=0.05)
    first, second, third = clicks(3)
    buffer.add(first)
    buffer.add(second)
    with pytest.raises(BufferFull, match="2 events wait already"):
        buffer.add(third)
    patient = EventBuffer(service.client(), capacity=1, batch_size=1, interval_seconds=0)
    patient.add(first)
    adding = threading.Thread(target=patient.add, args=(second,))
    adding.start()
    wait_for(lambda: patient.counts.failures > 0)
    assert adding.is_alive()
    service.down = False
    adding.join(10)
    assert patient.close().accepted == 2
    assert buffer.close().accepted == 2
    with pytest.raises(RuntimeError, match="closed"):
        buffer.add(first)
    assert "events are kept, and sent again: no answer: ConnectError" in caplog.text


def test_what_is_left_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    service = Recorder()
    service.down = True
    lost: list[Event] = []
    events = clicks(5)
    with EventBuffer(service.client(), batch_size=2, close_seconds=0.05, on_lost=lost.extend) as buffer:
        for event in events:
            buffer.add(event)
        wait_for(lambda: buffer.counts.failures > 0)
    assert lost == events
    assert (buffer.counts.lost, buffer.counts.pending) == (5, 0)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "5 events are not known to be stored: no answer: ConnectError refused"
    ]


def test_an_event_without_json_is_refused_at_once() -> None:
    with EventBuffer(Recorder().client()) as buffer, pytest.raises(ValueError, match="JSON"):
        buffer.add(Interaction("u", "i", 1, weight=float("nan")))
    with pytest.raises(ValueError, match="expected a batch_size from 1 to 10000; received 20000"):
        EventBuffer(Recorder().client(), batch_size=20_000)


def test_a_batch_is_smaller_than_the_body_that_the_service_takes() -> None:
    service = Recorder()
    with EventBuffer(service.client()) as buffer:
        for n in range(9):
            buffer.add(Interaction("u", "i", 1, context={"n": n, "text": "x" * 2**20}))
    assert [len(batch) for batch in service.batches] == [3, 3, 3]


AT_EXIT = """
import os, sys
from asmg_client import Client, EventBuffer, Interaction
client = Client(sys.argv[1])
client.health()
buffer = EventBuffer(client, interval_seconds=60)
for n in range(250):
    buffer.add(Interaction("u", f"i{n}", 1))
assert buffer.counts.pending == 250
if sys.argv[2] == "error":
    raise SystemExit(3)
if sys.argv[2] == "fork":
    child = os.fork()
    if child == 0:
        client.health()
        try:
            buffer.add(Interaction("u", "i", 1))
        except RuntimeError as error:
            sys.exit(0 if "before a fork" in str(error) else 1)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("error", 3), ("fork", 0)])
def test_a_process_sends_what_is_left_when_it_ends(service: Service, how: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, service.url, how], env={"ASMG_KEY": service.key, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == code
    with Client(service.url, service.key) as client:
        assert stored(client) == 250


async def test_the_asynchronous_buffer(caplog: pytest.LogCaptureFixture) -> None:
    def answer(events: list[Any]) -> httpx.Response | None:
        return httpx.Response(413) if any(event.get("label") == 7 for event in events) else None

    service, refused, lost = Recorder(answer), list[tuple[Event, Exception]](), list[Event]()
    client = AsyncClient("http://service", transport=httpx.MockTransport(service))
    events = clicks(10)
    wrong = Interaction("u", "i", 7)
    async with AsyncEventBuffer(
        client, capacity=6, batch_size=3, interval_seconds=0.01, on_refused=lambda *told: refused.append(told)
    ) as buffer:
        service.down = True
        for event in [*events[:5], wrong]:
            await buffer.add(event)
        adding = [asyncio.create_task(buffer.add(event)) for event in events[5:]]
        await eventually(lambda: buffer.counts.failures > 1)
        assert not any(task.done() for task in adding)
        service.down = False
        await asyncio.gather(*adding)
        assert await buffer.flush()
        assert buffer.counts.pending == 0
    assert (buffer.counts.added, buffer.counts.accepted, buffer.counts.refused) == (11, 10, 1)
    assert [(event, type(error)) for event, error in refused] == [(wrong, ProblemError)]

    service.down = True
    async with AsyncEventBuffer(
        client, capacity=1, batch_size=1, when_full="raise", close_seconds=0.05, on_lost=lost.extend
    ) as buffer:
        await buffer.add(events[0])
        with pytest.raises(BufferFull):
            await buffer.add(events[1])
    assert lost == [events[0]]
    with pytest.raises(RuntimeError, match="closed"):
        await buffer.add(events[0])
    assert "1 events are not known to be stored" in caplog.text
