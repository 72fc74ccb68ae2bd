"""Hostile clients on real connections to a real process: refused in bounded time and memory, nothing stored."""

import gzip
import itertools
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import pytest

from service.errors import BodyTooLarge, NotReady
from service.http.bodies.read import Bodies
from service.limits import (
    MAX_BATCH_BYTES,
    MAX_BODIES_BYTES,
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    MAX_PIPELINED,
    MAX_PREDICT_BYTES,
)
from tests.conftest import Servers
from tests.service.programs import wait_for
from tests.service.raw_http import Connection
from tests.service.served import QUESTION, Served, refused, serving

pytestmark = pytest.mark.slow

HEAD_SECONDS, BODY_SECONDS = 1.0, 2.0
GRACE_SECONDS = 1.5
"""Beyond a deadline: the look for it, and a busy host."""

MAX_CONNECTIONS = 260
MIB = 1024 * 1024


EVENT = {"event_id": "e", "user_id": "u", "item_id": "i", "label": 1, "timestamp": "2024-05-01T12:00:00Z"}
GOOD = {
    "POST /predict": QUESTION,
    "POST /predict/batch": b'{"requests": [%s]}' % QUESTION,
    "POST /interactions": json.dumps({"interactions": [EVENT]}).encode(),
    "POST /impressions": json.dumps(
        {"impressions": [json.loads(QUESTION) | {"request_id": "r", "timestamp": 10**12}]}
    ).encode(),
    "POST /clicks": b'{"clicks": [{"request_id": "r", "item_id": "a", "timestamp": 1000000000000}]}',
    "PUT /items": b'{"items": [{"item_id": "i", "categories": ["c"]}]}',
    "PUT /users": b'{"users": [{"user_id": "u", "features": {}}]}',
    "POST /periods/close": b'{"expected_period": 1}',
    "POST /admin/models/0/pin": b'{"reason": "r"}',
    "POST /admin/rollback": b'{"to_version": 0, "sequence": "keep", "reason": "r"}',
}
"""A body of each call that takes one."""

