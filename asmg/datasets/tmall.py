"""Tmall (IJCAI-15): what 424,170 users of a shop did from May to November 2014, `user_log_format1.csv`.

The paper's rule keeps 3,047,101 clicks of 49,986 users on 43,571 items of 634 categories (its authors' counts).
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from asmg.datasets.columns import identifier, text, whole_number
from asmg.datasets.events import Events
from asmg.datasets.gathering import Gathering, Source
from asmg.datasets.scan import Layout
from asmg.datasets.time_forms import DAY_MS
from asmg.datasets.times import day_of_year_2014

__all__ = ["TMALL", "TmallRule", "read_tmall"]

_CLICK = 0
_OCTOBER_MS = 1_412_121_600_000
_FILE = "user_log_format1.csv"


@dataclass(frozen=True, kw_only=True)
class TmallRule:
    """Which clicks of October are kept."""

    users: int = 50_000
    """Number of users with the most clicks; of equals those with the earlier first click in the file."""
    item_clicks: int = 20
    """Minimum clicks by these users on an item."""


def read_tmall(gathering: Gathering, rule: TmallRule | None = None) -> Events:
    """The clicks, each a positive; the category of an item is that of its first row."""
    rule = rule or TmallRule()

    def keep(block: pl.DataFrame) -> list[tuple[str, pl.Series]]:
        clicks = block["action_type"] == _CLICK
        october = block.filter(clicks)["time_stamp"].is_between(_OCTOBER_MS, _OCTOBER_MS + 31 * DAY_MS, closed="left")
        return [("other actions than clicks", clicks), ("clicks before or after October", october)]

    readings = {
        "user_id": identifier(),
        "item_id": identifier(),
        "cat_id": text(),
        "time_stamp": day_of_year_2014(),
        "action_type": whole_number(0, 3),
    }
    columns = ("user_id", "item_id", "time_stamp")
    events = gathering.gather(gathering.find(_FILE), Layout(), readings, columns, category="cat_id", keep=keep)
    events = events.with_time("weekday")
    clicks = np.bincount(events.user, minlength=len(events.user_ids))
    best = np.argsort(-clicks, kind="stable")[: rule.users]
    known = np.isin(events.user, best)
    events = gathering.leave_out(events, known, f"clicks of users who are not among the {rule.users:,} most active")
    popular = np.bincount(events.item, minlength=len(events.item_ids)) >= rule.item_clicks
    return gathering.leave_out(
        events, popular[events.item], f"clicks on items with fewer than {rule.item_clicks} of them"
    )


TMALL = Source(
    read=read_tmall,
    rule=(
        "clicks (action_type 0) of 1 to 31 October 2014, each a positive, at midnight of its day",
        "of the 50,000 users with most of them",
        "on items with at least 20 of those",
    ),
)
