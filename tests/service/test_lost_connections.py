"""Connections to Postgres that fail at any point while they are opened, or between two statements.

A proxy of the test stands before Postgres. It forwards bytes until it is told to fail in a certain way.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import asyncpg
import httpx
import pytest
from sqlalchemy import make_url, text

from benchmarks.servers import free_port
from service.errors import NotReady
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.leadership import Leadership
from service.storage.postgres.migrate import migrate
from service.storage.postgres.pooler import require_sessions
from service.tasks import end_tasks
from service.use_cases.keys import SCOPES, create_key
from tests.service.api_support import event, eventually, served_app, settings_for
from tests.service.test_ingestion import batch
from tests.service.test_ingestion import event as stored_event


def message(kind: bytes, body: bytes) -> bytes:
    """One message of the protocol."""
    return kind + struct.pack(">i", len(body) + 4) + body


def fatal(state: str) -> bytes:
    """What Postgres says as it ends a session."""
    return message(b"E", b"SFATAL\0VFATAL\0C" + state.encode() + b"\0Mno more of this\0\0")


LET_IN = message(b"R", struct.pack(">i", 0))
READY = message(b"S", b"server_version\0" + b"17.0\0") + message(b"Z", b"I")


@dataclass(frozen=True)
class Failure:
    """How a connection fails."""

    script: tuple[bytes | None, ...] = ()
    """What the server says; None stands for hearing something first."""
    resets: bool = False
    """Whether the end is a reset, not a close."""
    tls: str = "disable"
    """What the client wants of TLS."""


HEARS = None

POINTS: dict[str, tuple[bytes | None, ...]] = {
    "at once": (),
    "after the startup message": (HEARS,),
    "within an answer": (HEARS, fatal("57P03")[:9]),
    "after the authentication": (HEARS, LET_IN),
    "when it was ready": (HEARS, LET_IN + READY),
    "at the first statement": (HEARS, LET_IN + READY, HEARS),
}
REFUSALS = [
    "57P01",
    "57P02",
    "57P03",
    "57P05",
    "53300",
    "53200",
    "08P01",
    "28P01",
    "28000",
    "3D000",
    "42501",
    "XX000",
    "99999",
]
FAILURES = {
    **{f"closed {when}": Failure(script) for when, script in POINTS.items()},
    **{f"reset {when}": Failure(script, resets=True) for when, script in POINTS.items()},
    **{f"{state} for a greeting": Failure((HEARS, fatal(state))) for state in REFUSALS},
    **{f"{state} after the authentication": Failure((HEARS, LET_IN + fatal(state))) for state in REFUSALS},
    **{f"{state} when it was ready": Failure((HEARS, LET_IN + READY + fatal(state))) for state in REFUSALS},
    **{f"{state} at the first statement": Failure((HEARS, LET_IN + READY, HEARS, fatal(state))) for state in REFUSALS},
    "another protocol": Failure((HEARS, b"HTTP/1.1 400 Bad Request\r\n\r\n")),
    "an unknown authentication": Failure((HEARS, message(b"R", struct.pack(">i", 99)))),
    "an authentication cut short": Failure((HEARS, message(b"R", struct.pack(">i", 5) + b"sa"))),
    "TLS refused": Failure((HEARS, b"N"), tls="require"),
    "TLS answered by an error": Failure((HEARS, fatal("53300")), tls="require"),
    "closed before TLS": Failure((HEARS,), tls="require"),
    "closed before TLS that may be left out": Failure((HEARS,), tls="prefer"),
    "closed within TLS": Failure((HEARS, b"S", HEARS), tls="require"),
    "reset within TLS": Failure((HEARS, b"S", HEARS), tls="require", resets=True),
    "no TLS after all": Failure((HEARS, b"S", HEARS, b"HTTP/1.1 400 Bad Request\r\n\r\n"), tls="require"),
}


class Front:
    """A server before Postgres; without one, all connections to it fail."""

    def __init__(self, dsn: str | None = None) -> None:
        self._dsn = dsn
        self.failure: Failure | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: set[asyncio.Task[None]] = set()

    def dsn(self, failure: Failure | None = None) -> str:
        tls = "disable" if failure is None else failure.tls
        url = make_url(self._dsn or "postgresql://somebody:secret@/nothing")
        url = url.set(host="127.0.0.1", port=self.port, query={"ssl": tls})
        return url.render_as_string(hide_password=False)

    def say(self, said: bytes) -> None:
        """Say something to all clients, and pass nothing on to or from them any more; they stay connected."""
        for task in self._tasks:
            task.cancel()
        for writer in self._clients:
            writer.write(said)

    def fail(self, failure: Failure) -> None:
        """Fail from now on, and cut what is connected."""
        self.failure = failure
        self.say(b"")
        for writer in self._clients:
            writer.transport.abort()
        self._clients.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        self._clients.add(writer)
        if self.failure is not None:
            await self._fail(self.failure, reader, writer)
            return
        url = make_url(self._dsn or "")
        host, port = url.query.get("host") or url.host, url.query.get("port") or url.port or 5432
        if str(host).startswith("/"):
            server = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            server = await asyncio.open_connection(str(host), int(str(port)))
        ways = [asyncio.create_task(pass_on(*way)) for way in ((reader, server[1]), (server[0], writer))]
        self._tasks.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        ended = any(not way.cancelled() for way in ways)
        self._tasks.difference_update(ways)
        await end_tasks(*ways)
        server[1].close()
        if ended:
            writer.close()
            self._clients.discard(writer)

    async def _fail(self, failure: Failure, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for step in failure.script:
                if step is not None:
                    writer.write(step)
                elif not await reader.read(65536):
                    break
        if failure.resets:
            opened: socket.socket = writer.get_extra_info("socket")
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        self._clients.discard(writer)

    async def __aenter__(self) -> "Front":
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.fail(Failure())
        if self._serving:
            await asyncio.wait(self._serving)


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)


async def read(dsn: str) -> None:
    database = Database(dsn)
    try:
        async with database.read() as session:
            await session.periods.list(1)
    finally:
        await database.close()


async def write(dsn: str) -> None:
    database = Database(dsn)
    try:
        async with database.unit_of_work() as work:
            await work.audit.add("me", "tried", {})
    finally:
        await database.close()


async def store(dsn: str) -> None:
    database = Database(dsn)
    try:
        async with database.log.acquire() as log:
            await log.insert(batch(stored_event("a")))
    finally:
        await database.close()


async def lead(dsn: str) -> None:
    leadership = Leadership(dsn, answer_seconds=5)
    try:
        await leadership.try_acquire()
    finally:
        await leadership.release()


async def bring_up_to_date(dsn: str) -> None:
    await asyncio.to_thread(migrate, dsn)


WAYS: list[Callable[[str], Awaitable[None]]] = [read, write, store, lead, require_sessions, bring_up_to_date]


async def outcome(way: Callable[[str], Awaitable[None]], dsn: str) -> str:
    """How it ends: what it raises, `NotReady` for what the service answers 503 to."""
    try:
        await way(dsn)
    except NotReady:
        return "NotReady"
    except Exception as error:
        return repr(error)
    return "nothing"


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_whatever_ends_a_connection_while_it_is_opened_is_not_ready(
    way: Callable[[str], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if way is bring_up_to_date:  # which would find out first, over connections of its own

        async def nothing(_dsn: str) -> None: ...

        monkeypatch.setattr("service.storage.postgres.pooler.require_sessions", nothing)
    found = {}
    async with Front() as front:
        for name, front.failure in FAILURES.items():
            found[name] = await outcome(way, front.dsn(front.failure))
    assert found == dict.fromkeys(FAILURES, "NotReady")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_and_so_is_a_server_that_cannot_be_reached_or_says_nothing(
    way: Callable[[str], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.storage.postgres.pooler.ANSWER_SECONDS", 0.2)
    assert await outcome(way, "postgresql://nobody@/nothing?host=/nonexistent") == "NotReady"
    assert await outcome(way, f"postgresql://nobody@127.0.0.1:{free_port()}/nothing") == "NotReady"
    monkeypatch.setattr(asyncpg, "connect", partial(asyncpg.connect, timeout=0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert await outcome(way, f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/nothing") == "NotReady"

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert await outcome(way, "postgresql://nobody@somewhere/nothing") == "NotReady"


@pytest.mark.parametrize("way", [read, write, store, lead], ids=lambda way: way.__name__)
async def test_and_so_is_one_that_ends_before_it_is_set_up(
    way: Callable[[str], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this case SQLAlchemy passes on the driver's exception."""
    connect = asyncpg.connect

    async def connect_and_lose(*args: object, **kwargs: object) -> asyncpg.Connection:
        connection = await connect(*args, **kwargs)
        connection.terminate()
        return connection

    monkeypatch.setattr(asyncpg, "connect", connect_and_lose)
    async with Front() as front:
        front.failure = Failure((HEARS, LET_IN + READY, HEARS))
        assert await outcome(way, front.dsn()) == "NotReady"


