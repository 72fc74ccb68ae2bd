"""What the update benchmarks learn: the newest periods of a public log, or a synthetic stream of given sizes.

The last period is measured. The `BEFORE` periods before it make the state that an update finds in a running service: a
full window of three models, a carried hidden state, a generator and an optimizer that were trained. All ids have their
table rows from the start, so that a whole-table implementation has the same work in every period.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asmg.batch import HISTORY_LENGTH, PeriodData, build_recent
from benchmarks.learning.logs import folder_periods
from benchmarks.learning.wider_tables import Places, spread
from benchmarks.options import at_least

BEFORE = 5
"""Periods learned before the one measured. In the paper's settings the first model stays out of the sequence, the next
three fill the window, and the last period is the first one that the generator is trained on."""


@dataclass(frozen=True, kw_only=True)
class StreamSizes:
    """Sizes of a synthetic stream."""

    users: int = 20_000
    """Users that the traffic knows."""
    items: int = 5_000
    """Items that the traffic knows."""
    rows: int = 50_000
    """Interactions a period."""
    history: int = 10
    """Items in the history of every interaction."""
    idle: int = 1
    """How many times as large the tables are as the traffic needs; no batch touches the further rows."""

    def __post_init__(self) -> None:
        at_least(1, users=self.users, items=self.items, rows=self.rows, idle=self.idle)
        if not 0 <= self.history <= HISTORY_LENGTH:
            raise ValueError(f"history: expected 0 to {HISTORY_LENGTH}; received {self.history}")

    @property
    def table_rows(self) -> int:
        """Rows of both tables together, without the cold rows."""
        return (self.users + self.items) * self.idle


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The periods to learn."""

    name: str
    """`diginetica`, `ml-100k` or `synthetic`."""
    periods: Sequence[PeriodData]
    """BEFORE + 1 of them, oldest first."""
    which: str
    """The period that is measured, in words."""

    @property
    def before(self) -> Sequence[PeriodData]:
        """The periods that are learned before the measured one."""
        return self.periods[:-1]

    @property
    def measured(self) -> PeriodData:
        """The period that is measured."""
        return self.periods[-1]

    def to_json(self) -> dict[str, Any]:
        """The sizes of the measured period, as plain JSON values."""
        data = self.measured
        return {
            "name": self.name,
            "measured": self.which,
            "rows": len(data),
            "users": data.users - 1,
            "items": data.items - 1,
            "active_users": len(torch.unique(data.user)),
            "active_items": len(torch.unique(torch.cat([data.item, data.history]))),
            "mean_history": len(data.history) / len(data),
            "periods_before": BEFORE,
        }


def folder_workload(folder: Path, periods: int, seed: int) -> Workload:
    """The newest of `periods` periods, BEFORE + 1 or more, of the log in a folder; see `folder_periods`."""
    at_least(BEFORE + 1, periods=periods)
    name, found = folder_periods(folder, periods, seed)
    return Workload(name=name, periods=found[-BEFORE - 1 :], which=f"period {periods} of {periods}")


def synthetic_workload(sizes: StreamSizes, seed: int) -> Workload:
    """A stream in which some users and items are much busier than others; see `wider_tables` for its `idle` ids."""
    rng = np.random.default_rng(seed)
    visits, exposure = (rng.lognormal(size=n) for n in (sizes.users, sizes.items))
    taste, quality = rng.normal(size=(sizes.users, 2)), rng.normal(size=(sizes.items, 2))
    # A user's history is a stretch of a list of the user's own; it moves on by one item each period.
    past = rng.choice(sizes.items, (sizes.users, sizes.history + BEFORE), p=exposure / exposure.sum())
    periods: list[PeriodData] = []
    done = np.zeros((3, 0), np.int64)  # user, label and period of the interactions so far
    for number in range(BEFORE + 1):
        user = rng.choice(sizes.users, sizes.rows, p=visits / visits.sum())
        item = rng.choice(sizes.items, sizes.rows, p=exposure / exposure.sum())
        click = rng.random(sizes.rows) < 1 / (1 + np.exp(-(taste[user] * quality[item]).sum(1)))
        new = np.stack([user + 1, click, np.full(sizes.rows, number)])
        recent = build_recent(new[0], new[1], new[2], earlier=(done[0], done[1], done[2]))
        done = np.concatenate([done, new], axis=1)
        periods.append(
            PeriodData(
                user=torch.from_numpy(user + 1).int(),
                item=torch.from_numpy(item + 1).int(),
                history=torch.from_numpy(past[user, number : number + sizes.history].reshape(-1) + 1).int(),
                offsets=torch.arange(sizes.rows + 1) * sizes.history,
                label=torch.from_numpy(click.astype(np.float32)),
                users=1 + sizes.users,
                items=1 + sizes.items,
                recent=torch.from_numpy(recent),
            )
        )
    if sizes.idle > 1:
        periods = spread(periods, Places.draw(periods[-1].sizes, sizes.idle, seed))
    return Workload(name="synthetic", periods=periods, which=f"period {BEFORE + 1} of {BEFORE + 1}")