WRITES = [call for call in GOOD if "predict" not in call]
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture(scope="module")
def served(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    variables = {
        "ASMG_HEAD_DEADLINE_SECONDS": str(HEAD_SECONDS),
        "ASMG_BODY_DEADLINE_SECONDS": str(BODY_SECONDS),
        "ASMG_MAX_CONNECTIONS": str(MAX_CONNECTIONS),
    }
    with serving(servers, migrated_template, database_numbers, tmp_path_factory.mktemp("hostile"), **variables) as made:
        yield made


@pytest.fixture(autouse=True)
def unharmed(served: Served) -> Iterator[None]:
    """After each test nothing is stored, and the process that was there before predicts."""
    before = served.store.look()
    yield
    assert before.holds(served.store.look())
    assert served.is_well()


@contextmanager
def within(seconds: float, at_least: float = 0) -> Iterator[None]:
    started = time.monotonic()
    yield
    # The server's wait may have begun a moment earlier, when the connection was made.
    assert 0.9 * at_least <= time.monotonic() - started <= seconds


# Heads

PAD = b"X-Pad: " + b"x" * 60_000 + b"\r\n"
LARGE_HEADS = {
    "a header": lambda served: [served.head("GET /healthz"), b"X: ", b"x" * MAX_HEAD_BYTES, b"\r\n\r\n"],
    "headers": lambda served: [served.head("GET /healthz"), b"X: y\r\n" * 15_000, b"\r\n"],
    "a path": lambda served: [served.head(f"GET /healthz?{'x' * MAX_HEAD_BYTES}"), b"\r\n"],
}
ENDLESS = {
    "a path": lambda _: (b"GET /", b"x"),
    "a name": lambda served: (served.head("GET /healthz"), b"x"),
    "a header": lambda served: (served.head("GET /healthz") + b"X: ", b"x"),
    "headers": lambda served: (served.head("GET /healthz"), b"X: y\r\n"),
    "trailers": lambda served: (served.head("POST /interactions", CHUNKED) + b"\r\n0\r\n", b"X: y\r\n"),
    "a trailer": lambda served: (served.head("POST /interactions", CHUNKED) + b"\r\n0\r\nX: ", b"x"),
    "a chunk extension": lambda served: (served.head("POST /interactions", CHUNKED) + b"\r\n1;", b"x"),
}


def test_a_head_up_to_the_limit_is_taken(served: Served) -> None:
    for call in ("GET /healthz", "POST /predict"):
        body = GOOD.get(call, b"")
        assert served.ask(served.request(call, body, PAD.rstrip()))[0] == 200
        # The packet that it begins in may hold much else, and other packets only parts of it.
        head, pad, rest = served.head(call), PAD.rstrip(), served.request(call, body).split(b"\r\n", 3)[3]
        with Connection(served.url) as connection:
            large = b" " * 60_000 + QUESTION
            connection.send(served.request("POST /predict", large) + head + pad[:500])
            assert connection.answer()[0] == 200
            for start in range(500, len(pad), 20_000):
                connection.send(pad[start : start + 20_000])
                time.sleep(0.02)
            connection.send(b"\r\n" + rest)
            assert connection.answer()[0] == 200


@pytest.mark.parametrize("what", LARGE_HEADS)
def test_a_head_over_the_limit_is_431(served: Served, what: str) -> None:
    with within(2), Connection(served.url) as connection:
        connection.send(b"".join(LARGE_HEADS[what](served)))
        assert f"at most {MAX_HEAD_BYTES} bytes" in refused(connection, 431)


@pytest.mark.parametrize("what", ENDLESS)
def test_endless_lines_are_431_after_little_was_read(served: Served, what: str) -> None:
    start, more = ENDLESS[what](served)
    before = served.process.memory_info().rss
    with Connection(served.url) as connection:
        connection.send(start)
        piece = more * (16_384 // len(more))
        with within(BODY_SECONDS + GRACE_SECONDS):
            assert 0 < sent_until_refused(connection, piece, most=10 * MIB) < 10 * MIB
        assert connection.answer()[0] == 431
        assert connection.is_closed()
    assert served.process.memory_info().rss - before < 16 * MIB


def sent_until_refused(connection: Connection, piece: bytes, most: int) -> int:
    """Bytes sent in pieces until an answer came."""
    sent = 0
    connection.socket.setblocking(False)
    while sent < most:
        try:
            if connection.socket.recv(1, socket.MSG_PEEK):
                break
        except BlockingIOError:
            pass
        try:
            sent += connection.socket.send(piece[sent % len(piece) :])
        except BlockingIOError:
            time.sleep(0.001)
    connection.socket.settimeout(5)
    return sent


def test_trailers_are_no_headers(served: Served) -> None:
    """A proxy has checked only the head; a trailer must add nothing to it."""
    body = b'{"expected_period": 77}'
    head = served.head("POST /periods/close", CHUNKED, "Content-Type: application/json") + b"\r\n"
    chunks = b"%x\r\n%s\r\n0\r\nIdempotency-Key: %s\r\n\r\n" % (len(body), body, b"x" * 300)
    assert served.ask(head + chunks)[0] == 409  # with such a key it would be 422


# Bodies that are too large, or would become so

LIMITS = {
    "POST /predict": MAX_PREDICT_BYTES,
    "POST /predict/batch": MAX_BATCH_BYTES,
    "POST /interactions": MAX_BODY_BYTES,
    "PUT /items": MAX_BODY_BYTES,
    "PUT /users": MAX_BODY_BYTES,
    "POST /periods/close": MAX_BODY_BYTES,
    "GET /healthz": MAX_BODY_BYTES,
}


@pytest.mark.parametrize("length", ["one more", "2^64 - 1"])
@pytest.mark.parametrize("call", LIMITS)
def test_a_length_over_the_limit_is_413_before_a_byte_is_sent(served: Served, call: str, length: str) -> None:
    number = LIMITS[call] + 1 if length == "one more" else 2**64 - 1
    with within(2), Connection(served.url) as connection:
        connection.send(served.head(call, "Content-Type: application/json", f"Content-Length: {number}") + b"\r\n")
        assert f"at most {LIMITS[call]} bytes" in refused(connection, 413)


@pytest.mark.parametrize("call", [call for call in LIMITS if call.startswith("P")])
def test_chunks_without_end_are_413_as_they_pass_the_limit(served: Served, call: str) -> None:
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    with Connection(served.url) as connection:
        connection.send(served.head(call, "Content-Type: application/json", CHUNKED) + b"\r\n")
        # What is on its way when the answer comes is in the buffers of the system.
        assert LIMITS[call] <= sent_until_refused(connection, chunk, most=32 * MIB) < LIMITS[call] + 16 * MIB
        refused(connection, 413)


def test_a_body_that_nobody_wants_is_not_read_to_its_end(served: Served) -> None:
    """The call is answered or refused before the body ends; then the connection is closed and not kept alive to read
    on.
    """
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    for head, expected in (
        (served.head("GET /healthz", CHUNKED), 200),
        (served.head("POST /nothing", CHUNKED), 404),
        (served.head("POST /interactions", CHUNKED).replace(b"asmg_", b"asmg-"), 401),
    ):
        with within(BODY_SECONDS + GRACE_SECONDS), Connection(served.url) as connection:
            connection.send(head + b"\r\n")
            sent_until_refused(connection, chunk, most=32 * MIB)
            status, headers, _ = connection.answer()
            assert (status, headers["connection"]) == (expected, "close")
            while connection.send_in_vain(chunk):
                time.sleep(0.01)


BOMB = gzip.compress(bytes(64 * MIB), 9)
GZIPPED = {"POST /interactions", "POST /impressions", "POST /clicks", "PUT /items", "PUT /users"}
"""Calls that take bodies compressed with gzip."""


@pytest.mark.parametrize(
    "coding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "identity\r\nContent-Encoding: gzip"]
)
@pytest.mark.parametrize("call", [*GOOD, "GET /healthz", "POST /nothing"])
def test_what_is_compressed_is_415_or_inflated_up_to_the_limit(served: Served, call: str, coding: str) -> None:
    """Only gzip is inflated, only by calls that accept it, and no further than a body may be long."""
    assert len(BOMB) < 65_536  # so that the shortest way would take it
    before = served.process.memory_info().rss
    expected, taken = 415, "gzip" if call in GZIPPED else "identity"
    if call not in GOOD:  # which reads no body
        expected = 200 if call.startswith("GET") else 404
    elif coding == taken:
        expected = 413
    with within(2), Connection(served.url) as connection:
        connection.send(served.request(call, BOMB, f"Content-Encoding: {coding}"))
        status, headers, document = connection.answer()
        assert status == expected
        if status == 415:
            assert headers["accept-encoding"] == taken
            assert (document["status"], "as Content-Encoding; received" in document["detail"]) == (415, True)
    assert served.process.memory_info().rss - before < 32 * MIB


def test_identity_is_no_compression(served: Served) -> None:
    assert served.ask(served.request("POST /predict", QUESTION, "Content-Encoding: identity"))[0] == 200


def test_fifty_bodies_without_end_take_bounded_memory(served: Served) -> None:
    chunk = b"40000\r\n" + b" " * 262_144 + b"\r\n"
    before = served.process.memory_info().rss
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, served.process.memory_info().rss)

    def stream(number: int) -> int:
        with Connection(served.url) as connection:
            connection.send(served.head("POST /interactions", "Content-Type: application/json", CHUNKED) + b"\r\n")
            if number % 50 == 0:  # the others stay just below the limit of one
                assert sent_until_refused(connection, chunk, most=64 * MIB) < 64 * MIB
            else:
                sent_until_refused(connection, chunk, most=30 * len(chunk))
                drip(connection, b"1\r\n \r\n", 0.1)
            return connection.answer()[0]

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(50) as pool:
            statuses = Counter(pool.map(stream, range(100)))
    finally:
        done.set()
        watcher.join()

    assert set(statuses) <= {408, 413, 503}
    # All bodies under way together, what each connection buffers, and as much again for what Python frees late.
    assert peak - before < 1.5 * MAX_BODIES_BYTES


async def test_bodies_count_while_their_calls_go_on() -> None:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"x" * 60, "more_body": True}

    bodies = Bodies(100)
    with bodies.counted({}, receive, 1000) as first:
        await first()
        with bodies.counted({}, receive, 1000) as second, pytest.raises(NotReady, match="more than 100 bytes"):
            await second()
        with pytest.raises(NotReady):
            await first()
    with bodies.counted({}, receive, 100) as third:
        await third()
        with pytest.raises(BodyTooLarge):
            await third()
    with bodies.counted({}, receive, 1000) as fourth:
        await fourth()


