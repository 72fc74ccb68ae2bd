"""Drives the period cycle for the tests: in process, on the real servers, with small streams."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from redis.asyncio import Redis
from sqlalchemy import select, text

from asmg.datasets.synthetic import DriftConfig, DriftPeriod, drift_stream
from asmg.statistics import Statistics
from asmg.updaters.base import Updater
from service.serving.loading import load_snapshot
from service.serving.snapshot import Snapshot
from service.settings import Settings
from service.storage.artifacts.objects import configured_objects
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres import tables
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AliasName, EventBatch, Interaction, ModelVersion
from service.storage.redis.connection import connect
from service.storage.redis.histories import HistoryStore
from service.storage.redis.notices import Notices
from service.use_cases.bootstrap import ensure_prior
from service.use_cases.catalogue import put_items
from service.use_cases.close_period import close_period
from service.use_cases.ingest import ingest
from service.use_cases.update.configuration import configured_updater
from service.use_cases.update.context import UpdateContext
from service.use_cases.update.pipeline import update_period
from service.use_cases.update.prepare import PreparedPeriod, prepared_period
from tests.conftest import Servers, create_database, drop_database
from tests.service.layers_support import whole_parts, whole_statistics

STREAM = DriftConfig(users=30, items=15, events=300, categories=4)
SEED = 1
HOUR_MS = 3_600_000
MODELS = ("baseline", "generated", "incremental", "previous")
"""The models that a period is scored with once there are enough versions."""
TRAINING = ("train_generator", "update_base", "generate", "count")
STAGES = ("resolve", "prepare", "score", "train_generator", "update_base", "generate", "count", "gate", "publish")


def updater_of(name: str) -> Updater[Any]:
    """The method of this name as the worker has it where nothing else is set."""
    return configured_updater(Settings(updater=name))


async def prepare_period(*args: Any, **options: Any) -> PreparedPeriod:
    """What `prepared_period` yields, when its rows have been written."""
    async with prepared_period(*args, **options) as prepared:
        return prepared


def periods(count: int, *, seed: int = 1, config: DriftConfig = STREAM) -> list[DriftPeriod]:
    """The first periods of a stream."""
    return list(islice(drift_stream(config, seed=seed), count))


def interactions(period: DriftPeriod, prefix: str = "") -> list[Interaction]:
    """A period's log as events; their ids ascend, so that the order of a batch is the order of the log."""
    rows = zip(period.user_ids, period.item_ids, period.labels.tolist(), period.timestamps_ms.tolist(), strict=True)
    return [
        Interaction(f"{prefix}{period.number}-{n:06}", user, item, label, moment(time))
        for n, (user, item, label, time) in enumerate(rows)
    ]


def moment(milliseconds: int) -> datetime:
    """Exactly that time: a float of seconds could be a microsecond off."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


@dataclass
class Bench:
    """The dependencies of an update, on real servers, and ways to log, close and update."""

    settings: Settings
    database: Database
    redis: Redis
    context: UpdateContext = field(init=False)

    def __post_init__(self) -> None:
        updater = configured_updater(self.settings)
        artifacts = ArtifactStore(
            self.database,
            self.redis,
            configured_objects(self.settings),
            to_postgres=self.settings.artifacts_to_postgres,
        )
        notices = Notices(self.redis)
        histories = HistoryStore(self.redis, self.database)
        self.context = UpdateContext(
            self.settings, self.database, artifacts, notices, updater, histories, self.settings.read_features()
        )

    async def log(self, period: DriftPeriod, *, close: bool = True) -> None:
        """Ingest one period's catalogue and log; seal it."""
        await put_items(self.database, period.new_items)
        await ingest(self.database, HistoryStore(self.redis, self.database), EventBatch.of(interactions(period)))
        if close:
            await self.close(period.number)

    async def close(self, number: int) -> None:
        """Seal a period."""
        await close_period(self.database, expected_period=number, idempotency_key=None, actor="test")

    async def update(self, number: int, **parts: Any) -> int:
        """Update on a sealed period; `parts` replace those of `context`."""
        return await update_period(replace(self.context, **parts), number)

    async def outcome(self) -> dict[str, Any]:
        """All that an update leaves behind, but for the moments at which it happened."""
        return await outcome(self.database)


@asynccontextmanager
async def bench(dsn: str, redis_url: str, folder: Path, **changes: Any) -> AsyncIterator[Bench]:
    """A bench on a migrated database, with version 0."""
    settings = Settings(postgres_dsn=dsn, redis_url=redis_url, data_dir=folder, **changes)
    database, redis = Database(dsn, pool_size=4), connect(redis_url)
    try:
        made = Bench(settings, database, redis)
        await ensure_prior(database, made.context.artifacts, settings.prior_ctr)
        yield made
    finally:
        await redis.aclose()
        await database.close()


