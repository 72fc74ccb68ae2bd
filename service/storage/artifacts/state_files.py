"""Training states as files on the worker's host, mapped into memory.

An artifact of a training state is a file in a folder of the host, and a blob in the store. The worker writes both. It
fetches what another host has written, and reads of a large file only the rows that an update needs.

What stages of an update hand to each other is a file alone until a version is about to name it. On another host the
update makes it again.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Self

from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.layers import Stack, StatisticsStack, open_stack
from service.files import DigestedFile, KnownFile, create, digest_of, find
from service.storage.artifacts.store import FILE_SUFFIX, ArtifactStore
from service.tasks import end_tasks, start_for_caller

__all__ = ["StateFiles"]


class StateFiles:
    """Checkpoints by their digests.

    Whoever calls `keep` enters it as an asynchronous context manager: it has written all files when the block has
    ended, or has ended to write them where the block failed.

    Args:
        store: holds them durably.
        folder: of the files.
    """

    def __init__(self, store: ArtifactStore, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._open: dict[str, Checkpoint] = {}
        self._paths: dict[str, Path] = {}
        self._writing: dict[str, asyncio.Future[None]] = {}
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, error: type[BaseException] | None, *_: Any) -> None:
        try:
            if error is None:
                await self.written()
        finally:
            await end_tasks(*self._writing.values())

    async def put(self, checkpoint: Checkpoint, *, hot: bool = False) -> str:
        """Store a checkpoint durably, `hot` ones in Redis too, and return its digest."""
        file = await self._create(checkpoint.write)
        assert file.path is not None, "it is complete"
        self._open[file.digest], self._paths[file.digest] = checkpoint, file.path
        return await self._store.put_file(file, checkpoint.kind, hot=hot)

    async def keep(self, checkpoint: Checkpoint) -> str:
        """Write a checkpoint as a file of this host alone, and return its digest before that is done.

        The tensors may not change any more. `written` waits for the file.
        """
        digest = await asyncio.to_thread(digest_of, checkpoint.write)
        if digest not in self._open:
            self._open[digest] = checkpoint
            self._writing[digest] = start_for_caller(self._write_kept(checkpoint, digest))
        return digest

    async def _write_kept(self, checkpoint: Checkpoint, digest: str) -> None:
        async with self._turn:  # one at a time: beside it, the next stage computes
            file = await self._create(checkpoint.write)
        if file.path is None or file.digest != digest:
            raise CheckpointError(f"checkpoint {digest}: its tensors changed while they were written")
        self._paths[digest] = file.path

    @property
    def writing(self) -> list[asyncio.Future[None]]:
        """What `keep` has begun and is not done."""
        return [writing for writing in self._writing.values() if not writing.done()]

    async def written(self, *digests: str) -> None:
        """Wait until the files of these checkpoints, by default of all that `keep` was given, are complete."""
        for digest in digests or tuple(self._writing):
            if digest in self._writing:
                await self._writing[digest]

    async def store(self, digest: str, *, hot: bool = False) -> None:
        """Store durably, `hot` ones in Redis too, what `keep` has written, now or in another process of this host."""
        await self.written(digest)
        checkpoint, path = await self.open(digest), self._paths[digest]
        await self._store.put_file(KnownFile(digest, path, path.stat().st_size), checkpoint.kind, hot=hot)

    async def write(self, content: Callable[[DigestedFile], None], kind: str, *, hot: bool = False) -> str:
        """Store what `content` writes, in a thread, into a file; return its digest."""
        return await self._store.put_file(await self._create(content), kind, hot=hot)

    async def _create(self, content: Callable[[DigestedFile], None]) -> DigestedFile:
        def create_file() -> DigestedFile:
            with create(self._folder, FILE_SUFFIX) as file:
                content(file)
            return file

        return await asyncio.to_thread(create_file)

    async def has(self, digest: str) -> bool:
        """Whether this host or the store has an artifact."""
        if await asyncio.to_thread(find, self._folder, digest, FILE_SUFFIX):
            return True
        return await self._store.is_stored(digest)

    async def open(self, digest: str, kind: str | None = None) -> Checkpoint:
        """The checkpoint with this digest.

        Args:
            digest: of an artifact.
            kind: the expected kind; None for any.

        Raises:
            ArtifactMissing, ArtifactCorrupt: there is none, or its bytes are damaged.
            CheckpointError: it is no checkpoint of this kind.
        """
        if digest not in self._open:
            self._paths[digest] = path = await self._store.fetch_file(digest, self._folder)
            self._open[digest] = await asyncio.to_thread(Checkpoint.open, path)
        found = self._open[digest]
        if kind is not None and found.kind != kind:
            raise CheckpointError(f"checkpoint: expected kind {kind!r}; received {found.kind!r}")
        return found

    def path(self, digest: str) -> Path:
        """The file of a checkpoint that was opened or kept."""
        return self._paths[digest]

    async def stack(self, digests: Sequence[str]) -> Stack | StatisticsStack:
        """The tables of a part.

        Args:
            digests: of its base and layers, oldest first.
        """
        return open_stack([await self.open(digest) for digest in digests])

    def remove_others(self, keep: Collection[str] = ()) -> None:
        """Remove the files that were neither read nor written through this object; they can be fetched again.

        Args:
            keep: digests of files that are not removed all the same.
        """
        for path in self._folder.glob(f"*{FILE_SUFFIX}"):
            if (digest := path.name.partition(".")[0]) not in self._open and digest not in keep:
                path.unlink(missing_ok=True)
