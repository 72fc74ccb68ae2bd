"""Postgres and Redis fail over to a replica under the running service, and nothing that was acknowledged is lost."""

import asyncio
import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import redis as redis_sync
from sqlalchemy import make_url

from benchmarks.servers import free_port
from service.errors import NotReady
from service.storage.embedded.redis import redis_executable
from service.storage.postgres import hosts
from service.storage.postgres.database import Database
from service.storage.postgres.migrate import migrate
from service.storage.redis.connection import connect
from service.use_cases.keys import SCOPES, create_key
from tests.conftest import in_thread
from tests.service.api_support import event, served_app, settings_for
from tests.service.programs import wait_for
from tests.service.replicated_postgres import USER, Cluster, replicated
from tests.service.worker_processes import forked_worker

pytestmark = pytest.mark.slow

EVENTS_OF_A_CALL = 20


class Client:
    """Sends batches of events until each is acknowledged, and predicts meanwhile."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.acknowledged: list[str] = []
        self.refused = 0
        self.predicted: list[int] = []
        self.longest_pause = 0.0
        """Longest time between two acknowledgements, in seconds."""
        self._thread.start()

    def wait_for_more(self) -> None:
        """Wait until further batches were acknowledged."""
        goal = len(self.acknowledged) + 3 * EVENTS_OF_A_CALL
        wait_for(lambda: len(self.acknowledged) >= goal, 30)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(30)

    def _send(self) -> None:
        last = time.monotonic()
        for number in count(1):
            if self._ended.wait(0.02):
                return
            first = number * EVENTS_OF_A_CALL
            batch = [event(first + n, event_id=f"e{first + n}") for n in range(EVENTS_OF_A_CALL)]
            while not self._client.post("/interactions", json={"interactions": batch}).is_success:
                self.refused += 1
                if self._ended.wait(0.05):
                    return
            self.acknowledged += [event["event_id"] for event in batch]
            self.longest_pause = max(self.longest_pause, time.monotonic() - last)
            last = time.monotonic()
            answer = self._client.post("/predict", json={"user_id": "u1", "items": ["i1", "i2"]})
            self.predicted.append(answer.status_code)


def close_and_wait(client: httpx.Client, number: int) -> int:
    """Close the period and wait for its version."""
    closed = client.post("/periods/close", json={"expected_period": number})
    assert closed.is_success, closed.text
    wait_for(lambda: client.get(f"/periods/{number}").json()["status"] == "updated", 60)
    return int(client.get(f"/periods/{number}").json()["version"])


async def make_key(dsn: str) -> str:
    database = Database(dsn, pool_size=1)
    _, key = await create_key(database, "test", SCOPES)
    await database.close()
    return key


async def commit_after_standby(cluster: Cluster) -> None:
    """From now on the server acknowledges a commit after its standby has applied it."""
    connection = await asyncpg.connect(host="127.0.0.1", port=cluster.port, user=USER, database="postgres")
    await connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
    await connection.execute("ALTER SYSTEM SET synchronous_commit = remote_apply")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


async def has_synchronous_standby(cluster: Cluster) -> bool:
    connection = await asyncpg.connect(host="127.0.0.1", port=cluster.port, user=USER, database="postgres")
    states = await connection.fetch("SELECT sync_state FROM pg_stat_replication")
    await connection.close()
    return [state["sync_state"] for state in states] == ["sync"]


async def refused_unless_asked_for(standby: str) -> None:
    """A standby alone is refused, but for one who says that any server will do."""
    for dsn, answers in ((standby, False), (f"{standby}?target_session_attrs=any", True)):
        database = Database(dsn)
        with contextlib.nullcontext() if answers else pytest.raises(NotReady, match="TargetServerAttribute"):
            await database.ping()
        await database.close()


async def stored_events(dsn: str) -> list[str]:
    database = Database(dsn, pool_size=1)
    async with database.read() as session:
        rows = await session.connection.exec_driver_sql("SELECT event_id FROM interactions")
        found = [row.event_id for row in rows]
    await database.close()
    return found


@pytest.fixture
def clusters(data_dir: Path) -> Iterator[tuple[Cluster, Cluster]]:
    with replicated(data_dir) as made:
        yield made


def test_a_standby_of_postgres_is_promoted(clusters: tuple[Cluster, Cluster], redis_url: str, tmp_path: Path) -> None:
    primary, standby = clusters
    # The standby first, so that whoever takes the first that answers is wrong.
    dsn = f"postgresql://{USER}@127.0.0.1:{standby.port},127.0.0.1:{primary.port}/postgres"
    in_thread(migrate, dsn)
    in_thread(asyncio.run, commit_after_standby(primary))
    wait_for(lambda: in_thread(asyncio.run, has_synchronous_standby(primary)))
    in_thread(asyncio.run, refused_unless_asked_for(f"postgresql://{USER}@127.0.0.1:{standby.port}/postgres"))
    key = in_thread(asyncio.run, make_key(dsn))
    settings = settings_for(f"{dsn}?target_session_attrs=read-write", redis_url, tmp_path, store_deadline_seconds=1)
    with (
        served_app(settings) as url,
        httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30) as client,
        forked_worker(dsn, redis_url, tmp_path) as worker,
    ):
        sender = Client(client)
        try:
            sender.wait_for_more()
            before = close_and_wait(client, 1)
            sender.wait_for_more()
            primary.kill()
            wait_for(lambda: sender.refused)
            standby.promote()
            sender.wait_for_more()
            after = close_and_wait(client, 2)
        finally:
            sender.stop()
        worker.stop()
    print(f"the longest pause between two acknowledgements was {sender.longest_pause:.1f} s")
    stored = in_thread(asyncio.run, stored_events(dsn))
    assert len(stored) == len(set(stored))
    assert set(sender.acknowledged) <= set(stored)
    assert (before, after) == (1, 2)
    assert set(sender.predicted) == {200}


async def test_a_host_that_says_nothing_holds_up_one_connection(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(postgres_dsn)
    _, options = url.get_dialect()().create_connect_args(url)
    asked: list[int] = []

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(1)
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    monkeypatch.setattr(hosts, "HOST_SECONDS", 0.3)
    host, port = [str(options["host"])], [int(options.get("port") or 5432)]
    options |= {"host": ["127.0.0.1", *host], "port": [silent.sockets[0].getsockname()[1], *port]}
    finder = hosts.Hosts()
    for _ in range(3):
        connection = await finder.connect(**options)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()
    assert len(asked) == 1
    silent.close()


class Redises:
    """A master, a replica of it, and a Sentinel that watches both."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._stack, self._folder = stack, folder
        self.ports = free_port(), free_port()
        self._sentinel_port = free_port()
        self.url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self._sentinel_port}/asmg/0"  # nobody is at the first
        self.master = self._start(self.ports[0], "--save", "")
        self._start(self.ports[1], "--save", "", "--replicaof", "127.0.0.1", str(self.ports[0]))
        (folder / "sentinel.conf").write_text(
            f"sentinel monitor asmg 127.0.0.1 {self.ports[0]} 1\n"
            "sentinel down-after-milliseconds asmg 1000\n"
            "sentinel failover-timeout asmg 2000\n"
        )
        self._start(self._sentinel_port, "--sentinel", configuration="sentinel.conf")
        wait_for(lambda: self.info(1)["master_link_status"] == "up")
        with redis_sync.Redis(port=self._sentinel_port) as sentinel:
            wait_for(lambda: len(sentinel.sentinel_slaves("asmg")) == 1)

    def info(self, number: int) -> dict[str, Any]:
        with redis_sync.Redis(port=self.ports[number]) as client:
            return dict(client.info("replication"))

    def keys(self, number: int) -> list[bytes]:
        with redis_sync.Redis(port=self.ports[number]) as client:
            return list(client.keys("asmg:past:*"))

    def _start(self, port: int, *options: str, configuration: str | None = None) -> subprocess.Popen[bytes]:
        command = [redis_executable(), *([configuration] if configuration else ()), "--port", str(port), *options]
        process = subprocess.Popen([*command, "--bind", "127.0.0.1"], cwd=self._folder, stdout=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        with redis_sync.Redis(port=port) as client:
            wait_for(lambda: _answers(client))
        return process


def _answers(client: redis_sync.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis_sync.RedisError:
        return False


async def says(url: str) -> bool:
    """Whether something can be written through the Sentinels.

    A Sentinel that was not given the processor for a while takes a living master for dead, until its next reply.
    """
    client = connect(url)
    try:
        return bool(await client.set("asmg:said", b"1"))
    except redis_sync.RedisError:
        return False
    finally:
        await client.aclose()


def test_a_replica_of_redis_is_promoted(postgres_dsn: str, tmp_path: Path) -> None:
    key = in_thread(asyncio.run, make_key(postgres_dsn))
    with contextlib.ExitStack() as stack:
        redises = Redises(tmp_path, stack)
        wait_for(lambda: in_thread(asyncio.run, says(redises.url)))
        settings = settings_for(postgres_dsn, redises.url, tmp_path, history_cache_seconds=0)
        url = stack.enter_context(served_app(settings))
        headers = {"authorization": f"Bearer {key}"}
        client = stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=30))
        users = count()

        def use() -> None:
            """Store a click of a new user, and predict with it."""
            user = f"u{next(users)}"
            stored = client.post(
                "/interactions", json={"interactions": [event(0, event_id=user, user_id=user, label=1)]}
            )
            assert stored.is_success, stored.text
            answer = client.post("/predict", json={"user_id": user, "items": ["i1"]})
            assert (answer.status_code, answer.json()["history"]) == (200, "used")

        use()
        wait_for(lambda: redises.keys(1))  # replicated
        redises.master.kill()
        wait_for(lambda: use() or redises.info(1)["role"] == "master", 30)
        before = set(redises.keys(1))
        wait_for(lambda: use() or set(redises.keys(1)) - before, 30)
        wait_for(lambda: in_thread(asyncio.run, says(redises.url)))
