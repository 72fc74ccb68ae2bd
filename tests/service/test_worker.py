"""The worker: which periods it updates, what it does with one that fails, and which settings it refuses."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint
from asmg.training import DivergedError
from asmg.updaters import UPDATERS
from service import worker
from service.errors import ConfigurationError
from service.settings import Settings
from service.storage.postgres.leadership import Leadership
from service.storage.postgres.repositories import PeriodStatus
from service.use_cases.update.context import UpdateContext
from service.use_cases.update.pipeline import update_period
from tests.service.update_doubles import until_updated, working
from tests.service.update_support import (
    MODELS,
    SEED,
    Prepared,
    bench,
    outcome,
    periods,
    shortened,
    snapshot_of,
    until,
)

pytestmark = pytest.mark.usefixtures("one_thread")


async def test_a_period_that_cannot_be_learned_is_quarantined(
    copy: Callable[..., str], prepared: Prepared, redis_url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    bad = copy(prepared.name)
    tried: list[int] = []

    def before(stage: str, data: PeriodData) -> None:
        if stage == "update_base" and len(data) == 300:
            tried.append(1)
            raise DivergedError("loss: expected a finite number; received nan")

    async with bench(bad, redis_url, tmp_path) as b:
        async with working(bad, redis_url, tmp_path, monkeypatch, before=before) as database:
            await until_updated(database, 2, PeriodStatus.QUARANTINED)
            failed = await b.outcome()
            third = shortened(periods(3, seed=SEED)[2], 200)
            await b.log(third)
            await until_updated(database, 3)
        found = await b.outcome()
        async with b.database.read() as session:
            quarantined = [e.detail for e in await session.audit.list(20) if e.action == "quarantine"]
            period = await session.periods.get(2)
    message = "DivergedError: loss: expected a finite number; received nan"
    assert len(tried) == 3
    assert failed["periods"][2] == ("quarantined", None, 3, message)
    assert period is not None and period.finished_at is not None
    assert quarantined == [{"period": 2, "error": message}]
    assert failed["aliases"] == {"champion": 1, "head": 1, "baseline": 1}
    assert list(failed["versions"]) == [1, 0]
    # The next one goes on from the last version there is.
    assert found["aliases"] == {"champion": 2, "head": 2, "baseline": 1}
    assert (found["versions"][2]["period"], found["versions"][2]["parent"]) == (3, 1)
    assert found["periods"][3] == ("updated", 2, 0, None)


async def test_a_passing_trouble_is_overcome(
    second: str, prepared: Prepared, redis_url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    tried: list[str] = []

    def before(stage: str, _: PeriodData) -> None:
        tried.append(stage)
        if len(tried) in (2, 3):
            raise MemoryError("none left")

    async with working(second, redis_url, tmp_path, monkeypatch, before=before) as database:
        await until_updated(database, 2)
        found = await outcome(database)
    # What was done before a trouble is not done again.
    assert tried == ["train_generator", "update_base", "update_base", "update_base", "generate", "count"]
    assert found["periods"].pop(2) == ("updated", 2, 2, None)
    assert found["versions"] == prepared.outcome["versions"]


async def test_trouble_of_a_worker_that_was_superseded_is_no_trouble_of_the_period(
    second: str, prepared: Prepared, redis_url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """It lost its leadership without noticing; its successor has published the period by the time it fails."""

    def before(stage: str, data: PeriodData) -> None:
        if stage == "generate" and not done:
            done.append(stage)
            asyncio.run(elsewhere())
            raise DivergedError("too late to matter")

    async def elsewhere() -> None:
        async with bench(second, redis_url, tmp_path) as successor:
            await successor.update(2)

    done: list[str] = []
    async with bench(second, redis_url, tmp_path) as b:
        async with working(second, redis_url, tmp_path, monkeypatch, before=before, max_attempts=1) as database:
            await until(lambda: done)
            await b.log(periods(3, seed=SEED)[2])
            await until_updated(database, 3)
        found = await b.outcome()
    assert found["periods"][2] == prepared.outcome["periods"][2]
    assert found["versions"][2] == prepared.outcome["versions"][2]
    assert found["versions"][3]["parent"] == 2


async def test_work_that_blocks_its_event_loop_for_longer_than_the_lease_goes_on(
    second: str, prepared: Prepared, redis_url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    tried: list[int] = []

    async def blocking(context: UpdateContext, number: int) -> int:
        tried.append(number)
        time.sleep(2.5)  # noqa: ASYNC251 - that is the fault
        return await update_period(context, number)

    monkeypatch.setattr(worker, "update_period", blocking)
    monkeypatch.setattr(worker, "Leadership", partial(Leadership, lease_seconds=1))
    async with working(second, redis_url, tmp_path, monkeypatch) as database:
        await until_updated(database, 2)
        assert await outcome(database) == prepared.outcome
    assert tried == [2]


async def test_the_number_of_attempts_is_a_setting(
    second: str, redis_url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    limit = 5
    tried: list[str] = []

    def before(stage: str, _: PeriodData) -> None:
        tried.append(stage)
        raise ValueError("x" * 5_000)

    async with working(second, redis_url, tmp_path, monkeypatch, before=before, max_attempts=limit) as database:
        await until_updated(database, 2, PeriodStatus.QUARANTINED)
        found = await outcome(database)
    assert len(tried) == limit
    status, _, attempts, error = found["periods"][2]
    assert (status, attempts, len(error)) == ("quarantined", limit, 1_000)


@pytest.mark.parametrize("updater", UPDATERS)
async def test_the_whole_cycle(
    postgres_dsn: str, redis_url: str, tmp_path: Path, monkeypatch: Any, updater: str
) -> None:
    async with bench(postgres_dsn, redis_url, tmp_path, updater=updater) as b:
        async with working(postgres_dsn, redis_url, tmp_path, monkeypatch, updater=updater) as database:
            for period in periods(3, seed=SEED):
                await b.log(period)
            await until_updated(database, 3)
        found = await b.outcome()
        state = found["versions"][3]["state"]["parts"]
        meta = Checkpoint.from_bytes(await b.context.artifacts.get(state["updater"])).meta
        snapshot = await snapshot_of(b, 3, tmp_path / "fetched")
        prediction = snapshot.predict("u1", ["i1", "i2", "nobody"], ["i3"])
    assert found["aliases"] == {"champion": 3, "head": 3, "baseline": 1}
    assert [found["versions"][n]["parent"] for n in (1, 2, 3)] == [0, 1, 2]
    evaluated = {e.model for e in found["evaluations"] if e.period == 3}
    assert meta["updater"] == updater
    assert all(0 < score < 1 for score in prediction.scores)
    if updater.startswith(("asmg", "sml")):
        assert evaluated == set(MODELS)
    else:
        assert {found["versions"][n]["kind"] for n in (1, 2, 3)} <= {"incremental", "previous"}
        assert evaluated == {"incremental", "previous", "baseline"}


async def test_settings_that_cannot_work() -> None:
    settings = Settings(
        postgres_dsn="postgresql://localhost/none", redis_url="redis://localhost:1", updater="none such"
    )
    with pytest.raises(ConfigurationError, match=r"expected one of iu, .*; received 'none such'"):
        await worker.run(settings)
    with pytest.raises(ConfigurationError, match=r"device: expected auto, cpu or a cuda .*; received 'tpu'"):
        await worker.run(settings.model_copy(update={"updater": "iu", "device": "tpu"}))
    with pytest.raises(ConfigurationError, match="ASMG_POSTGRES_DSN"):
        await worker.run(Settings())
