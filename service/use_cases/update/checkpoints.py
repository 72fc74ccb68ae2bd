"""The training state and the prepared period of one update: read as an excerpt, written as layers.

What one stage hands to the next is on the worker's host alone until a version is about to name it: it would cost the
store, its WAL and its archive as much as what stays.

The state of the update method is stored in parts (base model, optimizer, hidden state, …). A part with tables is a
list of artifacts, a base and layers of changed rows (`asmg.layers`); any other part is one artifact, or a whole and
differences. An update reads only the rows that its logs touch, and works on this small state.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, dump_data, load_data
from asmg.layers import (
    MOST_DIFFERENCES,
    TAKEN_UP,
    PartExcerpt,
    Selection,
    changed_part,
    data_of_log,
    difference,
    excerpt_part,
    excerpt_state,
    is_base,
    is_layered,
    is_log,
    is_sum,
    summed,
    with_data,
)
from asmg.progressive import stage_rng
from service.storage.artifacts.state_files import StateFiles
from service.storage.postgres.repositories import EntityKind, digests_in
from service.use_cases.update.configuration import cannot_go_on
from service.use_cases.update.context import UpdateContext, UpdateStart
from service.use_cases.update.period_data import NewIds

__all__ = ["Checkpoints", "Parts", "layers_of", "rows_of_nobody"]

logger = logging.getLogger(__name__)

Parts = Mapping[str, str | Sequence[str]]
"""Name of a part → digest of its artifact, or the digests of its base and layers, oldest first."""

HOT_PARTS = ("hidden",)
"""Parts of the training state that Redis caches besides Postgres, as it does the serving snapshot."""


class Checkpoints:
    """What one update reads and writes.

    The newest state stays in memory under its digests, so that no stage reads back what the stage before has written.

    Args:
        context: dependencies.
        start: names the head, whose training state the first stages read.
    """

    def __init__(self, context: UpdateContext, start: UpdateStart) -> None:
        self._context, self._start = context, start
        self.new_ids: NewIds | None = None
        """The ids that `prepare` has given rows; None where an earlier attempt did."""
        self._files = StateFiles(context.artifacts, context.settings.state_dir)
        self._data: tuple[str, PeriodData] | None = None
        self._state: tuple[Parts | None, Any] | None = None
        self._written: dict[str, tuple[Checkpoint, str | Sequence[str]]] = {}
        self._selection: Selection | None = None
        self._values: Parts = {}
        self._taken_up: dict[str, NDArray[np.int64]] = {}
        self._head: dict[str, PartExcerpt] = {}
        self._begun: Mapping[str, Checkpoint] | None = None  # the head's parts without the rows that changed hands
        self._gone: dict[str, NDArray[np.int64]] = {}
        self._logs: list[tuple[PeriodData, str]] = []

    @property
    def files(self) -> StateFiles:
        """The artifacts of training states on this host."""
        return self._files

    @property
    def selection(self) -> Selection:
        """The rows that this update reads; call `select` or `read_data` first."""
        assert self._selection is not None, "the period is read first"
        return self._selection

    def is_new(self, table: str, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the rows, numbered as in the whole table, the head has never learned anything about."""
        known = self._head["base"].sizes.get(table, 0) if "base" in self._head else 0
        return np.asarray((rows >= known) | np.isin(rows, self._gone.get(table, [])))

    async def select(self, data: PeriodData, gone: Mapping[str, NDArray[np.int64]]) -> None:
        """Choose the rows that the update reads: those of the period, and of the logs in the head's training state.

        Args:
            data: the period, in rows of whole tables.
            gone: see `rows_of_nobody`.
        """
        state = self._start.head.state
        parts: Parts = state.get("parts", {})
        opened = {
            name: [await self._files.open(digest) for digest in layers_of(value)] for name, value in parts.items()
        }
        if parts:
            self._gone = dict(gone)
        everything = self._context.updater.rewrites_tables
        paths = {name: [self._files.path(digest) for digest in layers_of(value)] for name, value in parts.items()}
        read = partial(self._context.team.excerpt, paths)
        self._selection, self._head = await asyncio.to_thread(
            excerpt_state, opened, data, everything=everything, read=read
        )
        self._values = dict(parts)

    async def kept_items(self) -> NDArray[np.int64]:
        """The items of the logs in the head's training state, ascending."""
        parts: Parts = self._start.head.state.get("parts", {})
        logs = [load_data(data_of_log(await self._files.open(str(parts[name])))) for name in parts if is_log(name)]
        items = [tensor.numpy().astype(np.int64) for log in logs for tensor in (log.item, log.history)]
        return np.unique(np.concatenate([np.empty(0, np.int64), *items]))

    async def write_data(self, data: PeriodData, prepared: PeriodData, taken_up: NDArray[np.int64]) -> str:
        """Write the prepared period, and return its digest.

        Args:
            data: the period, in rows of whole tables.
            prepared: the same in rows of the excerpt, with the inputs that the method has added.
            taken_up: the items of which something new is known, ascending. The layer of the base model has them all, so
                that they are in the next snapshot as they are now.
        """
        fields = data.fields
        if fields is not None and prepared.fields is not None:
            fields = replace(fields, scale=prepared.fields.scale)
        whole = replace(data, numeric=prepared.numeric, nobody=prepared.nobody, fields=fields)
        stored = await asyncio.to_thread(dump_data, whole)
        stored = replace(stored, tensors={**stored.tensors, TAKEN_UP: torch.from_numpy(taken_up)})
        digest = await self._files.keep(stored)
        self._remember(digest, prepared, stored)
        return digest

    async def read_data(self, digest: str) -> PeriodData:
        """The prepared period with this digest, in rows of the excerpt."""
        if self._data is None or self._data[0] != digest:
            stored = await self._files.open(digest, "period-data")
            whole = load_data(data_of_log(stored))
            if self._selection is None:
                known = self._start.head.state.get("allocations", {})
                await self.select(whole, await rows_of_nobody(self._context, known))
            self._remember(digest, await asyncio.to_thread(self.selection.localised, whole), stored)
        assert self._data is not None
        return self._data[1]

    def _remember(self, digest: str, local: PeriodData, stored: Checkpoint) -> None:
        self._taken_up = {"item": stored.tensors[TAKEN_UP].numpy()}
        self._data = digest, local
        self._logs.append((local, digest))

    async def write_state(self, state: Any) -> dict[str, str | Sequence[str]]:
        """Write a training state to files of this host, and return the digests of its parts.

        A part that did not change since the head, or since the stage before, is not written again. Of a part with
        tables the rows that changed since the head are written.
        """
        parts: dict[str, str | Sequence[str]] = {}
        for name, part in (await asyncio.to_thread(self._context.updater.dump, state)).items():
            written = self._written.get(name)
            if written is None or not written[0].same_as(part):
                written = self._written[name] = part, await self._write_part(name, part)
            parts[name] = written[1]
        self._state = parts, state
        return parts

    async def store(self, parts: Parts) -> None:
        """Store a training state that `write_state` has written durably, for a version to name it."""
        stored = set(digests_in(self._start.head.state))
        for name, value in parts.items():
            for digest in layers_of(value):
                if digest not in stored:
                    await self._files.store(digest, hot=name in HOT_PARTS)
                    stored.add(digest)

    async def _write_part(self, name: str, part: Checkpoint) -> str | Sequence[str]:
        known = [other for other in _predecessors(name) if other in self._head]
        for other in known:
            # Where rows changed hands, a layer says so, or they would be read from the layers below.
            if not self._loses_rows(other) and await asyncio.to_thread(_equal, self._head[other].checkpoint, part):
                return self._values[other]
        if is_log(name):
            return await self._write_log(part)
        if is_sum(name) and name in known:
            return await self._write_difference(name, part)
        if not is_layered(name):
            return await self._files.keep(part)
        of = await self._continued(name, known, part)
        also = self._taken_up if name == "base" else None
        before = None if of is None else self._head[of]
        layer = await asyncio.to_thread(changed_part, before, part, self.selection, self._gone, also)
        below = [] if of is None or is_base(layer) else layers_of(self._values[of])
        return [*below, await self._files.keep(layer)]

    async def _write_difference(self, name: str, part: Checkpoint) -> Sequence[str]:
        below = layers_of(self._values[name])
        if len(below) > MOST_DIFFERENCES:
            return [await self._files.keep(part)]
        return [*below, await self._files.keep(await asyncio.to_thread(difference, self._head[name].checkpoint, part))]

    def _loses_rows(self, name: str) -> bool:
        """Whether a part of the head has rows that changed hands since."""
        return any((rows < self._head[name].sizes.get(table, 0)).any() for table, rows in self._gone.items())

    async def _continued(self, name: str, known: Sequence[str], part: Checkpoint) -> str | None:
        """Which of the known parts of the head a part continues: the one that it equals but for rows that changed
        hands, or else the one of its name. None for a new part.
        """
        if self._begun is None and known:
            await self._read_head()
        for other in known:
            if self._begun and other in self._begun and await asyncio.to_thread(_equal, self._begun[other], part):
                return other
        return name if name in known else next(iter(known), None)

    async def _write_log(self, part: Checkpoint) -> str:
        for log, digest in self._logs:
            if await asyncio.to_thread(_equal, dump_data(log), part):
                return digest
        whole = await asyncio.to_thread(lambda: dump_data(self.selection.restored(load_data(data_of_log(part)))))
        return await self._files.keep(with_data(part, whole))

    async def read_state(self, parts: Parts | None) -> Any:
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
        if not head.state.get("parts", {}):  # nothing was learned yet
            return updater.initial(stage_rng(self._context.settings.seed, 0, "initial"))
        checkpoints = {name: part.checkpoint for name, part in self._head.items()}
        try:
            state = await asyncio.to_thread(self._load, checkpoints)
        except (ValueError, KeyError) as error:
            raise cannot_go_on(updater, head, _header(checkpoints), error) from error
        state = await asyncio.to_thread(updater.forgotten, state, self._local_gone())
        self._begun = await asyncio.to_thread(updater.dump, state)
        return state

    def _local_gone(self) -> dict[str, torch.Tensor]:
        """The rows of the excerpt that belong to nobody any more."""
        rows = {str(kind): np.empty(0, np.int64) for kind in EntityKind} | self._gone
        universe = next((read.universe for read in self._head.values() if read.universe is not None), None)
        local = {}
        for name, gone in rows.items():
            known = self.selection.rows[name]
            if name == "item" and universe is not None:  # also those that are only neighbours of selected items
                known = universe
            local[name] = torch.from_numpy(np.flatnonzero(np.isin(known, gone)))
        return local

    async def _restore(self, parts: Parts) -> Any:
        """A state that an earlier attempt at this update has stored, after its selection was made again."""
        found = {}
        for name, value in parts.items():
            if is_layered(name):
                stack = await self._files.stack(layers_of(value))
                # What is learned from it is compared with the head's: their rows are of the same items.
                universe = self._head[name].universe if name in self._head else None
                found[name] = (await asyncio.to_thread(excerpt_part, stack, self.selection, universe)).checkpoint
                continue
            digests = layers_of(value)
            found[name] = part = await asyncio.to_thread(summed, [await self._files.open(each) for each in digests])
            if is_log(name):
                local = self.selection.localised(load_data(data_of_log(part)))
                self._logs.append((local, digests[0]))
                found[name] = with_data(part, dump_data(local))
        state = await asyncio.to_thread(self._load, found)
        # What the next stages leave unchanged keeps its digests: a row that was never stored is read as the cold row,
        # which the stages before may have changed.
        dump = await asyncio.to_thread(self._context.updater.dump, state)
        self._written = {name: (part, parts[name]) for name, part in dump.items() if name in parts}
        return state

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


