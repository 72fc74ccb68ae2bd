"""Reading an excerpt on several ranks: each reads its share of the rows from the files, and then all have all rows."""

from collections.abc import Mapping

import numpy as np
import torch

from asmg.checkpoint import Checkpoint
from asmg.layers.selection import Rows
from asmg.layers.stack import Stack, tensors_of_table
from asmg.ranks import Ranks

__all__ = ["read_together"]

STRIPE = 65_536
"""Neighbouring rows that one rank reads. Rows are numbers of ids without gaps, so stripes in turn are as even as any
hash. But ranks that took every n-th row would each map all of a file: a page of 4096 bytes has 64 vectors of 16
numbers, and the kernel maps up to 2 MiB around a page that is read. A stripe has 4 MiB of vectors."""


def read_together(
    ranks: Ranks,
    outlines: Mapping[str, Checkpoint],
    rows: Mapping[str, Mapping[str, Rows]],
    stacks: Mapping[str, Stack] | None,
) -> dict[str, Checkpoint]:
    """The parts with these rows. Every rank calls this with the same outlines and rows.

    Args:
        ranks: the processes.
        outlines: name of a part → `Stack.outline`.
        rows: name of a part → name of a table → rows that are read of it, ascending.
        stacks: name of a part → its files; None where this rank does not have them, and others read its rows.

    Raises:
        RankLost: another rank did not answer.
    """
    seen = torch.zeros(ranks.size)
    seen[ranks.rank] = float(stacks is not None)
    ranks.add_up(seen)
    readers = torch.nonzero(seen).flatten().tolist()
    return {
        part: _fill(ranks, readers, outline, rows[part], None if stacks is None else stacks[part])
        for part, outline in outlines.items()
    }


def _fill(
    ranks: Ranks, readers: list[int], outline: Checkpoint, rows: Mapping[str, Rows], stack: Stack | None
) -> Checkpoint:
    tensors = dict(outline.tensors)
    for table, wanted in rows.items():
        turn = wanted // STRIPE % len(readers)
        places = {reader: np.flatnonzero(turn == n) for n, reader in enumerate(readers)}
        own = {} if stack is None else stack.read(table, wanted[places[ranks.rank]])
        for name in tensors_of_table(outline, table):
            shape = tensors[name].shape[1:]
            whole = tensors[name].new_empty(len(wanted), *shape)
            for reader, at in places.items():
                if len(at):
                    piece = own[name] if reader == ranks.rank else whole.new_empty(len(at), *shape)
                    ranks.spread(piece, reader)
                    whole[torch.from_numpy(at)] = piece
            tensors[name] = whole
    return Checkpoint(outline.kind, outline.meta, tensors)
