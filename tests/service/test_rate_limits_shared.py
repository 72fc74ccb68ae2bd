"""Two api processes limit a key together while Redis is killed, paused and restarted."""

import asyncio
import contextlib
import json
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from redis import Redis

from service.storage.embedded.servers import EmbeddedServers
from service.storage.postgres.database import Database
from service.storage.postgres.migrate import migrate
from service.storage.redis.outage import ANSWER_SECONDS
from service.use_cases.keys import create_key, revoke_key
from tests.conftest import in_thread
from tests.service.programs import Program, program, wait_for

pytestmark = pytest.mark.slow

PROCESSES = 2
RATE = 100.0
BURST_SECONDS = 0.4
BURST = RATE * BURST_SECONDS
SLACK = (PROCESSES + 1) * BURST / 4
"""What the processes admit before they hear of each other."""

# With a history of its own a question needs nothing of Redis, and is answered where its last byte is parsed.
BODY = json.dumps({"user_id": "u", "items": ["a", "b"], "history": ["c"]}).encode()


@dataclass(frozen=True)
class Answer:
    sent: float
    seconds: float
    status: int
    head: bytes


class Installation:
    """Two api processes of a program, with servers that may be harmed."""

    def __init__(self, folder: Path, servers: EmbeddedServers, running: Program, stack: contextlib.ExitStack) -> None:
        self.servers, self.running = servers, running
        self._folder, self._stack = folder, stack

    async def make_key(self, rate: float) -> str:
        database = Database(self.servers.postgres_dsn, pool_size=1)
        try:
            return (await create_key(database, "test", ["predict"], rate_limit=rate))[1]
        finally:
            await database.close()

    async def revoke(self, key: str) -> None:
        database = Database(self.servers.postgres_dsn, pool_size=1)
        try:
            assert await revoke_key(database, key.split("_")[1])
        finally:
            await database.close()

    def redis(self) -> Redis:
        return Redis.from_url(self.servers.redis_url)

    def redis_process(self) -> psutil.Process:
        with self.redis() as client:
            return psutil.Process(client.info("server")["process_id"])

    def start_redis(self) -> None:
        self._stack.enter_context(EmbeddedServers(self._folder))

    def shares(self, ports: set[int]) -> list[int]:
        """How many of the connections each api process has."""
        return [
            sum(bool(place.raddr) and place.raddr.port in ports for place in child.net_connections("tcp"))
            for child in self.running.children()
        ]

    @asynccontextmanager
    async def connections(self, count: int) -> AsyncIterator[list["Connection"]]:
        """Open connections, as many to each api process."""
        async with contextlib.AsyncExitStack() as stack:
            opened: list[Connection] = []
            each = {child.pid: 0 for child in self.running.children()}
            assert len(each) == PROCESSES
            deadline = time.monotonic() + 20
            while len(opened) < count:
                assert time.monotonic() < deadline, f"the connections go to few processes: {each}"
                connection = Connection(*await asyncio.open_connection("127.0.0.1", self.running.port))
                await connection.ask("no key")  # accepted by a process now
                owner = next(
                    child.pid
                    for child in self.running.children()
                    for place in child.net_connections("tcp")
                    if place.raddr and place.raddr.port == connection.port
                )
                if each[owner] == count // PROCESSES:
                    connection.close()
                    continue
                each[owner] += 1
                stack.callback(connection.close)
                opened.append(connection)
            yield opened


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.port = writer.get_extra_info("sockname")[1]

    async def ask(self, key: str) -> Answer:
        sent = time.monotonic()
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nX-API-Key: {key}\r\n"
        self._writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        lines = await self._reader.readuntil(b"\r\n\r\n")
        [length] = [line[16:] for line in lines.split(b"\r\n") if line.startswith(b"content-length: ")]
        await self._reader.readexactly(int(length))
        return Answer(sent, time.monotonic() - sent, int(lines[9:12]), lines)

    def close(self) -> None:
        self._writer.close()


async def demand(connections: list[Connection], key: str, seconds: float, *, pause: float = 0.02) -> list[Answer]:
    """Ask on all connections, again after each answer and a pause, whatever it was."""
    until = time.monotonic() + seconds

    async def client(connection: Connection) -> list[Answer]:
        answers = []
        while time.monotonic() < until:
            answers.append(await connection.ask(key))
            await asyncio.sleep(pause)
        return answers

    return [answer for each in await asyncio.gather(*map(client, connections)) for answer in each]


