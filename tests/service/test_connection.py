"""What a client sees of a connection: ordered answers, whole bodies, its end; and no memory of past requests."""

import asyncio
import gc
import json
import socket
import struct
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.exceptions import HTTPException

from service.http.connection import Connection as ServiceConnection
from service.http.connection.reader import RequestReader
from service.http.connection.transport import MAX_HELD_BYTES, UvicornTransport
from service.limits import MAX_PIPELINED
from service.storage.postgres.database import Database
from service.use_cases.keys import create_key
from tests.conftest import in_thread
from tests.service.api_support import served_app, settings_for
from tests.service.programs import wait_for
from tests.service.raw_http import Connection

QUESTION = {"user_id": "u", "items": ["a", "b"], "history": ["c"], "request_id": "r"}
BODY = json.dumps(QUESTION).encode()
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
KEEP_ALIVE_SECONDS = 2


@pytest.fixture
def url(postgres_dsn: str, redis_url: str, tmp_path: Path) -> Iterator[str]:
    changes = {"keep_alive_seconds": KEEP_ALIVE_SECONDS, "head_deadline_seconds": 60.0}
    with served_app(settings_for(postgres_dsn, redis_url, tmp_path, **changes)) as url:
        yield url


def request(body: bytes, *lines: str, version: str = "1.1") -> bytes:
    head = [f"POST /predict HTTP/{version}", "Host: a", "Content-Type: application/json", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def chunked(body: bytes, *lines: str) -> bytes:
    head = request(b"", "Transfer-Encoding: chunked", *lines).replace(b"Content-Length: 0\r\n", b"")
    return head + b"%x\r\n%s\r\n0\r\nX-Request-ID: of-a-trailer\r\n\r\n" % (len(body), body)


@pytest.fixture
def with_key(url: str, postgres_dsn: str) -> str:
    """The header line of a key that may predict."""

    async def make() -> str:
        database = Database(postgres_dsn, pool_size=1)
        try:
            return (await create_key(database, "test", ["predict"]))[1]
        finally:
            await database.close()

    return f"Authorization: Bearer {in_thread(lambda: asyncio.run(make()))}"


def test_a_length_and_chunks_are_answered_alike(url: str, with_key: str) -> None:
    found = []
    with Connection(url) as connection:
        for made in (request, chunked):
            connection.send(made(BODY, with_key, "X-Request-ID: mine"))
            status, headers, document = connection.answer()
            assert (status, document["request_id"]) == (200, "r")
            assert (headers["x-request-id"], headers["content-type"]) == ("mine", "application/json")
            found.append((headers.keys(), document))
    assert found[0] == found[1]


def test_in_pieces_and_one_behind_the_other(url: str, with_key: str) -> None:
    whole = request(BODY, with_key)
    with Connection(url) as connection:
        connection.send(whole[:30], whole[30:-5], whole[-5:])
        assert connection.answer()[0] == 200
        connection.send(whole + chunked(BODY, with_key) + HEALTH + whole + whole[:40])
        connection.send(whole[40:] + HEALTH[:5])
        answers = [connection.answer() for _ in range(5)]
        assert [("scores" in document, status) for status, _, document in answers] == [
            (True, 200),
            (True, 200),
            (False, 200),
            (True, 200),
            (True, 200),
        ]
        connection.send(HEALTH[5:])
        assert connection.answer()[0] == 200
        for end in (1, 40, len(whole) - 1):  # the end of one request and all of the next in one packet
            connection.send(whole[:end])
            time.sleep(0.05)
            connection.send(whole[end:] + HEALTH)
            assert ["scores" in connection.answer()[2] for _ in range(2)] == [True, False]


def test_many_requests_ahead_of_their_answers_are_all_answered(url: str) -> None:
    """Also if so many wait that the connection stops reading: it continues when some are answered."""
    with Connection(url) as connection:
        for start in range(0, 3 * MAX_PIPELINED, MAX_PIPELINED):
            numbers = range(start, start + MAX_PIPELINED)
            for n in numbers:
                connection.send(HEALTH.replace(b"\r\n\r\n", b"\r\nX-Request-ID: %d\r\n\r\n" % n))
            assert [connection.answer()[1]["x-request-id"] for _ in numbers] == [str(n) for n in numbers]


def test_nothing_is_kept_of_a_request(url: str, with_key: str) -> None:
    """A connection may stay for hours; a head may have 64 KiB, and one with an `Upgrade` is read twice."""

    def is_long(value: object) -> bool:
        return isinstance(value, bytes) and b"x" * 50_000 in value

    with Connection(url) as connection:
        for lines in (("Connection: Upgrade", "Upgrade: h2c"), ()):
            connection.send(request(BODY, with_key, *lines, f"X-Long: {'x' * 50_000}"))
            assert connection.answer()[0] == 200
        connection.send(HEALTH)
        assert connection.answer()[0] == 200
        gc.collect()
        keeping = [
            holder
            for holder in gc.get_objects()
            for value in gc.get_referents(holder)
            if is_long(value) or (type(value) is tuple and any(is_long(part) for part in value))
        ]
        assert keeping == []


@pytest.mark.parametrize(("lines", "version"), [(("Connection: close",), "1.1"), ((), "1.0")])
def test_the_connection_ends_where_the_client_wants_it(
    url: str, with_key: str, lines: tuple[str, ...], version: str
) -> None:
    with Connection(url) as connection:
        connection.send(request(BODY, with_key, *lines, version=version))
        status, headers, _ = connection.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert connection.is_closed()


def test_an_idle_connection_is_not_closed_while_a_head_comes_in(url: str) -> None:
    """However long ago the last answer was: the client cannot know that the server has stopped listening."""
    with Connection(url, seconds=10) as connection:
        connection.send(HEALTH)
        assert connection.answer()[0] == 200
        connection.send(HEALTH[:9])
        with pytest.raises(TimeoutError):
            connection.socket.settimeout(KEEP_ALIVE_SECONDS + 1.5)
            connection.socket.recv(1)
        connection.socket.settimeout(10)
        connection.send(HEALTH[9:])
        assert connection.answer()[0] == 200
        assert connection.is_closed()


WRONG = [
    (b"{", 400),
    (b'{"user_id": "u", "items": []}', 422),
    (b'{"user_id": "u", "items": ["a"], "colour": 1}', 422),
    (b'{"user_id": "u\\u0000", "items": ["a"]}', 422),
]


def test_a_connection_goes_on_after_a_request_that_is_wrong(url: str, with_key: str) -> None:
    with Connection(url) as connection:
        for body, expected in WRONG:
            connection.send(request(body, with_key))
            status, headers, document = connection.answer()
            assert (status, document["status"]) == (expected, expected)
            assert headers["content-type"] == "application/problem+json"
        for line in ("X-API-Key: asmg_no", "Authorization: Bearer x", "X-Nothing: 1"):
            connection.send(request(BODY, line))
            assert connection.answer()[0] == 401
        connection.send(request(BODY, with_key, "Expect: 100-continue"))
        assert b"100 Continue" in connection.socket.recv(25)
        assert connection.answer()[0] == 200


def test_a_client_that_waits_for_100_continue_gets_it_before_it_sends_its_body(url: str, with_key: str) -> None:
    whole = request(BODY, with_key, "Expect: 100-continue")
    with Connection(url) as connection:
        connection.send(whole.removesuffix(BODY))
        assert b"100 Continue" in connection.socket.recv(25)
        connection.send(BODY)
        assert connection.answer()[0] == 200


def test_calls_are_counted_and_clients_that_go_away_are_not_missed(url: str, with_key: str) -> None:
    def counted() -> float:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return sum(
            float(line.split(" ")[-1])
            for line in lines
            if line.startswith('asmg_requests_total{route="/predict",status="200"}')
        )

    before = counted()
    with Connection(url) as connection:
        for _ in range(5):
            connection.send(request(BODY, with_key))
            connection.answer()
        connection.send(request(BODY, with_key)[:-3])
    with Connection(url) as connection:
        connection.send(request(BODY, with_key))
        assert connection.answer()[0] == 200
    assert counted() == before + 6


@pytest.mark.parametrize("is_reset", [False, True])
def test_a_connection_is_forgotten_when_it_is_lost(url: str, monkeypatch: pytest.MonkeyPatch, is_reset: bool) -> None:
    made: list[weakref.ref[ServiceConnection]] = []
    connection_made = ServiceConnection.connection_made

    def noted(self: ServiceConnection, transport: Any) -> None:
        made.append(weakref.ref(self))
        connection_made(self, transport)

    monkeypatch.setattr(ServiceConnection, "connection_made", noted)
    for data in (b"", HEALTH, HEALTH[:7], request(BODY)[:-1], b"no HTTP\r\n\r\n"):
        with Connection(url) as connection:
            connection.send(data)
            if data == HEALTH:
                assert connection.answer()[0] == 200
            if is_reset:
                time.sleep(0.05)
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                connection.end()

    def is_forgotten() -> bool:
        gc.collect()
        return not [connection for connection in made if connection() is not None]

    assert len(made) == 5
    wait_for(is_forgotten, 10)


@pytest.mark.parametrize("is_answering", [False, True])
def test_so_many_requests_may_be_ahead_of_their_answers_and_no_more(is_answering: bool) -> None:
    """One that is answered and `MAX_PIPELINED` that wait, wherever the first one is."""
    reader, request = RequestReader(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    reader.is_answering = is_answering
    reader.feed(request * (MAX_PIPELINED + (not is_answering)))
    with pytest.raises(HTTPException, match=f"expected at most {MAX_PIPELINED} requests ahead"):
        reader.feed(request)


class Written(asyncio.Transport):
    """What was sent to a client, one entry a system call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_closed, "uvloop raises here"
        self.calls.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_closed


def for_uvicorn(client: Written) -> UvicornTransport:
    loop = asyncio.get_running_loop()
    return UvicornTransport(
        client, loop, close=lambda: None, is_closing=client.is_closing, pause=lambda _: None
    )  # fmt: skip


async def test_what_is_written_in_one_turn_is_sent_by_one_call() -> None:
    client = Written()
    transport = for_uvicorn(client)
    transport.write(b"head")
    transport.write(b"body")
    assert client.calls == []
    await asyncio.sleep(0)
    assert client.calls == [b"headbody"]
    transport.write(b"x" * (MAX_HELD_BYTES + 1))
    assert len(client.calls) == 2, "much is sent at once"


async def test_nothing_is_sent_to_a_client_that_is_gone() -> None:
    client = Written()
    transport = for_uvicorn(client)
    transport.write(b"head")
    client.is_closed = True
    await asyncio.sleep(0)
    transport.detach()
    assert client.calls == []
