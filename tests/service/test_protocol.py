"""Calls that are answered where their last byte is parsed get what the ordinary way would have answered."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.http.connection import BoundedProtocol
from service.http.routers import predict as module
from service.storage.postgres.database import Database
from service.use_cases.keys import create_key
from tests.conftest import in_thread
from tests.service.api_support import served_app, settings_for
from tests.service.raw_http import Connection

QUESTION = {"user_id": "u", "items": ["a", "b"], "history": ["c"], "request_id": "r"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Notes for each call whether it was answered at once."""
    noted: list[bool] = []
    answer_now = module.answer_now

    def watched(*arguments: Any) -> bytes | None:
        content = answer_now(*arguments)
        noted.append(content is not None)
        return content

    monkeypatch.setattr(module, "answer_now", watched)
    yield noted


@pytest.fixture
def url(quick: list[bool], postgres_dsn: str, redis_url: str, tmp_path: Path) -> Iterator[str]:
    with served_app(settings_for(postgres_dsn, redis_url, tmp_path)) as url:
        yield url


def request(body: bytes, *lines: str, version: str = "1.1") -> bytes:
    head = [f"POST /predict HTTP/{version}", "Host: a", "Content-Type: application/json", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


BODY = json.dumps(QUESTION).encode()


@pytest.fixture
def with_key(url: str, postgres_dsn: str) -> str:
    """The header line of a key that may predict, seen once."""

    async def make() -> str:
        database = Database(postgres_dsn, pool_size=1)
        try:
            return (await create_key(database, "test", ["predict"]))[1]
        finally:
            await database.close()

    line = f"Authorization: Bearer {in_thread(lambda: asyncio.run(make()))}"
    with Connection(url) as connection:
        connection.send(request(BODY, line))
        assert connection.answer()[0] == 200
    return line


def test_is_what_the_ordinary_way_answers(url: str, with_key: str, quick: list[bool]) -> None:
    with Connection(url) as connection:
        quick.clear()
        connection.send(request(BODY, with_key, "X-Request-ID: mine"))
        status, headers, document = connection.answer()
        assert quick == [True]
        # In chunks a body has no declared length, and the ordinary way reads it.
        chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
        head = request(b"", with_key, "X-Request-ID: mine", "Transfer-Encoding: chunked")
        connection.send(head.replace(b"Content-Length: 0\r\n", b"") + chunk)
        other = connection.answer()
        assert quick == [True]
    assert (status, document) == (other[0], other[2])
    assert document["request_id"] == "r"
    assert headers["x-request-id"] == other[1]["x-request-id"] == "mine"
    assert headers.keys() == other[1].keys()
    assert headers["content-type"] == other[1]["content-type"] == "application/json"


def test_in_pieces_and_one_behind_the_other(url: str, with_key: str, quick: list[bool]) -> None:
    whole = request(BODY, with_key)
    with Connection(url) as connection:
        quick.clear()
        connection.send(whole[:30], whole[30:-5], whole[-5:])
        assert connection.answer()[0] == 200
        # Two quick ones, one that is not, and one more, in one packet: answered in their order.
        slow = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
        connection.send(whole + whole + slow + whole)
        answers = [connection.answer() for _ in range(4)]
        assert [("scores" in document, status) for status, _, document in answers] == [
            (True, 200),
            (True, 200),
            (False, 200),
            (True, 200),
        ]
        assert quick[:3] == [True] * 3


def test_a_head_that_was_read_again_is_not_kept(
    url: str, with_key: str, quick: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection may stay for hours, and a head may have 64 KiB."""
    made: list[BoundedProtocol] = []
    complete = BoundedProtocol.on_message_complete

    def noted(protocol: BoundedProtocol) -> None:
        made.append(protocol)
        complete(protocol)

    monkeypatch.setattr(BoundedProtocol, "on_message_complete", noted)
    with Connection(url) as connection:
        quick.clear()
        connection.send(request(BODY, with_key, "Connection: Upgrade", "Upgrade: h2c", f"X-Long: {'x' * 50_000}"))
        assert (connection.answer()[0], quick) == (200, [True])
        [protocol] = set(made)
        assert max(len(value) for value in vars(protocol).values() if isinstance(value, bytes)) < 1000


@pytest.mark.parametrize(("lines", "version"), [(("Connection: close",), "1.1"), ((), "1.0")])
def test_the_connection_ends_where_the_client_wants_it(
    url: str, with_key: str, quick: list[bool], lines: tuple[str, ...], version: str
) -> None:
    with Connection(url) as connection:
        quick.clear()
        connection.send(request(BODY, with_key, *lines, version=version))
        status, headers, _ = connection.answer()
        assert (status, headers["connection"], quick) == (200, "close", [True])
        assert connection.is_closed()


WRONG = [
    (b"{", 400),
    (b'{"user_id": "u", "items": []}', 422),
    (b'{"user_id": "u", "items": ["a"], "colour": 1}', 422),
    (b'{"user_id": "u\\u0000", "items": ["a"]}', 422),
]


def test_what_is_wrong_goes_the_ordinary_way(url: str, with_key: str, quick: list[bool]) -> None:
    with Connection(url) as connection:
        quick.clear()
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
        assert True not in quick


def test_what_fails_in_it_is_logged_and_answered_by_the_ordinary_way(
    url: str, with_key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "quick_question", broken)
    with Connection(url) as connection:
        connection.send(request(BODY, with_key))
        assert connection.answer()[0] == 200
    assert "/predict could not be answered at once" in caplog.text
    assert "a bug" in caplog.text


def test_calls_are_counted_and_clients_that_go_away_are_not_missed(url: str, with_key: str, quick: list[bool]) -> None:
    def counted() -> float:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        [line] = [line for line in lines if line.startswith('asmg_requests_total{route="/predict",status="200"}')]
        return float(line.split(" ")[-1])

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