async def seal_second_period(dsn: str, redis_url: str, folder: Path) -> None:
    """Make a database in which period 1 is updated and period 2 sealed."""
    async with bench(dsn, redis_url, folder) as b:
        first, second = periods(2, seed=SEED)
        await b.log(first)
        await b.update(1)
        await b.log(second)


async def outcome(database: Database) -> dict[str, Any]:
    """All that updates leave behind, but for the moments at which it happened."""
    async with database.read() as session:
        versions = await session.models.list(100)
        aliases = {name: await session.models.alias(name) for name in AliasName}
        logs = await session.periods.list(100)
        evaluations = await session.evaluations.list(1, 100)
        samples = await session.samples.newest(100)
        breakdowns = {log.number: await session.breakdowns.get(log.number) for log in logs}
    return {
        "versions": {
            v.version: {
                "period": v.period,
                "kind": str(v.kind),
                "parent": v.parent_version,
                "serving": v.serving_digest,
                "state": v.state,
                "scores": v.scores,
                "gate": v.gate,
            }
            for v in versions
        },
        "aliases": {str(name): alias and alias.version for name, alias in aliases.items()},
        "periods": {p.number: (str(p.status), p.version, p.attempts, p.error) for p in logs},
        "evaluations": evaluations,
        "breakdowns": breakdowns,
        "samples": {each.period: asdict(each) for each in samples},
    }


async def stored(database: Database) -> set[str]:
    """Digests of all artifacts."""
    async with database.read() as session:
        return set((await session.connection.execute(select(tables.artifacts.c.digest))).scalars())


async def statistics_of(b: Bench, outcome: dict[str, Any], version: int) -> Statistics:
    """Those of a version's training state."""
    return await whole_statistics(b.context.artifacts, outcome["versions"][version]["state"]["parts"]["statistics"])


def named(outcome: dict[str, Any]) -> set[str]:
    """Digests that the versions and samples of an outcome name."""
    texts = {text for v in outcome["versions"].values() for text in _strings([v["serving"], v["state"]])}
    texts |= set(_strings(outcome["samples"]))
    return {text for text in texts if re.fullmatch("[0-9a-f]{64}", text)}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


@contextmanager
def single_thread() -> Iterator[None]:
    """Torch as the worker has it; sums depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def copies(servers: Servers, template: str, numbers: Iterator[int]) -> Iterator[Callable[..., str]]:
    """A function that makes copies of a database and returns their names."""
    made: list[str] = []

    def copy(source: str = template) -> str:
        made.append(f"{template}_{next(numbers)}")
        create_database(servers, made[-1], source)
        return made[-1]

    try:
        yield copy
    finally:
        for name in made:
            drop_database(servers, name)


@dataclass(frozen=True)
class Prepared:
    """A database in which period 1 is updated and period 2 sealed, and what an uninterrupted update makes of it."""

    name: str
    outcome: dict[str, Any]


def shortened(period: DriftPeriod, size: int) -> DriftPeriod:
    """The first interactions of a period."""
    return replace(
        period,
        user_ids=period.user_ids[:size],
        item_ids=period.item_ids[:size],
        labels=period.labels[:size],
        timestamps_ms=period.timestamps_ms[:size],
    )


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.01)


async def scalar(database: Database, query: str, **values: object) -> Any:
    """The one value of a query."""
    async with database.read() as session:
        return await session.connection.scalar(text(query), values)


async def until_true(database: Database, query: str, **values: object) -> None:
    """Wait until the value of a query is true."""
    async with asyncio.timeout(60):
        while True:
            if await scalar(database, query, **values):
                return
            await asyncio.sleep(0.005)


async def snapshot_of(b: Bench, version: int, folder: Path) -> Snapshot:
    """The snapshot that a version serves."""
    async with b.database.read() as session:
        model = await session.models.get(version)
    assert model is not None
    return await open_snapshot(b.context.artifacts, model, folder / str(version))


async def open_snapshot(artifacts: ArtifactStore, model: ModelVersion, folder: Path) -> Snapshot:
    """The snapshot of a version from its files, with the compiled forward pass, which answers its check questions.

    Args:
        artifacts: hold the files.
        model: the version.
        folder: where the files are kept.
    """
    paths = [await artifacts.fetch_file(digest, folder) for digest in model.snapshot_files]
    loaded = load_snapshot(paths, model.version, model.period)
    snapshot = Snapshot.open(loaded.base, model.version, model.period, loaded.overlay)
    snapshot.check()
    return snapshot


async def parts_of(b: Bench, outcome: dict[str, Any], version: int) -> dict[str, dict[str, torch.Tensor]]:
    """Part of a version's training state → its tensors, with all rows of all tables."""
    parts = await whole_parts(b.context.artifacts, outcome["versions"][version]["state"]["parts"])
    return {name: dict(part.tensors) for name, part in parts.items()}
