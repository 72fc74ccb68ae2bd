"""Histories and recent counts, against slow loops: nothing from the future."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.batch import build_histories, build_recent


def slow_histories(
    user: list[int],
    item: list[int],
    label: list[int],
    time: list[int],
    earlier: list[tuple[int, int, int]],
    length: int,
) -> list[list[int]]:
    """The definition, row by row: the user's positives strictly before; the latest first, in a tie the later input."""
    positives = [*earlier, *((u, i, t) for u, i, y, t in zip(user, item, label, time, strict=True) if y == 1)]
    histories = []
    for u, t in zip(user, time, strict=True):
        before = [(when, place, i) for place, (who, i, when) in enumerate(positives) if who == u and when < t]
        histories.append([i for _, _, i in sorted(before, reverse=True)][:length])
    return histories


def split(values: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [values[a:b].tolist() for a, b in pairwise(offsets)]


interactions = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(0, 1), st.integers(-3, 8)), max_size=60
)

positives_before = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(-8, 4)), max_size=60)


@settings(deadline=None, max_examples=200)
@given(interactions, positives_before, st.sampled_from([1, 3, 30]))
def test_histories_are_those_of_a_slow_loop(
    rows: list[tuple[int, int, int, int]], earlier: list[tuple[int, int, int]], length: int
) -> None:
    user, item, label, time = ([row[k] for row in rows] for k in range(4))
    before = tuple(np.array([row[k] for row in earlier], np.int64) for k in range(3))
    values, offsets = build_histories(
        *(np.array(column, np.int64) for column in (user, item, label, time)),
        earlier=before,  # type: ignore[arg-type]
        length=length,
    )
    assert values.dtype == np.int32
    assert offsets.dtype == np.int64
    assert split(values, offsets) == slow_histories(user, item, label, time, earlier, length)


def test_a_history_holds_strictly_earlier_positives_most_recent_first_by_hand() -> None:
    #                  0   1   2   3   4   5   6
    user = np.array([7, 7, 7, 8, 7, 7, 7])
    item = np.array([1, 2, 3, 4, 5, 6, 7])
    label = np.array([1, 0, 1, 1, 1, 1, 0])
    time = np.array([10, 10, 20, 20, 20, 30, 31])
    values, offsets = build_histories(user, item, label, time)
    assert split(values, offsets) == [[], [], [1], [], [1], [5, 3, 1], [6, 5, 3, 1]]


def test_the_input_need_not_be_in_time_order() -> None:
    values, offsets = build_histories(np.array([1, 1, 1]), np.array([3, 2, 1]), np.ones(3), np.array([30, 20, 10]))
    assert split(values, offsets) == [[2, 1], [1], []]


def test_a_history_is_capped_at_thirty_of_the_most_recent() -> None:
    n = 40
    values, offsets = build_histories(np.ones(n, np.int64), np.arange(n), np.ones(n), np.arange(n))
    assert split(values, offsets)[-1] == list(range(38, 8, -1))
    assert max(np.diff(offsets)) == 30


def test_without_an_earlier_log_nothing_precedes_the_first_rows() -> None:
    values, offsets = build_histories(np.array([1, 2]), np.array([5, 6]), np.array([1, 1]), np.array([4, 4]))
    assert values.tolist() == []
    assert offsets.tolist() == [0, 0, 0]


class Event(NamedTuple):
    user: int
    item: int
    label: int
    time: int
    tie: int
    """Between events of one user and time; a later place in the list decides where it is the same."""
    sampled: bool = False


events = st.lists(
    st.builds(
        Event,
        st.integers(1, 3),
        st.integers(1, 20),
        st.integers(0, 1),
        st.integers(-3, 12),
        st.integers(0, 4),
        st.booleans(),
    ).map(lambda event: event._replace(sampled=event.sampled and event.label == 0)),
    max_size=90,
)


def columns(rows: Sequence[Event], *names: str) -> tuple[np.ndarray, ...]:
    return tuple(np.array([getattr(row, name) for row in rows], np.int64) for name in names)


def past_of(row: Event, rows: Sequence[Event]) -> list[Event]:
    """What the user of a row did strictly before it, newest first."""
    numbered = [(e.time, e.tie, n, e) for n, e in enumerate(rows) if e.user == row.user and e.time < row.time]
    return [e for *_, e in sorted(numbered, reverse=True) if not e.sampled]


def counts(past: Sequence[Event]) -> list[int]:
    return [len(past[:30]), sum(e.label for e in past[:10]), sum(e.label for e in past[:30])]


@settings(deadline=None, max_examples=150)
@given(events, events, st.sampled_from([1, 3, 30]), st.booleans())
def test_recent_and_histories_are_those_of_a_slow_loop_whatever_the_ties(
    rows: list[Event], before: list[Event], length: int, tied: bool
) -> None:
    """Late events among them: earlier rows may be of a later time."""
    before = [e._replace(sampled=False) for e in before]
    if not tied:  # then those of the log follow the earlier ones
        rows = [e._replace(tie=1) for e in rows]
        before = [e._replace(tie=0) for e in before]
    ties = (columns(rows, "tie")[0], columns(before, "tie")[0]) if tied else None
    sampled = np.array([e.sampled for e in rows], bool)
    earlier = columns(before, "user", "label", "time")
    recent = build_recent(*columns(rows, "user", "label", "time"), earlier=earlier, ties=ties, sampled=sampled)  # type: ignore[arg-type]
    assert recent.dtype == np.int32
    assert recent.shape == (len(rows), 3)
    assert recent.tolist() == [counts(past_of(row, [*before, *rows])) for row in rows]
    clicks = [e for e in before if e.label]
    values, offsets = build_histories(
        *columns(rows, "user", "item", "label", "time"),
        earlier=columns(clicks, "user", "item", "time"),  # type: ignore[arg-type]
        ties=(columns(rows, "tie")[0], columns(clicks, "tie")[0]) if tied else None,
        length=length,
    )
    expected = [[e.item for e in past_of(row, [*before, *rows]) if e.label][:length] for row in rows]
    assert split(values, offsets) == expected


def test_recent_by_hand() -> None:
    n = 45  # clicks on every third, one a moment
    label = np.arange(n) % 3 == 0
    recent = build_recent(np.ones(n, np.int64), label, np.arange(n)).tolist()
    assert recent[:4] == [[0, 0, 0], [1, 1, 1], [2, 1, 1], [3, 1, 1]]
    # Before 11: places 1…10 with 3, 6, 9, and 0. Before 40: 30…39 with 30, 33, 36, 39, and 10…29 with six.
    assert recent[11] == [11, 3, 4]
    assert recent[40] == [30, 4, 10]
    shuffled = np.random.default_rng(0).permutation(n)
    assert build_recent(np.ones(n, np.int64), label[shuffled], shuffled).tolist() == [recent[k] for k in shuffled]


def test_the_future_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    user, label, time = rng.integers(1, 5, 400), rng.integers(0, 2, 400), np.sort(rng.integers(0, 150, 400))
    cut = int(np.flatnonzero(time >= 100)[0])
    future = cut + rng.permutation(400 - cut)
    there = np.concatenate([np.arange(cut), future])
    before = build_recent(user, label, time)[:cut]
    assert (build_recent(user[there], 1 - label[there], time)[:cut] != before).any()
    labels = np.concatenate([label[:cut], 1 - label[future]])
    assert (build_recent(user[there], labels, time)[:cut] == before).all()
