"""Compaction: layers of the training state are merged into a new base, in the background of the worker's updates.

The new base is noted beside the state of the version that it was made from. The next version that is published names it
in place of the layers. An update that is under way meanwhile goes on with the layers.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from asmg.layers import MergedTensor, is_layered, merger
from service.files import DigestedFile
from service.serving.tensor_file import Blocks, write_tensors
from service.storage.artifacts.state_files import StateFiles
from service.storage.postgres.database import Lock
from service.storage.postgres.repositories import AliasName
from service.tasks import end_tasks, start_alone
from service.use_cases.update.checkpoints import layers_of
from service.use_cases.update.context import UpdateContext, head_version

__all__ = ["COMPACTED", "Compaction", "compact", "with_compaction"]

logger = logging.getLogger(__name__)

COMPACTED = "compacted"
"""Key of a version's state: bases that take the place of layers, as a list of `replaces` (digests) and `by`."""

KEPT_LAYERS = 8
"""The newest layers, which are not merged: older models of the sequence are the layers without the newest ones."""

MAX_LAYERS = 48
"""Number of layers from which on they are merged: a read looks into each of them."""

LAYERS_SHARE = 0.5
"""Bytes of the layers, as a share of those of their base, from which on they are merged. So merging writes at most
1 / LAYERS_SHARE times what the layers have."""


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
        try:
            await compact(self._context, self._beat)
        except Exception as error:  # the layers serve as well
            logger.warning("layers are not merged yet: %s", error, exc_info=error)

    def _beat(self) -> None:
        if self._stopped:
            raise asyncio.CancelledError  # ends the thread, which the process would wait for otherwise


async def compact(
    context: UpdateContext, beat: Callable[[], None] = lambda: None, *, most: int = MAX_LAYERS
) -> list[dict[str, Any]]:
    """Merge the layers of the head's training state that are due, and note the new bases.

    Args:
        context: dependencies.
        beat: called after each block of rows, from a thread; what it raises ends the work.
        most: number of layers of a part from which on they are merged.

    Returns:
        what was noted.
    """
    async with context.database.read() as session:
        alias = await session.models.alias(AliasName.HEAD)
        head = None if alias is None else await session.models.get(alias.version)
    if head is None or head.state.get(COMPACTED):
        return []
    files, noted = StateFiles(context.artifacts, context.settings.state_dir), []
    for name, value in head.state.get("parts", {}).items():
        layers = layers_of(value)[:-KEPT_LAYERS]
        if not is_layered(name) or name.startswith("model.") or not await _is_due(files, layers, most):
            continue
        digest = await files.write(await _writer(files, layers, beat), "base")
        noted.append({"replaces": layers, "by": digest})
        logger.info("version %d: %d layers of %s are merged", head.version, len(layers) - 1, name)
    if noted:
        async with context.database.unit_of_work() as work:
            await work.lock_exclusive(Lock.MODELS)
            # A version that was published meanwhile has the same layers, unless the sequence was changed.
            await work.models.note_compaction((await head_version(work)).version, noted)
            await work.commit()
    return noted


async def _is_due(files: StateFiles, layers: Sequence[str], most: int) -> bool:
    if len(layers) < 2:
        return False
    sizes = [sum(t.nbytes for t in (await files.open(digest)).tensors.values()) for digest in layers]
    return len(layers) >= most or (len(layers) > KEPT_LAYERS and sum(sizes[1:]) >= LAYERS_SHARE * sizes[0])


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
    """A version's state, or a value in it, with new bases in place of the layers that they were made of."""
    if isinstance(state, Mapping):
        return {name: with_compaction(value, compacted) for name, value in state.items()}
    if not isinstance(state, (list, tuple)):
        return state
    for one in compacted:
        count = len(one["replaces"])
        if list(state[:count]) == list(one["replaces"]):
            return [one["by"], *state[count:]]
    return list(state)
