"""The period cycle: what a version is made of, and that nothing on the way to it can make another."""

import asyncio
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from redis.asyncio import Redis
from sklearn.metrics import log_loss, roc_auc_score
from sqlalchemy import text
from typing_extensions import override

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, load_data
from asmg.datasets.synthetic import DriftPeriod
from asmg.progressive import stage_rng
from asmg.statistics import Statistics
from asmg.training import DivergedError
from asmg.updaters import UPDATERS
from asmg.updaters.asmg import Asmg
from asmg.updaters.asmg_config import AsmgConfig
from asmg.updaters.base import Updater
from asmg.updaters.with_statistics import WithStatistics
from service import worker
from service.errors import ConfigurationError
from service.files import find
from service.serving.snapshot import Snapshot
from service.settings import Settings
from service.storage.artifacts.store import FILE_SUFFIX, ArtifactStore
from service.storage.embedded import servers as embedded
from service.storage.postgres.database import Database, Leadership, Lock, UnitOfWork
from service.storage.postgres.repositories import AliasName, EventBatch, PeriodStatus
from service.storage.redis.state import Notices
from service.use_cases.rollback import rollback
from service.use_cases.update.period_data import prepare_period
from service.use_cases.update.training_state import configured_updater
from service.use_cases.update.update_model import Superseded
from tests.conftest import Servers, database_dsn, in_thread
from tests.service.programs import start, wait_for
from tests.service.update_support import (
    STAGES,
    Bench,
    bench,
    copies,
    interactions,
    named,
    outcome,
    periods,
    single_thread,
    statistics_of,
    stored,
    updater_of,
)
from tests.service.worker_processes import ForkedWorker, forked_worker

SEED = 1
TRAINING = ("train_generator", "update_base", "generate", "count")


class Stopped(Exception):
    """Somebody pulled the plug."""


class Watched(Database):
    """Tells of every commit, and of every stage that is about to be noted or was noted just now."""

    def __init__(self, dsn: str, told: Callable[[str], None]) -> None:
        super().__init__(dsn, pool_size=4)
        self._told = told

    @override
    def unit_of_work(self) -> Any:
        return self._watched(super().unit_of_work())

    @asynccontextmanager
    async def _watched(self, unit: Any) -> AsyncIterator[UnitOfWork]:
        async with unit as work:
            really_commit, really_finish, noted = work.commit, work.stages.finish, []

            async def finish(period: int, stage: str, *values: Any) -> None:
                self._told(f"worked {stage}")
                noted.append(stage)
                await really_finish(period, stage, *values)

            async def commit() -> None:
                self._told("commit")
                await really_commit()
                self._told("committed")
                for stage in noted:
                    self._told(f"noted {stage}")

            work.commit, work.stages.finish = commit, finish
            yield work


@asynccontextmanager
async def closing(database: Database) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await database.close()


class Meddled(Updater[Any]):
    """An update method that calls somebody before each stage, in the thread that trains."""

    def __init__(self, inner: Updater[Any], before: Callable[[str, PeriodData], None]) -> None:
        self._inner, self._before = inner, before
        self.name, self.stages, self.model = inner.name, inner.stages, inner.model  # type: ignore[misc]
        self.base = inner.base

    @override
    def initial(self, rng: torch.Generator) -> Any:
        return self._inner.initial(rng)

    @override
    def run_stage(self, stage: str, state: Any, data: PeriodData, **options: Any) -> Any:
        self._before(stage, data)
        return self._inner.run_stage(stage, state, data, **options)

    @override
    def rehearse(self, state: Any, data: PeriodData, held_out: PeriodData, **options: Any) -> Any:
        return self._inner.rehearse(state, data, held_out, **options)

    @override
    def forgotten(self, state: Any, rows: Any) -> Any:
        return self._inner.forgotten(state, rows)

    @override
    def serving_models(self, state: Any) -> Any:
        return self._inner.serving_models(state)

    @override
    def dump(self, state: Any) -> Any:
        return self._inner.dump(state)

    @override
    def load(self, parts: Any) -> Any:
        return self._inner.load(parts)

    @override
    def started(self, base: Any, periods: Any, *, rng: torch.Generator) -> Any:
        return self._inner.started(base, periods, rng=rng)

    @override
    def adopted(self, parts: Any, *, rng: torch.Generator) -> Any:
        return self._inner.adopted(parts, rng=rng)

    @override
    def prepare(self, state: Any, data: PeriodData) -> PeriodData:
        return self._inner.prepare(state, data)

    @override
    def statistics_of(self, state: Any) -> Any:
        return self._inner.statistics_of(state)

    @override
    def signature(self) -> dict[str, Any]:
        return self._inner.signature()


