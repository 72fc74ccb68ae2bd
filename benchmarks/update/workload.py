"""What the benchmarks learn: the newest periods of a public log, or a synthetic stream of given sizes.

Of both one period is measured, the last. The `BEFORE` ones before it bring about the state that an update meets in a
running service: a full window of three models, a carried hidden state, a generator and an optimizer with a past.
All ids have their table rows from the start, so that a whole-table implementation has the same work in every period.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from asmg.batch import HISTORY_LENGTH, PeriodData, build_histories, build_recent
from asmg.datasets import InteractionLog, cut, open_folder
from asmg.models import EmbeddingMLPConfig, default_config
from asmg.progressive import stage_rng
from asmg.statistics import NAMES, StatisticsConfig
from asmg.updaters import build_updater
from asmg.updaters.base import Updater

BEFORE = 5
"""Periods learned before the one measured. In the paper's settings the first model stays out of the sequence, the next
three fill the window, and the last period is the first one that the generator is trained on."""

ARRAYS = ("user", "item", "history", "offsets", "label", "recent")


def default_updater(method: str, *, reference: bool = False) -> Updater[Any]:
    """An update method with the base model that is served where nobody asks for another, which reads statistics.

    Args:
        method: one of `asmg.updaters.UPDATERS`.
        reference: with the authors' settings and their base model, which reads none.

    Raises:
        ValueError: there is no such method.
    """
    if reference:
        return build_updater(method, EmbeddingMLPConfig(), reference=True)
    shape = default_config(categories=False, numeric=len(NAMES))
    return build_updater(method, shape, statistics=StatisticsConfig())


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
    """Earlier positives that every interaction brings along."""
    idle: int = 1
    """The tables are so many times as large; no batch touches what is added."""

    def __post_init__(self) -> None:
        for name in ("users", "items", "rows", "idle"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1; received {getattr(self, name)}")
        if not 0 <= self.history <= HISTORY_LENGTH:
            raise ValueError(f"history: expected 0 to {HISTORY_LENGTH}; received {self.history}")

    @property
    def table_rows(self) -> int:
        """Rows of both tables together, without the cold rows."""
        return (self.users + self.items) * self.idle


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Periods to learn."""

    name: str
    """`diginetica`, `ml-100k` or `synthetic`."""
    periods: Sequence[PeriodData]
    """BEFORE + 1 of them, oldest first."""
    which: str
    """Which one is measured, in words."""

    @property
    def measured(self) -> PeriodData:
        """The period that is measured."""
        return self.periods[-1]

    def to_json(self) -> dict[str, Any]:
        """Its sizes, as plain JSON values."""
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
    """The newest of `periods` periods of equal row counts of the log in a folder; what is left over is dropped.

    Args:
        folder: of a public log, see `asmg.datasets.open_folder`.
        periods: at least BEFORE + 1.
        seed: of DIGINETICA's negatives.

    Raises:
        LogFormatError: the folder holds no such log.
        OSError: it is no folder.
    """
    if periods <= BEFORE:
        raise ValueError(f"periods: expected at least {BEFORE + 1}; received {periods}")
    name, found = folder_periods(folder, periods, seed)
    return Workload(name=name, periods=found[-BEFORE - 1 :], which=f"period {periods} of {periods}")


def folder_periods(folder: Path, periods: int, seed: int) -> tuple[str, list[PeriodData]]:
    """The name of the log in a folder, and `periods` periods of equal row counts of it; see `folder_workload`."""
    name, log = open_folder(folder, np.random.default_rng(seed))
    if len(log) < periods:
        raise ValueError(f"periods: expected at most {len(log)}, the rows of the log; received {periods}")
    drawn = log.labels == 0 if name == "diginetica" else None
    return name, _period_data(log, drawn, cut(log, "count", len(log) // periods)[:periods])


def _period_data(log: InteractionLog, drawn: np.ndarray | None, pieces: Sequence[np.ndarray]) -> list[PeriodData]:
    """Row = 1 + the number of an id by its first appearance in the file. Categories are left out.

    `drawn` (bool [N]) says which interactions are sampled negatives.
    """
    users, items = (_numbered(ids) for ids in (log.user_ids, log.item_ids))
    past, offsets = build_histories(users, items, log.labels, log.timestamps_ms)
    recent = torch.from_numpy(build_recent(users, log.labels, log.timestamps_ms, sampled=drawn))
    everything = PeriodData(
        user=torch.from_numpy(users),
        item=torch.from_numpy(items),
        history=torch.from_numpy(past),
        offsets=torch.from_numpy(offsets),
        label=torch.from_numpy(log.labels.astype(np.float32)),
        users=int(users.max()) + 1,
        items=int(items.max()) + 1,
    )
    periods = []
    for rows in pieces:
        batch = everything.batch(torch.from_numpy(rows))
        user, item, history = (ids.int() for ids in (batch.user, batch.item, batch.history))
        periods.append(
            replace(
                everything, user=user, item=item, history=history, offsets=batch.offsets, label=batch.label,
                recent=recent[torch.from_numpy(rows)],
            )
        )  # fmt: skip
    return periods


def _numbered(ids: np.ndarray) -> np.ndarray:
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(key, len(numbers) + 1) for key in ids), np.int32, len(ids))


