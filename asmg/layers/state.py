"""Parts of a training state as excerpts and layers."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from asmg.batch import TABLES
from asmg.checkpoint import Checkpoint
from asmg.layers.selection import Rows, Selection
from asmg.layers.stack import RESET, RESTLESS, ROWS, SIZES, Stack, tensors_of_table
from asmg.layers.statistics import StatisticsStack, statistics_layer

__all__ = ["changed_part", "excerpt_part", "is_layered", "open_stack"]

STATISTICS = "statistics"

LAYERED = ("base", "optimizer", "hidden", "generated", "previous", STATISTICS)


def is_layered(part: str) -> bool:
    """Whether the part of this name has tables, so that it is stored as a base and layers."""
    return part in LAYERED or part.startswith("model.")


def open_stack(layers: Sequence[Checkpoint], later: Sequence[Checkpoint] = ()) -> Stack | StatisticsStack:
    """The stack of a layered part; see `Stack` and `StatisticsStack`."""
    return StatisticsStack(layers) if layers[-1].kind == STATISTICS else Stack(layers, later)


def excerpt_part(stack: Stack | StatisticsStack, selection: Selection) -> tuple[Checkpoint, Rows | None]:
    """The part with the selected rows alone; for statistics also the item of each of its rows."""
    if isinstance(stack, StatisticsStack):
        return stack.excerpt(selection)
    return stack.excerpt(selection), None


def changed_part(
    before: Checkpoint | None,
    after: Checkpoint,
    selection: Selection,
    sizes: Mapping[str, int],
    gone: Mapping[str, Rows],
    universe: Rows | None = None,
) -> Checkpoint:
    """What an update has changed in a part, as the next layer of its stack.

    Args:
        before: the excerpt that the update started from; None where the part is new.
        after: the excerpt after the update.
        selection: of both.
        sizes: table name → rows of the whole table before the update; without entries for tables that were not there.
        gone: table name → rows that changed hands before the update, ascending.
        universe: for statistics, the item of each row of the excerpt.
    """
    if after.kind == STATISTICS:
        items = selection.rows["item"]
        size = max(sizes.get("item", 1), selection.sizes["item"])
        return statistics_layer(
            before,
            after,
            selection,
            items if universe is None else universe,
            size,
            gone.get("item", np.empty(0, np.int64)),
        )
    tensors, whole_sizes = {}, {}
    for name, tensor in after.tensors.items():
        if name.startswith(RESTLESS):
            table = name.removeprefix(RESTLESS)
            tensors[name] = torch.from_numpy(selection.rows[table][tensor.numpy()])
    for table in TABLES:
        names = tensors_of_table(after, table)
        if not names:
            continue
        rows, length = selection.rows[table], len(after.tensors[names[0]])
        known = 0 if before is None or names[0] not in before.tensors else len(before.tensors[names[0]])
        differs = torch.ones(length, dtype=torch.bool)
        if known:
            differs[:known] = False
            for name in names:
                old, new = (part.tensors[name][:known].reshape(known, -1) for part in (before, after) if part)
                differs[:known] |= (old != new).any(1)
        changed = torch.nonzero(differs).flatten()
        tensors |= {name: after.tensors[name][changed] for name in names}
        tensors[f"{ROWS}{table}"] = torch.from_numpy(rows)[changed]
        end = selection.sizes[table] if length == len(rows) else int(rows[length - 1]) + 1
        whole_sizes[table] = max(sizes.get(table, 1), end)
        if len(gone.get(table, ())):
            tensors[f"{RESET}{table}"] = torch.from_numpy(gone[table])
    if _whole(selection, whole_sizes) and 2 * sum(len(tensors[f"{ROWS}{name}"]) for name in whole_sizes) >= sum(
        whole_sizes.values()
    ):
        return Checkpoint(after.kind, {**after.meta, SIZES: whole_sizes}, dict(after.tensors))
    in_tables = {name for table in TABLES for name in tensors_of_table(after, table)}
    tensors |= {n: t for n, t in after.tensors.items() if n not in in_tables and not n.startswith(RESTLESS)}
    return Checkpoint(after.kind, {**after.meta, SIZES: whole_sizes}, tensors)


def _whole(selection: Selection, sizes: Mapping[str, int]) -> bool:
    """Whether all rows of all tables are selected, so that an excerpt is the whole table."""
    return all(len(selection.rows[name]) == size for name, size in sizes.items())
