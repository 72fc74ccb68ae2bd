"""Training states as a base and layers of changed rows, so that a period costs what its traffic costs.

A training state is a set of named parts (`asmg.updaters.base.Updater.dump`). Of a part with embedding tables (the base
model, its optimizer, the hidden state, …) and of the statistics, a *stack* is stored: a base with all rows, and one
layer for each later period with the rows that the period changed. The service reads the *excerpt* of a state that its
period needs, runs the update method on it, and stores what has changed as one more layer:

    selection, before = excerpt_state(parts, log)            a small state with the rows that the logs touch
    state = updater.load(before)
    after = updater.dump(updater.update(state, selection.localised(log)))
    changed_part(before["base"], after["base"], …)           the next layer

A part without tables is stored as it is, or as a whole and differences (`asmg.layers.differences`).

An older model of the sequence is the same stack without its newest layers. The files are memory-mapped, so no table is
in memory as a whole.
"""

from asmg.layers.changes import changed_part, is_base
from asmg.layers.compaction import MergedTensor, Merger, merger
from asmg.layers.differences import MOST_DIFFERENCES, difference, is_sum, summed
from asmg.layers.excerpt import (
    TAKEN_UP,
    StateExcerpt,
    data_of_log,
    excerpt_part,
    excerpt_parts,
    excerpt_state,
    is_log,
    with_data,
)
from asmg.layers.selection import PartExcerpt, Selection
from asmg.layers.stack import Stack, StackTable, rows_of_layers
from asmg.layers.state import is_layered, open_stack
from asmg.layers.statistics import StackCounts, StatisticsStack
from asmg.layers.together import read_together

__all__ = [
    "MOST_DIFFERENCES",
    "TAKEN_UP",
    "MergedTensor",
    "Merger",
    "PartExcerpt",
    "Selection",
    "Stack",
    "StackCounts",
    "StackTable",
    "StateExcerpt",
    "StatisticsStack",
    "changed_part",
    "data_of_log",
    "difference",
    "excerpt_part",
    "excerpt_parts",
    "excerpt_state",
    "is_base",
    "is_layered",
    "is_log",
    "is_sum",
    "merger",
    "open_stack",
    "read_together",
    "rows_of_layers",
    "summed",
    "with_data",
]