def admitted(answers: list[Answer]) -> int:
    assert {answer.status for answer in answers} <= {200, 429}
    return sum(answer.status == 200 for answer in answers)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asmg-", ignore_cleanup_errors=True)))
        servers = stack.enter_context(EmbeddedServers(folder / "data"))
        in_thread(migrate, servers.postgres_dsn)
        given = {
            "ASMG_POSTGRES_DSN": servers.postgres_dsn,
            "ASMG_REDIS_URL": servers.redis_url,
            "ASMG_DATA_DIR": str(folder / "serving"),
            "ASMG_RATE_BURST_SECONDS": str(BURST_SECONDS),
        }
        out = tmp_path_factory.mktemp("out")
        running = stack.enter_context(program(out, "--workers", str(PROCESSES), "--no-worker", **given))
        wait_for(lambda: len(running.children()) == PROCESSES)
        yield Installation(folder / "data", servers, running, stack)


def allowed(answers: list[Answer]) -> float:
    """What a key may make, from when the first of these was sent until the last was answered."""
    first, last = min(answer.sent for answer in answers), max(answer.sent + answer.seconds for answer in answers)
    return RATE * (last - first) + BURST


async def test_both_processes_together_admit_what_a_key_may_make(installation: Installation) -> None:
    key = await installation.make_key(RATE)
    async with installation.connections(12) as connections:
        refused: list[Answer] = []
        for pause, least in ((0.02, 0.97), (0.1, 0.9)):  # six times the limit, and a little more than it
            answers = await demand(connections, key, 3, pause=pause)
            due = min(allowed(answers), len(answers))  # on a busy host a little more is less
            assert least * due - BURST * (1 - least) <= admitted(answers) <= allowed(answers) + SLACK
            refused += [answer for answer in answers if answer.status == 429]
            await asyncio.sleep(2 * BURST_SECONDS)
        assert refused
        assert all(b"\r\nretry-after: 1\r\n" in answer.head for answer in refused)
        # At half the limit nobody is refused.
        answers = await demand(connections, key, 2, pause=12 / (RATE / 2))
        assert admitted(answers) == len(answers) > 0.7 * RATE


async def test_keys_do_not_affect_each_other(installation: Installation) -> None:
    greedy, modest = await installation.make_key(RATE), await installation.make_key(RATE)
    free = await installation.make_key(0)
    async with installation.connections(12) as connections:
        flood, trickle, other = await asyncio.gather(
            demand(connections[:6], greedy, 2, pause=0.005),
            demand(connections[6:9], modest, 2, pause=3 / (0.7 * RATE)),
            demand(connections[9:], free, 2, pause=0.01),
        )
    assert len(flood) > 2 * admitted(flood)
    assert admitted(trickle) == len(trickle) > 0.3 * RATE * 2
    assert admitted(other) == len(other) > RATE * 2


async def test_what_redis_knows_of_a_key_that_is_revoked_expires(installation: Installation) -> None:
    key = await installation.make_key(RATE)
    async with installation.connections(2) as connections:
        await demand(connections, key, 0.5, pause=0.001)
        with installation.redis() as redis:
            place = f"asmg:rate:{key.split('_')[1]}"
            assert 0 < redis.pttl(place) <= 1000 * (2 * BURST_SECONDS + 60)
            await installation.revoke(key)
            deadline = time.monotonic() + 5
            while (await connections[0].ask(key)).status != 401:
                assert time.monotonic() < deadline
            wait_for(lambda: not redis.exists(place), 5)


async def test_without_redis_each_process_limits_alone_and_together_again_after(installation: Installation) -> None:
    key = await installation.make_key(RATE)
    async with installation.connections(12) as connections:
        before = await demand(connections, key, 1)
        process = installation.redis_process()
        process.send_signal(signal.SIGKILL)
        away = await demand(connections, key, 3)
        installation.start_redis()
        await asyncio.sleep(1.5)  # a process that has just found Redis away does not ask for a second
        after = await demand(connections, key, 3)
    assert admitted(before) <= allowed(before) + SLACK
    # Each its own limit: no less than one of them would admit, no more than all of them may.
    assert 0.9 * allowed(away) <= admitted(away) <= PROCESSES * allowed(away)
    assert admitted(away) > 1.5 * RATE * 3
    assert len(away) > 1.5 * admitted(away)
    assert 0.9 * RATE * 3 <= admitted(after) <= allowed(after) + SLACK


async def test_nobody_waits_for_a_redis_that_hangs(installation: Installation) -> None:
    key = await installation.make_key(RATE)
    async with installation.connections(12) as connections:
        await demand(connections, key, 0.5)
        process = installation.redis_process()
        process.send_signal(signal.SIGSTOP)
        try:
            hanging = await demand(connections, key, 2.5)
        finally:
            process.send_signal(signal.SIGCONT)
        await asyncio.sleep(1.5)
        after = await demand(connections, key, 2)
    assert max(answer.seconds for answer in hanging) < ANSWER_SECONDS
    assert 0.9 * RATE * 2.5 <= admitted(hanging) <= PROCESSES * allowed(hanging)
    assert 0.9 * RATE * 2 <= admitted(after) <= allowed(after) + SLACK