def layers_of(value: str | Sequence[str]) -> list[str]:
    """The digests of a part, oldest first."""
    return [value] if isinstance(value, str) else list(value)


async def rows_of_nobody(context: UpdateContext, allocations: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    """Rows whose embeddings in an older model belong to nobody now: free ones, and those given to other ids since.

    Args:
        context: holds the rows.
        allocations: kind → number of the latest allocation of rows that the model knows.

    Returns:
        name of an embedding table → rows, ascending.
    """
    async with context.database.read() as session:
        return {str(kind): await session.entities.rows_of_nobody(kind, allocations.get(kind, 0)) for kind in EntityKind}


def _predecessors(name: str) -> tuple[str, ...]:
    """The parts of the head that a part may be equal to or continue, the likelier one first."""
    kind, _, age = name.partition(".")
    if kind == "model":
        return ("base" if age == "1" else f"model.{int(age) - 1}", name)
    if kind == "generated":  # of a method that goes on from another's base model
        return (name, "base")
    return (f"data.{int(age) - 1}", name) if kind == "data" and age != "0" else (name,)


def _equal(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether both have equal content."""
    if one.kind != other.kind or one.meta != other.meta or one.tensors.keys() != other.tensors.keys():
        return False
    return all(
        tensor.shape == other.tensors[name].shape and torch.equal(tensor, other.tensors[name])
        for name, tensor in one.tensors.items()
    )


def _header(checkpoints: Mapping[str, Checkpoint]) -> Mapping[str, Any]:
    """Metadata of the part that says which method made the state."""
    return checkpoints["updater"].meta if "updater" in checkpoints else {}
