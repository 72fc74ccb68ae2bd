"""Runs the training of an update method on all ranks.

Rank 0 calls a `Team` in place of the method. The others `follow`: each call reaches them as a message with the state,
the data and the random generator, and they do the same, so every rank has the same result. They keep it, so the state
is sent once a period. Tensors that all ranks have read together (`Team.excerpt`) are not sent.
"""

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, CheckpointError, dump_data, load_data
from asmg.layers import PartExcerpt, Selection, Stack, StatisticsStack, excerpt_parts, read_together
from asmg.ranks import ALONE, RankLost, Ranks
from asmg.training import Progress
from asmg.updaters.base import StateT, Updater

__all__ = ["Team"]

logger = logging.getLogger(__name__)


class Team(Generic[StateT]):
    """An update method on all ranks; in a single process it calls the method and nothing else.

    Args:
        updater: the method. Its execution has the same ranks.
        ranks: the processes.
    """

    def __init__(self, updater: Updater[StateT], ranks: Ranks = ALONE) -> None:
        self.updater, self.ranks = updater, ranks
        self._lock = threading.Lock()
        self._in_step = True
        self.state: StateT | None = None
        """The state of which all ranks have a copy; None in a single process."""
        self._data: PeriodData | None = None
        self._read: Mapping[str, Checkpoint] = {}  # on all ranks, until the state has been made of it

    def excerpt(
        self, files: Mapping[str, Sequence[Path]], stacks: Mapping[str, Stack | StatisticsStack], selection: Selection
    ) -> dict[str, PartExcerpt]:
        """As `asmg.layers.excerpt_parts`; every rank that has the files reads its share of the rows of the tables.

        Args:
            files: name of a part → the files of its base and layers, oldest first.
            stacks, selection: what is read of which parts.

        Raises:
            RankLost: the ranks have to be started again.
        """
        if self.ranks.size == 1:
            return excerpt_parts(stacks, selection)
        tables = {name: stack for name, stack in stacks.items() if isinstance(stack, Stack)}
        outlines = {name: stack.outline(selection) for name, stack in tables.items()}
        rows = {name: stack.wanted(selection) for name, stack in tables.items()}
        counts = {name: {table: len(wanted) for table, wanted in of.items()} for name, of in rows.items()}
        paths = {name: [str(path) for path in files[name]] for name in tables}
        selected = Checkpoint("rows", {}, {name: torch.from_numpy(known) for name, known in selection.rows.items()})
        with self._lock, self._step():
            header = {"call": "excerpt", "files": paths, "counts": counts}
            self._tell(header, [selected, *outlines.values()])
            self._read = read_together(self.ranks, outlines, rows, tables)
        found = {name: PartExcerpt(self._read[name], stack.sizes) for name, stack in tables.items()}
        return found | excerpt_parts({name: stacks[name] for name in stacks.keys() - tables.keys()}, selection)

    def run_stage(
        self, stage: str, state: StateT, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> StateT:
        """See `Updater.run_stage`.

        Raises:
            RankLost: the ranks have to be started again.
        """
        if stage in self.updater.alone:
            return self.updater.run_stage(stage, state, data, rng=rng, progress=progress)
        with self._call({"call": "run_stage", "stage": stage}, state, [data], rng):
            trained = self.updater.run_stage(stage, state, data, rng=rng, progress=progress)
            self.state = None if self.ranks.size == 1 else trained
            return trained

    def rehearse(
        self,
        state: StateT,
        data: PeriodData,
        held_out: PeriodData,
        *,
        rng: torch.Generator,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """See `Updater.rehearse`.

        Raises:
            RankLost: the ranks have to be started again.
        """
        with self._call({"call": "rehearse"}, state, [data, held_out], rng):
            return self.updater.rehearse(state, data, held_out, rng=rng, progress=progress)

    def end(self) -> None:
        """Let the other ranks return from `follow`. After a failed call they end by themselves."""
        with self._lock:
            if self._in_step:
                self.ranks.tell([json.dumps({"call": "end"}).encode()])

    def follow(self) -> None:
        """On a rank other than 0: do what rank 0 does, until it ends.

        Raises:
            RankLost: rank 0 or another rank was lost.
        """
        while True:
            header, *message = self.ranks.hear()
            call, parts = json.loads(header), iter(message)
            if call["call"] == "end":
                return
            try:
                self._do(call, parts)
            except RankLost:
                raise
            except Exception as error:
                # Rank 0 has the same error, or waits for this rank in vain and ends.
                logger.warning("%s failed on rank %d: %s", call["call"], self.ranks.rank, error)

    def _do(self, call: dict[str, Any], parts: Iterator[bytes]) -> None:
        if call["call"] == "excerpt":
            self._read = self._excerpt(call, [Checkpoint.from_bytes(part) for part in parts])
            return
        rng = torch.Generator()
        rng.set_state(torch.frombuffer(bytearray(next(parts)), dtype=torch.uint8))
        if call["state"] is not None:
            self.state = None  # frees the memory before the new one takes it
            sent = {name: Checkpoint.from_bytes(next(parts)) for name in call["state"]}
            self.state = self.updater.load({name: self._joined(name, part) for name, part in sent.items()})
            self._read = {}
        state, data = self.state, [load_data(Checkpoint.from_bytes(next(parts))) for _ in range(call["data"])]
        assert state is not None, "the first call sends a state"
        if call["call"] == "rehearse":
            self.updater.rehearse(state, data[0], data[1], rng=rng)
            return
        if data:
            (self._data,) = data
        assert self._data is not None, "the first stage sends the data"
        self.state = self.updater.run_stage(call["stage"], state, self._data, rng=rng)

    def _excerpt(self, call: dict[str, Any], parts: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
        """This rank's share in `excerpt`."""
        selected, outlines = parts[0].tensors, dict(zip(call["files"], parts[1:], strict=True))
        rows = {
            name: {table: selected[table][:count].numpy() for table, count in of.items()}
            for name, of in call["counts"].items()
        }
        try:
            stacks = {
                name: Stack([Checkpoint.open(Path(path)) for path in paths]) for name, paths in call["files"].items()
            }
        except (OSError, CheckpointError) as error:  # files that are missing are those of another host
            logger.info("rank %d reads no rows: %s", self.ranks.rank, error)
            stacks = None
        return read_together(self.ranks, outlines, rows, stacks)

    def _without(self, name: str, part: Checkpoint) -> Checkpoint:
        """A part without the tensors that all ranks have read."""
        read = self._read[name].tensors if name in self._read else {}
        known = [n for n, tensor in part.tensors.items() if read.get(n) is tensor]
        rest = {n: tensor for n, tensor in part.tensors.items() if n not in known}
        return replace(part, meta={"meta": part.meta, "read": known}, tensors=rest)

    def _joined(self, name: str, part: Checkpoint) -> Checkpoint:
        """The inverse of `_without`."""
        known = {n: self._read[name].tensors[n] for n in part.meta["read"]}
        return replace(part, meta=part.meta["meta"], tensors={**part.tensors, **known})

    @contextmanager
    def _step(self) -> Iterator[None]:
        """What the ranks do together; noted as broken off until it is done."""
        if not self._in_step:
            raise RankLost("ranks: expected them in step; received a call after one that was broken off")
        self._in_step = False
        yield
        self._in_step = True

    def _tell(self, header: dict[str, Any], checkpoints: Sequence[Checkpoint], *more: bytes) -> None:
        self.ranks.tell([json.dumps(header).encode(), *more, *(checkpoint.to_bytes() for checkpoint in checkpoints)])

    @contextmanager
    def _call(
        self, call: dict[str, Any], state: StateT, data: Sequence[PeriodData], rng: torch.Generator
    ) -> Iterator[None]:
        """Send a call to the other ranks, unless there are none, and note whether they have kept in step with it."""
        if self.ranks.size == 1:
            yield
            return
        with self._lock, self._step():
            known = state is self.state
            parts = {} if known else self.updater.dump(self.updater.for_training(state))
            if len(data) == 1:
                data, self._data = ([] if data[0] is self._data else data), data[0]
            header = {**call, "state": None if known else list(parts), "data": len(data)}
            rest = [self._without(name, part) for name, part in parts.items()]
            self._tell(header, [*rest, *(dump_data(each) for each in data)], rng.get_state().numpy().tobytes())
            if not known:
                self.state, self._read = state, {}
            try:
                yield
            except RankLost:
                raise
            except Exception:  # what every rank computes from the same numbers fails on every rank
                self._in_step = True
                raise