async def test_the_message_names_what_an_operator_can_set_right() -> None:
    named = {"28P01": "InvalidPasswordError", "3D000": "InvalidCatalogNameError", "53300": "TooManyConnectionsError"}
    async with Front() as front:
        for state, name in named.items():
            front.failure = Failure((HEARS, fatal(state)))
            for way in (read, store, lead, require_sessions):
                with pytest.raises(NotReady) as raised:
                    await way(front.dsn())
                assert raised.value.detail == f"Postgres does not answer: {name} (SQLSTATE {state})"


async def test_calls_are_answered_503_and_never_500(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    """With the server and the event loop of the real service."""
    database = Database(postgres_dsn)
    _, key = await create_key(database, "test", SCOPES)
    await database.close()
    body = {"interactions": [event(1)]}
    async with Front(postgres_dsn) as front, contextlib.AsyncExitStack() as stack:
        served = served_app(settings_for(front.dsn(), redis_url, tmp_path))
        url = await asyncio.to_thread(served.__enter__)
        stack.push_async_callback(asyncio.to_thread, served.__exit__, None, None, None)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            assert (await client.post("/interactions", json=body)).status_code == 200

            async def answers() -> list[tuple[int, str | None]]:
                asked = [
                    await client.post("/interactions", json=body),
                    await client.get("/periods"),
                    await client.put("/items", json={"items": [{"item_id": "i", "categories": ["c"]}]}),
                ]
                return [(response.status_code, response.headers.get("retry-after")) for response in asked]

            found = {}
            plain = {name: failure for name, failure in FAILURES.items() if failure.tls == "disable"}
            for name, failure in plain.items():
                front.fail(failure)
                found[name] = await answers()
            assert found == dict.fromkeys(plain, [(503, "1")] * 3)
            front.failure = None
            async with asyncio.timeout(10):
                while (again := await answers()) != [(200, None)] * 3:
                    assert {status for status, _ in again} <= {200, 503}


ENDS = ["cut", "57P01", "57P02", "25P03", "XX000"]
LOST = r"connection to Postgres was lost|SQLSTATE"


class TestBetweenStatements:
    """In a session that has begun: Postgres ends the connection, or announces that it will and does not."""

    @pytest.fixture
    async def front(self, postgres_dsn: str) -> AsyncIterator[Front]:
        async with Front(postgres_dsn) as front:
            yield front

    async def end(self, front: Front, how: str) -> None:
        if how == "cut":
            front.fail(Failure())
            front.failure = None
        else:
            front.say(fatal(how))
        await asyncio.sleep(0.02)  # until the client has heard of it

    async def test_a_session(self, front: Front) -> None:
        database = Database(front.dsn(), pool_size=1)
        for how in ENDS:
            for session_of in (database.read, database.unit_of_work):
                with pytest.raises(NotReady, match=LOST):
                    async with session_of() as session:
                        await session.connection.execute(text("SELECT 1"))
                        await self.end(front, how)
                        await session.connection.execute(text("SELECT 1"))
                await database.ping()  # over another connection, also where the server has left that one open
        await database.close()

    async def test_a_connection_of_the_pool(self, front: Front) -> None:
        database = Database(front.dsn(), pool_size=1)
        for how in ENDS:
            await database.ping()
            await self.end(front, how)
            with contextlib.suppress(NotReady):
                await database.ping()
            await database.ping()
        await database.close()

    async def test_a_writer_of_the_log(self, front: Front) -> None:
        database = Database(front.dsn())
        for how in ENDS:
            with pytest.raises(NotReady, match=LOST):
                async with database.log.acquire() as log:
                    await log.insert(batch(stored_event(f"before {how}")))
                    await self.end(front, how)
                    await log.insert(batch(stored_event(f"lost {how}")))
            async with database.log.acquire() as log:
                _, inserted = await log.insert(batch(stored_event(f"after {how}")))
                assert inserted.accepted == [0]
        await database.close()

    async def test_a_leader(self, front: Front) -> None:
        for how in ENDS:
            leadership = Leadership(front.dsn())
            assert await leadership.try_acquire()
            await self.end(front, how)
            assert not await leadership.is_held()
            await leadership.release()

    async def test_a_migration(self, front: Front, database: Database, caplog: pytest.LogCaptureFixture) -> None:
        async with database.unit_of_work() as work:
            await work.lock_exclusive(Lock.MIGRATE)
            migrating = asyncio.create_task(asyncio.to_thread(migrate, front.dsn()))
            await eventually(lambda: "another process migrates" in caplog.text)
            await self.end(front, "cut")
            with pytest.raises(NotReady, match=r"lost.*run `asmg migrate` again"):
                await migrating
