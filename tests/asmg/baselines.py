"""Small periods and states for the tests of the baselines."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from asmg.batch import PeriodData
from asmg.models import EmbeddingMLPConfig
from asmg.training import TrainingConfig
from asmg.updaters.spmf import ReservoirUpdate, SpmfConfig
from tests.asmg.support import period as make_period
from tests.asmg.support import random_period, tensors_in, unchanged

SMALL = EmbeddingMLPConfig(dim=3, hidden=(8, 6))

SMALL_CATEGORIES = replace(SMALL, categories=True)

CONFIGS = {"plain": SMALL, "categories": SMALL_CATEGORIES}


def period(t: int, n: int = 60, config: EmbeddingMLPConfig = SMALL, **changes: Any) -> PeriodData:
    """The t-th period of a stream in which the tables grow."""
    items = 9 + 2 * t
    more = {"categories": 2 + items // 3} if config.categories else {}
    return random_period(t, n, **({"users": 6 + t, "items": items} | more | changes))


def numbered(start: int, labels: Sequence[float], **changes: Any) -> PeriodData:
    """A period whose items are numbered through from start + 1 on: an item tells how many rows came before it."""
    n = len(labels)
    items = list(range(start + 1, start + n + 1))
    histories = [[1 + i % 3] * (i % 4) for i in range(n)]
    sizes = {"users": 5, "items": start + n + 1} | changes
    return make_period([1 + i % 4 for i in range(n)], items, histories, labels, **sizes)


def same(a: Any, b: Any) -> bool:
    """Whether all tensors are equal to the bit."""
    return unchanged(tensors_in(a), b)


def rows(data: PeriodData) -> list[tuple[int, int, tuple[int, ...], float]]:
    """A period as a list of (user, item, history, label)."""
    ends = data.offsets.tolist()
    histories = [tuple(data.history[a:b].tolist()) for a, b in itertools.pairwise(ends)]
    return list(zip(data.user.tolist(), data.item.tolist(), histories, data.label.tolist(), strict=True))


def listed(periods: Sequence[PeriodData]) -> PeriodData:
    """The union of periods, made row by row."""
    user, item, history, label = zip(*(row for data in periods for row in rows(data)), strict=True)
    newest = periods[-1]
    categories = None if newest.item_categories is None else newest.item_categories.tolist()
    return make_period(user, item, history, label, users=newest.users, items=newest.items,
                       item_categories=categories, categories=newest.categories)  # fmt: skip


configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def spmf(config: EmbeddingMLPConfig = SMALL, **values: Any) -> ReservoirUpdate:
    return ReservoirUpdate(config, SpmfConfig(**values), TrainingConfig(cold_rate=0.0, batch_size=16))
