"""Updates while workers and servers are killed or frozen and disks fill up: exactly one outcome, and no blocking.

Real workers are really killed, at moments at which a lock in Postgres holds them.
"""

import asyncio
import errno
import os
import re
import resource
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy import text

from service.storage.embedded.servers import EmbeddedServers
from service.storage.postgres.database import Database
from service.storage.postgres.migrate import migrate
from service.storage.postgres.repositories import Period
from service.use_cases.quarantine import MOST_CRASHES
from service.use_cases.update import snapshot
from service.worker import MAX_PAUSE_SECONDS
from tests.service.api_support import event
from tests.service.programs import program
from tests.service.update_doubles import working
from tests.service.update_support import (
    STAGES,
    Prepared,
    bench,
    outcome,
    periods,
    seal_second_period,
)
from tests.service.worker_processes import POLL_SECONDS, ForkedWorker, forked_worker

SEED = 1


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def dsn(second: str) -> str:
    """Of a database with period 2 to be updated on."""
    return second


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    database = Database(dsn, pool_size=1)
    yield database
    await database.close()


async def period_2(database: Database) -> Period:
    async with database.read() as session:
        period = await session.periods.get(2)
    assert period is not None
    return period


async def execute(database: Database, *statements: str) -> None:
    async with database.unit_of_work() as work:
        for statement in statements:
            await work.connection.execute(text(statement))
        await work.commit()


async def until(database: Database, number: int, *statuses: str, seconds: float = 60) -> Period:
    """Wait until a period has one of these statuses."""
    async with asyncio.timeout(seconds):
        while True:
            async with database.read() as session:
                period = await session.periods.get(number)
            if period is not None and period.status in statuses:
                return period
            await asyncio.sleep(0.02)


async def logged(process: ForkedWorker, *what: str, times: int = 1, seconds: float = 60) -> None:
    """Wait until the worker has said one of these so many times."""
    try:
        async with asyncio.timeout(seconds):
            while sum(map(process.log.count, what)) < times:
                assert process.alive, process.log
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"expected {' or '.join(what)}, {times} times; the worker said:\n{process.log}")


KEY = 4242
"""Of the advisory lock that is the gate."""

COMMITTING = "CREATE CONSTRAINT TRIGGER gate AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED"
BEFORE = "CREATE TRIGGER gate BEFORE INSERT OR UPDATE ON {table}"

MOMENTS = {
    "started": (COMMITTING, "running"),  # the commit that notes the beginning of a stage is under way
    "worked": (BEFORE, "done"),  # all its work is done, and is about to be noted
    "noted": (COMMITTING, "done"),  # the commit that notes its end is under way
}


