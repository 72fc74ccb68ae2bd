"""The load generator counts and times what it says. No test depends on how fast anything is."""

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count

import numpy as np
import pytest

from benchmarks.http_load.alarm import LoopTimer, make_alarm
from benchmarks.http_load.generator import Watched, ask
from benchmarks.http_load.load import Load, Target
from benchmarks.servers import HOST, free_port

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ERROR = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\noops"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
REQUEST = b"POST /predict HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"

Reply = Callable[[int], tuple[bytes, bool]]
"""What the request with this number is answered with, and whether the connection is kept."""


@contextmanager
def answering(reply: Reply, *, in_bytes: bool = False) -> Iterator[Target]:
    """A server in threads, which answers one request at a time, in one piece or in single bytes."""
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
                    for start in range(0, len(data), 1 if in_bytes else max(len(data), 1)):
                        connection.sendall(data[start:] if not in_bytes else data[start : start + 1])
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


@pytest.mark.parametrize("in_bytes", [False, True])
@pytest.mark.parametrize(("data", "body"), [(OK, b"ok"), (CHUNKED, b"abcde"), (EMPTY, b"")])
def test_answers_are_read_whole(data: bytes, body: bytes, in_bytes: bool) -> None:
    with answering(lambda _: (data, True), in_bytes=in_bytes) as target:
        found = ask(target, Load(requests=[REQUEST], connections=2, count=10, seconds=10, keep_bodies=True))
    assert found.bodies == [body] * 10
    assert max(found.connection) == 2, "the connections were kept"


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
        return (b"SSH-2.0-OpenSSH\r\n\r\n" if number % 2 else OK), True

    with answering(garbage) as target:
        found = ask(target, Load(requests=[REQUEST], connections=1, count=10, seconds=10))
    assert found.failed == 5
    assert all(fault.startswith("no answer that can be read: ") for fault in found.faults)


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

    monkeypatch.setattr("benchmarks.http_load.generator.DRAIN_SECONDS", 0.2)
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


@pytest.mark.parametrize("make", [make_alarm, LoopTimer])
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