def synthetic_workload(sizes: StreamSizes, seed: int) -> Workload:
    """A stream in which some users and items are much busier than others; see `spread` for its `idle` ids."""
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
    workload = Workload(name="synthetic", periods=periods, which=f"period {BEFORE + 1} of {BEFORE + 1}")
    if sizes.idle == 1:
        return workload
    return spread(workload, Places.draw(workload.measured.sizes, sizes.idle, seed))


@dataclass(frozen=True)
class Places:
    """Where the rows of tables come to lie in larger ones; the cold row stays the first."""

    rows: dict[str, torch.Tensor]
    """Table name → int64 [rows], distinct, from 0 for the cold row."""
    sizes: dict[str, int]
    """Table name → rows of the larger table."""

    @classmethod
    def draw(cls, sizes: dict[str, int], factor: int, seed: int) -> "Places":
        """At random, in tables `factor` times as large."""
        rng = np.random.default_rng([seed, factor])
        rows = {
            name: torch.from_numpy(np.concatenate([[0], 1 + rng.choice((n - 1) * factor, n - 1, replace=False)]))
            for name, n in sizes.items()
        }
        return cls(rows, {name: 1 + (n - 1) * factor for name, n in sizes.items()})


def spread(workload: Workload, places: Places) -> Workload:
    """The same traffic on larger tables: no batch touches the rows between the places."""
    user, item = (places.rows[name].int() for name in ("user", "item"))
    moved = [
        replace(
            p, user=user[p.user.long()], item=item[p.item.long()], history=item[p.history.long()],
            users=places.sizes["user"], items=places.sizes["item"],
        )
        for p in workload.periods
    ]  # fmt: skip
    return replace(workload, periods=moved)


def save_periods(file: Path, periods: Sequence[PeriodData]) -> None:
    """Write periods to a .npz file, for another process."""
    arrays = {f"{name}{i}": getattr(p, name).numpy() for i, p in enumerate(periods) for name in ARRAYS}
    np.savez(file, **arrays, sizes=np.array([periods[-1].users, periods[-1].items]))


def load_periods(file: Path) -> list[PeriodData]:
    """The inverse of `save_periods`."""
    with np.load(file) as stored:
        users, items = stored["sizes"].tolist()
        count = sum(name.startswith("user") for name in stored)
        return [
            PeriodData(
                user=torch.from_numpy(stored[f"user{i}"]),
                item=torch.from_numpy(stored[f"item{i}"]),
                history=torch.from_numpy(stored[f"history{i}"]),
                offsets=torch.from_numpy(stored[f"offsets{i}"]),
                label=torch.from_numpy(stored[f"label{i}"]),
                users=users,
                items=items,
                recent=torch.from_numpy(stored[f"recent{i}"]),
            )
            for i in range(count)
        ]


def prepared(updater: Updater[Any], workload: Workload, seed: int) -> Any:
    """The state of an update method that has learned all periods but the measured one."""
    state = updater.initial(stage_rng(seed, 0, "initial"))
    for number, log in enumerate(workload.periods[:-1], start=1):
        data = updater.prepare(state, log)
        for stage in updater.stages:
            state = updater.run_stage(stage, state, data, rng=stage_rng(seed, number, stage))
    return state


def need_memory(what: str, needed: float) -> None:
    """Raise ValueError where fewer bytes are free than something will need."""
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"{what} needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; take smaller tables"
        )
