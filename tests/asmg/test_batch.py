"""Periods, their batches and parts hold the rows that they say."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.batch import Epoch, InteractionBatch, PeriodData, concatenate, excerpt
from tests.asmg.support import period, random_period, torch_rng


def valid() -> PeriodData:
    return period(
        [1, 2, 1], [3, 1, 2], [[], [1, 2], [3]], [0, 1, 1], users=3, items=4, categories=3,
        item_categories=[[-1, -1], [1, -1], [2, 1], [-1, -1]],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item": torch.tensor([1, 2])}, r"^item: expected length 3; received 2"),
        ({"label": torch.zeros(4)}, r"^label: expected length 3; received 4"),
        ({"offsets": torch.tensor([0, 0, 3])}, r"^offsets: expected length 4; received 3"),
        ({"offsets": torch.tensor([1, 1, 2, 3])}, r"^offsets: expected to run from 0 to 3; received 1 to 3"),
        ({"offsets": torch.tensor([0, 0, 2, 2])}, r"^offsets: expected to run from 0 to 3; received 0 to 2"),
        ({"offsets": torch.tensor([0, 2, 1, 3])}, r"^offsets: expected values that never decrease"),
        ({"user": torch.tensor([1, 3, 1])}, r"^user: expected rows in \[0, 3\); received 1\.\.3"),
        ({"user": torch.tensor([1, -1, 1])}, r"^user: expected rows in \[0, 3\); received -1\.\.1"),
        ({"item": torch.tensor([1, 4, 1])}, r"^item: expected rows in \[0, 4\); received 1\.\.4"),
        ({"history": torch.tensor([1, 2, 4])}, r"^history: expected rows in \[0, 4\); received 1\.\.4"),
        ({"history": torch.tensor([1, -2, 3])}, r"^history: expected rows in \[0, 4\); received -2\.\.3"),
        ({"label": torch.tensor([0.0, 0.5, 1.0])}, r"^label: expected 0 or 1"),
        ({"label": torch.tensor([0.0, float("nan"), 1.0])}, r"^label: expected 0 or 1"),
        ({"categories": 0}, r"^item_categories: expected exactly when categories > 0"),
        ({"item_categories": None}, r"^item_categories: expected exactly when categories > 0"),
        ({"item_categories": torch.zeros(3, 2, dtype=torch.int32)}, r"^item_categories: expected 4 rows; received 3"),
        ({"item_categories": torch.full((4, 2), 3)}, r"^item_categories: expected rows under 3 or -1; received 3\.\.3"),
        ({"item_categories": torch.full((4, 2), -2)}, r"^item_categories: expected rows .*; received -2\.\.-2"),
        ({"recent": torch.zeros(2, 3)}, r"^recent: expected shape \(3, 3\); received \(2, 3\)"),
        ({"numeric": torch.ones(2, 4)}, r"^numeric: expected float32 \[3, S\] with S ≥ 1; received .* \[2, 4\]"),
        ({"numeric": torch.ones(3)}, r"^numeric: expected float32 \[3, S\] with S ≥ 1; received torch.float32 \[3\]"),
        ({"numeric": torch.ones(3, 0)}, r"^numeric: expected float32 .*; received torch.float32 \[3, 0\]"),
        ({"numeric": torch.ones(3, 2).double()}, r"^numeric: expected float32 .*; received torch.float64 \[3, 2\]"),
        ({"numeric": torch.tensor([[1.0], [math.nan], [0.0]])}, r"^numeric: expected finite numbers; received NaN or"),
        ({"numeric": torch.tensor([[1.0], [0.0], [-math.inf]])}, r"^numeric: expected finite numbers; received NaN or"),
    ],
)  # fmt: skip
def test_a_bad_period_is_refused_by_the_name_of_the_field(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(valid(), **changes)  # type: ignore[arg-type]


def test_an_empty_period_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^period: expected at least one interaction; received none"):
        period([], [], [], [], users=1, items=1)


def test_the_sizes_of_a_period_name_its_tables() -> None:
    assert valid().sizes == {"user": 3, "item": 4, "category": 3}
    assert random_period(0, users=6, items=9).sizes == {"user": 6, "item": 9}
    assert len(valid()) == 3


def rows_of(b: InteractionBatch) -> list[tuple[int, int, list[int], float]]:
    """A batch as plain rows."""
    return [
        (
            int(b.user[n]),
            int(b.item[n]),
            b.history[int(b.offsets[n]) : int(b.offsets[n + 1])].tolist(),
            float(b.label[n]),
        )
        for n in range(len(b.user))
    ]


def rows_of_period(data: PeriodData) -> list[tuple[int, int, list[int], float]]:
    offsets = data.offsets.tolist()
    return [
        (int(data.user[n]), int(data.item[n]), data.history[offsets[n] : offsets[n + 1]].tolist(), float(data.label[n]))
        for n in range(len(data))
    ]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.data())
def test_a_batch_holds_the_rows_at_its_index_in_that_order(seed: int, n: int, draw: st.DataObject) -> None:
    data = random_period(seed, n)
    index = draw.draw(st.lists(st.integers(0, n - 1), max_size=15))
    b = data.batch(torch.tensor(index, dtype=torch.int64))
    whole = rows_of_period(data)
    assert rows_of(b) == [whole[k] for k in index]
    assert len(b.offsets) == len(index) + 1
    assert (b.user.dtype, b.item.dtype, b.history.dtype, b.label.dtype) == (*(torch.int64,) * 3, torch.float32)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 9), st.integers(1, 10))
def test_a_slice_is_a_period_of_these_rows(seed: int, start: int, count: int) -> None:
    data = random_period(seed, 10, categories=3)
    stop = min(10, start + count)
    part = data.slice(start, stop)
    assert rows_of_period(part) == rows_of_period(data)[start:stop]
    assert part.sizes == data.sizes
    assert part.item_categories is data.item_categories


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 9)), min_size=1, max_size=4))
def test_periods_one_after_the_other_are_one_period(parts: list[tuple[int, int]]) -> None:
    periods = [random_period(seed, n, users=6 + k, items=9 + k, categories=6) for k, (seed, n) in enumerate(parts)]
    whole = concatenate(periods)
    assert rows_of_period(whole) == [row for p in periods for row in rows_of_period(p)]
    assert whole.sizes == periods[-1].sizes
    assert whole.item_categories is periods[-1].item_categories
    for name in ("user", "item", "history", "offsets", "label"):
        assert getattr(whole, name).dtype == getattr(periods[0], name).dtype


def test_what_is_recent_goes_where_its_interaction_goes() -> None:
    one, other = random_period(1, 9, categories=3), random_period(2, 7, categories=3)
    assert one.recent is not None and other.recent is not None

    def same(data: PeriodData, expected: torch.Tensor) -> bool:
        return data.recent is not None and torch.equal(data.recent, expected)

    assert same(one.slice(2, 5), one.recent[2:5])
    assert same(one.forgotten({"user": one.user[:3].long(), "item": one.item[:3].long()}), one.recent)
    assert same(concatenate([one, other]), torch.cat([one.recent, other.recent]))
    assert same(one.select(torch.tensor([4, 4, 0])), one.recent[[4, 4, 0]])
    small = excerpt([one, other], ("user", "item", "category")).periods
    assert same(small[0], one.recent) and same(small[1], other.recent)
    # A training state of an older release has none.
    assert concatenate([replace(one, recent=None), other]).recent is None


def test_a_period_without_history_is_the_same_but_for_that() -> None:
    data = random_period(0, 10, categories=4)
    bare = data.without_history()
    assert rows_of_period(bare) == [(u, i, [], y) for u, i, _, y in rows_of_period(data)]
    assert bare.sizes == data.sizes
    assert len(data.history) > 0


def test_the_features_of_a_period_are_the_categories_of_all_its_items() -> None:
    data = random_period(0, 10, items=9, categories=4)
    features = data.features
    assert features is not None
    assert data.item_categories is not None
    assert features.row.tolist() == list(range(9))
    assert features.categories.tolist() == data.item_categories.tolist()
    assert random_period(0, 10).features is None


def tagged(n: int, first: int = 0) -> PeriodData:
    """Interactions whose item, and whose two numeric inputs, tell which they are."""
    data = random_period(first, n, users=6, items=99)
    item = torch.arange(first + 1, first + n + 1, dtype=torch.int32)
    return replace(data, item=item, numeric=torch.stack([item.float(), -item.float()], 1))


def tells_itself(data: PeriodData | InteractionBatch) -> bool:
    """Whether every interaction has its own numeric inputs."""
    assert data.numeric is not None
    return torch.equal(data.numeric, torch.stack([data.item.float(), -data.item.float()], 1))


def test_numeric_inputs_stay_with_their_interactions() -> None:
    data, index = tagged(9), torch.tensor([7, 2, 2, 5])
    assert tells_itself(data.batch(index))
    assert data.select(index).item.tolist() == [8, 3, 3, 6]
    for part in (data.select(index), data.slice(2, 6), data.without_history(), concatenate([data, tagged(4, 20)])):
        assert tells_itself(part)
    forgotten = data.forgotten({"user": torch.tensor([1, 2]), "item": torch.tensor([3])})
    assert torch.equal(forgotten.inputs, data.inputs)
    assert data.inputs.shape == (9, 2)
    assert random_period(0, 9).inputs.shape == (9, 0)
    assert random_period(0, 9).batch(index).numeric is None


def test_an_excerpt_and_an_epoch_have_the_numeric_inputs_of_their_interactions() -> None:
    periods = [tagged(9), tagged(5, 20)]
    small, rows = excerpt(periods, ("user", "item"))
    for data in small:
        assert tells_itself(replace(data, item=rows["item"][data.item.long()].int(), items=99))
    orders = [torch.randperm(len(data), generator=torch_rng(k)) for k, data in enumerate(small)]
    epoch = Epoch(small, [list(order.tensor_split(3)) for order in orders])
    both = torch.cat([data.inputs for data in small])
    assert torch.equal(epoch.numeric, both[epoch.order])
    for step in range(3):
        local = epoch.local(step, epoch.label)
        for batch in local.batches:
            items = rows["item"][local.rows["item"][batch.item]]
            assert tells_itself(batch._replace(item=items))


def test_periods_of_different_numeric_inputs_are_not_one_period() -> None:
    one, two = random_period(0, 4, numeric=1), random_period(1, 4, numeric=2)
    for periods, received in (([one, two], r"\[1, 2\]"), ([random_period(2, 4), two], r"\[0, 2\]")):
        with pytest.raises(
            ValueError, match=rf"^numeric: expected as many inputs in every period; received {received}"
        ):
            concatenate(periods)