class Gate:
    """Holds up, in Postgres, who comes to a certain moment, until it is opened or Postgres ends."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def reached(self) -> None:
        """Wait until somebody stands before it."""
        await self._until("count(*) FILTER (WHERE NOT granted) > 0")

    async def open(self) -> None:
        """Let pass who stands before it, and wait until that transaction has ended."""
        await self._connection.execute("SELECT pg_advisory_unlock_all()")
        await self._until("count(*) = 0")

    async def _until(self, condition: str) -> None:
        async with asyncio.timeout(60):
            while True:
                locks = "pg_locks WHERE locktype = 'advisory' AND objid = $1"
                if await self._connection.fetchval(f"SELECT {condition} FROM {locks}", KEY):
                    return
                await asyncio.sleep(0.01)


def gate(dsn: str, stage: str, moment: str) -> AbstractAsyncContextManager[Gate]:
    """Before whoever comes to a moment of a stage."""
    trigger, status = MOMENTS[moment]
    return gate_at(dsn, trigger, "period_stages", f"NEW.stage = '{stage}' AND NEW.status = '{status}'")


@asynccontextmanager
async def gate_at(dsn: str, trigger: str, table: str, condition: str) -> AsyncIterator[Gate]:
    connection = await asyncpg.connect(dsn.replace("+asyncpg", ""))
    body = f"BEGIN PERFORM pg_advisory_xact_lock({KEY}); RETURN NEW; END"
    await connection.execute(f"CREATE OR REPLACE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS '{body}'")
    await connection.execute(f"DROP TRIGGER IF EXISTS gate ON {table}")
    statement = f"{trigger.format(table=table)} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION gate()"
    await connection.execute(statement)
    await connection.execute(f"SELECT pg_advisory_lock({KEY})")
    try:
        yield Gate(connection)
    finally:
        connection.terminate()


async def kill_at(dsn: str, redis_url: str, folder: Path, stage: str, moment: str) -> None:
    """Start a worker, and kill it when it comes to that moment."""
    async with gate(dsn, stage, moment) as held:
        with forked_worker(dsn, redis_url, folder) as process:
            await held.reached()
            process.kill()
        await held.open()


class TestKills:
    @pytest.mark.parametrize("stage", STAGES)
    async def test_a_worker_killed_at_any_moment_of_a_stage(
        self, dsn: str, prepared: Prepared, database: Database, redis_url: str, tmp_path: Path, stage: str
    ) -> None:
        for moment in MOMENTS:
            await kill_at(dsn, redis_url, tmp_path, stage, moment)
            # What was noted or published is as it is in the end, or not there.
            found = await outcome(database)
            if (stage, moment) == ("publish", "noted"):
                assert found == prepared.outcome
            else:
                assert (list(found["versions"]), found["aliases"]["champion"]) == ([1, 0], 1)
        with forked_worker(dsn, redis_url, tmp_path) as last:
            await until(database, 2, "updated")
            await logged(last, "worker started")
            last.stop()
        assert await outcome(database) == prepared.outcome

    @pytest.mark.slow
    async def test_postgres_killed_at_every_stage(
        self, data_dir: Path, prepared: Prepared, redis_url: str, tmp_path: Path
    ) -> None:
        """One worker survives all of it."""
        with ExitStack() as stack:
            dsn = (await asyncio.to_thread(stack.enter_context, EmbeddedServers(data_dir))).postgres_dsn
            await asyncio.to_thread(migrate, dsn)
            await seal_second_period(dsn, redis_url, tmp_path)
            process: ForkedWorker | None = None
            for killed, stage in enumerate(STAGES, start=1):
                async with gate(dsn, stage, "worked") as held:
                    if process is None:
                        process = stack.enter_context(forked_worker(dsn, redis_url, tmp_path))
                    process.send(signal.SIGCONT)
                    try:
                        await held.reached()
                    except TimeoutError:
                        pytest.fail(f"the stage {stage} never came to its end; the worker said:\n{process.log}")
                    postmaster = int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
                    os.kill(postmaster, signal.SIGKILL)
                await logged(process, "worker waits", times=killed)
                process.send(signal.SIGSTOP)  # until there is the next gate
                await asyncio.to_thread(stack.enter_context, EmbeddedServers(data_dir))
            assert process is not None
            process.send(signal.SIGCONT)
            waits = [float(wait) for wait in re.findall(r"worker waits ([0-9.]+) s", process.log)]
            doubled = min(POLL_SECONDS * 2 ** (len(waits) - 1), MAX_PAUSE_SECONDS)
            assert waits[-1] < doubled, "a stage that was noted meanwhile ends the doubling"
            database = Database(dsn, pool_size=1)
            period = await until(database, 2, "updated")
            assert (period.attempts, period.crashes) == (0, 0)
            assert await outcome(database) == prepared.outcome
            await database.close()
            process.stop()


class TestClose:
    """A close is carried out once or not at all, and a client that sends it again learns which period it was."""

    @pytest.mark.slow
    async def test_an_api_process_killed_during_a_close(
        self, dsn: str, database: Database, redis_url: str, tmp_path: Path
    ) -> None:
        """Before the commit, and while it commits."""
        servers = {"ASMG_POSTGRES_DSN": dsn, "ASMG_REDIS_URL": redis_url}
        with program(tmp_path, "--no-worker", **servers) as service:
            async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
                for number, moment in ((3, BEFORE), (4, COMMITTING)):
                    batch = {"interactions": [event(n) for n in range(10 * number, 10 * number + 5)]}
                    assert (await client.post("/interactions", json=batch)).json()["accepted"] == 5
                    close = {"json": {"expected_period": number}, "headers": {"Idempotency-Key": f"close {number}"}}
                    async with gate_at(dsn, moment, "periods", f"NEW.number = {number + 1}") as held:
                        closing = asyncio.create_task(client.post("/periods/close", **close))
                        await held.reached()
                        (api,) = service.children()
                        api.kill()
                        with pytest.raises(httpx.TransportError):
                            await closing
                        await held.open()
                    # Its successor answers these.
                    answers = [await client.post("/periods/close", **close) for _ in range(2)]
                    assert [(a.status_code, a.json()["period"]) for a in answers] == [(202, number)] * 2
                    without_key = await client.post("/periods/close", json={"expected_period": number})
                    assert without_key.status_code == 409
        async with database.read() as session:
            logs = [(period.number, period.status, period.events) for period in await session.periods.list(10)]
            audit = [entry.detail for entry in await session.audit.list(20) if entry.action == "close_period"]
        assert logs[:3] == [(5, "open", None), (4, "sealed", 5), (3, "sealed", 5)]
        assert [detail["period"] for detail in audit] == [4, 3, 2, 1]


class TestCrashLoop:
    """A period that kills one worker after another is given up; failures that a worker survives do not count."""

    async def test_five_deaths_in_a_row(self, dsn: str, database: Database, redis_url: str, tmp_path: Path) -> None:
        for crashes in range(MOST_CRASHES):
            assert (await period_2(database)).crashes == max(0, crashes - 1)  # each is counted by the next
            await kill_at(dsn, redis_url, tmp_path, "update_base", "worked")
        async with bench(dsn, redis_url, tmp_path) as b:
            await b.log(periods(3, seed=SEED)[2])
        with forked_worker(dsn, redis_url, tmp_path) as last:
            await until(database, 3, "updated")
            last.stop()
        period, found = await period_2(database), await outcome(database)
        assert (period.status, period.attempts) == ("quarantined", 0)
        assert period.error == "CrashLoop: 5 workers in a row died at the stage update_base: killed, or out of memory"
        assert (found["versions"][2]["period"], found["versions"][2]["parent"]) == (3, 1)
        async with database.read() as session:
            audit = [entry.detail for entry in await session.audit.list(20) if entry.action == "quarantine"]
        assert audit == [{"period": 2, "error": period.error}]

    async def test_a_stage_that_is_done_ends_the_row(
        self, dsn: str, prepared: Prepared, database: Database, redis_url: str, tmp_path: Path
    ) -> None:
        await execute(database, f"UPDATE periods SET crashes = {MOST_CRASHES - 1} WHERE number = 2")
        await kill_at(dsn, redis_url, tmp_path, "prepare", "noted")
        with forked_worker(dsn, redis_url, tmp_path) as last:
            await until(database, 2, "updated")
            last.stop()
        assert await outcome(database) == prepared.outcome

    async def test_a_worker_that_is_stopped_has_not_died(
        self, dsn: str, database: Database, redis_url: str, tmp_path: Path
    ) -> None:
        for _ in range(2):
            async with gate(dsn, "update_base", "worked") as held:
                with forked_worker(dsn, redis_url, tmp_path) as process:
                    await held.reached()
                    await asyncio.to_thread(process.stop)
            period = await period_2(database)
            assert (period.status, period.worker, period.crashes) == ("updating", None, 0)


class TestStandby:
    """One of two workers leads, and the other takes over by itself."""

    async def test_from_a_leader_that_was_killed(
        self, dsn: str, prepared: Prepared, database: Database, redis_url: str, tmp_path: Path
    ) -> None:
        async with gate(dsn, "update_base", "worked") as held:
            with forked_worker(dsn, redis_url, tmp_path) as leader:
                await held.reached()
                with forked_worker(dsn, redis_url, tmp_path) as standby:
                    await logged(standby, "worker started")
                    leader.kill()
                    killed = time.monotonic()
                    await held.open()
                    await logged(standby, "period 2: ")
                    assert time.monotonic() - killed < 5
                    await until(database, 2, "updated")
                    standby.stop()
        assert await outcome(database) == prepared.outcome

    @pytest.mark.parametrize("moment", ["worked", "noted"])
    async def test_from_a_leader_that_is_frozen_and_comes_back(
        self, dsn: str, prepared: Prepared, database: Database, redis_url: str, tmp_path: Path, moment: str
    ) -> None:
        """In the middle of a transaction, or outside one. The old leader may do no harm when it resumes."""
        async with gate(dsn, "update_base", moment) as held:
            with forked_worker(dsn, redis_url, tmp_path, silence_seconds=1) as leader:
                await held.reached()
                with forked_worker(dsn, redis_url, tmp_path) as standby:
                    leader.send(signal.SIGSTOP)
                    await held.open()
                    period = await until(database, 2, "updated")
                    assert period.version == 2
                    leader.send(signal.SIGCONT)
                    # Either it finds first that its lock is gone, or that the period has been updated by another.
                    await logged(leader, "worker waits", "an update stops")
                    async with bench(dsn, redis_url, tmp_path) as b:
                        assert await b.outcome() == prepared.outcome
                        await b.log(periods(3, seed=SEED)[2])
                    await until(database, 3, "updated")
                    # The one that was frozen waits for its turn now, and gets it.
                    standby.kill()
                    async with bench(dsn, redis_url, tmp_path) as b:
                        await b.log(periods(4, seed=SEED)[3])
                    await until(database, 4, "updated")
                    leader.stop()
        assert sorted((await outcome(database))["versions"]) == [0, 1, 2, 3, 4]


class TestDisk:
    """A full disk is a fault of the host or of Postgres: the worker waits, and the period loses no attempt."""

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE])
    async def test_a_snapshot_that_cannot_be_written(
        self,
        dsn: str,
        prepared: Prepared,
        redis_url: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        number: int,
    ) -> None:
        really_create: Callable[..., Any] = snapshot.create
        tried: list[int] = []
        trained: list[str] = []

        def create(*arguments: Any) -> Any:
            tried.append(1)
            if len(tried) <= 4:  # more than a period has attempts
                raise OSError(number, "trouble")
            return really_create(*arguments)

        monkeypatch.setattr(snapshot, "create", create)
        async with working(
            dsn, redis_url, tmp_path, monkeypatch, before=lambda stage, _: trained.append(stage)
        ) as database:
            await until(database, 2, "updated")
            assert await outcome(database) == prepared.outcome
        assert len(tried) == 5
        assert trained == ["train_generator", "update_base", "generate", "count"]
        # Each time it waits twice as long.
        waits = [record.args[0] for record in caplog.records if record.msg.startswith("worker waits")]  # type: ignore[index]
        assert waits == [0.02, 0.04, 0.08, 0.16]

    async def test_a_disk_that_is_full_until_somebody_makes_room(
        self, dsn: str, prepared: Prepared, database: Database, redis_url: str, tmp_path: Path
    ) -> None:
        """The kernel refuses the worker's writes to files."""
        with forked_worker(dsn, redis_url, tmp_path) as process:
            unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (8192, unlimited[1]))
            await logged(process, "File too large", times=4)
            period = await period_2(database)
            assert (period.attempts, period.crashes, period.version) == (0, 0, None)
            assert period.error is None or period.error.startswith("waits: OSError: [Errno 27]")
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
            await until(database, 2, "updated")
            assert await outcome(database) == prepared.outcome
            process.stop()

    async def test_a_postgres_without_room(
        self, dsn: str, prepared: Prepared, database: Database, redis_url: str, tmp_path: Path
    ) -> None:
        await execute(
            database,
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$",
            "CREATE TRIGGER full_disk BEFORE INSERT ON artifacts FOR EACH ROW EXECUTE FUNCTION full_disk()",
        )
        with forked_worker(dsn, redis_url, tmp_path) as process:
            await logged(process, "worker waits", times=4)
            assert "53100" in process.log
            period = await period_2(database)
            assert (period.status, period.attempts, period.crashes) == ("updating", 0, 0)
            await execute(database, "DROP TRIGGER full_disk ON artifacts")
            await until(database, 2, "updated")
            assert await outcome(database) == prepared.outcome
            process.stop()
