"""Puts the measured model into a service of our own: its snapshot, and the clicks and features of its users.

The same use cases and repositories store them as in a real installation, so the service reads them as it always does.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.services import OwnStores
from benchmarks.serving.deltas import some_rows
from benchmarks.serving.fields import ServingFields
from benchmarks.serving.model import ServedModel
from benchmarks.serving.requests import ServingSizes, ServingWorkload, item_id, user_id
from service.files import DigestedFile, create
from service.serving.encode import Known, TrainedModel, encode_base, encode_delta
from service.serving.id_hashes import hash_ids
from service.storage.artifacts.store import FILE_SUFFIX, ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EventBatch, Interaction
from service.storage.redis.connection import connect
from service.use_cases.bootstrap import ensure_prior

PRIOR_CTR = 0.5
LOG_BATCH = 5_000
"""Clicks stored in one transaction."""
FIRST_CLICK = datetime(2026, 1, 1, tzinfo=UTC)


HASHED_TOGETHER = 2**20
"""Ids that are in memory as text at a time: ten million take most of a gigabyte."""


def known_rows(name: Callable[[int], str], count: int) -> Known:
    """The ids of rows 1 to `count`."""
    blocks = [range(start, min(start + HASHED_TOGETHER, count + 1)) for start in range(1, count + 1, HASHED_TOGETHER)]
    hashes = [hash_ids([*map(name, block)]) for block in blocks]
    return Known(np.concatenate([np.empty(0, np.uint64), *hashes]), np.arange(1, count + 1))


class Snapshots:
    """Makes the serving snapshots of models with the same ids.

    Args:
        sizes: rows of the models' tables.
        folder: the files are written into a folder in it.
    """

    def __init__(self, sizes: ServingSizes, folder: Path) -> None:
        self._folder = folder / "made"
        self._users = known_rows(user_id, sizes.users)
        self._items = known_rows(item_id, sizes.items)

    def make(self, model: ServedModel) -> DigestedFile:
        """Write the snapshot of a model."""
        with create(self._folder, FILE_SUFFIX) as file:
            encode_base(file, self._trained(model))
        return file

    def make_delta(self, model: ServedModel, changed: Mapping[str, NDArray[np.int64]]) -> DigestedFile:
        """Write a delta with some rows of a model.

        Args:
            model: the model.
            changed: "user" and "item" → rows, int64 [n], distinct and ≥ 1.
        """
        with create(self._folder, FILE_SUFFIX) as file:
            encode_delta(file, some_rows(self._trained(model), changed))
        return file

    def _trained(self, model: ServedModel) -> TrainedModel:
        return TrainedModel(
            model=model.shape,
            params=model.params,
            users=self._users,
            items=self._items,
            statistics=model.statistics,
            fields=None if model.fields is None else model.fields.known(),
        )


@dataclass(frozen=True)
class StoredSnapshot:
    """A snapshot in Postgres, ready to be published."""

    digests: tuple[str, ...]
    """Of its files, the base first."""
    files: tuple[Path, ...]
    """These, where a worker of this host made them: publishing leaves copies to the api processes. Else none."""

    def __add__(self, delta: "StoredSnapshot") -> "StoredSnapshot":
        return StoredSnapshot(self.digests + delta.digests, self.files + delta.files)


def store(stores: OwnStores, snapshot: DigestedFile, *, here: bool = False) -> StoredSnapshot:
    """Store a base or a delta as a worker would.

    Args:
        stores: of the service.
        snapshot: the file is removed, or kept where `here`.
        here: as a worker on this host; as one on another host, the api processes have to fetch the snapshot.
    """

    async def put(database: Database) -> str:
        redis = connect(stores.redis_url)
        try:
            artifacts = ArtifactStore(database, redis)
            # Otherwise the first api process would make one, and version 0 the champion.
            await ensure_prior(database, artifacts, PRIOR_CTR)
            return await artifacts.put_file(snapshot, "serving")
        finally:
            await redis.aclose()

    assert snapshot.path is not None
    digest = stores.run(put)
    if not here:
        snapshot.path.unlink()
    return StoredSnapshot((digest,), (snapshot.path,) if here else ())


def remember(stores: OwnStores, workload: ServingWorkload, fields: ServingFields | None = None) -> None:
    """Store the clicks of all users in the log, and their features, so that the service finds them."""

    async def insert(database: Database) -> None:
        async with database.read() as session:
            period = (await session.periods.open()).number
        for batch in _batches(workload):
            async with database.unit_of_work() as work:
                await work.interactions.insert(period, EventBatch.of(batch))
                await work.commit()
        if fields is not None:
            async with database.unit_of_work() as work:
                await work.features.put("user", fields.versions(workload.users.tolist(), FIRST_CLICK))
                await work.commit()

    stores.run(insert)


def _batches(workload: ServingWorkload) -> Iterator[list[Interaction]]:
    """The clicks of all users, the newest of each user first."""
    batch: list[Interaction] = []
    for user, history in zip(workload.users.tolist(), workload.histories.tolist(), strict=True):
        for i, item in enumerate(history):
            at = FIRST_CLICK + timedelta(hours=len(history) - i)
            batch.append(Interaction(f"{user}-{i}", user_id(user), item_id(item), 1, at))
        if len(batch) >= LOG_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