# Slow clients


def drip(connection: Connection, data: bytes, every: float) -> None:
    """Send a byte at a time, again and again, until something comes back."""
    connection.socket.settimeout(every)
    for byte in itertools.cycle(data):
        if not connection.send_in_vain(byte.to_bytes()):
            break
        with suppress(TimeoutError):
            connection.socket.recv(1, socket.MSG_PEEK)
            break
    connection.socket.settimeout(5)


def test_a_slow_head_is_408(served: Served) -> None:
    with within(HEAD_SECONDS + GRACE_SECONDS, HEAD_SECONDS), Connection(served.url) as connection:
        drip(connection, b"GET /healthz HTTP/1.1\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy", 0.1)
        assert "the head of a request" in refused(connection, 408)


@pytest.mark.parametrize("before", ["POST /predict", "GET /periods"])
def test_a_slow_head_on_a_connection_that_was_good_is_408(served: Served, before: str) -> None:
    with Connection(served.url) as connection:
        # The second one is answered where its last byte is parsed, the first perhaps not.
        connection.send(served.request("POST /predict", QUESTION))
        assert connection.answer()[0] == 200
        connection.send(served.request(before, GOOD.get(before, b"")) + b"GET /heal")
        assert connection.answer()[0] == 200
        with within(HEAD_SECONDS + GRACE_SECONDS, HEAD_SECONDS / 2):
            refused(connection, 408)


