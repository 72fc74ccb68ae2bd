"""The load generator: sends a `Load` to a server from one event loop, with as little CPU time as possible.

A request costs it about 12 µs in a closed loop, and about 50 µs in an open one, where it wakes up for every request.
"""

import asyncio
import gc
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import cast

import httptools
import uvloop

from benchmarks.http_load.alarm import Alarm, make_alarm
from benchmarks.http_load.load import Answers, Load, Target
from service.tasks import end_tasks

CONNECT_SECONDS = 5.0
CONNECT_EVERY_SECONDS = 0.001
"""Connections are opened one after the other, so that several workers on one socket each get some."""
RETRY_SECONDS = 0.01
DRAIN_SECONDS = 5.0
"""How long answers may take after the last request was sent; what has not come by then has failed."""
CHECK_SECONDS = 0.05
"""How often is checked whether the load should end."""

now = time.perf_counter


class Watched:
    """A load under way, as seen by the work that goes on beside it."""

    def __init__(self, connections: Sequence["_Connection"]) -> None:
        self._connections = connections

    def latest(self) -> list[bytes | None]:
        """The last answer on each connection; None before the first."""
        return [connection.latest for connection in self._connections]


Beside = Callable[[Watched], Awaitable[None]]
"""Work that goes on beside a load."""


def ask(
    target: Target, load: Load, *, check: Callable[[], None] = lambda: None, beside: Beside | None = None
) -> Answers:
    """Send a load and return its answers.

    Args:
        target: the server.
        load: the requests.
        check: called 20 times a second; an exception of it ends the load.
        beside: work that runs beside the load on the same thread; when it returns, no further request becomes due.

    Raises:
        OSError: the first connections cannot be opened.
    """
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a pause of ours would look like one of the server
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Generator(target, load).run(check, beside))
    finally:
        if collecting:
            gc.enable()


class _Connection(asyncio.Protocol):
    """One connection with at most one request in flight. The parser calls its `on_…` methods."""

    __slots__ = ("_body", "_generator", "_parser", "_transport", "busy", "due", "latest", "number", "request", "sent")

    def __init__(self, generator: "_Generator", number: int) -> None:
        self._generator = generator
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self.number = number
        self.busy = False
        self.request = 0
        self.due = self.sent = 0.0
        self.latest: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, data: bytes, request: int, due: float, sent: float) -> None:
        self.busy, self.request, self.due, self.sent = True, request, due, sent
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._give_up(f"no answer that can be read: {error}")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if not self.busy:
            self._give_up("an answer that nobody had asked for")
            return
        body, self._body, self.busy = self._body, b"", False
        self._generator.answered(self, self._parser.get_status_code(), body, self._parser.should_keep_alive())

    def connection_lost(self, error: Exception | None) -> None:
        self._give_up("the connection broke before the answer was whole", lost=True)

    def abort(self) -> None:
        self._transport.abort()

    def _give_up(self, fault: str, *, lost: bool = False) -> None:
        busy, self.busy = self.busy, False
        self._generator.gone(self, fault if busy else None)
        if not lost:
            self._transport.abort()


