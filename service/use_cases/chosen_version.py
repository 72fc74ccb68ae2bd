"""Model versions that a caller chooses to score with, beside the one that is served: to compare them.

Each api process loads the snapshot of such a version when it is first asked for and keeps the last few.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path

from service.errors import ArtifactError, ArtifactUnreadable, ModelNotFound, ModelPruned
from service.files import keep_newest
from service.serving.loading import load_snapshot
from service.serving.snapshot import Snapshot
from service.serving.tensor_file import PAUSE_SECONDS
from service.storage.artifacts.store import FILE_SUFFIX, ArtifactStore
from service.storage.postgres.database import Database, ReadSession, UnitOfWork
from service.storage.postgres.repositories import ModelVersion
from service.use_cases.status import MAX_NUMBER

__all__ = ["MOST_CHOSEN", "ChosenVersions", "with_snapshot"]

MOST_CHOSEN = 2
"""Snapshots of chosen versions that a process keeps: enough to compare two, and each may be as large as the one that is
served."""


class ChosenVersions:
    """The snapshots of the versions that were chosen last, at most `MOST_CHOSEN`.

    One is loaded at a time, so at most one more is in memory, beside those with which requests still score.

    Args:
        database: knows the versions.
        artifacts: has their files.
        served: the snapshots that this process serves, whose pages are shared.
        folder: of the files, beside those of what is served, so that neither removes the other's.
    """

    def __init__(
        self, database: Database, artifacts: ArtifactStore, served: Callable[[], Collection[Snapshot]], folder: Path
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._served = served
        self._folder = folder
        self._loaded: OrderedDict[int, Snapshot] = OrderedDict()
        """By version, the one that was asked for last at the end."""
        self._loading = asyncio.Lock()

    async def snapshot(self, version: int) -> Snapshot:
        """The snapshot of a version, loaded unless it is there already. Its scores of the check questions are compared.

        Raises:
            ArtifactUnreadable: a file of it is missing or damaged.
            ModelNotFound: there is no such version.
            ModelPruned: it is too old: its snapshot was removed.
            NotReady: Postgres or the object store does not answer.
        """
        if (found := self.find(version)) is not None:
            return found
        async with self._loading:
            if (found := self.find(version)) is not None:  # loaded while this call waited
                return found
            async with self._database.read() as session:
                model = await with_snapshot(session, version)
            snapshot = await self._load(model)
            self._loaded[version] = snapshot
            old = [self._loaded.popitem(last=False)[1] for _ in range(len(self._loaded) - MOST_CHOSEN)]
            for each in old:
                shared = {pages for kept in (*self._loaded.values(), *self._served()) for pages in kept.pages}
                await asyncio.to_thread(each.release_pages, shared)
            return snapshot

    def find(self, version: int) -> Snapshot | None:
        """The snapshot of a version if it is in memory."""
        for snapshot in self._served():
            if snapshot.version == version:
                return snapshot
        if version in self._loaded:
            self._loaded.move_to_end(version)
        return self._loaded.get(version)

    async def _load(self, model: ModelVersion) -> Snapshot:
        files, version = model.snapshot_files, model.version
        digest = files[0]
        try:
            paths = []
            for digest in files:
                paths.append(await self._artifacts.fetch_file(digest, self._folder))
            snapshot = await asyncio.to_thread(
                load_snapshot,
                paths,
                version,
                model.period,
                loaded=(*self._served(), *self._loaded.values()),
                pause_seconds=PAUSE_SECONDS,
            )
        except (ArtifactError, ValueError, OSError) as error:
            await asyncio.to_thread(keep_newest, self._folder, FILE_SUFFIX, ())
            raise ArtifactUnreadable(version, "serving snapshot", digest, str(error)) from error
        await asyncio.to_thread(keep_newest, self._folder, FILE_SUFFIX, files)
        return snapshot


async def with_snapshot(session: ReadSession | UnitOfWork, version: int) -> ModelVersion:
    """A version whose serving snapshot is stored.

    Raises:
        ModelNotFound: there is no such version.
        ModelPruned: its snapshot was removed.
    """
    model = await session.models.get(version) if 0 <= version <= MAX_NUMBER else None
    if model is None:
        raise ModelNotFound(version)
    if model.serving_digest is None:
        raise ModelPruned(version, "serving snapshot")
    return model
