"""Periods that are not learned: an operator retries or skips them, in and out of turn; and their logs."""

import asyncio
import getpass
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import make_url, text
from typer.testing import CliRunner

from asmg.batch import PeriodData
from asmg.datasets.synthetic import DriftPeriod
from asmg.training import DivergedError
from service.cli import app
from service.errors import ArtifactMissing, InvalidInput, PeriodNotFound, PeriodStateConflict
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AuditEntry, PeriodStatus
from service.use_cases import retention
from service.use_cases.quarantine import find_periods, note_failure, note_trouble, retry_period, skip_period
from service.use_cases.retention import drop_old_logs, prune
from service.use_cases.status import get_period
from service.use_cases.update.context import Superseded
from tests.conftest import Servers, database_dsn, in_thread
from tests.service.api_support import running_app
from tests.service.layers_support import stored_period
from tests.service.programs import asmg
from tests.service.update_doubles import Meddled, working
from tests.service.update_support import Bench, bench, copies, periods, statistics_of, stored

SEED = 1
WHY = {"reason": "the catalogue is repaired", "actor": "test"}


pytestmark = pytest.mark.usefixtures("one_thread")


def logs(count: int) -> list[DriftPeriod]:
    """The first logs, all of the catalogue with the first: rows are given out in the order in which ids come."""
    first, *others = periods(count, seed=SEED)
    items = {item: names for period in (first, *others) for item, names in period.new_items.items()}
    return [replace(first, new_items=items), *(replace(period, new_items={}) for period in others)]


async def give_up(b: Bench, number: int) -> None:
    """Have the update of a period fail for good, after its first stages, as the worker does."""

    def diverge(stage: str, _: PeriodData) -> None:
        if stage == "generate":
            raise DivergedError("loss: expected a finite number; received nan")

    with pytest.raises(DivergedError) as raised:
        await b.update(number, updater=Meddled(b.context.updater, diverge))
    assert await note_failure(b.database, number, b.context.worker, raised.value, max_attempts=1)
    await prune(b.database, number, b.settings)