@dataclass(frozen=True)
class Prepared:
    """A database in which period 1 is updated and period 2 sealed, and what an uninterrupted update makes of it."""

    name: str
    outcome: dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


@pytest.fixture(scope="module")
def prepared(
    servers: Servers,
    migrated_template: str,
    database_numbers: Iterator[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prepared]:
    folder = tmp_path_factory.mktemp("prepared")

    async def make(dsn: str) -> None:
        async with bench(dsn, servers.redis_url, folder) as made:
            first, second = periods(2, seed=SEED)
            await made.log(first)
            await made.update(1)
            await made.log(second)

    async def finish(dsn: str) -> dict[str, Any]:
        async with bench(dsn, servers.redis_url, folder) as made:
            await made.update(2)
            return await made.outcome()

    with copies(servers, migrated_template, database_numbers) as copy:
        name = copy()
        in_thread(asyncio.run, make(database_dsn(servers, name)))
        yield Prepared(name, in_thread(asyncio.run, finish(database_dsn(servers, copy(name)))))


@pytest.fixture
def copy(servers: Servers, migrated_template: str, database_numbers: Iterator[int]) -> Iterator[Callable[..., str]]:
    """DSN of a new database: empty, or a copy of the one named."""
    with copies(servers, migrated_template, database_numbers) as make:
        yield lambda *source: database_dsn(servers, make(*source))


@pytest.fixture
def second(copy: Callable[..., str], prepared: Prepared) -> str:
    """DSN of a database with period 2 to be updated on."""
    return copy(prepared.name)


def places(dsn: str, redis_url: str, folder: Path) -> tuple[str, str, Path]:
    return dsn, redis_url, folder


class TestVersions:
    async def test_four_periods(self, postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
        async with bench(postgres_dsn, redis_url, tmp_path, swap_lead_seconds=30) as b:
            for period in periods(4, seed=SEED):
                await b.log(period)
                assert await b.update(period.number) == period.number
                found = await b.outcome()
                number = period.number
                assert found["aliases"] == {"champion": number, "head": number, "baseline": 1}
                assert found["periods"][number] == ("updated", number, 0, None)
                assert found["periods"][number + 1] == ("open", None, 0, None)
                await self._check_stages(b, number)
                assert named(found) <= await stored(b.database)
        versions = found["versions"]
        assert list(versions) == [4, 3, 2, 1, 0]
        assert [versions[n]["parent"] for n in range(5)] == [None, 0, 1, 2, 3]
        assert [versions[n]["period"] for n in range(5)] == [0, 1, 2, 3, 4]
        assert len({versions[n]["serving"] for n in range(5)}) == 5
        # The api processes of this host find the last ones as files.
        newest = [find(b.settings.serving_dir, versions[n]["serving"], FILE_SUFFIX) for n in (2, 3, 4)]
        assert set(b.settings.serving_dir.iterdir()) == set(newest)
        always = {
            "updater",
            "base",
            "optimizer",
            "generator",
            "generator_optimizer",
            "hidden",
            "generated",
            "statistics",
        }
        # A window of three models: the newest is `base`, and the logs after all of them but it are kept.
        full = {"model.1", "model.2", "data.0", "data.1"}
        more = [set(), {"model.1", "data.0"}, full, full]
        for number, further in enumerate(more, start=1):
            assert set(versions[number]["state"]["parts"]) == always | further
        for number in (2, 3, 4):
            parts, before = (versions[n]["state"]["parts"] for n in (number, number - 1))
            assert parts["model.1"] == before["base"]
            if number > 2:
                assert parts["data.1"] == before["data.0"]
        for number in range(1, 5):
            state = versions[number]["state"]
            if versions[number]["kind"] != "previous":
                assert state["serving_statistics"] == state["parts"]["statistics"]
        # Who was scored on what: nobody on the first log, and "previous" is the one served before the champion.
        assert [(e.period, e.model, e.version) for e in found["evaluations"]] == [
            (2, "baseline", 1),
            (2, "generated", 1),
            (2, "incremental", 1),
            *((3, name, version) for name, version in zip(NAMES, (1, 2, 2, 1), strict=True)),
            *((4, name, version) for name, version in zip(NAMES, (1, 3, 3, 2), strict=True)),
        ]
        for number in range(1, 5):
            at = {e.model: e for e in found["evaluations"] if e.period == number}
            assert {name: values["logloss"] for name, values in versions[number]["scores"].items()} == {
                name: e.logloss for name, e in at.items()
            }
            assert versions[number]["gate"]["decision"] == versions[number]["kind"]

    async def _check_stages(self, b: Bench, number: int) -> None:
        async with b.database.read() as session:
            stages = await session.stages.list(number)
            champion = await session.models.alias(AliasName.CHAMPION)
            audit = [e for e in await session.audit.list(10) if e.action == "publish"]
            period = await session.periods.get(number)
            events = await session.interactions.count(number)
        assert tuple(stage.stage for stage in stages) == STAGES
        assert {stage.status for stage in stages} == {"done"}
        assert all(stage.seconds is not None and stage.seconds > 0 for stage in stages)
        assert champion is not None and period is not None and period.finished_at is not None
        assert champion.active_from - champion.updated_at == pytest.approx(timedelta(seconds=30), abs=timedelta(0, 1))
        assert audit[0].detail["version"] == audit[0].detail["period"] == number
        assert (audit[0].actor, audit[0].reason) == ("worker", champion.reason)
        assert period.events == events == 300

    async def test_scores_are_those_of_the_models_before(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path
    ) -> None:
        # A generator that is trusted from the first, so that its model is another than the incremental one.
        shape = updater_of("asmg-gru-multi").model.config
        updater = WithStatistics(Asmg(shape, AsmgConfig(blends=(1.0,))))
        async with bench(postgres_dsn, redis_url, tmp_path) as b:
            for period in periods(3, seed=SEED):
                await b.log(period)
                if period.number == 3:
                    data, _ = await prepare_period(b.database, 3, 30)
                    before = await b.outcome()
                await b.update(period.number, updater=updater)
            found = {e.model: e for e in (await b.outcome())["evaluations"] if e.period == 3}
            versions = before["versions"]
            two, one = versions[2]["state"]["parts"], versions[1]["state"]
            served = (one["serving"], one["serving_statistics"])
            digests = {
                "generated": (two["generated"], two["statistics"]),
                "incremental": (two["base"], two["statistics"]),
                "previous": served,
                "baseline": served,
            }
            assert set(digests) == set(found) == set(NAMES)
            assert two["statistics"] != one["serving_statistics"]
            label = data.label.numpy()
            for name, pair in digests.items():
                stored_model, counted = [Checkpoint.from_bytes(await b.workshop.artifacts.get(d)) for d in pair]
                numeric = Statistics.load(counted).inputs(data).double().numpy()
                guess = clicks_by_hand({n: t.double().numpy() for n, t in stored_model.tensors.items()}, data, numeric)
                assert found[name].events == len(label) == 300
                assert found[name].logloss == pytest.approx(log_loss(label, guess), rel=1e-5)
                assert found[name].auc == pytest.approx(roc_auc_score(label, guess), abs=1e-4)
                assert found[name].calibration == pytest.approx(guess.sum() / label.sum(), rel=1e-5)
        assert len({e.logloss for e in found.values()}) == 3  # "previous" is the baseline here

    async def test_a_version_knows_nothing_of_the_next_period(
        self, copy: Callable[..., str], redis_url: str, tmp_path: Path
    ) -> None:
        first, second, other = *periods(2, seed=SEED), periods(2, seed=99)[1]
        outcomes = []
        # The log of period 2 is there already, or another one is, when the model learns period 1.
        for following in (None, second, other):
            async with bench(*places(copy(), redis_url, tmp_path)) as b:
                await b.log(first)
                if following is not None:
                    late = replace(following, new_items={}, timestamps_ms=first.timestamps_ms)
                    async with b.database.unit_of_work() as work:
                        await work.interactions.insert(2, EventBatch.of(interactions(late)))
                        await work.commit()
                await b.update(1)
                outcomes.append([await b.outcome()])
                if following is not None:
                    await b.close(2)
                    await b.update(2)
                    outcomes[-1].append(await b.outcome())
        one = [made[0]["versions"][1] for made in outcomes]
        assert one[0] == one[1] == one[2]
        two = [made[1]["versions"][2]["state"]["parts"] for made in outcomes[1:]]
        assert two[0]["base"] != two[1]["base"]

    async def test_an_update_that_was_done_is_not_done_again(
        self, second: str, prepared: Prepared, redis_url: str, tmp_path: Path
    ) -> None:
        """A worker that lost its leadership unaware may come to a period that its successor has published."""
        async with bench(*places(second, redis_url, tmp_path)) as b:
            assert await b.update(2) == 2
            assert await b.update(2) == 2
            assert await b.outcome() == prepared.outcome

    async def test_two_that_believe_to_lead(
        self, second: str, prepared: Prepared, redis_url: str, tmp_path: Path
    ) -> None:
        async with bench(*places(second, redis_url, tmp_path)) as b:
            results = await asyncio.gather(*(b.update(2) for _ in range(2)), return_exceptions=True)
            assert all(result == 2 or isinstance(result, Superseded) for result in results), results
            assert await b.update(2) == 2
            assert await b.outcome() == prepared.outcome

    async def test_the_version_that_stays_is_the_one_served_at_that_moment(
        self, second: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A rollback that comes just before a version of kind `previous` is published is not undone by it."""
        monkeypatch.setattr("service.use_cases.update.gate.CALIBRATION_RANGE", (100.0, 200.0))
        async with bench(*places(second, redis_url, tmp_path)) as b:
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

    async def test_the_baseline_is_a_trained_model(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As long as the gate lets none through, the prior is served, and the prior is nobody's baseline."""
        first, second, third = periods(3, seed=SEED)
        async with bench(postgres_dsn, redis_url, tmp_path) as b:
            with monkeypatch.context() as patch:
                patch.setattr("service.use_cases.update.gate.CALIBRATION_RANGE", (100.0, 200.0))
                await b.log(first)
                await b.update(1)
            found = await b.outcome()
            assert found["versions"][1]["kind"] == "previous"
            assert found["versions"][1]["serving"] == found["versions"][0]["serving"]
            assert found["aliases"] == {"champion": 1, "head": 1, "baseline": None}
            for period in (second, third):
                await b.log(period)
                await b.update(period.number)
            found = await b.outcome()
            assert found["versions"][2]["kind"] == "generated"
            assert found["aliases"] == {"champion": 3, "head": 3, "baseline": 2}
            assert {e.version for e in found["evaluations"] if (e.period, e.model) == (3, "baseline")} == {2}


NAMES = ("baseline", "generated", "incremental", "previous")


def clicks_by_hand(params: dict[str, np.ndarray], data: PeriodData, numeric: np.ndarray) -> np.ndarray:
    """The click probability of each interaction, one after the other, in double precision."""
    assert data.item_categories is not None

    def item(row: int) -> np.ndarray:
        own = params["item"][row if row < len(params["item"]) else 0]
        rows = [c if c < len(params["category"]) else 0 for c in data.item_categories[row].tolist() if c >= 0]
        return np.concatenate([own, np.mean(params["category"][rows], 0) if rows else np.zeros(own.shape)])

    fields = None if data.fields is None else data.fields.standardised()

    def sums(n: int) -> np.ndarray:
        """Of the values of context, user and item."""
        if fields is None or "field" not in params:
            return np.empty(0)
        found = np.zeros((3, params["field"].shape[1]))
        for row, weight, owner in zip(
            fields.rows[n].tolist(), fields.weights[n].tolist(), fields.sums.tolist(), strict=True
        ):
            if row >= 0:
                found[owner] += weight * params["field"][row if row < len(params["field"]) else 0]
        return found.ravel()

    guesses = []
    for n in range(len(data)):
        user = int(data.user[n])
        past = [item(int(row)) for row in data.history[data.offsets[n] : data.offsets[n + 1]]]
        pooled = np.mean(past, 0) if past else np.zeros(2 * params["item"].shape[1])
        about = params["user"][user if user < len(params["user"]) else 0]
        candidate = item(int(data.item[n]))
        doubled = np.concatenate([about, about])  # as wide as an item, which is itself and its categories
        dots = (params["dot.user"] * doubled * candidate).sum() + (params["dot.history"] * pooled * candidate).sum()
        x = np.concatenate([about, pooled, candidate, sums(n), numeric[n]])
        for layer in range(3):
            x = params[f"mlp.{layer}.weight"] @ x + params[f"mlp.{layer}.bias"]
            x = np.maximum(x, 0) if layer < 2 else x
        guesses.append(1 / (1 + np.exp(-x[0] - dots)))
    return np.array(guesses)


class TestInterruptions:
    """Stopped anywhere and continued by a fresh update, the version is the same, once."""

    async def test_before_each_stage(self, second: str, prepared: Prepared, redis_url: str, tmp_path: Path) -> None:
        stop_at = ""

        class StoppingNotices(Notices):
            @override
            async def publish_progress(self, period: int, progress: Any) -> None:
                if progress["stage"] == stop_at:
                    raise Stopped

        async with bench(*places(second, redis_url, tmp_path)) as b:
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
            await self.check(b, prepared)

    async def test_around_the_note_of_each_stage(
        self, second: str, prepared: Prepared, redis_url: str, tmp_path: Path
    ) -> None:
        """Just before it, when all the work has to be done again, and just after it."""
        stop_at = ""

        def told(what: str) -> None:
            if what == stop_at:
                raise Stopped

        watched = Watched(second, told)
        async with bench(*places(second, redis_url, tmp_path)) as b, closing(watched):
            for n, stage in enumerate(STAGES):
                for moment in ("worked", "noted"):
                    stop_at = f"{moment} {stage}"
                    with pytest.raises(Stopped):
                        await b.update(2, database=watched, artifacts=ArtifactStore(watched, b.redis))
                    async with b.database.read() as session:
                        done = [stage.stage for stage in await session.stages.list(2) if stage.status == "done"]
                    assert done == list(STAGES[: n + (moment == "noted")])
            assert await b.update(2) == 2
            await self.check(b, prepared)

    async def check(self, b: Bench, prepared: Prepared) -> None:
        found = await b.outcome()
        assert found == prepared.outcome
        assert named(found) <= await stored(b.database)
        async with b.database.read() as session:
            assert tuple(stage.stage for stage in await session.stages.list(2)) == STAGES

    @pytest.mark.parametrize("moment", ["commit", "committed"])
    async def test_at_every_further_transaction(
        self, second: str, prepared: Prepared, redis_url: str, tmp_path: Path, moment: str
    ) -> None:
        """The n-th attempt ends at its n-th transaction, so each gets a little further."""
        attempts, left = 0, 0

        def told(what: str) -> None:
            nonlocal left
            left -= what == moment
            if left == 0 and what == moment:
                raise Stopped

        watched = Watched(second, told)
        async with bench(*places(second, redis_url, tmp_path)) as b, closing(watched):
            for attempts in count(1):
                left = attempts
                with suppress(Stopped):
                    await b.update(2, database=watched, artifacts=ArtifactStore(watched, b.redis))
                    break
            await self.check(b, prepared)
        assert attempts > 5

    async def test_cancelled_in_the_midst_of_training(
        self, second: str, prepared: Prepared, redis_url: str, tmp_path: Path
    ) -> None:
        loop, threads = asyncio.get_running_loop(), []

        async with bench(*places(second, redis_url, tmp_path)) as b:
            for stage in TRAINING:
                entered, go_on, left = asyncio.Event(), threading.Event(), threading.Event()
                threads.append((go_on, left))

                def before(at: str, _: PeriodData, stage: str = stage, events: Any = (entered, go_on, left)) -> None:
                    if at == stage:
                        loop.call_soon_threadsafe(events[0].set)
                        events[1].wait(20)
                        events[2].set()

                update = asyncio.create_task(b.update(2, updater=Meddled(b.workshop.updater, before)))
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
            await self.check(b, prepared)
            for _, left in threads:
                assert await asyncio.to_thread(left.wait, 20)

    async def test_training_that_raises(self, second: str, prepared: Prepared, redis_url: str, tmp_path: Path) -> None:
        raise_at = ""

        def before(at: str, _: PeriodData) -> None:
            if at == raise_at:
                raise DivergedError("too much")

        async with bench(*places(second, redis_url, tmp_path)) as b:
            for stage in TRAINING:
                raise_at = stage
                with pytest.raises(DivergedError):
                    await b.update(2, updater=Meddled(b.workshop.updater, before))
                assert (await b.outcome())["aliases"] == {"champion": 1, "head": 1, "baseline": 1}
            assert await b.update(2) == 2
            await self.check(b, prepared)


class TestRedis:
    async def test_flushed_at_every_note(
        self, second: str, prepared: Prepared, redis_url: str, redis: Redis, tmp_path: Path
    ) -> None:
        flushed = 0

        class FlushingNotices(Notices):
            @override
            async def publish_progress(self, period: int, progress: Any) -> None:
                nonlocal flushed
                await redis.flushdb()
                flushed += 1

        async with bench(*places(second, redis_url, tmp_path)) as b:
            assert await b.update(2, notices=FlushingNotices(b.redis)) == 2
            assert await b.outcome() == prepared.outcome
        assert flushed >= len(STAGES)

    async def test_what_redis_holds_is_not_believed(
        self, second: str, prepared: Prepared, redis_url: str, redis: Redis, tmp_path: Path
    ) -> None:
        """The hidden state is read from Redis first; another value there than its digest says is no danger."""
        hidden = prepared.outcome["versions"][1]["state"]["parts"]["hidden"]
        await redis.hset(f"asmg:artifact:{hidden}", mapping={"0": b"nonsense", "chunks": 1})
        async with bench(*places(second, redis_url, tmp_path)) as b:
            assert await b.update(2) == 2
            assert await b.outcome() == prepared.outcome

    @pytest.mark.parametrize("stage", [None, "update_base", "every"])
    async def test_away(self, second: str, prepared: Prepared, data_dir: Path, stage: str | None) -> None:
        """Never there, or killed while the update is at a stage, or at every stage and there again at the next."""
        socket, server = data_dir / "r.sock", None
        if stage is not None:
            server = await asyncio.to_thread(redis_server, socket)
            await _wait(socket.exists)
        try:

            def told(what: str) -> None:
                nonlocal server
                if server is None:
                    return
                moment, at = what.partition(" ")[::2]
                if moment == "worked" and stage in (at, "every"):
                    server.kill()
                    server.wait()
                if moment == "noted" and stage == "every" and at != "publish":
                    socket.unlink()
                    server = redis_server(socket)
                    wait_for(socket.exists)

            watched = Watched(second, told)
            async with bench(second, f"unix://{socket}", data_dir) as b, closing(watched):
                assert await b.update(2, database=watched, artifacts=ArtifactStore(watched, b.redis)) == 2
                assert await b.outcome() == prepared.outcome
            assert server is None or server.poll() == -signal.SIGKILL
        finally:
            if server is not None:
                server.kill()
                server.wait()


def redis_server(socket: Path) -> "subprocess.Popen[bytes]":
    socket.parent.mkdir(exist_ok=True)
    command = [embedded._redis_executable(), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    return subprocess.Popen(command, cwd=socket.parent, stdout=subprocess.DEVNULL)


async def _wait(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.01)


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
        async with bench(*places(third, redis_url, tmp_path)) as b:
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
        async with bench(*places(third, redis_url, tmp_path)) as b, closing(watched):
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
            async with bench(*places(third, redis_url, tmp_path)) as other:
                await excise(other)

        async with working(third, redis_url, tmp_path, monkeypatch, before=before) as database:
            await _updated(database, 3)
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
        b.workshop.notices,
        to_version=1,
        sequence="excise",
        reason="bad data",
        actor="test",
        lead_seconds=0,
    )


@asynccontextmanager
async def working(
    dsn: str,
    redis_url: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    before: Callable[[str, PeriodData], None] | None = None,
    **changes: Any,
) -> AsyncIterator[Database]:
    """The worker, in this process, while the block runs; somebody may be called before each stage."""
    if before is not None:
        monkeypatch.setattr(
            worker, "configured_updater", lambda settings: Meddled(configured_updater(settings), before)
        )
    settings = Settings(
        postgres_dsn=dsn, redis_url=redis_url, data_dir=folder, **{"worker_poll_seconds": 0.02, **changes}
    )
    database = Database(dsn, pool_size=2)
    task = asyncio.create_task(worker.run(settings))
    try:
        yield database
        assert not task.done(), task.result()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await database.close()


async def _updated(database: Database, number: int, status: PeriodStatus = PeriodStatus.UPDATED) -> None:
    async with asyncio.timeout(60):
        while True:
            async with database.read() as session:
                period = await session.periods.get(number)
            if period is not None and period.status == status:
                return
            assert period is None or period.status != PeriodStatus.QUARANTINED, period.error
            await asyncio.sleep(0.02)


class TestWorker:
    async def test_a_period_that_cannot_be_learned_is_quarantined(
        self, copy: Callable[..., str], prepared: Prepared, redis_url: str, tmp_path: Path, monkeypatch: Any
    ) -> None:
        bad = copy(prepared.name)
        tried: list[int] = []

        def before(stage: str, data: PeriodData) -> None:
            if stage == "update_base" and len(data) == 300:
                tried.append(1)
                raise DivergedError("loss: expected a finite number; received nan")

        async with bench(*places(bad, redis_url, tmp_path)) as b:
            async with working(bad, redis_url, tmp_path, monkeypatch, before=before) as database:
                await _updated(database, 2, PeriodStatus.QUARANTINED)
                failed = await b.outcome()
                third = shortened(periods(3, seed=SEED)[2], 200)
                await b.log(third)
                await _updated(database, 3)
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
        self, second: str, prepared: Prepared, redis_url: str, tmp_path: Path, monkeypatch: Any
    ) -> None:
        tried: list[str] = []

        def before(stage: str, _: PeriodData) -> None:
            tried.append(stage)
            if len(tried) in (2, 3):
                raise MemoryError("none left")

        async with working(second, redis_url, tmp_path, monkeypatch, before=before) as database:
            await _updated(database, 2)
            found = await outcome(database)
        # What was done before a trouble is not done again.
        assert tried == ["train_generator", "update_base", "update_base", "update_base", "generate", "count"]
        assert found["periods"].pop(2) == ("updated", 2, 2, None)
        assert found["versions"] == prepared.outcome["versions"]

    async def test_trouble_of_a_worker_that_was_superseded_is_no_trouble_of_the_period(
        self, second: str, prepared: Prepared, redis_url: str, tmp_path: Path, monkeypatch: Any
    ) -> None:
        """It lost its leadership unaware; its successor has published the period by the time it fails."""

        def before(stage: str, data: PeriodData) -> None:
            if stage == "generate" and not done:
                done.append(stage)
                asyncio.run(elsewhere())
                raise DivergedError("too late to matter")

        async def elsewhere() -> None:
            async with bench(*places(second, redis_url, tmp_path)) as successor:
                await successor.update(2)

        done: list[str] = []
        async with bench(*places(second, redis_url, tmp_path)) as b:
            async with working(second, redis_url, tmp_path, monkeypatch, before=before, max_attempts=1) as database:
                await _wait(lambda: done)
                await b.log(periods(3, seed=SEED)[2])
                await _updated(database, 3)
            found = await b.outcome()
        assert found["periods"][2] == prepared.outcome["periods"][2]
        assert found["versions"][2] == prepared.outcome["versions"][2]
        assert found["versions"][3]["parent"] == 2

    async def test_the_number_of_attempts_is_a_setting(
        self, second: str, redis_url: str, tmp_path: Path, monkeypatch: Any
    ) -> None:
        limit = 5
        tried: list[str] = []

        def before(stage: str, _: PeriodData) -> None:
            tried.append(stage)
            raise ValueError("x" * 5_000)

        async with working(second, redis_url, tmp_path, monkeypatch, before=before, max_attempts=limit) as database:
            await _updated(database, 2, PeriodStatus.QUARANTINED)
            found = await outcome(database)
        assert len(tried) == limit
        status, _, attempts, error = found["periods"][2]
        assert (status, attempts, len(error)) == ("quarantined", limit, 1_000)

    @pytest.mark.parametrize("updater", UPDATERS)
    async def test_the_whole_cycle(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path, monkeypatch: Any, updater: str
    ) -> None:
        async with bench(postgres_dsn, redis_url, tmp_path, updater=updater) as b:
            async with working(postgres_dsn, redis_url, tmp_path, monkeypatch, updater=updater) as database:
                for period in periods(3, seed=SEED):
                    await b.log(period)
                await _updated(database, 3)
            found = await b.outcome()
            state = found["versions"][3]["state"]["parts"]
            meta = Checkpoint.from_bytes(await b.workshop.artifacts.get(state["updater"])).meta
            served = found["versions"][3]["serving"]
            path = await b.workshop.artifacts.fetch_file(served, tmp_path / "fetched")
            snapshot = Snapshot.open(path, 3, 3)
            snapshot.check()
            prediction = snapshot.predict("u1", ["i1", "i2", "nobody"], ["i3"])
        assert found["aliases"] == {"champion": 3, "head": 3, "baseline": 1}
        assert [found["versions"][n]["parent"] for n in (1, 2, 3)] == [0, 1, 2]
        evaluated = {e.model for e in found["evaluations"] if e.period == 3}
        assert meta["updater"] == updater
        assert all(0 < score < 1 for score in prediction.scores)
        if updater.startswith(("asmg", "sml")):
            assert evaluated == set(NAMES)
        else:
            assert {found["versions"][n]["kind"] for n in (1, 2, 3)} <= {"incremental", "previous"}
            assert evaluated == {"incremental", "previous", "baseline"}

    async def test_another_method_goes_on_from_the_base_model(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path, monkeypatch: Any
    ) -> None:
        """ASMG_UPDATER was changed between two periods, once in the midst of an update."""

        def stopped(stage: str, _: PeriodData) -> None:
            if stage == "generate":
                raise SystemExit("killed")

        log = list(periods(4, seed=SEED))
        async with bench(postgres_dsn, redis_url, tmp_path, updater="asmg-gru-multi") as b:
            for period in log[:2]:
                await b.log(period)
                await b.update(period.number)
            await b.log(log[2])
            with pytest.raises(SystemExit):
                await b.update(3, updater=Meddled(b.workshop.updater, stopped))
            before = await b.outcome()
        base = before["versions"][2]["state"]["parts"]["base"]
        async with bench(postgres_dsn, redis_url, tmp_path, updater="iu") as b:
            await b.update(3)
            found = await b.outcome()
            artifacts = b.workshop.artifacts
            data = load_data(Checkpoint.from_bytes(await artifacts.get(await self._data_digest(b, 3))))
            iu = updater_of("iu")
            parts = found["versions"][2]["state"]["parts"]
            state = iu.adopted(
                {n: Checkpoint.from_bytes(await artifacts.get(parts[n])) for n in ("base", "optimizer", "statistics")},
                rng=stage_rng(SEED, 3, "adopted"),
            )
            for stage in iu.stages:
                state = iu.run_stage(stage, state, data, rng=stage_rng(b.settings.seed, 3, stage))
            made = found["versions"][3]["state"]["parts"]
            now = Checkpoint.from_bytes(await artifacts.get(made["base"])).tensors
            assert all(torch.equal(now[name], p) for name, p in iu.base_of(state).params.items())
            counted = Checkpoint.from_bytes(await artifacts.get(made["statistics"]))
            assert counted.meta["periods"] == 3  # those that the other method had counted, and this one
            expected = iu.statistics_of(state)
            assert expected is not None
            for name, tensor in expected.dump().tensors.items():
                assert torch.equal(counted.tensors[name], tensor), name
        assert found["versions"][2]["state"]["parts"]["base"] == base
        assert set(found["versions"][3]["state"]["parts"]) == {"updater", "base", "optimizer", "statistics"}

    async def _data_digest(self, b: Bench, number: int) -> str:
        async with b.database.read() as session:
            prepared = await session.stages.get(number, "prepare")
        assert prepared is not None
        return str(prepared.result["data"])

    async def test_settings_that_cannot_work(self) -> None:
        settings = Settings(
            postgres_dsn="postgresql://localhost/none", redis_url="redis://localhost:1", updater="none such"
        )
        with pytest.raises(ConfigurationError, match=r"expected one of iu, .*; received 'none such'"):
            await worker.run(settings)
        with pytest.raises(ConfigurationError, match=r"device: expected auto, cpu or a cuda .*; received 'tpu'"):
            await worker.run(settings.model_copy(update={"updater": "iu", "device": "tpu"}))
        with pytest.raises(ConfigurationError, match="ASMG_POSTGRES_DSN"):
            await worker.run(Settings())


def shortened(period: DriftPeriod, size: int) -> DriftPeriod:
    """The first interactions of a period."""
    return replace(
        period,
        user_ids=period.user_ids[:size],
        item_ids=period.item_ids[:size],
        labels=period.labels[:size],
        timestamps_ms=period.timestamps_ms[:size],
    )


class WorkerProcess:
    """`asmg worker`, to be killed."""

    def __init__(self, dsn: str, redis_url: str, folder: Path, **changes: str) -> None:
        self._log = folder / f"worker-{random.randrange(10**9)}.log"
        variables = {"POSTGRES_DSN": dsn, "REDIS_URL": redis_url, "DATA_DIR": str(folder / "data")}
        variables |= {"WORKER_POLL_SECONDS": "0.05"}
        self._log.touch()
        changes |= {f"ASMG_{name}": value for name, value in variables.items()}
        self.process = start(Path(os.devnull), self._log, "worker", **changes)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(20)
        assert self.process.exitcode == -signal.SIGKILL, self.log

    def stop(self) -> None:
        self.process.terminate()
        self.process.join(20)
        assert self.process.exitcode == 0, self.log


@contextmanager
def worker_process(dsn: str, redis_url: str, folder: Path, **changes: str) -> Iterator[WorkerProcess]:
    running = WorkerProcess(dsn, redis_url, folder, **changes)
    try:
        yield running
    finally:
        if running.process.is_alive():
            running.kill()


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
        await _updated(database, 2)
        await _wait(lambda: "worker started" in everyone[-1].log)
        assert await outcome(database) == prepared.outcome
        # Nothing that was noted as done was done again.
        logs = "".join(w.log for w in everyone)
        assert all(logs.count(f"period 2: {stage} took") <= 1 for stage in STAGES)
        for last in (*alive, everyone[-1]):
            last.stop()
    assert not await is_led(second)
    await database.close()
