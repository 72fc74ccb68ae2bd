"""Merges a stack into one base, so that stacks stay short. A table is read and written in blocks of rows."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from asmg.checkpoint import Checkpoint
from asmg.header import make_header
from asmg.layers.stack import SIZES, Stack, tensors_of_table
from asmg.layers.state import open_stack
from asmg.layers.statistics import BY_ITEM, BY_PAIR, ITEM, StatisticsStack

__all__ = ["MergedTensor", "Merger", "merger"]

BLOCK_ROWS = 131_072
"""Rows that are in memory together."""


class MergedTensor(NamedTuple):
    """A tensor of the merged base."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[NDArray[np.generic]]]
    """Yields its rows in blocks."""


class Merger(NamedTuple):
    """A stack as one base that is yet to be written."""

    header: dict[str, str]
    """Metadata of the file."""
    tensors: dict[str, MergedTensor]
    """Name → tensor, in the order of the file."""


def merger(layers: Sequence[Checkpoint]) -> Merger:
    """The base that has what these layers have together, oldest first."""
    stack, newest = open_stack(layers), layers[-1]
    tensors = _statistics(stack) if isinstance(stack, StatisticsStack) else _tables(stack, newest)
    header = make_header(stack.kind, {**stack.meta, SIZES: dict(stack.sizes)})
    # Numbers of eight bytes first, so that every tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    return Merger(header, dict(ordered))


def _ranges(size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, size, BLOCK_ROWS):
        yield np.arange(start, min(start + BLOCK_ROWS, size))


def _whole(tensor: torch.Tensor) -> MergedTensor:
    array = tensor.contiguous().numpy()
    return MergedTensor(array.dtype, array.shape, lambda: iter((array,)))


def _tables(stack: Stack, newest: Checkpoint) -> dict[str, MergedTensor]:
    merged = {name: _whole(tensor) for name, tensor in stack.without_tables.items()}
    for table in stack.tables:
        for name in tensors_of_table(newest, table):
            tensor = newest.tensors[name]

            def blocks(table: str = table, name: str = name) -> Iterator[NDArray[np.generic]]:
                for rows in _ranges(stack.sizes[table]):
                    yield stack.read(table, rows, [name])[name].numpy()

            shape = (stack.sizes[table], *tensor.shape[1:])
            merged[name] = MergedTensor(tensor[:0].numpy().dtype, shape, blocks)
    return merged


def _statistics(stack: StatisticsStack) -> dict[str, MergedTensor]:
    size = stack.sizes[ITEM]
    lengths = np.concatenate([stack.read(rows).lengths for rows in _ranges(size)])
    starts = torch.from_numpy(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
    like, merged = stack.read(np.zeros(1, np.int64)), {name: _whole(tensor) for name, tensor in stack.whole.items()}
    for name in (*BY_ITEM, *BY_PAIR):

        def blocks(name: str = name) -> Iterator[NDArray[np.generic]]:
            for rows in _ranges(size):
                found = stack.read(rows)
                yield found.of_item[name].numpy() if name in BY_ITEM else found.of_pair[name]

        sample = like.of_item[name].numpy() if name in BY_ITEM else like.of_pair[name]
        count = size if name in BY_ITEM else int(starts[-1])
        merged[name] = MergedTensor(sample.dtype, (count, *sample.shape[1:]), blocks)
    return merged | {"starts": _whole(starts)}
