"""Updates that are stopped anywhere and continued by a new one: the version is the same, once."""

import asyncio
import random
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typing_extensions import override

from asmg.batch import PeriodData
from asmg.training import DivergedError
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.leadership import Leadership
from service.storage.postgres.repositories import PeriodStatus
from service.storage.redis.notices import Notices
from service.use_cases.update import stage as stage_module
from service.use_cases.update.gate import Decision
from service.use_cases.update.prepare import PrepareNote
from service.use_cases.update.publish import PublishNote
from service.use_cases.update.resolve import ResolveNote
from service.use_cases.update.score import ScoreNote
from service.use_cases.update.train import TrainNote
from tests.service.update_doubles import Meddled, Stopped, Watched, closing, until_updated, update_interrupted_often
from tests.service.update_support import (
    SEED,
    STAGES,
    TRAINING,
    Bench,
    Prepared,
    bench,
    named,
    outcome,
    periods,
    stored,
    until,
)
from tests.service.worker_processes import ForkedWorker, WorkerProcess, forked_worker, worker_process

pytestmark = pytest.mark.usefixtures("one_thread")


async def check(b: Bench, prepared: Prepared) -> None:
    found = await b.outcome()
    assert found == prepared.outcome
    assert named(found) <= await stored(b.database)
    async with b.database.read() as session:
        assert tuple(stage.stage for stage in await session.stages.list(2)) == STAGES


async def test_before_each_stage(second: str, prepared: Prepared, redis_url: str, tmp_path: Path) -> None:
    stop_at = ""

    class StoppingNotices(Notices):
        @override
        async def publish_progress(self, period: int, progress: Any) -> None:
            if progress["stage"] == stop_at:
                raise Stopped

    async with bench(second, redis_url, tmp_path) as b:
        for stop_at in STAGES:
            with pytest.raises(Stopped):
                await b.update(2, notices=StoppingNotices(b.redis))
            before = await b.outcome()
            assert (list(before["versions"]), before["periods"][2][0]) == ([1, 0], "updating")
            async with b.database.read() as session:
                stages = {stage.stage: stage.status for stage in await session.stages.list(2)}
            assert stages.pop(stop_at) == "running"
            assert stages == dict.fromkeys(STAGES[: STAGES.index(stop_at)], "done")
        assert await b.update(2) == 2
        await check(b, prepared)


@pytest.mark.parametrize("lost", ["everything", "states"])
async def test_on_another_host_that_lacks_what_was_not_stored(
    second: str, prepared: Prepared, redis_url: str, tmp_path: Path, lost: str
) -> None:
    """Before each stage the worker is stopped, and one goes on whose host does not have what was not stored yet."""
    begun: list[str] = []
    stop_at = ""

    class StoppingNotices(Notices):
        @override
        async def publish_progress(self, period: int, progress: Any) -> None:
            begun.append(progress["stage"])
            if progress["stage"] == stop_at:
                raise Stopped

    again = dict.fromkeys(STAGES[STAGES.index("score") :], "prepare")
    if lost == "states":
        again |= {"score": "score"} | dict.fromkeys((*TRAINING, "gate", "publish"), TRAINING[0])
    async with bench(second, redis_url, tmp_path) as b:
        for stop_at in STAGES:
            with pytest.raises(Stopped):
                await b.update(2, notices=StoppingNotices(b.redis))
            assert set(begun) >= {stop_at}
            async with b.database.read() as session:
                stages = {stage.stage: stage.result for stage in await session.stages.list(2)}
            data = (stages.get("prepare") or {}).get("data", "none")
            for file in b.settings.state_dir.glob("*"):
                if lost == "everything" or not file.name.startswith(data):
                    file.unlink()
            begun.clear()
            with pytest.raises(Stopped):
                await b.update(2, notices=StoppingNotices(b.redis))
            assert begun[0] == again.get(stop_at, stop_at)
            begun.clear()
            with pytest.raises(Stopped):
                await b.update(2, notices=StoppingNotices(b.redis))
            assert begun == [stop_at]  # on the same host it goes on where it was stopped
            begun.clear()
        assert await b.update(2) == 2
        await check(b, prepared)


