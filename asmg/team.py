"""Runs the training of an update method on all ranks.

Rank 0 calls a `Team` in place of the method. The others `follow`: each call reaches them as a message with the state,
the data and the random generator, and they do the same, so every rank has the same result. They keep it, so the state
is sent once a period.
"""

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic

import torch
from torch import Tensor

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, dump_data, load_data
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

    def run_stage(
        self, stage: str, state: StateT, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> StateT:
        """See `Updater.run_stage`.

        Raises:
            RankLost: the ranks have to be started again.
        """
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
        rng = torch.Generator()
        rng.set_state(torch.frombuffer(bytearray(next(parts)), dtype=torch.uint8))
        if call["state"] is not None:
            self.state = None  # frees the memory before the new one takes it
            self.state = self.updater.load({name: Checkpoint.from_bytes(next(parts)) for name in call["state"]})
        state, data = self.state, [load_data(Checkpoint.from_bytes(next(parts))) for _ in range(call["data"])]
        assert state is not None, "the first call sends a state"
        if call["call"] == "rehearse":
            self.updater.rehearse(state, data[0], data[1], rng=rng)
            return
        if data:
            (self._data,) = data
        assert self._data is not None, "the first stage sends the data"
        self.state = self.updater.run_stage(call["stage"], state, self._data, rng=rng)

    @contextmanager
    def _call(
        self, call: dict[str, Any], state: StateT, data: Sequence[PeriodData], rng: torch.Generator
    ) -> Iterator[None]:
        """Send a call to the other ranks, unless there are none, and note whether they have kept in step with it."""
        if self.ranks.size == 1:
            yield
            return
        with self._lock:
            if not self._in_step:
                raise RankLost("ranks: expected them in step; received a call after one that was broken off")
            self._in_step = False
            known = state is self.state
            parts = {} if known else self.updater.dump(state)
            if len(data) == 1:
                data, self._data = ([] if data[0] is self._data else data), data[0]
            header = {**call, "state": None if known else list(parts), "data": len(data)}
            checkpoints = [*parts.values(), *(dump_data(each) for each in data)]
            self.ranks.tell(
                [
                    json.dumps(header).encode(),
                    rng.get_state().numpy().tobytes(),
                    *(checkpoint.to_bytes() for checkpoint in checkpoints),
                ]
            )
            self.state = state
            try:
                yield
            except RankLost:
                raise
            except Exception:  # what every rank computes from the same numbers fails on every rank
                self._in_step = True
                raise
            self._in_step = True
