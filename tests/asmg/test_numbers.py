"""Numbers among the fields: what standardises them, and that it goes where the row of their field goes."""

import numpy as np
import torch

from asmg.field_columns import FieldColumns, unscaled
from asmg.layout import COLD_ROW, NO_VALUE, OWN_VALUE
from asmg.numbers import LEAST_DEVIATION, NumberMoments

PRICE, MISSING, AGE, PHONE = 3, 4, 5, 6


def columns(prices: list[float | None], ages: list[float]) -> FieldColumns:
    """A device, always the phone; a price, which may be missing; an age."""
    rows = [[PHONE, MISSING if price is None else PRICE, AGE] for price in prices]
    weights = [[1.0, 1.0 if price is None else price, age] for price, age in zip(prices, ages, strict=True)]
    return FieldColumns(
        rows=torch.tensor(rows, dtype=torch.int32),
        weights=torch.tensor(weights),
        sums=torch.tensor([0, 2, 1], dtype=torch.int32),
        size=9,
        neutral=torch.full((3,), OWN_VALUE, dtype=torch.int32),
        numbers=torch.tensor([NO_VALUE, PRICE, AGE], dtype=torch.int32),
        scale=unscaled(3),
    )


FIRST = columns([10.0, None, 20.0, 60.0], [1.0, 2.0, 3.0, 4.0])
SECOND = columns([100.0, None, None, 120.0], [7.0, 7.0, 7.0, 7.0])


def scale_of(values: list[float], weights: list[float]) -> tuple[float, float]:
    mean = float(np.average(values, weights=weights))
    deviation = float(np.sqrt(np.average((np.array(values) - mean) ** 2, weights=weights)))
    return mean, 1 / (deviation + LEAST_DEVIATION)


def test_are_standardised_by_what_was_known_before() -> None:
    known = NumberMoments.initial().learned(FIRST, 0.5).learned(SECOND, 0.5)
    mean, by = scale_of([10, 20, 60, 100, 120], [0.5, 0.5, 0.5, 1, 1])
    np.testing.assert_allclose(known.scales()[PRICE], (mean, by), rtol=1e-9)
    read = known.prepare(SECOND).standardised()
    expected = [(100 - mean) * by, 1, 1, (120 - mean) * by]
    np.testing.assert_allclose(read.weights[:, 1].numpy(), expected, rtol=1e-5)
    assert read.weights[:, 0].tolist() == [1] * 4 and torch.equal(read.rows, SECOND.rows)
    # What nobody had brought before is standardised by its own moments; what does not vary weighs nothing.
    new = NumberMoments.initial().prepare(SECOND).standardised()
    np.testing.assert_allclose(new.weights[:, 1].numpy(), [-1, 1, 1, 1], rtol=1e-3)
    assert new.weights[:, 2].tolist() == [0] * 4


def test_outliers_count_for_five_deviations() -> None:
    known = NumberMoments.initial().learned(FIRST, 0.5)
    read = known.prepare(columns([1e30, -1e30], [2.5, 2.5])).standardised()
    assert read.weights[:, 1].tolist() == [5, -5]


def test_are_forgotten_with_the_row_of_their_field() -> None:
    """The row may be another field's next, which has numbers of its own, or a value's."""
    known = NumberMoments.initial().learned(FIRST, 0.5)
    forgotten = known.forgotten(torch.tensor([PRICE, 900]))
    assert set(forgotten.scales()) == {AGE} and forgotten.scales()[AGE] == known.scales()[AGE]
    np.testing.assert_allclose(forgotten.learned(SECOND, 0.5).scales()[PRICE], scale_of([100, 120], [1, 1]), rtol=1e-9)
    assert known.forgotten(torch.tensor([PHONE, 900])) is known


def test_in_a_past_log_weigh_nothing_when_their_field_is_forgotten() -> None:
    """Else a price of 60 would count 60 times the cold row. The others stay standardised as they were."""
    known = NumberMoments.initial().learned(FIRST, 0.5)
    past = known.prepare(FIRST)
    forgotten = past.forgotten(torch.tensor([PRICE, 900]))
    assert forgotten.rows[:, 1].tolist() == [COLD_ROW, MISSING, COLD_ROW, COLD_ROW]
    assert forgotten.standardised().weights[:, 1].tolist() == [0, 1, 0, 0]
    others, index = [0, 2], torch.tensor([3, 0])
    assert torch.equal(forgotten.rows[:, others], past.rows[:, others])
    assert torch.equal(forgotten.batch(index).weights[:, others], past.batch(index).weights[:, others])
    assert past.standardised().weights[:, 1].abs().min() > 0.1
