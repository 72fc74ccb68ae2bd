"""Updates while servers are killed, disks fill up and models diverge: exactly one outcome, and nobody waits for it."""

import asyncio
import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.storage.database import Database
from service.use_cases import update_model
from tests.conftest import Servers, database_dsn, in_thread
from tests.service.test_update_model import Prepared, WorkerProcess, worker_process, working
from tests.service.update_support import bench, copies, outcome, periods, single_thread

SEED = 1


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


@pytest.fixture(scope="module")
def sealed(
    servers: Servers,
    migrated_template: str,
    database_numbers: Iterator[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prepared]:
    """A database in which period 1 is updated and period 2 sealed, and what an undisturbed update makes of it."""
    folder = tmp_path_factory.mktemp("sealed")

    async def make(dsn: str) -> None:
        async with bench(dsn, servers.redis_url, folder) as b:
            first, second = periods(2, seed=SEED)
            await b.log(first)
            await b.update(1)
            await b.log(second)

    async def finish(dsn: str) -> dict[str, Any]:
        async with bench(dsn, servers.redis_url, folder) as b:
            await b.update(2)
            return await b.outcome()

    with copies(servers, migrated_template, database_numbers) as copy:
        name = copy()
        in_thread(asyncio.run, make(database_dsn(servers, name)))
        yield Prepared(name, in_thread(asyncio.run, finish(database_dsn(servers, copy(name)))))


@pytest.fixture
def dsn(servers: Servers, migrated_template: str, database_numbers: Iterator[int], sealed: Prepared) -> Iterator[str]:
    """Of a database with period 2 to be updated on."""
    with copies(servers, migrated_template, database_numbers) as copy:
        yield database_dsn(servers, copy(sealed.name))


async def until(database: Database, number: int, *statuses: str, seconds: float = 60) -> None:
    """Wait until a period has one of these statuses."""
    async with asyncio.timeout(seconds):
        while True:
            async with database.read() as session:
                period = await session.periods.get(number)
            if period is not None and period.status in statuses:
                return
            await asyncio.sleep(0.02)


async def logged(process: WorkerProcess, what: str, seconds: float = 60) -> None:
    """Wait until the worker has said this."""
    async with asyncio.timeout(seconds):
        while what not in process.log:
            assert process.process.poll() is None, process.log
            await asyncio.sleep(0.02)


class TestDisk:
    """No room for the snapshot is trouble of the machine: the worker waits for it, and the period loses no attempt."""

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EDQUOT])
    async def test_a_snapshot_that_cannot_be_written(
        self, dsn: str, sealed: Prepared, redis_url: str, tmp_path: Path, monkeypatch: Any, number: int
    ) -> None:
        really_create: Callable[..., Any] = update_model.create
        tried: list[int] = []
        trained: list[str] = []

        def create(*arguments: Any) -> Any:
            tried.append(1)
            if len(tried) <= 4:  # more than a period has attempts
                raise OSError(number, "trouble")
            return really_create(*arguments)

        monkeypatch.setattr(update_model, "create", create)
        async with working(
            dsn, redis_url, tmp_path, monkeypatch, before=lambda stage, _: trained.append(stage)
        ) as database:
            await until(database, 2, "updated")
            assert await outcome(database) == sealed.outcome
        assert len(tried) == 5
        assert trained == ["train_generator", "update_base", "generate"]

    @pytest.mark.slow
    async def test_a_disk_that_is_full_until_somebody_makes_room(
        self, dsn: str, sealed: Prepared, redis_url: str, tmp_path: Path
    ) -> None:
        """A worker of its own, of which the kernel refuses the files."""
        database = Database(dsn, pool_size=1)
        with worker_process(dsn, redis_url, tmp_path) as process:
            unlimited = resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (8192, unlimited[1]))
            await logged(process, "worker waits")
            await logged(process, "File too large")
            async with database.read() as session:
                period = await session.periods.get(2)
            assert period is not None
            assert (period.attempts, period.version) == (0, None)
            resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, unlimited)
            await until(database, 2, "updated")
            assert await outcome(database) == sealed.outcome
            process.stop()
        await database.close()
