"""Postgres and Redis fail over to a replica under the running service, and nothing that was acknowledged is lost."""

import asyncio
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import asyncpg
import httpx
import pytest

from service.storage.postgres.database import Database
from service.storage.postgres.migrate import migrate
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
        self._thread.start()

    def wait_for_more(self) -> None:
        """Wait until further batches were acknowledged."""
        goal = len(self.acknowledged) + 3 * EVENTS_OF_A_CALL
        wait_for(lambda: len(self.acknowledged) >= goal, 30)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(30)

    def _send(self) -> None:
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


async def wait_for_standby(cluster: Cluster) -> None:
    """From now on a commit is acknowledged after the standby has applied it."""
    connection = await asyncpg.connect(host="127.0.0.1", port=cluster.port, user=USER, database="postgres")
    await connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
    await connection.execute("ALTER SYSTEM SET synchronous_commit = remote_apply")
    await connection.execute("SELECT pg_reload_conf()")
    while await connection.fetchval("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == 0:
        await asyncio.sleep(0.02)
    await connection.close()


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


def test_a_standby_of_postgres_is_promoted(
    clusters: tuple[Cluster, Cluster], redis_url: str, tmp_path: Path
) -> None:
    primary, standby = clusters
    # The standby first, so that whoever takes the first that answers is wrong.
    dsn = f"postgresql://{USER}@127.0.0.1:{standby.port},127.0.0.1:{primary.port}/postgres"
    in_thread(migrate, dsn)
    in_thread(asyncio.run, wait_for_standby(primary))
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
    stored = in_thread(asyncio.run, stored_events(dsn))
    assert len(stored) == len(set(stored))
    assert set(sender.acknowledged) <= set(stored)
    assert (before, after) == (1, 2)
    assert set(sender.predicted) == {200}
