"""Compaction: files of many versions become one, in the background of the worker's updates.

Layers of the training state are merged, a few small ones into a larger one, or all with their base into a new base. The
new file is noted beside the state of the version that it was made from, and the next version that is published names it
in place of the layers. An update that is under way meanwhile goes on with the layers.

A serving snapshot whose deltas have grown is written as a base. The head then has that file, and the api processes load
it and serve the same version from it. A head that was published meanwhile keeps the deltas that it has added.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from asmg.layers import MergedTensor, is_layered, merger
from asmg.tensor_writer import Blocks, write_tensors
from service.files import DigestedFile
from service.storage.artifacts.state_files import StateFiles
from service.storage.postgres.database import Lock
from service.storage.postgres.repositories import AliasName, ModelVersion
from service.tasks import end_tasks, start_alone
from service.use_cases.update.checkpoints import Parts, layers_of
from service.use_cases.update.context import UpdateContext, head_version
from service.use_cases.update.snapshot import write_base

__all__ = ["COMPACTED", "Compaction", "compact", "due", "merge_layers", "with_compaction"]

logger = logging.getLogger(__name__)

COMPACTED = "compacted"
"""Key of a version's state: files that take the place of layers, as a list of `replaces` (digests) and `by`."""

KEPT_LAYERS = 8
"""The newest layers, which are not merged: older models of the sequence are the layers without the newest ones."""

MAX_LAYERS = 32
"""Number of other layers from which on some are merged: a read looks into each of them."""

GROWTH = 2.0
"""A merge takes an older layer in as well if it has at most so many times the bytes of the newer ones. So a row is
written again as often as the logarithm of the number of layers."""

LAYERS_SHARE = 0.5
"""Bytes of the layers, as a share of those of their base, from which on all are merged into a new base. The same holds
for the deltas of a snapshot."""

MAX_DELTAS = 200
"""Deltas of a snapshot from which on it is written as a base."""


class Compaction:
    """Merges what is due, one merge at a time.

    Args:
        context: dependencies.
    """

    def __init__(self, context: UpdateContext) -> None:
        self._context = context
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin, unless a merge is under way."""
        if self._task is None or self._task.done():
            self._task = start_alone(self._run(), name="merge layers")

    async def stop(self) -> None:
        """End it; a merge that is not finished leaves nothing."""
        self._stopped = True
        if self._task is not None:
            await end_tasks(self._task)

    async def _run(self) -> None:
        started = time.perf_counter()
        try:
            await compact(self._context, self._beat)
            self._context.metrics.note_compaction(time.perf_counter() - started)
        except Exception as error:  # the layers serve as well
            self._context.metrics.note_compaction(None)
            logger.warning("layers are not merged yet: %s", error, exc_info=error)

    def _beat(self) -> None:
        if self._stopped:
            raise asyncio.CancelledError  # ends the thread, which the process would wait for otherwise


async def compact(context: UpdateContext, beat: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Merge the layers of the head's training state that are due, and write its snapshot anew if that is due.

    Args:
        context: dependencies.
        beat: called after each block of rows, from a thread; what it raises ends the work.

    Returns:
        what was noted of layers: `replaces` and `by`.
    """
    async with context.database.read() as session:
        alias = await session.models.alias(AliasName.HEAD)
        head = None if alias is None else await session.models.get(alias.version)
    if head is None:
        return []
    files = StateFiles(context.artifacts, context.settings.state_dir)
    parts = {} if head.state.get(COMPACTED) else head.state.get("parts", {})
    noted = await merge_layers(files, parts, beat)
    if noted:
        logger.info("version %d: %d layers are merged", head.version, sum(len(each["replaces"]) for each in noted))
        async with context.database.unit_of_work() as work:
            await work.lock_exclusive(Lock.MODELS)
            # A version that was published meanwhile has the same layers, unless the sequence was changed.
            await work.models.note_compaction((await head_version(work)).version, noted)
            await work.commit()
    await _renew_snapshot(context, files, head, beat)
    return noted


