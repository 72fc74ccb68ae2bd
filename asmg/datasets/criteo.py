"""Criteo (Kaggle, 2014): a week of display advertisements, `train.txt`: a label, 13 numbers and 26 hashed values a row.

The log has no times, but its rows are in time order: row n gets the time n × 10 ms after the start of 1970. The meaning
of the columns is unknown. The user is C3, the column with the most values (ten million in 46 million rows), and the
item is C10 (93 thousand); all others are fields.
"""

from collections.abc import Callable

import polars as pl

from asmg.datasets.columns import click, text
from asmg.datasets.events import Events
from asmg.datasets.gathering import Gathering, Source
from asmg.datasets.scan import Layout
from asmg.features import Field

__all__ = ["CRITEO", "read_criteo"]

USER, ITEM = "C3", "C10"

NOBODY = "none"
"""The id of rows whose user or item column is empty."""

FIELDS = {f"I{n}": Field(f"i{n}", "context", "numeric", enter="log") for n in range(1, 14)} | {
    f"C{n}": Field(f"c{n}", "context", "categorical") for n in range(1, 27) if f"C{n}" not in (USER, ITEM)
}
"""Column → field."""

_STEP_MS = 10
_NAMES = ("label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27)))


def read_criteo(gathering: Gathering) -> Events:
    """Every row, in the order of the file."""
    readings = {"label": click(), USER: text(), ITEM: text()}
    path = gathering.find("train.txt")
    events = gathering.gather(
        path, Layout(delimiter="\t", names=_NAMES), readings, (USER, ITEM, "time"), label="label", derive=_in_order(),
        fields=FIELDS,
    )  # fmt: skip
    return events.with_time()


def _in_order() -> Callable[[pl.DataFrame], pl.DataFrame]:
    """A function that gives the rows of consecutive blocks their times."""
    rows = 0

    def derive(block: pl.DataFrame) -> pl.DataFrame:
        nonlocal rows
        first, rows = rows, rows + block.height
        times = pl.int_range(first, rows, eager=True) * _STEP_MS
        ids = [pl.when(pl.col(name) == "").then(pl.lit(NOBODY)).otherwise(name).alias(name) for name in (USER, ITEM)]
        return block.with_columns(*ids, time=times)

    return derive


CRITEO = Source(
    read=read_criteo,
    rule=(
        "every row is an impression, a positive where its label is 1",
        "there are no times: row n is taken to have happened n × 10 ms after 1970 began",
        "no column is known to be a user or an item: C3 stands for the user, C10 for the item; all others are fields",
    ),
)