def test_a_connection_that_says_nothing_is_closed(served: Served) -> None:
    with within(HEAD_SECONDS + GRACE_SECONDS, HEAD_SECONDS), Connection(served.url) as connection:
        assert connection.is_closed()


@pytest.mark.parametrize("before", [0, 1])
def test_a_connection_that_sends_empty_lines_is_closed(served: Served, before: int) -> None:
    with Connection(served.url) as connection:
        for _ in range(before):
            connection.send(served.request("POST /predict", QUESTION))
            assert connection.answer()[0] == 200
        with within(HEAD_SECONDS + GRACE_SECONDS, HEAD_SECONDS):
            drip(connection, b"\r\n", 0.1)
            assert connection.is_closed()


@pytest.mark.parametrize("lines", [["Content-Length: 1000"], [CHUNKED]], ids=["length", "chunked"])
@pytest.mark.parametrize("call", ["POST /predict", "POST /interactions"])
def test_a_slow_body_is_408(served: Served, call: str, lines: list[str]) -> None:
    with within(BODY_SECONDS + GRACE_SECONDS, BODY_SECONDS), Connection(served.url) as connection:
        connection.send(served.head(call, "Content-Type: application/json", *lines) + b"\r\n")
        drip(connection, b"1\r\n \r\n" if lines == [CHUNKED] else b" ", 0.1)
        assert "the body of a request" in refused(connection, 408)


def test_two_hundred_slow_clients_hold_nobody_up(served: Served) -> None:
    heads = served.head("GET /healthz"), served.head("POST /interactions", "Content-Length: 1000") + b"\r\n"
    with ExitStack() as stack:
        slow = [stack.enter_context(Connection(served.url)) for _ in range(200)]
        started = time.monotonic()
        for number, connection in enumerate(slow):
            connection.send(heads[number % 2])
        left, seconds = set(slow), []
        with Connection(served.url) as quick:
            while left and time.monotonic() < started + BODY_SECONDS + GRACE_SECONDS:
                left = {connection for connection in left if still_open(connection)}
                asked = time.monotonic()
                for _ in range(20):
                    quick.send(served.request("POST /predict", QUESTION))
                    assert quick.answer()[0] == 200
                seconds.append((time.monotonic() - asked) / 20)
        assert not left
        assert {connection.answer()[0] for connection in slow} == {408}

    assert max(seconds) < 0.25


def still_open(connection: Connection) -> bool:
    """Send one byte more, where no answer has come."""
    connection.socket.setblocking(False)
    try:
        connection.socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        connection.socket.send(b"x")
        return True
    finally:
        connection.socket.settimeout(5)
    return False