@pytest.fixture(scope="module")
def poisoned(
    servers: Servers,
    migrated_template: str,
    database_numbers: Iterator[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Name of a database in which period 1 is updated, period 2 in quarantine and period 3 sealed."""
    folder = tmp_path_factory.mktemp("poisoned")

    async def make(dsn: str) -> None:
        async with bench(dsn, servers.redis_url, folder) as b:
            first, second, third = logs(3)
            await b.log(first)
            await b.update(1)
            await b.log(second)
            await give_up(b, 2)
            await b.log(third)

    with copies(servers, migrated_template, database_numbers) as copy:
        name = copy()
        in_thread(asyncio.run, make(database_dsn(servers, name)))
        yield name


@pytest.fixture
async def b(copy: Callable[..., str], poisoned: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(copy(poisoned), redis_url, tmp_path) as made:
        yield made


async def audit(database: Database, action: str) -> list[AuditEntry]:
    async with database.read() as session:
        return [entry for entry in await session.audit.list(50) if entry.action == action]


def message(outcome: dict[str, Any], number: int) -> tuple[str, int | None, int, str | None]:
    return outcome["periods"][number]


class TestRetry:
    async def test_in_its_turn_the_versions_are_those_of_a_life_without_trouble(
        self, b: Bench, copy: Callable[..., str], redis_url: str, tmp_path: Path
    ) -> None:
        before = await get_period(b.database, b.context.notices, 2)
        assert before.status == "quarantined"
        assert before.error == "DivergedError: loss: expected a finite number; received nan"
        assert [stage.status for stage in before.stages] == ["done"] * 5 + ["running"]
        assert set(before.scores) == {"generated", "incremental", "baseline"}
        changed = await retry_period(b.database, 2, **WHY)
        assert (changed.status, changed.attempts, changed.crashes, changed.error) == ("sealed", 0, 0, None)
        assert (await get_period(b.database, b.context.notices, 2)).stages == []
        async with b.database.read() as session:
            waiting = await session.periods.next_sealed()
        assert waiting is not None and waiting.number == 2  # before period 3
        for number in (2, 3):
            await b.update(number)
        async with bench(copy(), redis_url, tmp_path) as untroubled:
            for period in logs(3):
                await untroubled.log(period)
                await untroubled.update(period.number)
            expected = await untroubled.outcome()
        assert await b.outcome() == expected
        (entry,) = await audit(b.database, "retry_period")
        assert (entry.actor, entry.reason) == ("test", "the catalogue is repaired")
        assert entry.detail == {"period": 2, "error": before.error}

    async def test_later_periods_go_on_from_the_last_good_state(
        self, b: Bench, copy: Callable[..., str], redis_url: str, tmp_path: Path
    ) -> None:
        """As if the quarantined period had no log: neither its models nor its data are in the window."""
        await b.update(3)
        found = await b.outcome()
        parts, before = (found["versions"][number]["state"]["parts"] for number in (2, 1))
        assert (found["versions"][2]["period"], found["versions"][2]["parent"]) == (3, 1)
        assert parts["model.1"] == before["base"]
        async with b.database.read() as session:
            prepared = await session.stages.get(3, "prepare")
        assert prepared is not None
        assert {name: parts[name] for name in parts if name.startswith("data.")} == {"data.0": prepared.result["data"]}
        assert found["versions"][2]["scores"]["incremental"]["version"] == 1

    async def test_after_later_periods_it_is_learned_as_late_events_are(
        self, b: Bench, copy: Callable[..., str], servers: Servers, redis_url: str, tmp_path: Path
    ) -> None:
        """From the newest state, once, the same however often it is restarted; without scores, which would be
        too good.
        """
        own_time = (await get_period(b.database, b.context.notices, 2)).scores
        await b.update(3)
        await retry_period(b.database, 2, **WHY)
        await b.database.close()  # a database that somebody is connected to cannot be copied
        again = copy(make_url(str(b.settings.postgres_dsn)).database)

        def stop(stage: str, _: PeriodData) -> None:
            if stage == "update_base":
                raise SystemExit("killed")

        assert await b.update(2) == 3
        async with bench(again, redis_url, tmp_path) as interrupted:
            with pytest.raises(SystemExit):
                await interrupted.update(2, updater=Meddled(interrupted.context.updater, stop))
            assert await interrupted.update(2) == 3
            assert await interrupted.outcome() == await b.outcome()
        found = await b.outcome()
        late = found["versions"][3]
        assert (late["period"], late["parent"], late["scores"]) == (2, 2, {})
        assert late["gate"]["decision"] == "generated"
        assert found["aliases"] == {"champion": 3, "head": 3, "baseline": 1}
        assert message(found, 2) == ("updated", 3, 0, None)
        # It is counted last, too, and what the update learned with is what was counted before.
        assert (await statistics_of(b, found, 3)).periods == 3
        async with b.database.read() as session:
            prepared = await session.stages.get(2, "prepare")
        assert prepared is not None
        read = await stored_period(b.context, prepared.result["data"])
        assert read.numeric is not None
        assert torch.equal(read.numeric, (await statistics_of(b, found, 2)).inputs(read))
        # What was measured in its own time stays.
        assert (await get_period(b.database, b.context.notices, 2)).scores == own_time
        # The next period goes on from there: the window is that of what was learned last.
        fourth = logs(4)[3]
        await b.log(fourth)
        await b.update(4)
        found = await b.outcome()
        parts, before = (found["versions"][number]["state"]["parts"] for number in (4, 3))
        assert found["versions"][4]["parent"] == 3
        assert (parts["model.1"], parts["model.2"]) == (before["base"], found["versions"][2]["state"]["parts"]["base"])
        assert parts["data.1"] == before["data.0"]
        assert set(found["versions"][4]["scores"]) == {"generated", "incremental", "previous", "baseline"}
        assert (await statistics_of(b, found, 4)).periods == 4

    async def test_one_that_fails_again_is_in_quarantine_again(self, b: Bench) -> None:
        await retry_period(b.database, 2, **WHY)
        await give_up(b, 2)
        assert message(await b.outcome(), 2)[0] == "quarantined"
        assert len(await audit(b.database, "quarantine")) == 2

    async def test_nothing_is_left_of_its_stages(self, b: Bench) -> None:
        """The worker prunes them, so that a period which is never retried takes no room except its log."""
        async with b.database.read() as session:
            results = [stage.result for stage in await session.stages.list(2)]
        assert set(results) == {None}
        before = await stored(b.database)
        await retry_period(b.database, 2, **WHY)
        await give_up(b, 2)
        assert await stored(b.database) == before

    async def test_not_when_logs_of_later_periods_are_dropped(self, b: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """The clicks that its users had made before are not known any more."""
        monkeypatch.setattr(retention, "KEPT_FOR_TRAINING", 1)
        settings = b.settings.model_copy(update={"keep_logs": 0})
        await b.update(3)
        for period in logs(5)[3:]:
            await b.log(period)
            await b.update(period.number)
        assert await drop_old_logs(b.database, settings) == [1, 3, 4]
        async with b.database.read() as session:
            assert await session.interactions.count(2) == 300  # kept, until somebody decides
        with pytest.raises(PeriodStateConflict, match="logs of later periods are dropped"):
            await retry_period(b.database, 2, **WHY)
        await skip_period(b.database, 2, **WHY)
        assert await drop_old_logs(b.database, settings) == [2]


class TestSkip:
    @pytest.mark.parametrize("number", [2, 3])
    async def test_a_skipped_period_is_never_learned(self, b: Bench, number: int) -> None:
        """Whether it was skipped in quarantine or before its turn."""
        changed = await skip_period(b.database, number, **WHY)
        assert (changed.status, changed.error) == ("skipped", "the catalogue is repaired")
        assert changed.finished_at is not None
        with pytest.raises(Superseded):
            await b.update(number)
        assert list((await b.outcome())["versions"]) == [1, 0]
        with pytest.raises(PeriodStateConflict, match=f"period {number} cannot be retried: .* it is skipped"):
            await retry_period(b.database, number, **WHY)
        (entry,) = await audit(b.database, "skip_period")
        assert entry.detail["period"] == number

    async def test_an_update_under_way_stops_at_its_next_stage(self, b: Bench) -> None:
        loop, stages = asyncio.get_running_loop(), []

        def skip(stage: str, _: PeriodData) -> None:
            stages.append(stage)
            if stage == "train_generator":
                asyncio.run_coroutine_threadsafe(skip_period(b.database, 3, **WHY), loop).result()

        with pytest.raises(Superseded):
            await b.update(3, updater=Meddled(b.context.updater, skip))
        assert stages == ["train_generator"]
        assert message(await b.outcome(), 3) == ("skipped", None, 0, "the catalogue is repaired")

    async def test_what_was_clicked_in_it_stays_in_histories(self, b: Bench) -> None:
        await skip_period(b.database, 2, **WHY)
        async with b.database.read() as session:
            log = await session.interactions.log(2)
            clicked = {user for user, label in zip(log.user_ids, log.labels, strict=True) if label}
            found = await session.past.earlier(3)
            users = sorted(set((await session.interactions.log(3)).user_ids))
        assert clicked & {users[n] for n in found.users[found.labels == 1]}


class TestRefusals:
    @pytest.mark.parametrize("change", [retry_period, skip_period])
    async def test_what_cannot_be_done_is_said(self, b: Bench, change: Callable[..., Any]) -> None:
        before = await b.outcome()
        for number in (0, 99, 2**40):
            with pytest.raises(PeriodNotFound):
                await change(b.database, number, **WHY)
        for number, status in ((1, "updated"), (4, "open")):
            with pytest.raises(PeriodStateConflict, match=f"it is {status}$"):
                await change(b.database, number, **WHY)
        for reason in ("", "  ", "x" * 1001):
            with pytest.raises(InvalidInput, match="expected a reason of 1 to 1000 characters"):
                await change(b.database, 2, reason=reason, actor="test")
        assert await b.outcome() == before

    async def test_two_operators_at_once(self, b: Bench) -> None:
        results = await asyncio.gather(*(retry_period(b.database, 2, **WHY) for _ in range(4)), return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["Period"] + ["PeriodStateConflict"] * 3
        assert len(await audit(b.database, "retry_period")) == 1


class TestWorker:
    async def test_a_retried_period_is_updated_by_the_worker(
        self, b: Bench, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dsn = b.settings.postgres_dsn
        assert dsn is not None
        async with working(dsn, redis_url, tmp_path, monkeypatch):
            await settled(b, 3)
            await retry_period(b.database, 2, **WHY)
            await settled(b, 2)
        found = await b.outcome()
        assert [found["versions"][number]["period"] for number in (1, 2, 3)] == [1, 3, 2]

    async def test_one_whose_impressions_cannot_be_resolved_holds_up_nobody_in_quarantine_or_skipped(
        self, b: Bench, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dsn = b.settings.postgres_dsn
        assert dsn is not None
        async with b.database.unit_of_work() as work:
            for statement in (
                "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'poison' USING ERRCODE = '22003'; END $$",
                "CREATE TRIGGER poison BEFORE UPDATE OF labels ON periods FOR EACH ROW "
                "WHEN (NEW.number = 3 AND NEW.labels IS NOT NULL) EXECUTE FUNCTION poison()",
            ):
                await work.connection.execute(text(statement))
            await work.commit()
        async with working(dsn, redis_url, tmp_path, monkeypatch):
            await settled(b, 3, "quarantined")
            await b.log(logs(4)[3])
            await settled(b, 4)
            await skip_period(b.database, 3, **WHY)
            await b.log(logs(5)[4])
            await settled(b, 5)
        found = await b.outcome()
        assert [found["versions"][number]["period"] for number in (1, 2, 3)] == [1, 4, 5]
        assert message(found, 3)[0] == "skipped"

    async def test_a_worker_that_holds_it_no_more_changes_nothing(self, b: Bench) -> None:
        before = await b.outcome()
        assert not await note_failure(b.database, 3, "another", ValueError("late"), max_attempts=1)
        await note_trouble(b.database, 3, "another", OSError("late"))
        assert await b.outcome() == before

    async def test_lost_artifacts_of_a_stage_are_made_anew(self, b: Bench) -> None:
        """The artifacts of a finished stage were deleted: the attempt fails, and the next one starts from the
        beginning.
        """

        class Lost(ArtifactStore):
            async def fetch_file(self, digest: str, folder: Path, pace: object = None) -> Path:
                raise ArtifactMissing(digest)

        def stop(stage: str, _: PeriodData) -> None:
            if stage == "generate":
                raise SystemExit("killed")

        with pytest.raises(SystemExit):
            await b.update(3, updater=Meddled(b.context.updater, stop))
        with pytest.raises(ArtifactMissing) as raised:
            await b.update(3, artifacts=Lost(b.database, b.redis))
        assert not await note_failure(b.database, 3, b.context.worker, raised.value, max_attempts=3)
        async with b.database.read() as session:
            assert await session.stages.list(3) == []
        assert await b.update(3) == 2


async def settled(b: Bench, number: int, status: str = "updated") -> None:
    async with asyncio.timeout(60):
        while True:
            if message(await b.outcome(), number)[0] == status:
                return
            await asyncio.sleep(0.02)


async def test_the_api_shows_it(b: Bench) -> None:
    async with running_app(b.settings) as api:
        answer = await api.client.get("/periods/2")
        assert answer.json()["status"] == "quarantined"
        assert answer.json()["error"].startswith("DivergedError: ")
        assert (answer.json()["attempts"], answer.json()["crashes"]) == (1, 0)
        assert (await api.client.get("/periods")).json()["periods"][2]["status"] == "quarantined"


async def test_found_by_status(b: Bench) -> None:
    assert [period.number for period in await find_periods(b.database, limit=2)] == [4, 3]
    found = await find_periods(b.database, limit=10, status=PeriodStatus.QUARANTINED)
    assert [period.number for period in found] == [2]


class TestCommandLine:
    async def test_list_retry_and_skip(self, b: Bench) -> None:
        place = {"ASMG_POSTGRES_DSN": str(b.settings.postgres_dsn), "ASMG_REDIS_URL": str(b.settings.redis_url)}

        def run(*arguments: str, code: int = 0) -> str:
            result = CliRunner().invoke(app, ["periods", *arguments], env={"COLUMNS": "200", **place})
            assert result.exit_code == code, result.output
            return result.stderr if code else result.stdout

        listed = (await asyncio.to_thread(asmg, "periods", "list", COLUMNS="200", **place)).stdout
        assert [row.split()[1] for row in listed.splitlines() if row.startswith("│")][:2] == ["4", "3"]
        only = await asyncio.to_thread(run, "list", "--status", "quarantined")
        assert "DivergedError: loss: expected a finite number; received nan" in only
        assert "sealed" not in only.partition("\n│")[2]
        done = await asyncio.to_thread(run, "retry", "2", "--reason", "repaired")
        assert done == "asmg: period 2 waits for its update again\n"
        refused = await asyncio.to_thread(run, "retry", "2", "--reason", "repaired", code=1)
        assert refused == "asmg: period 2 cannot be retried: expected it to be quarantined; it is sealed\n"
        assert await asyncio.to_thread(run, "skip", "9", "--reason", "r", code=1) == "asmg: there is no period 9\n"
        assert "--reason" in await asyncio.to_thread(run, "skip", "2", code=2)
        done = await asyncio.to_thread(run, "skip", "2", "--reason", "beyond repair")
        assert done == "asmg: period 2 is skipped; no model will learn it\n"
        (skipped,), (retried,) = await audit(b.database, "skip_period"), await audit(b.database, "retry_period")
        assert skipped.actor == retried.actor == f"command line ({getpass.getuser()})"
        assert (skipped.reason, retried.reason) == ("beyond repair", "repaired")