async def test_around_the_note_of_each_stage(
    second: str, prepared: Prepared, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before the note, when all work has to be repeated, and just after it."""
    monkeypatch.setattr(stage_module, "PATIENCE_SECONDS", 60.0)  # each note by itself, however slow the host is
    stop_at = ""

    def told(what: str) -> None:
        if what == stop_at:
            raise Stopped

    watched = Watched(second, told)
    async with bench(second, redis_url, tmp_path) as b, closing(watched):
        for n, stage in enumerate(STAGES):
            for moment in ("worked", "noted"):
                stop_at = f"{moment} {stage}"
                with pytest.raises(Stopped):
                    await b.update(2, database=watched, artifacts=ArtifactStore(watched, b.redis))
                async with b.database.read() as session:
                    done = [stage.stage for stage in await session.stages.list(2) if stage.status == "done"]
                assert done == list(STAGES[: n + (moment == "noted")])
        assert await b.update(2) == 2
        await check(b, prepared)


@pytest.mark.parametrize("moment", ["commit", "committed"])
async def test_at_every_further_transaction(
    second: str, prepared: Prepared, redis_url: str, tmp_path: Path, moment: str
) -> None:
    async with bench(second, redis_url, tmp_path) as b:
        assert await update_interrupted_often(b, 2, moment) > 5
        await check(b, prepared)


async def test_cancelled_in_the_midst_of_training(
    second: str, prepared: Prepared, redis_url: str, tmp_path: Path
) -> None:
    loop, threads = asyncio.get_running_loop(), []

    async with bench(second, redis_url, tmp_path) as b:
        for stage in TRAINING:
            entered, go_on, left = asyncio.Event(), threading.Event(), threading.Event()
            threads.append((go_on, left))

            def before(at: str, _: PeriodData, stage: str = stage, events: Any = (entered, go_on, left)) -> None:
                if at == stage:
                    loop.call_soon_threadsafe(events[0].set)
                    events[1].wait(20)
                    events[2].set()

            update = asyncio.create_task(b.update(2, updater=Meddled(b.context.updater, before)))
            await asyncio.wait_for(entered.wait(), 60)
            update.cancel()
            with pytest.raises(asyncio.CancelledError):
                await update
        fresh = asyncio.create_task(b.update(2))
        # The threads of the cancelled updates cannot be stopped; they compute on beside the fresh one.
        await asyncio.sleep(0.02)
        for go_on, _ in threads:
            go_on.set()
        assert await fresh == 2
        await check(b, prepared)
        for _, left in threads:
            assert await asyncio.to_thread(left.wait, 20)


async def test_training_that_raises(second: str, prepared: Prepared, redis_url: str, tmp_path: Path) -> None:
    raise_at = ""

    def before(at: str, _: PeriodData) -> None:
        if at == raise_at:
            raise DivergedError("too much")

    async with bench(second, redis_url, tmp_path) as b:
        for stage in TRAINING:
            raise_at = stage
            with pytest.raises(DivergedError):
                await b.update(2, updater=Meddled(b.context.updater, before))
            assert (await b.outcome())["aliases"] == {"champion": 1, "head": 1, "baseline": 1}
        assert await b.update(2) == 2
        await check(b, prepared)


async def slow_down(database: Database) -> None:
    """Every artifact takes its time to be written, so that a kill finds the worker at work on one."""
    async with database.unit_of_work() as work:
        body = "BEGIN PERFORM pg_sleep(0.03); RETURN NEW; END"
        await work.connection.execute(text(f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS '{body}'"))
        await work.connection.execute(
            text("CREATE TRIGGER slow BEFORE INSERT ON artifacts FOR EACH ROW EXECUTE FUNCTION slow()")
        )
        await work.commit()


async def is_updated(database: Database) -> bool:
    async with database.read() as session:
        period = await session.periods.get(2)
    return period is not None and period.status == PeriodStatus.UPDATED


async def is_led(dsn: str) -> bool:
    leadership = Leadership(dsn)
    try:
        return not await leadership.try_acquire()
    finally:
        await leadership.release()


@pytest.mark.slow
async def test_one_worker_works_and_the_next_takes_over_when_it_is_killed(
    second: str, prepared: Prepared, redis_url: str, tmp_path: Path
) -> None:
    """Real workers, really killed, one after the other, each after its first stage and somewhere in a later one."""
    moments, kills = random.Random(7), 0
    database = Database(second, pool_size=2)
    await slow_down(database)
    with ExitStack() as stack:
        alive = [stack.enter_context(forked_worker(second, redis_url, tmp_path)) for _ in range(4)]
        everyone: list[ForkedWorker | WorkerProcess] = list(alive)
        while alive and not await is_updated(database):
            working = [w for w in alive if "period 2: " in w.log]
            assert len(working) <= 1
            if working:
                await asyncio.sleep(moments.uniform(0, 0.3))
                working[0].kill()
                alive.remove(working[0])
                kills += not await is_updated(database)
            await asyncio.sleep(0.01)
        assert kills >= 2
        # One more, the program itself, started after all of that: it goes on, or finds nothing to do.
        everyone.append(stack.enter_context(worker_process(second, redis_url, tmp_path)))
        await until_updated(database, 2)
        await until(lambda: "worker started" in everyone[-1].log)
        assert await outcome(database) == prepared.outcome
        # Nothing that was noted as done was done again.
        logs = "".join(w.log for w in everyone)
        assert all(logs.count(f"period 2: {stage} took") <= 1 for stage in STAGES)
        for last in (*alive, everyone[-1]):
            last.stop()
    assert not await is_led(second)
    await database.close()


async def test_a_worker_that_hears_of_a_closed_period_does_not_wait_for_its_next_look(
    second: str, redis_url: str, tmp_path: Path
) -> None:
    async with bench(second, redis_url, tmp_path) as b:
        with forked_worker(second, redis_url, tmp_path, worker_poll_seconds=3600.0) as worker:
            await until_updated(b.database, 2)
            await b.log(periods(3, seed=SEED)[2])
            async with asyncio.timeout(60):
                listeners = 0
                while not listeners:
                    listeners = await b.redis.publish("asmg:sealed", b"")
                    await asyncio.sleep(0.01)
            await until_updated(b.database, 3)
            worker.stop()


KEYS = {
    "resolve": {"events", "sampling"},
    "prepare": {"origin", "data", "allocations", "catalogue"},
    "score": {"scores", "trial"},
    **{name: {"state"} for name in TRAINING},
    "gate": {"decision", "reason", "checks", "trial", "strange"},
    "publish": {"version"},
}
"""What the stages store in `period_stages.result`"""

NOTES = {"resolve": ResolveNote, "prepare": PrepareNote, "score": ScoreNote, "gate": Decision, "publish": PublishNote}


async def test_an_update_that_an_older_release_has_begun_can_be_continued(
    second: str, redis_url: str, tmp_path: Path
) -> None:
    """The stored form of stages does not change, and everything that is read of it is stored."""
    async with bench(second, redis_url, tmp_path) as b:
        await b.update(2)
        async with b.database.read() as session:
            results = {stage.stage: stage.result for stage in await session.stages.list(2)}
    assert {name: set(result) for name, result in results.items()} == KEYS
    for name, result in results.items():
        assert NOTES.get(name, TrainNote).from_json(result).to_json() == result
