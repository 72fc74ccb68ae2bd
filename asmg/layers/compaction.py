"""Merges layers into one, so that stacks stay short. A table is read and written in blocks of rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from asmg.checkpoint import Checkpoint, as_array
from asmg.header import make_header
from asmg.layers.changes import is_base
from asmg.layers.selection import Rows
from asmg.layers.stack import RESET, ROWS, SIZES, Stack, merged_rows, tensors_of_table
from asmg.layers.state import open_stack
from asmg.layers.statistics import BY_ITEM, BY_PAIR, ITEM, StatisticsStack

__all__ = ["MergedTensor", "Merger", "merger"]

BLOCK_ROWS = 131_072
"""Rows that are in memory together."""


class MergedTensor(NamedTuple):
    """A tensor of the merged layer."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[NDArray[np.generic]]]
    """Yields its rows in blocks."""


class Merger(NamedTuple):
    """Layers as one that is yet to be written."""

    header: dict[str, str]
    """Metadata of the file."""
    tensors: dict[str, MergedTensor]
    """Name → tensor, in the order of the file."""


def merger(layers: Sequence[Checkpoint]) -> Merger:
    """The layer that has what these layers have together; a base if the first is one.

    Args:
        layers: of one part, one after the other, oldest first.
    """
    stack, lowest = open_stack(layers), is_base(layers[0])
    tables = (ITEM,) if isinstance(stack, StatisticsStack) else stack.tables
    rows: dict[str, Rows] = {}
    tensors: dict[str, MergedTensor] = {}
    for table in tables:
        rows[table], gone = merged_rows(layers, table)
        if not lowest or len(rows[table]) < stack.sizes[table]:
            tensors[f"{ROWS}{table}"] = _whole(torch.from_numpy(rows[table]))
        if not lowest and len(gone):
            tensors[f"{RESET}{table}"] = _whole(torch.from_numpy(gone))
    if isinstance(stack, StatisticsStack):
        tensors |= _statistics(stack, rows[ITEM])
    else:
        tensors |= _tables(stack, layers, rows)
    header = make_header(stack.kind, {**stack.meta, SIZES: dict(stack.sizes)})
    # Numbers of eight bytes first, so that every tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    return Merger(header, dict(ordered))


def _blocks(rows: Rows) -> Iterator[Rows]:
    for start in range(0, len(rows), BLOCK_ROWS):
        yield rows[start : start + BLOCK_ROWS]


def _whole(tensor: torch.Tensor) -> MergedTensor:
    array = tensor.contiguous().numpy()
    return MergedTensor(array.dtype, array.shape, lambda: iter((array,)))


def _tables(stack: Stack, layers: Sequence[Checkpoint], rows: Mapping[str, Rows]) -> dict[str, MergedTensor]:
    merged = {name: _whole(tensor) for name, tensor in stack.without_tables.items()}
    for table in stack.tables:
        for name in tensors_of_table(layers[-1], table):
            # What is halved in some layers only is not in their merger: the others may need all bits.
            known = [layer.tensors[name] for layer in layers if name in layer.tensors]
            like = next((t for t in known if t.dtype != torch.bfloat16), known[0])[:0]

            def blocks(
                table: str = table, name: str = name, like: torch.Tensor = like
            ) -> Iterator[NDArray[np.generic]]:
                for some in _blocks(rows[table]):
                    yield as_array(stack.read(table, some, [name])[name].to(like.dtype))

            merged[name] = MergedTensor(as_array(like).dtype, (len(rows[table]), *like.shape[1:]), blocks)
    return merged


def _statistics(stack: StatisticsStack, items: Rows) -> dict[str, MergedTensor]:
    lengths = np.concatenate([np.empty(0, np.int64), *(stack.read(some).lengths for some in _blocks(items))])
    starts = torch.from_numpy(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
    like, merged = stack.read(np.zeros(1, np.int64)), {name: _whole(tensor) for name, tensor in stack.whole.items()}
    for name in (*BY_ITEM, *BY_PAIR):

        def blocks(name: str = name) -> Iterator[NDArray[np.generic]]:
            for some in _blocks(items):
                found = stack.read(some, pairs=name in BY_PAIR)
                yield found.of_item[name].numpy() if name in BY_ITEM else found.of_pair[name]

        sample = like.of_item[name].numpy() if name in BY_ITEM else like.of_pair[name]
        count = len(items) if name in BY_ITEM else int(starts[-1])
        merged[name] = MergedTensor(sample.dtype, (count, *sample.shape[1:]), blocks)
    return merged | {"starts": _whole(starts)}
