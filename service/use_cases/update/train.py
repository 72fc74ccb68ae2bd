"""The training stages, which the update method names, and the checkpoints that stages read and write.

The state of the update method is stored in parts (base model, optimizer, hidden state, …), each an artifact named by
its digest. A stage's note holds the digests, so a note is all that the next stage, or another worker, needs.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, dump_data, load_data
from asmg.progressive import stage_rng
from service.storage.postgres.repositories import EntityKind
from service.use_cases.update.configuration import cannot_go_on
from service.use_cases.update.context import Progress, UpdateContext, UpdateStart

__all__ = ["Checkpoints", "TrainNote", "rows_of_nobody", "train"]

logger = logging.getLogger(__name__)

HOT_PARTS = ("hidden",)
"""Parts of the training state that Redis caches besides Postgres, as it does the serving snapshot."""


@dataclass(frozen=True)
class TrainNote:
    """Result of a training stage."""

    parts: Mapping[str, str]
    """The training state: name of a part → digest of its artifact."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"state": dict(self.parts)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], /) -> Self:
        """The inverse of `to_json`."""
        return cls(values["state"])


async def train(
    context: UpdateContext,
    checkpoints: "Checkpoints",
    start: UpdateStart,
    data_digest: str,
    stage: str,
    before: TrainNote | None,
    progress: Progress,
) -> TrainNote:
    """Run one stage of the update method.

    Args:
        context: holds the method.
        checkpoints: of this update.
        start: names the period, which the stage's randomness follows from.
        data_digest: the prepared period.
        stage: one of the method's `stages`.
        before: the note of the stage before; None for the first, which continues the state of the head.
        progress: told of each step.
    """
    rng = stage_rng(context.settings.seed, start.period, stage)
    state, data = (
        await checkpoints.read_state(before.parts if before else None),
        await checkpoints.read_data(data_digest),
    )
    trained = await asyncio.to_thread(context.team.run_stage, stage, state, data, rng=rng, progress=progress)
    return TrainNote(await checkpoints.write_state(trained))


class Checkpoints:
    """The prepared period and the training states of one update, as artifacts.

    The newest of each stays in memory under its digests, so that no stage reads back what the stage before has written.

    Args:
        context: dependencies.
        start: names the head, whose training state the first stages read.
    """

    def __init__(self, context: UpdateContext, start: UpdateStart) -> None:
        self._context, self._start = context, start
        self._data: tuple[str, PeriodData] | None = None
        self._state: tuple[Mapping[str, str] | None, Any] | None = None
        self._written: dict[str, tuple[Checkpoint, str]] = {}

    async def write(self, checkpoint: Checkpoint, *, hot: bool = False) -> str:
        """Store a checkpoint, `hot` ones in Redis too, and return its digest."""
        data = await asyncio.to_thread(checkpoint.to_bytes)
        return await self._context.artifacts.put(data, checkpoint.kind, hot=hot)

    async def read(self, digest: str, kind: str) -> Checkpoint:
        """The checkpoint with this digest, which must be one of this kind."""
        data = await self._context.artifacts.get(digest)
        return await asyncio.to_thread(Checkpoint.from_bytes, data, kind)

    async def write_data(self, data: PeriodData) -> str:
        """Store the prepared period and return its digest."""
        digest = await self.write(dump_data(data))
        self._data = digest, data
        return digest

    async def read_data(self, digest: str) -> PeriodData:
        """The prepared period with this digest."""
        if self._data is None or self._data[0] != digest:
            checkpoint = await self.read(digest, "period-data")
            self._data = digest, await asyncio.to_thread(load_data, checkpoint)
        return self._data[1]

    async def write_state(self, state: Any) -> dict[str, str]:
        """Store a training state and return the digests of its parts.

        A part that is tensor for tensor the one stored last, not only equal to it, is not stored again.
        """
        parts: dict[str, str] = {}
        for name, part in (await asyncio.to_thread(self._context.updater.dump, state)).items():
            written = self._written.get(name)
            if written is None or not written[0].same_as(part):
                written = self._written[name] = part, await self.write(part, hot=name in HOT_PARTS)
            parts[name] = written[1]
        self._state = parts, state
        return parts

    async def read_state(self, parts: Mapping[str, str] | None) -> Any:
        """The training state with these parts; with None the head's, as the first stages of an update read it.

        In the head's state the rows that have changed hands since it was made belong to nobody yet.

        Raises:
            ConfigurationError: the update method cannot continue the head's state.
        """
        if self._state is None or self._state[0] != parts:
            self._state = parts, await (self._read_head() if parts is None else self._restore(parts))
        return self._state[1]

    async def _read_head(self) -> Any:
        updater, head = self._context.updater, self._start.head
        parts = head.state.get("parts", {})
        if not parts:  # nothing was learned yet
            return updater.initial(stage_rng(self._context.settings.seed, 0, "initial"))
        state = await self._restore(parts, of_head=True)
        rows = await rows_of_nobody(self._context, head.state.get("allocations", {}))
        return await asyncio.to_thread(updater.forgotten, state, rows)

    async def _restore(self, parts: Mapping[str, str], *, of_head: bool = False) -> Any:
        blobs = {name: await self._context.artifacts.get(digest) for name, digest in parts.items()}
        checkpoints = await asyncio.to_thread(_parsed, blobs)
        try:
            return await asyncio.to_thread(self._load, checkpoints)
        except (ValueError, KeyError) as error:
            if not of_head:
                raise
            raise cannot_go_on(self._context.updater, self._start.head, _header(checkpoints), error) from error

    def _load(self, checkpoints: Mapping[str, Checkpoint]) -> Any:
        """The state in these checkpoints.

        Where another method made them, or this one before its model had fields, a state made from their base model.
        """
        updater, period = self._context.updater, self._start.period
        header = _header(checkpoints)
        owner = header.get("updater")
        if owner is None or updater.loads(header):
            return updater.load(checkpoints)
        logger.warning("period %d: %s goes on from the base model that %s left", period, updater.name, owner)
        if updater.base.only_lacks_fields(header.get("model")):
            logger.warning("period %d: that base model was made before it had fields, and gets them", period)
        return updater.adopted(checkpoints, rng=stage_rng(self._context.settings.seed, period, "adopted"))


def _parsed(blobs: Mapping[str, bytes]) -> dict[str, Checkpoint]:
    return {name: Checkpoint.from_bytes(data) for name, data in blobs.items()}


def _header(checkpoints: Mapping[str, Checkpoint]) -> Mapping[str, Any]:
    """Metadata of the part that says which method made the state."""
    return checkpoints["updater"].meta if "updater" in checkpoints else {}


async def rows_of_nobody(context: UpdateContext, allocations: Mapping[str, int]) -> dict[str, Tensor]:
    """Rows whose embeddings in an older model belong to nobody now: free ones, and those given to other ids since.

    Args:
        context: holds the rows.
        allocations: kind → number of the latest allocation of rows that the model knows.

    Returns:
        name of an embedding table → rows.
    """
    async with context.database.read() as session:
        return {
            str(kind): torch.from_numpy(await session.entities.rows_of_nobody(kind, allocations.get(kind, 0)))
            for kind in EntityKind
        }
