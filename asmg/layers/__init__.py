"""Training states as a base and layers of changed rows, so that a period costs what its traffic costs.

A training state is a set of named parts (`asmg.updaters.base.Updater.dump`). Of a part with embedding tables (the base
model, its optimizer, the hidden state, …) and of the statistics, a *stack* is stored: a base with all rows, and one
layer for each later period with the rows that the period changed. The service reads the *excerpt* of a state that its
period needs, runs the update method on it, and stores what has changed as one more layer:

    selection = Selection.of(logs, tables)        which rows the logs touch
    before = excerpt(parts, selection)            a small state with these rows alone, renumbered
    after = updater.dump(updater.update(updater.load(before), selection.localised(log)))
    changed(before["base"], after["base"], …)     the next layer

An older model of the sequence is the same stack without its newest layers. The files are memory-mapped, so no table is
in memory as a whole.
"""

from asmg.layers.selection import Selection
from asmg.layers.stack import Stack, StackTable
from asmg.layers.state import changed_part, excerpt_part, is_layered, open_stack
from asmg.layers.statistics import StatisticsStack

__all__ = [
    "Selection",
    "Stack",
    "StackTable",
    "StatisticsStack",
    "changed_part",
    "excerpt_part",
    "is_layered",
    "open_stack",
]
