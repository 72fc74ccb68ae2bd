"""Processes that train one model together, called *ranks*; `torch.distributed` does the communication.

Every rank computes the same update on the same data. Of each batch it computes the gradients of its own share, and the
sums over all ranks are what every rank's optimizer sees, so the models stay equal without ever being compared. Rank 0
says what is computed (`asmg.team`).
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # documented, but not in its __all__
from torch.distributed.rendezvous import rendezvous
from typing_extensions import override

__all__ = ["ALONE", "Alone", "RankLost", "Ranks", "Together", "device_of_rank", "joined"]

FOREVER = timedelta(days=365)
"""How long a rank waits to be told what to do: as long as no period is closed."""


class RankLost(ConnectionError):
    """Another rank died, hangs or computes something else. The ranks have to be started again, all of them."""


class Ranks(ABC):
    """The processes of one training, and which of them this one is."""

    rank: int
    """Number of this process, from 0."""
    size: int
    """Number of processes, at least 1."""

    def share(self, start: int, stop: int) -> tuple[int, int]:
        """The part of a range that this rank takes; the parts of all ranks make the range, in order."""
        length = stop - start
        return start + length * self.rank // self.size, start + length * (self.rank + 1) // self.size

    @abstractmethod
    def add_up(self, numbers: Tensor) -> None:
        """Replace numbers, float32 [N], by their sums over all ranks, which are equal on all of them to the last bit.

        Raises:
            RankLost: another rank did not answer.
        """

    @abstractmethod
    def spread(self, numbers: Tensor, source: int) -> None:
        """Replace numbers, on the CPU and of equal shape and type on all ranks, by those of the rank `source`.

        Raises:
            RankLost: another rank did not answer.
        """

    @abstractmethod
    def tell(self, message: Sequence[bytes]) -> None:
        """Send a message from rank 0 to all others, and wait until all have it.

        Raises:
            RankLost: another rank did not answer in time.
        """

    @abstractmethod
    def hear(self) -> list[bytes]:
        """The next message of rank 0, waited for without limit.

        Raises:
            RankLost: rank 0 has ended without a word.
        """


@final
class Alone(Ranks):
    """One process; it sends nothing."""

    rank, size = 0, 1

    @override
    def add_up(self, numbers: Tensor) -> None:
        pass

    @override
    def spread(self, numbers: Tensor, source: int) -> None:
        pass

    @override
    def tell(self, message: Sequence[bytes]) -> None:
        pass

    @override
    def hear(self) -> list[bytes]:
        raise RuntimeError("ranks: expected rank 0 to be another process; received a single process")


ALONE = Alone()
"""The one process that trains where no others were started."""


@final
class Together(Ranks):
    """The processes of torch's default process group.

    Args:
        timeout: how long a rank waits for the others within a computation.
    """

    def __init__(self, timeout: timedelta) -> None:
        self.rank, self.size, self._timeout = dist.get_rank(), dist.get_world_size(), timeout
        # Messages have a group of their own: a rank that fails between two sums never takes a message for a sum.
        self._messages = dist.new_group(backend="gloo", timeout=FOREVER)

    @override
    def add_up(self, numbers: Tensor) -> None:
        with _told_as_lost():
            dist.all_reduce(numbers)

    @override
    def spread(self, numbers: Tensor, source: int) -> None:
        with _told_as_lost():
            dist.broadcast(numbers, source)

    @override
    def tell(self, message: Sequence[bytes]) -> None:
        with _told_as_lost():
            dist.broadcast(torch.tensor([len(message)]), 0, self._messages)
            dist.broadcast(torch.tensor([len(part) for part in message]), 0, self._messages)
            for part in message:
                dist.broadcast(torch.from_numpy(np.frombuffer(part, np.uint8).copy()), 0, self._messages)
            dist.monitored_barrier(self._messages, self._timeout)

    @override
    def hear(self) -> list[bytes]:
        with _told_as_lost():
            count = torch.zeros(1, dtype=torch.int64)
            dist.broadcast(count, 0, self._messages)
            lengths = torch.zeros(int(count), dtype=torch.int64)
            dist.broadcast(lengths, 0, self._messages)
            parts = [torch.empty(length, dtype=torch.uint8) for length in lengths.tolist()]
            for part in parts:
                dist.broadcast(part, 0, self._messages)
            dist.monitored_barrier(self._messages, self._timeout)
        return [part.numpy().tobytes() for part in parts]


@contextmanager
def _told_as_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo has no class of its own for a closed connection or a timeout
        raise RankLost(f"ranks: expected all of them to answer; received {error}") from error


def device_of_rank(device: str) -> str:
    """The torch device of this rank: each rank of a host has a GPU of its own.

    Args:
        device: as in `asmg.training.Execution`; "auto" and "cuda" become the GPU with the rank's number on this host.
    """
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


@contextmanager
def joined(device: str, timeout_seconds: float) -> Iterator[Ranks]:
    """Join the other ranks that `torchrun` has started; `ALONE` in a process that it did not start.

    Args:
        device: where this rank computes, as `device_of_rank` returns it: sums of CUDA tensors go through NCCL, all
            others through gloo.
        timeout_seconds: how long a rank waits for the others within a computation before it counts them as lost.

    Raises:
        RankLost: the others did not come in time.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    timeout = timedelta(seconds=timeout_seconds)
    cuda = device.startswith("cuda")
    with _told_as_lost():
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
            # On one host torchrun has one store for all restarts, and the addresses of dead ranks stay in it.
            store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timeout,
            device_id=torch.device(device) if cuda else None,
        )
        ranks = Together(timeout)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
