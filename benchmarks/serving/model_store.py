"""Puts the measured model into a service of our own: its snapshot, and the clicks and features of its users.

The same use cases and repositories store them as in a real installation, so the service reads them as it always does.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import overload

import numpy as np

from benchmarks.services import OwnStores
from benchmarks.serving.fields import ServingFields
from benchmarks.serving.model import ServedModel
from benchmarks.serving.requests import ServingSizes, ServingWorkload, item_id, user_id
from service.files import DigestedFile, create
from service.serving.encode import Known, encode_model
from service.storage.artifacts.store import FILE_SUFFIX, ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EventBatch, Interaction
from service.storage.redis.connection import connect
from service.use_cases.bootstrap import ensure_prior

PRIOR_CTR = 0.5
LOG_BATCH = 5_000
"""Clicks stored in one transaction."""
FIRST_CLICK = datetime(2026, 1, 1, tzinfo=UTC)


class _Ids(Sequence[str]):
    """The ids of rows 1 to `count`, each made when it is read: a list of ten million takes most of a gigabyte."""

    def __init__(self, name: Callable[[int], str], count: int) -> None:
        self._name, self._rows = name, range(1, count + 1)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return map(self._name, self._rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        rows = self._rows[place]
        return self._name(rows) if isinstance(rows, int) else [*map(self._name, rows)]


class Snapshots:
    """Makes the serving snapshots of models with the same ids.

    Args:
        sizes: rows of the models' tables.
        folder: the files are written into a folder in it.
    """

    def __init__(self, sizes: ServingSizes, folder: Path) -> None:
        self._folder = folder / "made"
        self._users = Known(_Ids(user_id, sizes.users), np.arange(1, sizes.users + 1))
        self._items = Known(_Ids(item_id, sizes.items), np.arange(1, sizes.items + 1))

    def make(self, model: ServedModel) -> DigestedFile:
        """Write the snapshot of a model."""
        known = None if model.fields is None else model.fields.known()
        with create(self._folder, FILE_SUFFIX) as file:
            encode_model(file, model.shape, model.params, self._users, self._items, None, model.statistics, known)
        return file


@dataclass(frozen=True)
class StoredSnapshot:
    """A snapshot in Postgres, ready to be published."""

    digest: str
    file: Path | None
    """Its file, where a worker of this host made it: publishing it leaves a copy to the api processes."""


def store(stores: OwnStores, snapshot: DigestedFile, *, here: bool = False) -> StoredSnapshot:
    """Store a snapshot as a worker would.

    Args:
        stores: of the service.
        snapshot: its file is removed, or kept where `here`.
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
    return StoredSnapshot(digest, snapshot.path if here else None)


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
