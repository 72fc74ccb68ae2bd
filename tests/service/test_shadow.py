"""Update methods that run beside the served one: what they score, and that they disturb nobody."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from asmg.batch import PeriodData
from asmg.training import DivergedError
from service.errors import ConfigurationError
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import Evaluation
from service.use_cases.forget import carry_out, request_deletion
from service.use_cases.guardrails.shadow import Shadows
from service.use_cases.guardrails.state import guardrail_state
from service.use_cases.retention import prune
from service.use_cases.rollback import rollback
from service.use_cases.update.configuration import configured_shadows
from service.use_cases.verify import verify
from tests.conftest import Servers, create_database, database_dsn, drop_database
from tests.service.update_doubles import Meddled
from tests.service.update_support import (
    Bench,
    bench,
    named,
    parts_of,
    periods,
    shortened,
    stored,
    until_true,
    updater_of,
)
from tests.service.worker_processes import forked_worker

pytestmark = pytest.mark.usefixtures("one_thread")

NewDatabase = Callable[[], str]


@pytest.fixture
def new_dsn(servers: Servers, migrated_template: str, database_numbers: Iterator[int]) -> Iterator[NewDatabase]:
    """Makes new databases."""
    made: list[str] = []

    def make() -> str:
        made.append(f"{migrated_template}_{next(database_numbers)}")
        create_database(servers, made[-1], migrated_template)
        return database_dsn(servers, made[-1])

    yield make
    for name in made:
        drop_database(servers, name)


def shadows_of(b: Bench, before: Callable[[str, PeriodData], None] | None = None) -> Shadows:
    """As a worker that has just started has them; somebody may be called before each of their stages."""
    methods = configured_shadows(b.settings, b.context.updater)
    return Shadows(b.context, {n: Meddled(m, before) if before else m for n, m in methods.items()})


async def learn(b: Bench, number: int) -> None:
    """Update on a period and clear up, as the worker does, then let the shadows learn."""
    await b.update(number)
    await prune(b.database, number, b.settings)
    while await shadows_of(b).learn_next():
        pass


async def scores(database: Database, model: str) -> dict[int, Evaluation]:
    """Period → the scores of a model."""
    async with database.read() as session:
        return {each.period: each for each in await session.evaluations.list(1, 100) if each.model == model}


def numbers(found: dict[int, Evaluation]) -> dict[int, list[float]]:
    return {n: [each.events, each.auc or 0, each.logloss, each.calibration or 0] for n, each in found.items()}


async def restarts(b: Bench) -> list[str]:
    """Why shadows have started again, the newest first."""
    async with b.database.read() as session:
        return [str(each.reason) for each in await session.audit.list(50) if each.action == "restart_shadow"]


async def far(b: Bench) -> tuple[int, int | None]:
    """What operators see of the one shadow: the last period that it has learned, and how many it is behind."""
    [state] = (await guardrail_state(b.database, b.settings)).shadows
    return state.period, state.behind


async def test_a_shadow_scores_what_a_service_of_its_own_scores(
    postgres_dsn: str, new_dsn: NewDatabase, redis_url: str, tmp_path: Path
) -> None:
    """And what is served is what a service without shadows serves."""
    stream = periods(3)
    async with bench(postgres_dsn, redis_url, tmp_path / "beside", shadow=("iu", "bu-3"), keep_states=1) as b:
        for period in stream:
            await b.log(period)
            await learn(b, period.number)
        found, shadows = await b.outcome(), {n: await scores(b.database, f"shadow:{n}") for n in ("iu", "bu-3")}
        async with b.database.read() as session:
            last = {each.method: each for each in await session.shadows.list()}
            kept = await session.shadows.digests()
        assert await stored(b.database) == named(found) | kept
        assert (await verify(b.database, tmp_path)).findings == []
        learned = await parts_of(b, {"versions": {3: {"state": last["bu-3"].state}}}, 3)
        await Shadows(b.context, {}).remove_others()
        assert await stored(b.database) == named(found)
    async with bench(new_dsn(), redis_url, tmp_path / "without") as b:
        for period in stream:
            await b.log(period)
            await b.update(period.number)
            await prune(b.database, period.number, b.settings)
        alone, base = await b.outcome(), await scores(b.database, "incremental")
    assert {n: v["serving"] for n, v in found["versions"].items()} == {
        n: v["serving"] for n, v in alone["versions"].items()
    }
    assert found["versions"][3] == alone["versions"][3]
    async with bench(new_dsn(), redis_url, tmp_path / "own", updater="bu-3") as b:
        for period in stream:
            await b.log(period)
            await b.update(period.number)
        expected = {
            "bu-3": await scores(b.database, "incremental"),
            "iu": base,
        }  # ASMG trains its base model as IU does
        own = await parts_of(b, await b.outcome(), 3)
    for method, found_there in expected.items():
        assert shadows[method].keys() == {2, 3}
        there = numbers(found_there)
        assert numbers(shadows[method]) == {n: pytest.approx(each, abs=1e-6) for n, each in there.items()}
    assert numbers(shadows["iu"]) != numbers(shadows["bu-3"])
    assert own.keys() == learned.keys() > {"base", "data.1", "statistics"}
    for name, part in own.items():
        torch.testing.assert_close(learned[name], part)


async def test_a_worker_that_is_killed_repeats_no_period(
    postgres_dsn: str, new_dsn: NewDatabase, redis_url: str, tmp_path: Path
) -> None:
    """The updates come first: the shadow learns three periods in a row afterwards."""

    async def sealed(b: Bench) -> None:
        for period in periods(3):
            await b.log(period)

    async with bench(postgres_dsn, redis_url, tmp_path) as b:
        await sealed(b)
        with forked_worker(postgres_dsn, redis_url, tmp_path, shadow=("bu-3",)) as running:
            await until_true(b.database, "SELECT EXISTS (SELECT FROM shadows WHERE version + attempts > 1)")
            running.kill()
        with forked_worker(postgres_dsn, redis_url, tmp_path, shadow=("bu-3",)) as running:
            await until_true(b.database, "SELECT version = 3 FROM shadows")
            running.stop()
        found, beside = await b.outcome(), numbers(await scores(b.database, "shadow:bu-3"))
        assert await restarts(b) == []
    assert {n: (status, version, attempts) for n, (status, version, attempts, _) in found["periods"].items()} == {
        1: ("updated", 1, 0), 2: ("updated", 2, 0), 3: ("updated", 3, 0), 4: ("open", None, 0)
    }  # fmt: skip
    async with bench(new_dsn(), redis_url, tmp_path / "alone", updater="bu-3") as b:
        await sealed(b)
        for number in (1, 2, 3):
            await b.update(number)
        assert beside == {
            n: pytest.approx(v, abs=1e-6) for n, v in numbers(await scores(b.database, "incremental")).items()
        }


async def test_what_goes_wrong_with_a_shadow_lets_it_start_again(
    postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    """From the base model of the head, so that it scores the next period as the served method's base model does."""
    first, second, third, fourth, fifth, sixth = periods(6)

    def diverges(stage: str, _: PeriodData) -> None:
        if stage == "update_base":
            raise DivergedError("loss: expected a finite number; received nan")

    async with bench(postgres_dsn, redis_url, tmp_path, shadow=("bu-3",)) as b:
        await b.log(first)
        await learn(b, 1)
        await b.log(second)
        await b.update(2)
        assert await shadows_of(b, diverges).learn_next()
        assert await restarts(b) == ["DivergedError: loss: expected a finite number; received nan"]
        await b.log(third)
        await learn(b, 3)
        await rollback(
            b.database,
            b.context.notices,
            to_version=2,
            sequence="excise",
            reason="a test",
            actor="test",
            settings=b.settings,
        )
        assert await far(b) == (3, None)
        assert not await shadows_of(b).learn_next()
        assert await far(b) == (2, 0)
        assert (await restarts(b))[0] == "it is not on the way to version 2"
        await b.log(fourth)
        await b.update(4)
        deletion = await request_deletion(b.database, "user", fourth.user_ids[0], actor="test")
        await carry_out(b.database, b.context.histories, b.settings.journal, deletion)
        assert await shadows_of(b).learn_next()
        assert (await restarts(b))[0] == "somebody in the period was deleted"
        await b.log(fifth)
        await learn(b, 5)
        assert len(await restarts(b)) == 3
        await b.log(sixth)
        await b.update(6)
        async with b.database.unit_of_work() as work:  # as workers leave it that were killed in it
            await work.shadows.attempt((await work.shadows.list())[0], 5)
            await work.commit()
        assert not await shadows_of(b).learn_next()
        assert (await restarts(b))[0] == "5 workers in a row ended while it learned period 6"
        [state] = (await guardrail_state(b.database, b.settings)).shadows
        assert (state.method, state.period, state.behind, state.attempts) == ("bu-3", 6, 0, 0)
        assert state.restarted_for == "5 workers in a row ended while it learned period 6"
        beside, base = await scores(b.database, "shadow:bu-3"), await scores(b.database, "incremental")
    assert beside.keys() == {2, 3, 5}
    assert numbers({3: beside[3], 5: beside[5]}) == numbers({3: base[3], 5: base[5]})


