"""What interactions read of the field table, and the moments that standardise their numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from asmg.batch import PeriodData, concatenate
from asmg.checkpoint import Checkpoint, dump_data, load_data
from asmg.experiments.periods import Periods, with_numbers
from asmg.field_columns import FieldColumns, unscaled
from asmg.layout import NO_VALUE, OWN_VALUE
from asmg.models import EmbeddingMLPConfig, build_model
from asmg.numbers import NumberMoments
from asmg.statistics import Statistics, StatisticsConfig
from asmg.training import TrainingConfig, predict_logits
from asmg.updaters.iu import IncrementalUpdate
from tests.asmg.support import FIELD_ROWS, random_params, random_period, torch_rng

NUMBER, MISSING = 4, 5
"""Rows of a field of numbers: of its numbers, and of a missing one."""


def columns(rows: list[list[int]], weights: list[list[float]] | None = None, **changes: Any) -> FieldColumns:
    """Two columns of the context, the second of which is for training only, and one of numbers of the item."""
    values: dict[str, Any] = {
        "rows": torch.tensor(rows, dtype=torch.int32),
        "weights": torch.tensor(weights or [[1.0] * len(row) for row in rows]),
        "size": 8,
        "sums": torch.tensor([0, 0, 2], dtype=torch.int32),
        "neutral": torch.tensor([OWN_VALUE, 7, OWN_VALUE], dtype=torch.int32),
        "numbers": torch.tensor([NO_VALUE, NO_VALUE, NUMBER], dtype=torch.int32),
        "scale": unscaled(3),
    }
    return FieldColumns(**{**values, **changes})


THREE = [[1, 2, NUMBER], [1, 3, MISSING], [6, 2, NUMBER]]
WEIGHTS = [[1.0, 1.0, 10.0], [1.0, 1.0, 1.0], [1.0, 1.0, 30.0]]


def test_numbers_are_standardised_by_the_moments_of_earlier_periods() -> None:
    fields = columns(THREE, WEIGHTS)
    moments = NumberMoments.initial().learned(fields, 0.5)
    assert moments.rows.tolist() == [NUMBER]
    assert moments.sums.tolist() == [[2.0, 40.0, 1000.0]]  # the missing one is none
    (mean, by) = moments.scales()[NUMBER]
    assert (mean, by) == (20.0, pytest.approx(1 / 10.001))
    read = moments.prepare(columns(THREE, [[1, 1, 25.0], [1, 1, 1.0], [1, 1, 1e9]])).standardised()
    np.testing.assert_allclose(read.weights[:, 2], [0.5, 1.0, 5.0], rtol=1e-3)
    assert read.weights[:, :2].tolist() == [[1.0, 1.0]] * 3
    assert read.standardised() is read


def test_a_field_of_numbers_that_is_new_is_standardised_by_itself() -> None:
    read = NumberMoments.initial().prepare(columns(THREE, WEIGHTS)).standardised()
    np.testing.assert_allclose(read.weights[:, 2], [-1.0, 1.0, 1.0], rtol=1e-3)


def test_older_numbers_fade_and_those_of_a_dropped_field_stay() -> None:
    moments = NumberMoments.initial().learned(columns(THREE, WEIGHTS), 0.5)
    assert moments.learned(None, 0.5).sums.tolist() == [[1.0, 20.0, 500.0]]
    both = moments.learned(columns(THREE, WEIGHTS), 0.5)
    assert both.sums.tolist() == [[3.0, 60.0, 1500.0]]


def test_numbers_that_do_not_differ_are_read_as_their_mean() -> None:
    same = columns(THREE, [[1, 1, 7.0], [1, 1, 1.0], [1, 1, 7.0]])
    assert NumberMoments.initial().prepare(same).standardised().weights[:, 2].tolist() == [0.0, 1.0, 0.0]


def test_statistics_keep_the_moments_and_older_checkpoints_have_none() -> None:
    data = replace(random_period(1, 3), fields=columns(THREE, WEIGHTS))
    statistics = Statistics.initial(StatisticsConfig()).learned(data)
    again = Statistics.load(Checkpoint.from_bytes(statistics.dump().to_bytes()))
    assert again.numbers.scales() == statistics.numbers.scales() != {}
    plain = Statistics.initial(StatisticsConfig()).learned(random_period(1, 3)).dump()
    assert not any(name.startswith("numbers") for name in plain.tensors)
    assert Statistics.load(plain).numbers.scales() == {}


def test_training_only_columns_are_neutral_where_a_model_predicts() -> None:
    fields = columns(THREE, [[1, 0.5, 10.0], [1, 1, 1], [1, 1, 1]])
    found = fields.when_predicting()
    assert found.rows.tolist() == [[1, 7, NUMBER], [1, 7, MISSING], [6, 7, NUMBER]]
    assert found.weights[0].tolist() == [1.0, 1.0, 10.0]
    some = fields.with_neutral(torch.tensor([[True] * 3, [False] * 3, [False] * 3]))
    assert some.rows[:, 1].tolist() == [7, 3, 2]
    without = columns(THREE, neutral=torch.full((3,), OWN_VALUE, dtype=torch.int32))
    assert without.when_predicting() is without


def test_a_prediction_does_not_depend_on_a_training_only_column() -> None:
    config = EmbeddingMLPConfig(dim=3, hidden=(5, 4), fields=True)
    model, params = build_model(config), random_params(config, 0, user=6, item=9)
    data = random_period(2, 3)
    one, other = (
        replace(data, fields=columns([[1, row, NUMBER], [2, row, NUMBER], [3, row, MISSING]])) for row in (2, 6)
    )
    assert torch.equal(predict_logits(model, params, one), predict_logits(model, params, other))
    differs = replace(one, fields=columns([[6, 2, NUMBER], [2, 2, NUMBER], [3, 2, MISSING]]))
    assert not torch.equal(predict_logits(model, params, one)[:1], predict_logits(model, params, differs)[:1])


def test_rows_past_a_table_are_cold_and_numbers_of_an_unknown_field_weigh_nothing() -> None:
    found = columns(THREE, WEIGHTS, scale=torch.tensor([[0.0, 0.0, 5.0], [1.0, 1.0, 0.1]])).within(3)
    assert found.rows.tolist() == [[1, 2, 0], [1, 0, 0], [0, 2, 0]]
    assert found.weights.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 0]]
    assert found.neutral.tolist() == [OWN_VALUE, 0, OWN_VALUE]


def test_forgotten_rows_are_cold() -> None:
    found = columns([[1, NO_VALUE, NUMBER], [2, 2, MISSING]]).forgotten(torch.tensor([2, 7, 99]))
    assert found.rows.tolist() == [[1, NO_VALUE, NUMBER], [0, 0, MISSING]]
    assert found.neutral.tolist() == [OWN_VALUE, 0, OWN_VALUE]
    data = replace(random_period(0, 2), fields=columns([[1, 2, 4], [2, 2, 5]]))
    assert data.forgotten({"user": torch.tensor([1]), "item": torch.tensor([1])}).fields is data.fields


def test_periods_of_one_schema_and_of_several_are_one_log() -> None:
    first, second = columns(THREE[:2], WEIGHTS[:2]), columns(THREE[2:], WEIGHTS[2:])
    joined = FieldColumns.concatenate([first, second])
    assert joined.rows.tolist() == THREE
    other = columns([[3]], [[1.0]], size=9, sums=torch.tensor([1], dtype=torch.int32),
                    neutral=torch.tensor([OWN_VALUE], dtype=torch.int32),
                    numbers=torch.tensor([NO_VALUE], dtype=torch.int32), scale=unscaled(1))  # fmt: skip
    wide = FieldColumns.concatenate([first, other])
    assert wide.rows.tolist() == [[*row, NO_VALUE] for row in THREE[:2]] + [[NO_VALUE] * 3 + [3]]
    assert (wide.size, wide.sums.tolist()) == (9, [0, 0, 2, 1])
    # What a schema does not have is not made neutral by that of another period.
    assert wide.when_predicting().rows[2].tolist() == [NO_VALUE] * 3 + [3]


def test_a_log_without_fields_goes_with_one_that_has_them() -> None:
    one, other = random_period(0, 3), random_period(1, 4, fields=True)
    together = concatenate([one, other])
    assert together.fields is not None and together.weight is not None and other.fields is not None
    assert together.fields.rows[:3].unique().tolist() == [NO_VALUE]
    assert torch.equal(together.fields.rows[3:], other.fields.rows)
    assert together.weight[:3].tolist() == [1.0] * 3
    assert together.sizes["field"] == FIELD_ROWS


def test_a_checkpoint_keeps_fields_and_weights() -> None:
    data = random_period(1, 9, fields=True, numeric=2)
    again = load_data(Checkpoint.from_bytes(dump_data(data).to_bytes(), "period-data"))
    assert again.fields is not None and data.fields is not None and again.weight is not None
    assert torch.equal(again.weight, data.importance)
    for name, tensor in data.fields.tensors().items():
        assert torch.equal(getattr(again.fields, name), tensor)
    assert again.fields.size == data.fields.size


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"rows": torch.zeros(3, 3)}, r"^fields.rows: expected int32 \[N, C\]; received torch.float32 \[3, 3\]"),
        ({"weights": torch.ones(2, 3)}, r"^fields.weights: expected float32 \[3, 3\]; received"),
        ({"weights": torch.full((3, 3), float("nan"))}, r"^fields.weights: expected finite numbers; received NaN"),
        ({"sums": torch.tensor([0, 3, 1], dtype=torch.int32)}, r"^fields.sums: expected numbers from 0 to 2; received"),
        ({"neutral": torch.tensor([1])}, r"^fields.neutral: expected 3 columns; received \[1\]"),
        ({"size": 6}, r"^fields.rows: expected rows from -1 to 5; received 1\.\.6"),
        ({"size": 0}, r"^fields.size: expected at least 1 row; received 0"),
        ({"scale": torch.ones(3, 2)}, r"^fields.scale: expected shape \(2, 3\); received \(3, 2\)"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        replace(columns(THREE, WEIGHTS), **changes)


@pytest.mark.parametrize("weight", [[1.0], [0.0, 1.0, 1.0], [1.0, float("inf"), 1.0], [1.0, -1.0, 1.0]])
def test_weights_have_to_be_positive(weight: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^weight: expected (positive numbers|shape \(3,\)); received"):
        replace(random_period(0, 3), weight=torch.tensor(weight))


def test_numbers_of_periods_are_scaled_by_the_periods_before() -> None:
    """As they are with statistics, where a model reads none."""
    data = [replace(random_period(n, 3), fields=columns(THREE, WEIGHTS)) for n in range(2)]
    data[1] = replace(data[1], fields=columns(THREE, [[1, 1, 20.0], [1, 1, 1], [1, 1, 40.0]]))
    first, second = with_numbers(Periods(data, [6, 6], [9, 9])).data
    for period, expected in ((first, [-1.0, 1.0, 1.0]), (second, [0.0, 1.0, 2.0])):
        assert period.fields is not None
        np.testing.assert_allclose(period.fields.standardised().weights[:, 2], expected, atol=1e-3)


def positions(t: int, n: int = 4_000) -> PeriodData:
    """Interactions whose clicks depend on a training-only field alone: row 2, four times in five, is clicked at 0.8,
    row 3 at 0.1, and so all together at 0.66. Row 7 is that of the missing value, which no log has."""
    rng, none = np.random.default_rng(t), torch.full((1,), NO_VALUE, dtype=torch.int32)
    first = torch.from_numpy(rng.random(n) < 0.8)
    label = torch.from_numpy(rng.random(n)) < torch.where(first, 0.8, 0.1)
    fields = FieldColumns(
        rows=torch.where(first, 2, 3).int().unsqueeze(1), weights=torch.ones(n, 1), size=8,
        sums=torch.zeros(1, dtype=torch.int32), neutral=torch.tensor([7], dtype=torch.int32), numbers=none,
        scale=unscaled(1),
    )  # fmt: skip
    return replace(random_period(t, n), label=label.float(), fields=fields)


def test_a_training_only_field_is_learned_and_its_neutral_row_stands_for_the_average() -> None:
    config, moved = EmbeddingMLPConfig(dim=4, hidden=(8,), fields=True), []
    for rate in (0.1, 0.0):
        updater = IncrementalUpdate(config, TrainingConfig(neutral_rate=rate, cold_rate=0.0))
        state = updater.update(updater.initial(torch_rng(0)), positions(1), rng=torch_rng(1))
        before = state.params["field"][7].clone()
        for t in (2, 3):
            state = updater.update(state, positions(t), rng=torch_rng(t))
        moved.append(not torch.equal(state.params["field"][7], before))
        if rate == 0:
            continue
        data = positions(9)
        assert data.fields is not None
        asked = torch.sigmoid(predict_logits(updater.model, state.params, data))
        assert 0.58 < float(asked.mean()) < 0.74 and float(asked.std()) < 0.1
        own = replace(data, fields=replace(data.fields, neutral=torch.tensor([OWN_VALUE], dtype=torch.int32)))
        told = torch.sigmoid(predict_logits(updater.model, state.params, own))
        seen = data.fields.rows[:, 0] == 2
        assert float(told[seen].mean()) > 0.7 and float(told[~seen].mean()) < 0.25
    assert moved == [True, False]
