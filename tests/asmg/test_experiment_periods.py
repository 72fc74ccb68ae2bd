"""The periods of an experiment: rows, histories, cold ids, statistics; nothing from the future."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from asmg.batch import NO_CATEGORY, PeriodData
from asmg.datasets.prepared import PreparedLog
from asmg.experiments.periods import Periods, cut_periods
from asmg.experiments.protocol import Protocol
from asmg.models import EmbeddingMLPConfig, default_config
from asmg.statistics import NAMES, Statistics, StatisticsConfig
from tests.asmg.experiments import PROTOCOL


class TestPeriods:
    """cut_periods, against the rows one by one."""

    @pytest.mark.parametrize("known", ["all", "so_far"])
    @pytest.mark.parametrize("categories", [False, True])
    def test_rows_histories_and_sizes(self, small_log: PreparedLog, known: Any, categories: bool) -> None:
        periods = cut_periods(small_log, 8, known=known, categories=categories)
        assert len(periods.data) == 8
        past: dict[int, list[tuple[int, int]]] = defaultdict(list)
        seen_users, seen_items = {0}, {0}
        position = 0
        for data, users, items in zip(periods.data, periods.users, periods.items, strict=True):
            assert len(data) == 200
            for n in range(200):
                user, item = int(small_log.user[position]) + 1, int(small_log.item[position]) + 1
                moment, label = int(small_log.timestamps_ms[position]), int(small_log.label[position])
                earlier = [i for t, i in past[user] if t < moment][::-1][:30]
                assert (int(data.user[n]), int(data.item[n]), int(data.label[n])) == (user, item, label)
                assert data.history[data.offsets[n] : data.offsets[n + 1]].tolist() == earlier
                if label:
                    past[user].append((moment, item))
                seen_users.add(user)
                seen_items.add(item)
                position += 1
            assert (users, items) == (len(seen_users), len(seen_items))
            whole = len(set(small_log.user[:1600].tolist())) + 1, len(set(small_log.item[:1600].tolist())) + 1
            assert (data.users, data.items) == ((users, items) if known == "so_far" else whole)
            assert (data.item_categories is not None) == categories

    def test_categories_are_numbered_with_their_items(self, small_log: PreparedLog) -> None:
        periods = cut_periods(small_log, 8, known="so_far", categories=True)
        names: dict[int, str] = {}
        for data in periods.data:
            assert data.item_categories is not None
            present = data.item_categories[data.item_categories != NO_CATEGORY]
            assert sorted(set(present.tolist())) == list(range(1, data.categories))
            for row in range(1, data.items):
                mine = [c for c in data.item_categories[row].tolist() if c != NO_CATEGORY]
                theirs = [small_log.categories[c] for c in small_log.item_categories[row - 1] if c >= 0]  # type: ignore[index]
                assert [names.setdefault(c, name) for c, name in zip(mine, theirs, strict=True)] == theirs
        assert len(set(names.values())) == len(names)

    @pytest.mark.parametrize("known", ["all", "so_far"])
    def test_cold_is_a_user_in_no_row_and_an_item_in_no_click_of_an_earlier_period(
        self, small_log: PreparedLog, known: Any
    ) -> None:
        periods = cut_periods(small_log, 8, known=known, categories=False)
        users, clicked = (
            set(small_log.user[:1000].tolist()),
            set(small_log.item[:1000][small_log.label[:1000] == 1].tolist()),
        )
        cold_user, cold_item = periods.cold(5)
        assert cold_user.tolist() == [u not in users for u in small_log.user[1000:1200].tolist()]
        assert cold_item.tolist() == [i not in clicked for i in small_log.item[1000:1200].tolist()]
        assert cold_user.any() and cold_item.any() and not cold_user.all()

    def test_an_item_that_was_only_a_negative_is_cold(self) -> None:
        """Where negatives are drawn from all items of the log, all of them are in its first rows: by hand."""
        rows = [(0, 0, 1), (0, 1, 0), (0, 2, 0), (0, 3, 0), (1, 1, 1), (1, 0, 0), (1, 3, 0), (1, 2, 0)]
        user, item, label = (np.array(column) for column in zip(*rows, strict=True))
        periods = Periods(
            [
                PeriodData(
                    user=torch.from_numpy(user[part]).int() + 1, item=torch.from_numpy(item[part]).int() + 1,
                    history=torch.empty(0, dtype=torch.int32), offsets=torch.zeros(5, dtype=torch.int64),
                    label=torch.from_numpy(label[part]).float(), users=3, items=5,
                )
                for part in (slice(0, 4), slice(4, 8))
            ],
            [2, 3], [5, 5],
        )  # fmt: skip
        cold_user, cold_item = periods.cold(1)
        assert cold_user.tolist() == [True] * 4
        assert cold_item.tolist() == [True, False, True, True]

    def test_bad_input(self, small_log: PreparedLog) -> None:
        with pytest.raises(ValueError, match="periods: expected from 1 to 1603"):
            cut_periods(small_log, 1604, known="all", categories=False)
        with pytest.raises(ValueError, match="periods: expected from 1"):
            cut_periods(small_log, 0, known="all", categories=False)
        with pytest.raises(ValueError, match="categories: expected a log whose items have them"):
            cut_periods(replace(small_log, item_categories=None), 8, known="all", categories=True)


class TestShape:
    """What the base model is, and what it reads."""

    def test_settings_and_changes(self) -> None:
        ours, theirs = Protocol(), Protocol(settings="paper")
        assert ours.model == default_config(categories=False, numeric=len(NAMES))
        assert theirs.model == EmbeddingMLPConfig()
        plain = replace(default_config(categories=False, numeric=0), dot=False)
        assert replace(ours, statistics=False, dot=False).model == plain
        assert replace(theirs, statistics=True, dot=True).model == EmbeddingMLPConfig(numeric=len(NAMES), dot=True)
        other = replace(ours, dim=5, hidden=(7, 3), categories=True).model
        assert (other.dim, other.hidden, other.categories) == (5, (7, 3), True)

    def test_statistics_are_those_known_before_each_period(self, small_log: PreparedLog) -> None:
        assert {data.numeric for data in replace(PROTOCOL, settings="paper").cut(small_log).data} == {None}
        periods, known = PROTOCOL.cut(small_log).data, Statistics.initial(StatisticsConfig())
        less = replace(PROTOCOL, dropped=("repeat", "user_clicks")).cut(small_log).data
        for data, other in zip(periods, less, strict=True):
            expected = known.inputs(data)
            assert data.numeric is not None and torch.equal(data.numeric, expected)
            expected[:, [NAMES.index("repeat"), NAMES.index("user_clicks")]] = 0
            assert other.numeric is not None and torch.equal(other.numeric, expected)
            known = known.learned(data)

    def test_the_future_changes_nothing_that_is_read(self, small_log: PreparedLog) -> None:
        """Whatever happens after a moment, all that models read of the rows until then stays to the bit."""
        later = int(np.searchsorted(small_log.timestamps_ms, small_log.timestamps_ms[1_100], side="right"))
        order = np.arange(len(small_log.label))
        np.random.default_rng(1).shuffle(order[later:])
        label = np.where(np.arange(len(order)) < later, small_log.label, 1 - small_log.label)
        changed = PROTOCOL.cut(replace(small_log, item=small_log.item[order], label=label)).data
        until = later - 1_000
        assert 50 < until < 150
        for step, (one, two) in enumerate(zip(PROTOCOL.cut(small_log).data[:6], changed[:6], strict=True)):
            rows = until if step == 5 else 200
            assert one.numeric is not None and two.numeric is not None
            assert torch.equal(one.numeric[:rows], two.numeric[:rows])
            assert torch.equal(one.history[: one.offsets[rows]], two.history[: two.offsets[rows]])
