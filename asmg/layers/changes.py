"""What an update has changed in a part of the training state: the next layer of its stack."""

from collections.abc import Mapping

import numpy as np
import torch

from asmg.batch import TABLES
from asmg.checkpoint import Checkpoint
from asmg.layers.selection import PartExcerpt, Rows, Selection
from asmg.layers.stack import RESET, RESTLESS, ROWS, SIZES, tensors_of_table
from asmg.layers.state import STATISTICS
from asmg.layers.statistics import statistics_layer
from asmg.rounding import halved

__all__ = ["changed_part", "is_base"]

NONE = np.empty(0, np.int64)


def changed_part(
    before: PartExcerpt | None,
    after: Checkpoint,
    selection: Selection,
    gone: Mapping[str, Rows],
    also: Mapping[str, Rows] | None = None,
) -> Checkpoint:
    """The rows that differ, as the next layer, or as a new base where the layer has all rows.

    Args:
        before: the excerpt that the update started from; None where the part is new.
        after: the excerpt after the update.
        selection: of both.
        gone: table name → rows that changed hands before the update, ascending.
        also: table name → selected rows that the layer has in any case.
    """
    if after.kind == STATISTICS:
        return _without_all_rows(statistics_layer(before, after, selection, gone.get("item", NONE)))
    sizes, tensors = {} if before is None else before.sizes, {}
    in_tables = {name for table in TABLES for name in tensors_of_table(after, table)}
    for name, tensor in after.tensors.items():
        if name.startswith(RESTLESS):
            tensors[name] = torch.from_numpy(selection.rows[name.removeprefix(RESTLESS)])[tensor].sort().values
        elif name not in in_tables:
            tensors[name] = tensor
    whole: dict[str, int] = {}
    for table in TABLES:
        if not (names := tensors_of_table(after, table)):
            continue
        rows, length = selection.rows[table], len(after.tensors[names[0]])
        differs = _differing(None if before is None else before.checkpoint, after, names)
        if also is not None and table in also:
            differs |= torch.from_numpy(np.isin(rows[:length], also[table]))
        end = selection.sizes[table] if length == len(rows) else int(rows[length - 1]) + 1
        whole[table] = max(sizes.get(table, 1), end)
        tensors |= {name: after.tensors[name][differs] for name in names}
        tensors[f"{ROWS}{table}"] = torch.from_numpy(rows[:length])[differs]
        if len(gone.get(table, NONE)):
            tensors[f"{RESET}{table}"] = torch.from_numpy(gone[table])
    if _is_whole(selection, whole) and 2 * sum(len(tensors[f"{ROWS}{t}"]) for t in whole) >= sum(whole.values()):
        # A method that changes most rows leaves a base each time: a stack of such layers would only grow.
        tensors |= {name: after.tensors[name] for name in in_tables}
        tensors |= {f"{ROWS}{table}": torch.arange(size) for table, size in whole.items()}
    return _with_halved_moments(_without_all_rows(Checkpoint(after.kind, {**after.meta, SIZES: whole}, tensors)))


def is_base(layer: Checkpoint) -> bool:
    """Whether the layer has all rows, so that nothing below it is read."""
    return not any(name.startswith(ROWS) for name in layer.tensors)


def _differing(before: Checkpoint | None, after: Checkpoint, names: list[str]) -> torch.Tensor:
    """Which rows of a table are new or have another value, bool [rows]."""
    differs = torch.ones(len(after.tensors[names[0]]), dtype=torch.bool)
    if before is None or names[0] not in before.tensors:
        return differs
    known = min(len(differs), len(before.tensors[names[0]]))
    differs[:known] = False
    for name in names:
        old, new = (part.tensors[name][:known].reshape(known, -1) for part in (before, after))
        differs[:known] |= (old != new).any(1)
    return differs


def _is_whole(selection: Selection, sizes: Mapping[str, int]) -> bool:
    """Whether all rows of all tables are selected, so that an excerpt is the whole table."""
    return all(len(selection.rows[name]) == size for name, size in sizes.items())


def _without_all_rows(layer: Checkpoint) -> Checkpoint:
    """The layer without lists of rows if it has all rows of all tables."""
    listed = {name: rows for name, rows in layer.tensors.items() if name.startswith(ROWS)}
    if any(len(rows) != layer.meta[SIZES][name.removeprefix(ROWS)] for name, rows in listed.items()):
        return layer
    kept = {name: t for name, t in layer.tensors.items() if not name.startswith((ROWS, RESET))}
    return Checkpoint(layer.kind, layer.meta, kept)


def _with_halved_moments(layer: Checkpoint) -> Checkpoint:
    """The layer with the moments of its rows as bfloat16, where they were rounded to that."""
    moments = {f"{moment}.{table}" for table in TABLES for moment in ("first", "second")}
    tensors = {name: halved(t) if name in moments else t for name, t in layer.tensors.items()}
    return Checkpoint(layer.kind, layer.meta, tensors)
