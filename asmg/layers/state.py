"""Which parts of a training state are layered."""

from collections.abc import Sequence

from asmg.checkpoint import Checkpoint
from asmg.layers.stack import Stack
from asmg.layers.statistics import StatisticsStack

__all__ = ["STATISTICS", "is_layered", "open_stack"]

STATISTICS = "statistics"
"""Name and kind of the part with the statistics."""

LAYERED = ("base", "optimizer", "hidden", "generated", "previous", STATISTICS)


def is_layered(part: str) -> bool:
    """Whether the part of this name has tables, so that it is stored as a base and layers."""
    return part in LAYERED or part.startswith("model.")


def open_stack(layers: Sequence[Checkpoint]) -> Stack | StatisticsStack:
    """The stack of a layered part; see `Stack` and `StatisticsStack`."""
    return StatisticsStack(layers) if layers[-1].kind == STATISTICS else Stack(layers)
