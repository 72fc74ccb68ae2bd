"""Real servers for all tests: embedded ones, or those that ASMG_POSTGRES_DSN and ASMG_REDIS_URL name.

With external servers the run creates its own databases in that Postgres and uses an empty database index of that Redis;
it leaves neither behind. In a parallel run (pytest-xdist) each process has its own servers, or its own databases and
index.
"""

import asyncio
import gc
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import pytest
import redis as redis_sync
from redis.asyncio import Redis
from sqlalchemy import make_url

from service.settings import sqlalchemy_dsn
from service.storage.embedded.servers import EmbeddedServers
from service.storage.postgres.database import Database
from service.storage.postgres.migrate import migrate
from service.storage.redis.connection import connect

# The environment may have settings of a real installation. No test may read them.
GIVEN = {name: os.environ.pop(name) for name in ("ASMG_POSTGRES_DSN", "ASMG_REDIS_URL") if name in os.environ}
for name in [name for name in os.environ if name.startswith("ASMG_") and not name.startswith("ASMG_TEST_")]:
    del os.environ[name]

PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
"""The number of this process in a parallel run, and how many there are."""


def pytest_configure() -> None:
    """In a parallel run torch uses one thread in each process, since the other processes need the other cores."""
    if PROCESSES > 1:
        import torch  # takes a second, and many tests do without

        torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect no garbage while all modules are imported: there is none, and each look goes through more objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of this folder first. They start whole programs and take up to half a minute each; at the end of a
    parallel run, the other processes would wait for them.
    """
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_collection_finish() -> None:
    """Exempt the half a million objects of modules and tests from garbage collection. They stay to the end, and looking
    through them took half a second of each full collection, most of the time of some benchmarks' tests.
    """
    gc.collect()
    gc.freeze()


class Servers(NamedTuple):
    """The servers of the run."""

    postgres_dsn: str
    """A database whose server lets us create others."""
    redis_url: str
    """A database index that belongs to this run alone."""
    execute: Callable[[str], object]
    """Runs one statement that no transaction may hold, such as CREATE DATABASE."""


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The servers of the run."""
    dsn, url = GIVEN.get("ASMG_POSTGRES_DSN"), GIVEN.get("ASMG_REDIS_URL")
    if dsn and url:
        url = empty_redis_index(url)
        with administrated(sqlalchemy_dsn(dsn), url) as servers:
            yield servers
        flush(url)
        return
    if dsn or url:
        pytest.exit("expected both ASMG_POSTGRES_DSN and ASMG_REDIS_URL, or neither; received one", 4)
    # Directly in the temporary folder: the paths of pytest's folders are too long for a Unix socket.
    with (
        tempfile.TemporaryDirectory(prefix="asmg-", ignore_cleanup_errors=True) as folder,
        EmbeddedServers(Path(folder) / "data") as embedded,
        administrated(embedded.postgres_dsn, embedded.redis_url) as servers,
    ):
        # Without fsync only a crash of the host loses data, and no data has to outlive the run. DROP DATABASE, which
        # ends hundreds of tests, takes a third of the time.
        servers.execute("ALTER SYSTEM SET fsync = off")
        servers.execute("SELECT pg_reload_conf()")
        yield servers


@contextmanager
def administrated(postgres_dsn: str, redis_url: str) -> Iterator[Servers]:
    """The servers, with one connection for all statements. It has its own thread, since the test's may run a loop."""
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as thread:

        def run(coroutine):
            return thread.submit(loop.run_until_complete, coroutine).result()

        connection = run(asyncpg.connect(postgres_dsn.replace("+asyncpg", "")))
        try:
            yield Servers(postgres_dsn, redis_url, lambda statement: run(connection.execute(statement)))
        finally:
            run(connection.close())
            loop.close()


def create_database(servers: Servers, name: str, template: str) -> None:
    """Copy a database that nobody is connected to.

    It is copied as files. The default way, through the write-ahead log, takes three times as long.
    """
    servers.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")


def drop_database(servers: Servers, name: str) -> None:
    servers.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def migrated_template(servers: Servers) -> Iterator[str]:
    """Name of a migrated database that nobody is connected to, for copies."""
    name = f"asmg_test_{uuid4().hex[:12]}"
    create_database(servers, name, "template0")
    in_thread(migrate, database_dsn(servers, name))
    yield name
    drop_database(servers, name)


@pytest.fixture(scope="session")
def database_numbers() -> Iterator[int]:
    """Numbers of the databases of the run."""
    return count(1)


@pytest.fixture
def postgres_dsn(servers: Servers, migrated_template: str, database_numbers: Iterator[int]) -> Iterator[str]:
    """DSN of a new migrated database."""
    name = f"{migrated_template}_{next(database_numbers)}"
    create_database(servers, name, migrated_template)
    yield database_dsn(servers, name)
    drop_database(servers, name)


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """URL of an empty Redis."""
    flush(servers.redis_url)
    return servers.redis_url


@pytest.fixture
async def database(postgres_dsn: str) -> AsyncIterator[Database]:
    """The database of `postgres_dsn`."""
    database = Database(postgres_dsn)
    yield database
    await database.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of `redis_url`."""
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A new folder whose path is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="asmg-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "data"


def in_thread(function, *args):
    """Call a function that runs its own event loop, in a thread without one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def database_dsn(servers: Servers, name: str) -> str:
    return make_url(servers.postgres_dsn).set(database=name).render_as_string(hide_password=False)


def flush(url: str) -> None:
    with redis_sync.Redis.from_url(url) as client:
        client.flushdb()


def empty_redis_index(url: str) -> str:
    """The URL with the highest database index that is empty, so that no test flushes foreign data.

    The processes of a parallel run choose among different indexes, since none sees at once what another has taken.
    """
    url = url.partition("?")[0]
    for index in range(15 - PROCESS, 0, -PROCESSES):
        candidate = f"{url}?db={index}"
        with redis_sync.Redis.from_url(candidate) as client:
            if client.dbsize() == 0:
                return candidate
    pytest.exit("expected an empty database index among 1 to 15 of ASMG_REDIS_URL; received none", 4)
