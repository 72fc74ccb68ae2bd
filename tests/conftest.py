"""Real servers for all tests: embedded ones, or those that ASMG_POSTGRES_DSN and ASMG_REDIS_URL name.

With external servers the run creates databases of its own in that Postgres, takes an empty database index of that
Redis, and leaves neither behind. In a parallel run (pytest-xdist) each process has servers, or databases and an index,
of its own.
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

# Whoever runs the tests may have an installation of their own in the environment; no test is to read its settings.
GIVEN = {name: os.environ.pop(name) for name in ("ASMG_POSTGRES_DSN", "ASMG_REDIS_URL") if name in os.environ}
for name in [name for name in os.environ if name.startswith("ASMG_") and not name.startswith("ASMG_TEST_")]:
    del os.environ[name]

PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
"""Which of how many processes of a parallel run this is."""


def pytest_configure() -> None:
    """One thread of torch in each process of a parallel run: the other cores are the other processes'."""
    if PROCESSES > 1:
        import torch  # takes a second, and many a module does without

        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs whole programs, the tests of this folder itself, comes first: tests that take half a minute each would
    be a poor end of a parallel run, where the process that is done first takes over what the others have left.
    """
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_collection_finish() -> None:
    """Half a million objects, of all the modules and tests, stay to the end. To look through them took half a second of
    each full garbage collection, more than all else of some benchmarks, which collect before they time anything.
    """
    gc.collect()
    gc.freeze()


class Servers(NamedTuple):
    """Where the servers of the run are."""

    postgres_dsn: str
    """A database beside which others can be created."""
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
    # Directly under the temporary folder: pytest's own folders are too deep for a Unix socket's path.
    with (
        tempfile.TemporaryDirectory(prefix="asmg-", ignore_cleanup_errors=True) as folder,
        EmbeddedServers(Path(folder) / "data") as embedded,
        administrated(embedded.postgres_dsn, embedded.redis_url) as servers,
    ):
        # The death of a process harms nothing then; that of the host would, but what is stored ends with the run.
        # A DROP DATABASE, with which hundreds of tests end, takes a third of the time.
        servers.execute("ALTER SYSTEM SET fsync = off")
        servers.execute("SELECT pg_reload_conf()")
        yield servers


@contextmanager
def administrated(postgres_dsn: str, redis_url: str) -> Iterator[Servers]:
    """The servers, with one connection for all statements: it has a thread to itself, where no other loop runs."""
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
    """Make a copy of a database that nobody is connected to.

    Its files are copied. Postgres' own way, each page through the write-ahead log, takes three times as long.
    """
    servers.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")


def drop_database(servers: Servers, name: str) -> None:
    servers.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def migrated_template(servers: Servers) -> Iterator[str]:
    """Name of a migrated database that nobody is connected to, to make copies of."""
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
    """A migrated database of the test's own."""
    name = f"{migrated_template}_{next(database_numbers)}"
    create_database(servers, name, migrated_template)
    yield database_dsn(servers, name)
    drop_database(servers, name)


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """An empty Redis."""
    flush(servers.redis_url)
    return servers.redis_url


@pytest.fixture
async def database(postgres_dsn: str) -> AsyncIterator[Database]:
    """The test's database."""
    database = Database(postgres_dsn)
    yield database
    await database.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the empty Redis."""
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder of the test's own, with a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="asmg-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "data"


def in_thread(function, *args):
    """Call a function that runs an event loop of its own; the thread of the tests has, or will have, another."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def database_dsn(servers: Servers, name: str) -> str:
    return make_url(servers.postgres_dsn).set(database=name).render_as_string(hide_password=False)


def flush(url: str) -> None:
    with redis_sync.Redis.from_url(url) as client:
        client.flushdb()


def empty_redis_index(url: str) -> str:
    """The URL with the highest database index that holds nothing, so that no test flushes what is not its own.

    The processes of a parallel run choose among different ones, for none sees at once what another has taken.
    """
    url = url.partition("?")[0]
    for index in range(15 - PROCESS, 0, -PROCESSES):
        candidate = f"{url}?db={index}"
        with redis_sync.Redis.from_url(candidate) as client:
            if client.dbsize() == 0:
                return candidate
    pytest.exit("expected an empty database index among 1 to 15 of ASMG_REDIS_URL; received none", 4)