async def test_an_update_comes_first(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    """A shadow breaks off as soon as a period is sealed. What it learns late is not scored, and it may be nothing."""
    first, second, third, fourth, fifth, sixth = periods(6)
    begun, go_on = threading.Event(), threading.Event()

    def waits(stage: str, _: PeriodData) -> None:
        begun.set()
        assert go_on.wait(60)

    async with bench(postgres_dsn, redis_url, tmp_path, shadow=("bu-3",), worker_poll_seconds=0.02) as b:
        for period in (first, second):
            await b.log(period)
            await b.update(period.number)
        assert await far(b) == (0, 2)
        shadows = shadows_of(b, waits)
        learning = asyncio.create_task(shadows.learn_next())
        await asyncio.to_thread(begun.wait, 60)
        await b.log(third)
        assert await learning
        go_on.set()
        async with b.database.read() as session:
            assert [(each.version, each.attempts) for each in await session.shadows.list()] == [(0, 0)]
        await b.update(3)
        await b.log(fourth)
        await b.log(fifth)
        await b.update(5)
        await b.update(4)
        while await shadows.learn_next():
            pass
        await b.log(shortened(sixth, 1))
        deletion = await request_deletion(b.database, "user", sixth.user_ids[0], actor="test")
        await carry_out(b.database, b.context.histories, b.settings.journal, deletion)
        assert await b.update(6) == 6
        assert await shadows.learn_next()
        async with b.database.read() as session:
            assert [each.version for each in await session.shadows.list()] == [6]
        assert (await scores(b.database, "shadow:bu-3")).keys() == {2, 3, 5}
        assert await restarts(b) == []


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        ("ui", "received 'ui', which is unknown"),
        ("iu", "received 'iu', which is served"),
        ("sml,sml", "received 'sml', more than once"),
        ("sml-mf", "received 'sml-mf', whose base model is not that of iu"),
    ],
)
def test_a_method_that_cannot_be_a_shadow(method: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASMG_SHADOW", method)
    with pytest.raises(ConfigurationError, match=f"ASMG_SHADOW: expected update methods other .*sml.*; {problem}"):
        configured_shadows(Settings(updater="iu"), updater_of("iu"))
