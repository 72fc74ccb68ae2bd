"""Interaction logs in memory, and how they are cut into periods."""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg import datasets
from asmg.datasets import InteractionLog, cut
from tests.asmg.logs import make_log, positive_logs


def test_all_names_of_the_package_are_sorted_and_there() -> None:
    assert datasets.__all__ == sorted(datasets.__all__)
    assert all(hasattr(datasets, name) for name in datasets.__all__)


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"period: expected shape \(1,\) like user_ids; received \(2,\)"):
        make_log([("u", "a", 0)], period=np.array([1, 2]))


@pytest.mark.parametrize(("label", "positives_only"), [(2, False), (0, True)])
def test_labels_that_cannot_be_are_refused(label: int, positives_only: bool) -> None:
    ids = np.array(["x"], np.object_)
    with pytest.raises(ValueError, match=f"labels: expected .*; received {label}"):
        InteractionLog(
            user_ids=ids,
            item_ids=ids,
            labels=np.array([label], np.uint8),
            timestamps_ms=np.array([0]),
            positives_only=positives_only,
        )


def test_take_keeps_rows_together() -> None:
    log = make_log([("u", "a", 3), ("v", "b", 1)], period=np.array([7, 8]), categories={"a": ("x",)})
    taken = log.take(np.array([1]))
    assert (taken.user_ids[0], taken.item_ids[0], taken.timestamps_ms[0]) == ("v", "b", 1)
    assert taken.period is not None and taken.period[0] == 8
    assert taken.categories == {"a": ("x",)}
    assert taken.positives_only


@given(log=positive_logs, size=st.integers(1, 40), by=st.sampled_from(["count", "periods", "hour", "day", "week"]))
@settings(deadline=None)
def test_a_cut_loses_nothing_and_keeps_time_order(log: InteractionLog, size: int, by: Any) -> None:
    periods = cut(log, by, size)
    rows = np.concatenate(periods)
    assert sorted(rows) == list(range(len(log)))
    assert list(rows) == sorted(range(len(log)), key=lambda row: (log.timestamps_ms[row], row))
    assert all(len(period) for period in periods)


@given(n=st.integers(1, 60), size=st.integers(1, 70))
@settings(deadline=None)
def test_cuts_by_count_and_into_periods(n: int, size: int) -> None:
    log = make_log([("u", "a", t) for t in range(n)])
    sizes = [len(period) for period in cut(log, "count", size)]
    assert all(count == size for count in sizes[:-1])
    assert 0 < sizes[-1] <= size
    sizes = [len(period) for period in cut(log, "periods", size)]
    assert len(sizes) == min(size, n)
    assert max(sizes) - min(sizes) <= 1


moments = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@given(times=st.lists(moments, min_size=1, max_size=30), by=st.sampled_from(["hour", "day", "week"]))
@settings(deadline=None)
def test_windows_are_those_of_the_calendar(times: list[datetime], by: Any) -> None:
    def window(moment: datetime) -> tuple[int, ...]:
        year, week, _ = moment.isocalendar()
        return {
            "hour": (moment.year, moment.month, moment.day, moment.hour),
            "day": (moment.year, moment.month, moment.day),
            "week": (year, week),
        }[by]

    times = [moment.replace(microsecond=0) for moment in times]
    expected: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row in sorted(range(len(times)), key=lambda row: (times[row], row)):
        expected[window(times[row])].append(row)
    log = make_log([("u", "a", round(moment.timestamp()) * 1000) for moment in times])
    assert [list(period) for period in cut(log, by)] == list(expected.values())


def test_wide_windows_start_with_the_window_of_the_first_interaction() -> None:
    day = 86_400_000
    # Days 3, 4 | 5 (and 6, on which nothing happened) | (7, 8: no period) | 9.
    log = make_log([("u", "a", round(days * day)) for days in (3.9, 4.1, 5.5, 9.0)])
    assert [list(period) for period in cut(log, "day", 2)] == [[0, 1], [2], [3]]


def test_a_cut_by_column_follows_the_numbers() -> None:
    log = make_log([("u", "a", t) for t in (5, 4, 3, 2)], period=np.array([10, 2, 10, 2]))
    assert [list(period) for period in cut(log, "column")] == [[3, 1], [2, 0]]


def test_an_empty_log_has_no_periods() -> None:
    assert cut(make_log([]), "count", 5) == []


@pytest.mark.parametrize(
    ("by", "size", "message"),
    [
        ("count", 0, "size: expected at least 1; received 0"),
        ("column", 2, "size: expected 1; received 2"),
        ("column", 1, "by: expected a log with a period column for 'column'; received one without"),
        ("month", 1, "by: expected one of count, periods, hour, day, week, column; received 'month'"),
    ],
)
def test_bad_arguments_of_cut_are_named(by: Any, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut(make_log([("u", "a", 0)]), by, size)
