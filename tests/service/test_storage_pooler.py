"""A pooler in transaction mode is refused at start; one in session mode is accepted."""

import asyncio
import os
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
from asyncpg import connect
from sqlalchemy import make_url

from benchmarks.servers import free_port
from service import worker
from service.app import create_app
from service.errors import ConfigurationError, NotReady
from service.processes.installation import installation
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.engine import SESSION
from service.storage.postgres.migrate import migrate
from service.storage.postgres.pooler import require_sessions
from service.tasks import end_tasks

REFUSED = "through a pooler that lends connections for a transaction"
READY = ord("Z")


async def message(reader: asyncio.StreamReader) -> bytes:
    """One message of the protocol, from its type on."""
    head = await reader.readexactly(5)
    return head + await reader.readexactly(struct.unpack(">i", head[1:])[0] - 4)


class TransactionPooler:
    """The simple protocol of many clients over few server connections, handed on where no transaction is open."""

    def __init__(self, dsn: str, size: int) -> None:
        self._url, self._size = make_url(dsn), size
        self._idle: asyncio.LifoQueue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.LifoQueue()
        self._writers: set[asyncio.StreamWriter] = set()
        self.greeting = b""
        """What Postgres says at a start, from the authentication on."""

    async def open(self) -> None:
        user, database = self._url.username or "postgres", self._url.database
        host = self._url.query.get("host") or self._url.host
        for _ in range(self._size):
            if host and str(host).startswith("/"):
                path = f"{host}/.s.PGSQL.{self._url.query.get('port') or self._url.port or 5432}"
                reader, writer = await asyncio.open_unix_connection(path)
            else:
                reader, writer = await asyncio.open_connection(str(host), self._url.port or 5432)
            self._writers.add(writer)
            body = struct.pack(">i", 196608) + f"user\0{user}\0database\0{database}\0\0".encode()
            writer.write(struct.pack(">i", len(body) + 4) + body)
            self.greeting = b""
            while True:
                said = await message(reader)
                assert said[0] != ord("E"), said
                self.greeting += said
                if said[0] == READY:
                    break
            self._idle.put_nowait((reader, writer))

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client."""
        held = None
        self._writers.add(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            start = await reader.readexactly(struct.unpack(">i", await reader.readexactly(4))[0] - 4)
            if len(start) == 4:  # asks for TLS
                writer.write(b"N")
                await reader.readexactly(struct.unpack(">i", await reader.readexactly(4))[0] - 4)
            writer.write(self.greeting)
            while True:
                asked = await message(reader)
                if asked[0] == ord("X"):
                    break
                held = held or await self._idle.get()
                held[1].write(asked)
                while (answer := await message(held[0]))[0] != READY:
                    writer.write(answer)
                writer.write(answer)
                if answer[-1:] == b"I":
                    self._idle.put_nowait(held)
                    held = None
        if held is not None:
            held[1].close()
        writer.close()


@asynccontextmanager
async def pooled(dsn: str, size: int) -> AsyncIterator[str]:
    """The DSN of such a pooler."""
    pooler = TransactionPooler(dsn, size)
    try:
        await pooler.open()
    except AssertionError:
        pytest.skip("the Postgres of the run asks for a password, which the pooler of this test does not speak")
    server = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"postgresql://postgres@127.0.0.1:{port}/{make_url(dsn).database}"
    finally:
        server.close()
        await pooler.close()


async def test_postgres_itself_keeps_sessions(postgres_dsn: str) -> None:
    await require_sessions(postgres_dsn)


@pytest.mark.parametrize("size", [1, 2, 5])
async def test_a_pooler_of_transactions_is_refused(postgres_dsn: str, size: int) -> None:
    async with pooled(postgres_dsn, size) as dsn:
        with pytest.raises(ConfigurationError, match=REFUSED):
            await require_sessions(dsn)


async def test_it_is_refused_while_others_use_it(postgres_dsn: str) -> None:
    """Both clients get another server connection each time."""
    async with pooled(postgres_dsn, 3) as dsn:

        async def use() -> None:
            client = await connect(dsn)
            try:
                while True:
                    await client.execute("SELECT pg_sleep(0.001)")
            finally:
                client.terminate()

        others = [asyncio.create_task(use()) for _ in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises(ConfigurationError, match=REFUSED):
            await require_sessions(dsn)
        await end_tasks(*others)


async def test_every_way_to_start_refuses_it(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    """The api, the worker, and the function by which all commands open the database."""

    async def api(settings: Settings) -> None:
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            pass

    async def command(settings: Settings) -> None:
        def use() -> None:
            with installation(settings):
                pass

        await asyncio.to_thread(use)

    async def migration(settings: Settings) -> None:
        assert settings.postgres_dsn is not None
        await asyncio.to_thread(migrate, settings.postgres_dsn)

    starts: list[Callable[[Settings], Awaitable[None]]] = [api, worker.run, command, migration]
    async with pooled(postgres_dsn, 2) as dsn:
        settings = Settings(postgres_dsn=dsn, redis_url=redis_url, data_dir=tmp_path)
        for start in starts:
            with pytest.raises(ConfigurationError, match=REFUSED):
                await start(settings)


async def test_an_absent_postgres_is_not_taken_for_a_pooler() -> None:
    for dsn in ("postgresql://nobody@/nothing?host=/nonexistent", "postgresql://nobody@127.0.0.1:1/nothing"):
        with pytest.raises(NotReady, match="Postgres does not answer"):
            await require_sessions(dsn)
    with pytest.raises(ConfigurationError, match="expected a DSN that starts with"):
        await require_sessions("mysql://localhost/asmg")


@contextmanager
def pgbouncer(dsn: str, folder: Path, mode: str) -> Iterator[str]:
    """The real one, in front of the database of a DSN."""
    program, url, port = shutil.which("pgbouncer"), make_url(dsn), free_port()
    assert program is not None
    host = url.query.get("host") or url.host
    folder.mkdir()
    (folder / "users.txt").write_text(f'"{url.username}" "{url.password or ""}"\n')
    (folder / "bouncer.ini").write_text(
        f"[databases]\n{url.database} = host={host} port={url.query.get('port') or url.port or 5432} "
        f"user={url.username} dbname={url.database}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
        f"auth_file = {folder}/users.txt\npool_mode = {mode}\ndefault_pool_size = 3\nmax_client_conn = 50\n"
        f"ignore_startup_parameters = {', '.join(SESSION.keys() - {'application_name', 'timezone'})}\n"
    )
    command = [program, str(folder / "bouncer.ini")]
    if os.geteuid() == 0:  # which it refuses to run as
        socket = Path(str(host))
        command[1:1] = [f"--user={socket.owner() if socket.is_absolute() else 'nobody'}"]
    with (folder / "bouncer.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"postgresql://{url.username}@127.0.0.1:{port}/{url.database}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="there is no pgbouncer here")
@pytest.mark.parametrize("mode", ["session", "transaction", "statement"])
async def test_with_a_real_pgbouncer(postgres_dsn: str, mode: str, data_dir: Path) -> None:
    with pgbouncer(postgres_dsn, data_dir, mode) as dsn:

        async def answer() -> str:
            while True:
                try:
                    await require_sessions(dsn)
                except NotReady:  # it starts
                    await asyncio.sleep(0.1)
                except ConfigurationError as error:
                    return str(error)
                else:
                    return "sessions"

        said = await asyncio.wait_for(answer(), 30)
        if mode != "session":
            assert REFUSED in said
            return
        assert said == "sessions"
        database = Database(dsn)
        await database.ping()  # as docs/operations.md has it set up
        await database.close()
