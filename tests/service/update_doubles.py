"""Replacements for parts of an update: a database, an update method, the worker itself."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from typing_extensions import override

from asmg.batch import PeriodData
from asmg.updaters.base import Updater
from service import worker
from service.settings import Settings
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database, UnitOfWork
from service.storage.postgres.repositories import PeriodStatus
from service.use_cases.update.configuration import configured_updater
from tests.service.update_support import Bench


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
    def served_parts(self, state: Any) -> Any:
        return self._inner.served_parts(state)

    @property
    @override
    def rewrites_tables(self) -> bool:
        return self._inner.rewrites_tables

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
            worker, "configured_updater", lambda *arguments: Meddled(configured_updater(*arguments), before)
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


async def until_updated(database: Database, number: int, status: PeriodStatus = PeriodStatus.UPDATED) -> None:
    async with asyncio.timeout(60):
        while True:
            async with database.read() as session:
                period = await session.periods.get(number)
            if period is not None and period.status == status:
                return
            assert period is None or period.status != PeriodStatus.QUARANTINED, period.error
            await asyncio.sleep(0.02)


async def update_interrupted_often(b: Bench, number: int, moment: str) -> int:
    """Update on a period; the n-th attempt is stopped at its n-th transaction, so that each gets a little further.

    Args:
        b: where.
        number: of the period.
        moment: `commit`, just before the transaction ends, or `committed`, just after.

    Returns:
        the number of attempts.
    """
    attempts, left = 0, 0

    def told(what: str) -> None:
        nonlocal left
        left -= what == moment
        if left == 0 and what == moment:
            raise Stopped

    watched = Watched(b.settings.postgres_dsn or "", told)
    async with closing(watched):
        for attempts in count(1):
            left = attempts
            with suppress(Stopped):
                await b.update(number, database=watched, artifacts=ArtifactStore(watched, b.redis))
                break
    return attempts