async def merge_layers(files: StateFiles, parts: Parts, beat: Callable[[], None]) -> list[dict[str, Any]]:
    """Merge the layers of a training state that are due.

    Args:
        files: the artifacts.
        parts: of the state.
        beat: called after each block of rows, from a thread; what it raises ends the work.

    Returns:
        what takes the place of what: `replaces` and `by`.
    """
    noted = []
    for name, value in parts.items():
        if not is_layered(name) or name.startswith("model."):
            continue
        layers = layers_of(value)[:-KEPT_LAYERS]
        sizes = [sum(t.nbytes for t in (await files.open(digest)).tensors.values()) for digest in layers]
        if (span := due(sizes)) is not None:
            merged = layers[span.start : span.stop]
            noted.append({"replaces": merged, "by": await files.write(await _writer(files, merged, beat), "layers")})
    return noted


def due(sizes: Sequence[int]) -> range | None:
    """Which of a base and its layers are to be merged; None for none yet.

    Args:
        sizes: bytes of the base and of each layer, oldest first, without the newest `KEPT_LAYERS`.
    """
    count, layers = len(sizes), sum(sizes[1:])
    if count > KEPT_LAYERS and layers >= LAYERS_SHARE * sizes[0]:
        return range(count)
    if count <= MAX_LAYERS:
        return None
    start, together = count - 1, sizes[-1]
    while start > 1 and sizes[start - 1] <= GROWTH * together:
        start -= 1
        together += sizes[start]
    return range(start, count) if count - start > 1 else range(count - 2, count)


async def _renew_snapshot(
    context: UpdateContext, files: StateFiles, head: ModelVersion, beat: Callable[[], None]
) -> None:
    """Write the snapshot of the head as a base, if its deltas have grown."""
    replaced, deltas = head.snapshot_files, len(head.snapshot_files) - 1
    if deltas < 1 or "serving" not in head.state:
        return
    async with context.database.read() as session:
        sizes = [(await session.artifacts.find(digest)).size for digest in replaced]
    if deltas < MAX_DELTAS and (deltas < KEPT_LAYERS or sum(sizes[1:]) < LAYERS_SHARE * sizes[0]):
        return
    digest = await write_base(context, files, head.state, beat=beat)
    async with context.database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        now, unused = await head_version(work), {}
        if now.snapshot_files[: len(replaced)] == replaced:
            await work.models.renew_snapshot(now.version, [digest, *now.snapshot_files[len(replaced) :]])
            logger.info("version %d: its snapshot has one file in place of %d", now.version, len(replaced))
        else:  # the sequence was changed
            unused = await work.artifacts.delete([digest])
        await work.commit()
    await context.artifacts.remove_objects([key for key in unused.values() if key is not None])
    await context.notices.publish_swap()


async def _writer(files: StateFiles, layers: Sequence[str], beat: Callable[[], None]) -> Callable[[DigestedFile], None]:
    merged = merger([await files.open(digest) for digest in layers])

    def blocks(tensor: MergedTensor) -> Iterator[NDArray[Any]]:
        for block in tensor.blocks():
            yield block
            beat()

    def write(file: DigestedFile) -> None:
        tensors = {name: Blocks(t.dtype, t.shape, blocks(t)) for name, t in merged.tensors.items()}
        write_tensors(file, merged.header, tensors)

    return write


def with_compaction(state: Any, compacted: Sequence[Mapping[str, Any]]) -> Any:
    """A version's state, or a value in it, with merged layers in place of those that they were made of."""
    if isinstance(state, Mapping):
        return {name: with_compaction(value, compacted) for name, value in state.items()}
    if not isinstance(state, (list, tuple)):
        return state
    found = list(state)
    for one in compacted:
        old = list(one["replaces"])
        for start in range(len(found) - len(old) + 1):
            if found[start : start + len(old)] == old:
                found[start : start + len(old)] = [one["by"]]
                break
    return found
