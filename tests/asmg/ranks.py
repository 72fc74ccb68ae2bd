"""Processes that train together, started for a test without `torchrun`."""

import os
import socket
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from asmg.ranks import joined
from tests.forked import FORKED

TIMEOUT_SECONDS = 100.0
"""Longer than one of them compiles machine code that another has already."""


def start_ranks(size: int, work: Callable[..., None], folder: Path, *arguments: Any) -> list[ForkServerProcess]:
    """Call `work(ranks, folder, *arguments)` in `size` processes that have joined."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = [
        FORKED.Process(target=partial(_join, rank, size, port, work), args=(folder, *arguments)) for rank in range(size)
    ]
    for process in made:
        process.start()
    return made


def ended(processes: list[ForkServerProcess], seconds: float = 120) -> list[int | None]:
    """The exit codes of processes, of which those that have not ended in time are killed."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def _join(rank: int, size: int, port: int, work: Callable[..., None], folder: Path, *arguments: Any) -> None:
    variables = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()}, GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    with joined("cpu", TIMEOUT_SECONDS) as ranks:
        assert (ranks.rank, ranks.size) == (rank, size)
        work(ranks, folder, *arguments)
