"""Samples of periods, what versions say of them, replays, and rollbacks that need nobody."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from asmg.datasets.synthetic import DriftPeriod
from service.errors import ArtifactMissing
from service.storage.postgres.repositories import AliasName
from service.use_cases.guardrails import scoring
from service.use_cases.guardrails import watch as watching
from service.use_cases.guardrails.replay import Replayed, replay, sample_matrix
from service.use_cases.guardrails.watch import ACTOR, watch
from service.use_cases.retention import prune
from service.use_cases.rollback import rollback
from tests.conftest import Servers, create_database, database_dsn, drop_database
from tests.service.update_support import Bench, bench, periods

pytestmark = pytest.mark.usefixtures("one_thread")

PERIODS, STAYED = 5, 2


@pytest.fixture
def other_dsn(servers: Servers, migrated_template: str, database_numbers: Iterator[int]) -> Iterator[str]:
    """A second new database."""
    name = f"{migrated_template}_{next(database_numbers)}"
    create_database(servers, name, migrated_template)
    yield database_dsn(servers, name)
    drop_database(servers, name)


async def learn(b: Bench, period: DriftPeriod) -> int:
    """Log and learn a period, and let the guardrails judge it."""
    await b.log(period)
    version = await b.update(period.number)
    while await watch(b.context):
        pass
    return version


async def stay(b: Bench, version: int) -> None:
    """Serve a version whatever is learned."""
    await rollback(
        b.database,
        b.context.notices,
        to_version=version,
        sequence="keep",
        reason="it stays",
        actor="test",
        settings=b.settings,
    )


def inside(found: Replayed) -> bool:
    """Whether the difference is within its confidence interval, which is more than a point."""
    assert found.difference is not None
    assert found.low is not None
    assert found.high is not None
    return found.low < found.difference < found.high


async def test_a_replay_is_what_a_service_that_stayed_has_scored(
    postgres_dsn: str, other_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    """Two services on the same stream: one goes on, the other stays on an early version."""
    async with bench(postgres_dsn, redis_url, tmp_path / "one") as b:
        for period in periods(PERIODS):
            await learn(b, period)
        asked = await replay(b.database, STAYED, first=None, last=None)
        assert (asked.status, asked.waiting, asked.periods) == ("computing", PERIODS - STAYED, [])
        assert await watch(b.context)
        assert not await watch(b.context)
        found = await replay(b.database, STAYED, first=None, last=None)
        matrix = await sample_matrix(b.database)
    async with bench(other_dsn, redis_url, tmp_path / "two") as b:
        for period in periods(PERIODS):
            if await learn(b, period) > STAYED:
                await stay(b, STAYED)
        async with b.database.read() as session:
            stayed = {e.period: e for e in await session.evaluations.list(4, PERIODS) if e.model == "previous"}
    assert found.status == "complete"
    assert [(each.period, each.served_version) for each in found.periods] == [(3, 2), (4, 3), (5, 4)]
    assert found.periods[0].difference == 0  # it was served then
    for each in found.periods[1:]:
        assert (each.auc, each.logloss) == (stayed[each.period].auc, stayed[each.period].logloss)
        assert inside(each)
    total = found.total
    assert total.events == 900
    assert total.logloss == pytest.approx(sum(each.logloss or 0 for each in found.periods) / 3)
    assert inside(total)
    assert [profile.period for profile in matrix.profiles] == [1, 2, 3, 4, 5]
    assert {(cell.version, cell.period) for cell in matrix.cells if cell.version == 5} == {(5, n) for n in (2, 3, 4, 5)}


async def test_a_model_that_loses_to_a_constant_is_rolled_back(
    postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    """The labels are upside down from the third period on."""
    async with bench(postgres_dsn, redis_url, tmp_path, rollback_after=1) as b:
        for period in periods(3):
            turned = replace(period, labels=1 - period.labels) if period.number > 2 else period
            await b.log(turned)
            await b.update(period.number)
            if period.number > 1:
                await stay(b, 2)
            while await watch(b.context):
                pass
        async with b.database.unit_of_work() as work:
            champion = await work.models.alias(AliasName.CHAMPION)
            audit = await work.audit.list(10, None)
    assert champion is not None
    assert champion.version == 1  # it was served when all was well
    assert [entry.action for entry in audit if entry.actor == ACTOR][:1] == ["rollback"]


async def test_what_cannot_be_read_or_judged_holds_up_no_update(
    postgres_dsn: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def damaged(*_: object) -> None:
        raise ArtifactMissing("0" * 64)

    def broken(_: object) -> None:
        raise RuntimeError("a rule is wrong")

    first, second, third = periods(3)
    async with bench(postgres_dsn, redis_url, tmp_path) as b:
        await learn(b, first)
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "read_served", damaged)
            assert await learn(b, second) == 2
        with monkeypatch.context() as patch:
            patch.setattr(watching, "find_drift", broken)
            assert await learn(b, third) == 3
        async with b.database.read() as session:
            cells, waiting = await session.samples.scores()
    told = {(cell.version, cell.period): cell for cell in cells}
    assert waiting == 0
    assert told[2, 2].failure is not None
    assert told[2, 2].failure.startswith("ArtifactMissing")
    assert told[3, 3].logloss is not None  # it is scored, though not judged


async def test_of_versions_made_in_a_row_the_newest_is_judged(
    postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    """As an import makes them; what somebody wants to know of an earlier version is answered all the same."""
    async with bench(postgres_dsn, redis_url, tmp_path) as b:
        for period in periods(3):
            await b.log(period)
            await b.update(period.number)
            if period.number == 2:
                assert (await replay(b.database, 1, first=None, last=None)).waiting == 1
        while await watch(b.context):
            pass
        async with b.database.read() as session:
            cells, waiting = await session.samples.scores()
    assert {(cell.version, cell.period) for cell in cells} == {(1, 2), (3, 2), (3, 3)}
    assert waiting == 0


async def test_samples_end_and_take_what_was_said_of_them_along(
    postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:

    async with bench(postgres_dsn, redis_url, tmp_path, sample_periods=2, sample_events=50) as b:
        for period in periods(4):
            await learn(b, period)
            await prune(b.database, period.number, b.settings)
        async with b.database.read() as session:
            kept = await session.samples.newest(10)
            cells, _ = await session.samples.scores()
            stored = await session.artifacts.all()
    assert [(each.period, each.digest is not None) for each in kept] == [(1, False), (2, False), (3, True), (4, True)]
    assert {cell.period for cell in cells} == {3, 4}
    assert all(cell.events == 50 for cell in cells)
    assert {each.digest for each in kept if each.digest} <= stored.keys()


async def test_without_samples_nothing_is_kept(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    async with bench(postgres_dsn, redis_url, tmp_path, sample_events=0) as b:
        await learn(b, periods(1)[0])
        async with b.database.read() as session:
            assert await session.samples.newest(10) == []
