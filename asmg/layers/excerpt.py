"""The excerpt of a whole training state: a small state with the rows that some logs touch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, dump_data, load_data
from asmg.layers.differences import summed
from asmg.layers.selection import PartExcerpt, Rows, Selection
from asmg.layers.stack import Stack
from asmg.layers.state import is_layered, open_stack
from asmg.layers.statistics import StatisticsStack

__all__ = [
    "TAKEN_UP",
    "Read",
    "StateExcerpt",
    "data_of_log",
    "excerpt_part",
    "excerpt_parts",
    "excerpt_state",
    "is_log",
    "with_data",
]

DATA, RESERVOIR = "data.", "reservoir."
"""Begin the names of parts that are logs."""

ARRIVAL = "arrival"
"""A tensor that a reservoir has beside its log."""

TAKEN_UP = "taken_up"
"""A tensor that a stored period has beside its log: the items of which something new is known, int64 [n]."""


Stacks = Mapping[str, Stack | StatisticsStack]

Read = Callable[[Stacks, Selection], dict[str, PartExcerpt]]
"""Reads the selected rows of parts with tables."""


class StateExcerpt(NamedTuple):
    """A training state with the selected rows alone."""

    selection: Selection
    parts: dict[str, PartExcerpt]


def excerpt_state(
    parts: Mapping[str, Sequence[Checkpoint]],
    log: PeriodData | None = None,
    *,
    everything: bool = False,
    read: Read | None = None,
) -> StateExcerpt:
    """The rows of a training state that an update on `log` reads: those that this log and the state's own logs touch.

    Args:
        parts: name → its base and layers, oldest first; a part without tables is one checkpoint, or a whole and its
            differences.
        log: the period to be learned, in rows of whole tables; None for the state's logs alone.
        everything: whether to read all rows of all tables.
        read: replaces `excerpt_parts`.
    """
    stacks = {name: open_stack(layers) for name, layers in parts.items() if is_layered(name)}
    logs = {name: load_data(data_of_log(parts[name][0])) for name in _logs_of(parts)}
    selection = _select(everything, stacks, [*logs.values(), *([] if log is None else [log])])
    found = {name: PartExcerpt(summed(layers)) for name, layers in parts.items() if name not in stacks}
    found |= (read or excerpt_parts)(stacks, selection)
    for name, whole in logs.items():
        found[name] = PartExcerpt(with_data(parts[name][0], dump_data(selection.localised(whole))))
    return StateExcerpt(selection, found)


def excerpt_parts(stacks: Stacks, selection: Selection) -> dict[str, PartExcerpt]:
    """Parts with tables, with the selected rows alone, by their names."""
    return {name: excerpt_part(stack, selection) for name, stack in stacks.items()}


def excerpt_part(stack: Stack | StatisticsStack, selection: Selection, universe: Rows | None = None) -> PartExcerpt:
    """A part with tables, with the selected rows alone; for `universe` see `StatisticsStack.excerpt`."""
    if isinstance(stack, StatisticsStack):
        checkpoint, universe = stack.excerpt(selection, universe)
        return PartExcerpt(checkpoint, stack.sizes, universe)
    return PartExcerpt(stack.excerpt(selection), stack.sizes)


def is_log(part: str) -> bool:
    """Whether the part of this name is a log, whose rows are those of whole tables."""
    return part.startswith((DATA, RESERVOIR))


def data_of_log(log: Checkpoint) -> Checkpoint:
    """The interactions of a log, for `asmg.checkpoint.load_data`."""
    return replace(log, tensors={n: tensor for n, tensor in log.tensors.items() if n not in (ARRIVAL, TAKEN_UP)})


def with_data(log: Checkpoint, data: Checkpoint) -> Checkpoint:
    """The log with other data, the inverse of `data_of_log`."""
    extra = {name: tensor for name, tensor in log.tensors.items() if name == ARRIVAL}
    return replace(data, kind=log.kind, tensors={**data.tensors, **extra})


def _logs_of(parts: Mapping[str, Sequence[Checkpoint]]) -> list[str]:
    """Names of the logs, oldest first."""
    ages = sorted((name for name in parts if name.startswith(DATA)), key=lambda name: -int(name.removeprefix(DATA)))
    return [*sorted(name for name in parts if name.startswith(RESERVOIR)), *ages]


def _select(everything: bool, stacks: Mapping[str, Stack | StatisticsStack], logs: Sequence[PeriodData]) -> Selection:
    if everything:
        sizes: dict[str, int] = {}
        for stack in stacks.values():
            least = {table: int(rows.max()) + 1 for table, rows in stack.named.items() if len(rows)}
            for of in (stack.sizes, least):
                sizes |= {name: max(size, sizes.get(name, 1)) for name, size in of.items()}
        return Selection.everything(logs, sizes)
    more: dict[str, list[torch.Tensor]] = {}
    for stack in stacks.values():
        for table, rows in stack.named.items():
            more.setdefault(table, []).append(rows)
    return Selection.of(logs, {table: torch.cat(rows) for table, rows in more.items()})