class _Generator:
    """One load under way."""

    def __init__(self, target: Target, load: Load) -> None:
        self._target, self._load = target, load
        self._answers = Answers()
        self._connections: list[_Connection] = []
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[float] = deque()  # when requests were due that no connection was free for
        self._total = load.count
        self._scheduled = 0  # requests that have become due; in a closed loop those that were sent
        self._sent = 0
        self._in_flight = 0
        self._opened = 0
        self._started = self._until = 0.0
        self._over = False
        self._alarm: Alarm | None = None
        self._replacing: set[asyncio.Task[None]] = set()

    async def run(self, check: Callable[[], None], beside: Beside | None) -> Answers:
        self._finished = asyncio.get_running_loop().create_future()
        work: asyncio.Future[None] | None = None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                for _ in range(self._load.connections):
                    self._connections.append(await self._connect())
                    await asyncio.sleep(CONNECT_EVERY_SECONDS)
            cpu = time.process_time()
            self._start()
            if beside is not None:
                work = asyncio.ensure_future(beside(Watched(self._connections)))
            await self._watch(check, work)
            self._answers.cpu_seconds = time.process_time() - cpu
        finally:
            self._over = True
            if self._alarm is not None:
                self._alarm.close()
            await end_tasks(*self._replacing, *([work] if work is not None else []))
            for connection in self._connections:
                connection.abort()
            await asyncio.sleep(0)
        return self._answers

    def _start(self) -> None:
        load = self._load
        self._started = now()
        self._until = self._started + load.seconds
        if load.rate is None:
            for connection in self._connections:
                self._free(connection)
        else:
            self._total = max(1, min(load.count, int(load.rate * load.seconds)))
            self._idle.extend(self._connections)
            self._alarm = make_alarm(self._tick)
            self._tick()

    async def _watch(self, check: Callable[[], None], work: asyncio.Future[None] | None) -> None:
        """Return when all answers have come, or are too late."""
        deadline = self._until + DRAIN_SECONDS
        while not self._finished.done():
            await asyncio.wait({self._finished}, timeout=CHECK_SECONDS)
            check()
            if work is not None and work.done():
                work.result()
                work = None
                self._total = self._scheduled
                deadline = min(deadline, now() + DRAIN_SECONDS)
                self._finish_if_done()
            if now() > deadline:
                self._answers.faults["no answer in time"] += len(self._waiting) + self._in_flight
                return

    # --- for each request

    def _tick(self) -> None:
        """Send the requests that are due, or let them wait for a connection; set the alarm for the next one."""
        rate, started, moment = cast(float, self._load.rate), self._started, now()
        while self._scheduled < self._total:
            due = started + self._scheduled / rate
            if due > moment:
                cast(Alarm, self._alarm).set(due)
                return
            self._scheduled += 1
            self._answers.late.append(moment - due)
            if self._idle:
                self._send(self._idle.popleft(), due, moment)
            else:
                self._waiting.append(due)

    def _free(self, connection: _Connection) -> None:
        """Use a connection that has no request in flight."""
        if self._waiting:
            self._send(connection, self._waiting.popleft(), now())
            return
        if self._load.rate is None and self._scheduled < self._total:
            moment = now()
            if moment < self._until:
                self._scheduled += 1
                self._send(connection, moment, moment)
                return
            self._total = self._scheduled
        self._idle.append(connection)
        if self._scheduled >= self._total:
            self._finish_if_done()

    def _send(self, connection: _Connection, due: float, moment: float) -> None:
        requests = self._load.requests
        index = self._sent % len(requests)
        self._sent += 1
        self._in_flight += 1
        connection.send(requests[index], index, due, moment)

    def answered(self, connection: _Connection, status: int, body: bytes, keep_alive: bool) -> None:
        moment = now()
        if self._over:
            return
        self._in_flight -= 1
        if status == 200:
            answers = self._answers
            answers.due.append(connection.due)
            answers.sent.append(connection.sent)
            answers.done.append(moment)
            answers.request.append(connection.request)
            answers.connection.append(connection.number)
            if self._load.keep_bodies:
                answers.bodies.append(body)
                connection.latest = body
        else:
            self._answers.faults[f"status {status}"] += 1
        if keep_alive:
            self._free(connection)
        else:
            connection.abort()

    def _finish_if_done(self) -> None:
        done = self._scheduled >= self._total and not self._waiting and not self._in_flight
        if done and not self._finished.done():
            self._finished.set_result(None)

    # --- for each connection

    async def _connect(self) -> _Connection:
        self._opened += 1
        connection = _Connection(self, self._opened)
        await asyncio.get_running_loop().create_connection(
            lambda: connection, self._target.host, self._target.port
        )  # fmt: skip
        return connection

    def gone(self, connection: _Connection, fault: str | None) -> None:
        """A connection was closed; with a fault, the request in flight on it has failed."""
        if self._over or connection not in self._connections:
            return
        if fault is not None:
            self._in_flight -= 1
            self._answers.faults[fault] += 1
        with suppress(ValueError):
            self._idle.remove(connection)
        self._connections.remove(connection)
        task = asyncio.ensure_future(self._replace())
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self) -> None:
        """Open a connection in place of a closed one; while none can be opened, requests that need one fail."""
        while True:
            try:
                connection = await self._connect()
                break
            except OSError as error:
                if self._waiting:
                    self._waiting.popleft()
                elif self._load.rate is None and self._scheduled < self._total and now() < self._until:
                    self._scheduled += 1
                else:
                    self._finish_if_done()
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                self._answers.faults[f"no connection: {type(error).__name__}"] += 1
                await asyncio.sleep(RETRY_SECONDS)
        self._connections.append(connection)
        self._free(connection)
