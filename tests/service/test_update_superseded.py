"""Updates whose starting state changes: a rollback, an excise, another worker. Nothing is published."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from asmg.batch import PeriodData
from service.storage.postgres.database import Lock
from service.storage.postgres.repositories import AliasName
from service.storage.redis.notices import Notices
from service.use_cases.rollback import rollback
from service.use_cases.update.context import Superseded
from tests.conftest import Servers, database_dsn, in_thread
from tests.service.update_doubles import Stopped, Watched, closing, until_updated, working
from tests.service.update_support import (
    SEED,
    Bench,
    Prepared,
    bench,
    copies,
    outcome,
    periods,
    statistics_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


async def test_an_update_that_was_done_is_not_done_again(
    second: str, prepared: Prepared, redis_url: str, tmp_path: Path
) -> None:
    """A worker that lost its leadership without noticing may reach a period that its successor has published."""
    async with bench(second, redis_url, tmp_path) as b:
        assert await b.update(2) == 2
        assert await b.update(2) == 2
        assert await b.outcome() == prepared.outcome


async def test_two_that_believe_to_lead(second: str, prepared: Prepared, redis_url: str, tmp_path: Path) -> None:
    async with bench(second, redis_url, tmp_path) as b:
        results = await asyncio.gather(*(b.update(2) for _ in range(2)), return_exceptions=True)
        assert all(result == 2 or isinstance(result, Superseded) for result in results), results
        assert await b.update(2) == 2
        assert await b.outcome() == prepared.outcome


async def test_the_version_that_stays_is_the_one_served_at_that_moment(
    second: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publication of a version of kind `previous` does not undo a rollback that came just before it."""
    monkeypatch.setattr("service.use_cases.update.gate.CALIBRATION_RANGE", (100.0, 200.0))
    async with bench(second, redis_url, tmp_path) as b:
        locked, tasks = asyncio.Event(), []

        async def roll_back() -> None:
            async with b.database.unit_of_work() as work:
                await work.lock_exclusive(Lock.MODELS)
                locked.set()
                await asyncio.sleep(0.3)
                await work.models.set_alias(AliasName.CHAMPION, 0, lead_seconds=0, actor="test", reason="test")
                await work.commit()

        class RollingBack(Notices):
            @override
            async def publish_progress(self, period: int, progress: Any) -> None:
                if progress["stage"] == "publish":
                    tasks.append(asyncio.create_task(roll_back()))
                    await asyncio.wait_for(locked.wait(), 30)

        await b.update(2, notices=RollingBack(b.redis))
        await asyncio.gather(*tasks)
        versions = (await b.outcome())["versions"]
    assert versions[2]["kind"] == "previous"
    assert versions[2]["serving"] == versions[0]["serving"] != versions[1]["serving"]
    assert "serving" not in versions[2]["state"]


@pytest.fixture(scope="module")
def cut(
    servers: Servers,
    migrated_template: str,
    database_numbers: Iterator[int],
    prepared: Prepared,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prepared]:
    """Two versions and period 3 to be updated on; the outcome of an excise before the update began."""
    folder = tmp_path_factory.mktemp("cut")

    async def make(dsn: str) -> None:
        async with bench(dsn, servers.redis_url, folder) as b:
            await b.update(2)
            await b.log(periods(3, seed=SEED)[2])

    async def finish(dsn: str) -> dict[str, Any]:
        async with bench(dsn, servers.redis_url, folder) as b:
            await excise(b)
            await b.update(3)
            return await b.outcome()

    with copies(servers, migrated_template, database_numbers) as copy:
        name = copy(prepared.name)
        in_thread(asyncio.run, make(database_dsn(servers, name)))
        yield Prepared(name, in_thread(asyncio.run, finish(database_dsn(servers, copy(name)))))


@pytest.fixture
def third(copy: Callable[..., str], cut: Prepared) -> str:
    """DSN of a database with two versions and period 3 to be updated on."""
    return copy(cut.name)


class TestExcise:
    """An operator takes versions out of the sequence while the next one is being made."""

    async def test_the_update_starts_again_from_the_new_head(
        self, third: str, cut: Prepared, redis_url: str, tmp_path: Path
    ) -> None:
        async with bench(third, redis_url, tmp_path) as b:
            await self._interrupt(b)
            assert await b.update(3) == 3
            found = await b.outcome()
            counted = await statistics_of(b, found, 3)
        assert found == cut.outcome
        assert counted.periods == 2  # those of version 1, and period 3
        assert found["versions"][3]["parent"] == 1
        assert found["versions"][3]["state"]["parts"]["model.1"] == found["versions"][1]["state"]["parts"]["base"]

    @pytest.mark.parametrize("stage", ["prepare", "train_generator"])
    async def test_nothing_of_the_old_head_is_used_by_a_third_attempt(
        self, third: str, cut: Prepared, redis_url: str, tmp_path: Path, stage: str
    ) -> None:
        """The second attempt, from the new head, is stopped; stages of the first attempt are still noted as done."""

        def told(what: str) -> None:
            if what == f"noted {stage}":
                raise Stopped

        watched = Watched(third, told)
        async with bench(third, redis_url, tmp_path) as b, closing(watched):
            await self._interrupt(b)
            with pytest.raises(Stopped):
                await b.update(3, database=watched)
            assert await b.update(3) == 3
            assert await b.outcome() == cut.outcome

    async def test_the_worker_goes_on_by_itself(
        self,
        third: str,
        cut: Prepared,
        redis_url: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        done = []

        def before(stage: str, _: PeriodData) -> None:
            if stage == "generate" and not done:
                done.append(stage)
                asyncio.run(elsewhere())

        async def elsewhere() -> None:
            async with bench(third, redis_url, tmp_path) as other:
                await excise(other)

        async with working(third, redis_url, tmp_path, monkeypatch, before=before) as database:
            await until_updated(database, 3)
            found = await outcome(database)
        assert done == ["generate"]
        assert found == cut.outcome

    async def _interrupt(self, b: Bench) -> None:
        """An update that comes as far as its publication, by when the head is another."""

        class ExcisingNotices(Notices):
            @override
            async def publish_progress(self, period: int, progress: Any) -> None:
                if progress["stage"] == "publish":
                    await excise(b)

        with pytest.raises(Superseded):
            await b.update(3, notices=ExcisingNotices(b.redis))
        found = await b.outcome()
        assert (list(found["versions"]), found["periods"][3]) == ([2, 1, 0], ("updating", None, 0, None))
        assert found["aliases"] == {"champion": 1, "head": 1, "baseline": 1}


async def excise(b: Bench) -> None:
    await rollback(
        b.database,
        b.context.notices,
        to_version=1,
        sequence="excise",
        reason="bad data",
        actor="test",
        settings=b.settings,
    )
