"""Metrics by parts of a log, against the metrics of the parts alone and by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.breakdown import Bin, Change, Predicted, by_group, by_prediction, by_value, changed_items
from asmg.metrics import scores

Log = list[tuple[float, int, int]]
logs = st.lists(
    st.tuples(
        st.one_of(st.integers(-2, 2).map(float), st.floats(-30, 30, width=32)), st.integers(0, 1), st.integers(0, 3)
    ),
    min_size=1,
    max_size=60,
)


def logit_of(probability: float) -> float:
    return math.log(probability / (1 - probability))


def predicted(probabilities: list[float], clicks: list[int]) -> Predicted:
    return Predicted.of(torch.tensor([logit_of(p) for p in probabilities]), torch.tensor(clicks).float())


@settings(deadline=None, max_examples=200)
@given(logs)
def test_a_group_has_the_metrics_of_its_rows_alone(log: Log) -> None:
    logit, label = torch.tensor([x for x, _, _ in log]), torch.tensor([float(y) for _, y, _ in log])
    of = np.array([group for _, _, group in log])
    # The last group has all interactions, which are in another one too.
    groups = [*(np.flatnonzero(of == group) for group in range(4)), np.arange(len(log))]
    for rows, got in zip(groups, by_group(Predicted.of(logit, label), groups), strict=True):
        if not len(rows):
            assert got is None
            continue
        expected = scores(logit[rows], label[rows]).to_json()
        assert got is not None and got.to_json() == {
            name: None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)
            for name, value in expected.items()
        }


def test_equal_predictions_share_a_bin() -> None:
    told = predicted([0.1, 0.2, 0.2, 0.2, 0.8, 0.9], [0, 1, 0, 0, 1, 1])
    found = by_prediction(told, most=3)  # bounds at the third and the fifth of six
    assert found == [
        pytest.approx(Bin(1, 0.1, 0.0)),
        pytest.approx(Bin(3, 0.2, 1 / 3)),
        pytest.approx(Bin(2, 0.85, 1.0)),
    ]
    assert by_prediction(predicted([0.5] * 20, [0, 1] * 10)) == [Bin(20, 0.5, 0.5)]
    even = by_prediction(Predicted.of(torch.linspace(-3, 3, 1000), torch.zeros(1000)))
    assert [each.rows for each in even] == [100] * 10
    assert [each.predicted for each in even] == sorted(each.predicted for each in even)


def test_the_most_frequent_values_get_groups() -> None:
    # Two values at a time: 7 four times, 2 and 5 twice, 3 and 9 once in the same interaction, and one not known.
    values = np.array([[7, 2], [7, -1], [7, 5], [3, 9], [7, 2], [0, 5], [-1, -1]])
    names, groups = by_value(values, 2)
    assert names == [7, 2]
    assert [group.tolist() for group in groups] == [
        [0, 1, 2, 4],
        [0, 4],
        [2, 3, 5],
    ]  # interaction 3 once; the last has no value
    names, groups = by_value(values, 8)
    assert names == [7, 2, 5, 3, 9]
    assert groups[-1].tolist() == [5]


def test_items_that_changed_most_come_first() -> None:
    item = np.array([4, 4, 4, 2, 2, 2, 6, 6, 6, 1, 1])
    before = [0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.3, 0.3, 0.3, 0.1, 0.1]
    after = [0.5, 0.4, 0.6, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9]
    clicks = [1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]
    found = changed_items(item, predicted(before, clicks), predicted(after, clicks))
    # Item 6: log-odds 0.3/0.7 → 0.1/0.9, by 1.35. Item 2: 0.1/0.9 → 0.2/0.8, by 0.81. Item 1 has too few rows.
    assert found[:2] == [pytest.approx(Change(6, 3, 0, 0.3, 0.1)), pytest.approx(Change(2, 3, 2, 0.1, 0.2))]
    assert {each.item for each in found[2:]} <= {4}  # which changed by rounding alone
    assert changed_items(item, predicted(before, clicks), predicted(after, clicks), most=1) == found[:1]