@pytest.mark.parametrize("requests", [10, 2 * MAX_PIPELINED])
def test_a_client_that_takes_no_answers_is_cut_off(served: Served, requests: int) -> None:
    """Also if it has sent more requests than may wait, and would be told so after the answers."""
    with Connection(served.url, receive_buffer=4096, seconds=10) as connection:
        asked = (served.head("GET /openapi.json") + b"\r\n") * requests
        with within(BODY_SECONDS + 3 * GRACE_SECONDS, BODY_SECONDS), pytest.raises(ConnectionError):
            while True:
                connection.send(asked)  # until nothing more is read, for nothing more can be written
                time.sleep(0.02)


# Clients that go away

ENDINGS: dict[str, Callable[[socket.socket], None]] = {
    "closed": lambda client: client.close(),
    "reset": lambda client: (
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
        client.close(),
    ),
    "half closed": lambda client: client.shutdown(socket.SHUT_WR),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("call", WRITES)
def test_of_a_body_that_is_cut_off_nothing_is_stored(served: Served, call: str, ending: str) -> None:
    body = GOOD[call]
    chunks = b"%x\r\n%s\r\n" % (len(body), body)  # without the last one
    for request in (
        served.request(call, body)[:-1],
        served.head(call, "Content-Type: application/json", CHUNKED) + b"\r\n" + chunks,
        served.head(call, "Content-Type: application/json", CHUNKED) + b"\r\n" + chunks[:-3],
    ):
        with Connection(served.url) as connection:
            connection.send(request)
            time.sleep(0.05)
            ENDINGS[ending](connection.socket)
            time.sleep(0.05)


def test_a_stream_ends_with_its_client_also_where_more_was_asked_behind_it(served: Served) -> None:
    def ended() -> float:
        counted = [line for line in metrics(served) if "/events" in line and line.startswith("asmg_requests_total{")]
        return sum(float(line.split(" ")[-1]) for line in counted)

    before = ended()
    with Connection(served.url) as connection:
        connection.send(served.request("GET /periods/1/events") + served.request("GET /healthz") * 2)
        received = b""
        while b"event: status" not in received:
            received += connection.socket.recv(65_536)
        assert ended() == before
    wait_for(lambda: ended() == before + 1, 5)


def metrics(served: Served) -> list[str]:
    with Connection(served.url) as connection:
        connection.send(served.head("GET /metrics", "Connection: close") + b"\r\n")
        return b"".join(iter(lambda: connection.socket.recv(65_536), b"")).decode().splitlines()


# JSON

HOSTILE_JSON = {
    "nothing but depth": b"[" * 100_000,
    "depth that ends": b"[" * 50_000 + b"]" * 50_000,
    "objects in objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "depth in a field": b'{"user_id": "u", "items": %s}' % (b"[" * 20_000 + b"]" * 20_000),
    "NaN": b'{"interactions": [{"label": NaN}]}',
    "Infinity": b'{"expected_period": Infinity, "to_version": -Infinity}',
    "a number beyond floats": b'{"expected_period": 1e999999}',
    "a huge number": b'{"expected_period": %s}' % (b"9" * 100_000),
    "a huge time": json.dumps({"interactions": [EVENT | {"timestamp": 10**30}]}).encode(),
    "a huge fraction": b'{"expected_period": 0.%s}' % (b"0" * 100_000 + b"1"),
    "no UTF-8": b'{"user_id": "\xff\xfe", "items": ["\xc0\x80"]}',
    "half a letter": b'{"user_id": "\xf0\x9f", "items": ["a"]}',
    "half a pair": b'{"user_id": "\\ud800", "items": ["a"]}',
    "NUL": b'{"user_id": "\0", "items": ["a"]}',
    "NUL, escaped": b'{"user_id": "\\u0000", "items": ["\\u0000"], "interactions": [{"event_id": "\\u0000"}]}',
    "NUL after the end": QUESTION + b"\0",
    "UTF-16": QUESTION.decode().encode("utf-16"),
    "a mark of bytes": b"\xef\xbb\xbf" + QUESTION,
    "two documents": QUESTION * 2,
    "white space": b" " * MIB,
    "a million empty lists": b'{"interactions": [%s]}' % b",".join([b"[]"] * 300_000),
    "the same name again and again": b"{%s}" % b",".join([b'"user_id": 1'] * 80_000),
    "other names": b"{%s}" % b",".join(b'"%d": 1' % number for number in range(80_000)),
    "a long name": b'{"%s": 1}' % (b"x" * 1_000_000),
    "millions of objects": b'{"interactions": [%s{}]}' % (b"{}," * 2_700_000),
    "a million names": b"{%s}" % b",".join(b'"%d": 1' % number for number in range(600_000)),
    "half a million bad items": b'{"impressions": [%s]}'
    % b",".join([b'{"request_id":"r","user_id":"u","timestamp":1,"items":[%s0]}' % (b"0," * 999)] * 500),
    "ten thousand bad events": b'{"interactions": [%s{}]}' % (b"{}," * 9_999),
    "a string": b'"x"',
    "null": b"null",
}


@pytest.mark.parametrize("what", HOSTILE_JSON)
@pytest.mark.parametrize("call", GOOD)
def test_hostile_json_is_a_problem_of_the_client(served: Served, call: str, what: str) -> None:
    body = HOSTILE_JSON[what]
    with within(2):
        status, headers, document = served.ask(served.request(call, body))
    assert status in (400, 413, 422), document
    assert headers["content-type"] == "application/problem+json"
    assert len(json.dumps(document)) < 20_000


# One behind the other


def test_a_hundred_requests_in_one_packet_are_answered_in_their_order(served: Served) -> None:
    calls = ["GET /healthz", "POST /predict", "GET /periods/77", "POST /predict"] * 25
    with Connection(served.url) as connection:
        connection.send(
            b"".join(
                served.request(call, GOOD.get(call, b""), f"X-Request-ID: {number}")
                for number, call in enumerate(calls)
            )
        )
        answers = [connection.answer() for _ in calls]
    assert [(status, headers["x-request-id"]) for status, headers, _ in answers] == [
        (404 if "periods" in call else 200, str(number)) for number, call in enumerate(calls)
    ]


def test_too_many_requests_ahead_are_400_after_the_answers_that_are_due(served: Served) -> None:
    with Connection(served.url) as connection:
        connection.send((served.head("GET /healthz") + b"\r\n") * 2000)
        statuses = []
        while not statuses or statuses[-1] == 200:
            statuses.append(connection.answer()[0])
        assert (len(statuses) > MAX_PIPELINED, statuses[-1]) == (True, 400)
        assert connection.is_closed()


@pytest.mark.parametrize("rest", [b"x\r\n\r\n", b"POST /predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n"])
def test_what_was_asked_before_something_bad_is_answered_first(served: Served, rest: bytes) -> None:
    for call in ("GET /periods", "POST /predict"):
        with Connection(served.url) as connection:
            connection.send(served.request(call, GOOD.get(call, b"")) * 3 + rest)
            assert [connection.answer()[0] for _ in range(3)] == [200] * 3
            refused(connection, 400)


def test_a_bad_body_behind_others_is_refused_after_their_answers(served: Served) -> None:
    with Connection(served.url) as connection:
        bad = served.head("POST /interactions", CHUNKED) + b"\r\nx\r\n"
        connection.send(served.request("GET /periods") * 2 + bad)
        assert [connection.answer()[0] for _ in range(2)] == [200] * 2
        refused(connection, 400)


# Many


def test_connections_over_the_limit_are_503_until_others_end(served: Served) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):  # idle between two requests, which they may be for long
            opened = stack.enter_context(Connection(served.url))
            opened.send(served.request("GET /healthz"))
            assert opened.answer()[0] == 200
        statuses = Counter()
        for _ in range(10):
            with Connection(served.url) as connection:
                status, headers, _ = connection.answer()
                statuses[status] += 1
                assert (headers["retry-after"], headers["connection"]) == ("1", "close")
        assert statuses == {503: 10}
    wait_for(lambda: served_again(served), 5)


def served_again(served: Served) -> bool:
    with suppress(AssertionError, OSError):
        return served.is_well()
    return False


def test_refusals_are_counted(served: Served) -> None:
    for line, status in ((b"no HTTP\r\n\r\n", 400), (b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 2 * MAX_HEAD_BYTES, 431),
                         (b"GET /heal", 408)):  # fmt: skip
        with Connection(served.url) as connection:
            connection.send(line)
            refused(connection, status)
    test_connections_over_the_limit_are_503_until_others_end(served)
    counted = {line.split('"')[1] for line in metrics(served) if line.startswith("asmg_refusals_total{")}
    assert counted >= {"400", "408", "431", "503"}
