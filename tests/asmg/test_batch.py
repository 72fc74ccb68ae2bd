"""Histories, periods, ragged batches, and the localised batches that training computes with."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.batch import (
    NO_CATEGORY,
    InteractionBatch,
    PeriodData,
    build_histories,
    localise,
    shuffled_batches,
)
from asmg.models import EmbeddingMLP, EmbeddingMLPConfig, Params, table_sizes
from tests.asmg.support import (
    SMALL,
    SMALL_CATEGORIES,
    period,
    random_params,
    random_period,
    slow_logit,
    torch_rng,
)

# --- build_histories


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


# --- PeriodData


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


# --- ragged batches


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


def test_shuffled_batches_hold_every_row_once_and_the_last_is_what_is_left() -> None:
    data = replace(random_period(3, 23), user=torch.arange(23, dtype=torch.int32), users=23)
    batches = list(shuffled_batches(data, 10, torch_rng(1)))
    assert [len(b.user) for b in batches] == [10, 10, 3]
    seen = [row for b in batches for row in rows_of(b)]
    assert sorted(seen) == sorted(rows_of_period(data))
    assert seen != rows_of_period(data)
    again = [row for b in shuffled_batches(data, 10, torch_rng(1)) for row in rows_of(b)]
    other = [row for b in shuffled_batches(data, 10, torch_rng(2)) for row in rows_of(b)]
    assert again == seen
    assert other != seen


# --- localise


def localised_logits(
    config: EmbeddingMLPConfig, params: Params, data: PeriodData, cold_rate: float = 0.0, seed: int = 0
) -> torch.Tensor:
    """What the model says on the few rows that the log touches, in two batches that share their rows."""
    order = torch.arange(len(data))
    batches = [data.batch(order[: len(data) // 2]), data.batch(order[len(data) // 2 :])]
    local = localise(
        batches, table_sizes(params), data.item_categories, cold_rate=cold_rate, rng=torch_rng(seed)
    )  # fmt: skip
    tables = {name: params[name][rows] for name, rows in local.rows.items()}
    for rows in local.rows.values():
        assert rows.tolist() == sorted(set(rows.tolist()))
    model = EmbeddingMLP(config)
    return torch.cat([model.logits(params | tables, b, local.features) for b in local.batches])


CONFIGS = {"plain": SMALL, "categories": SMALL_CATEGORIES}
both = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@both
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), users=st.integers(1, 6), items=st.integers(1, 9))
def test_localised_logits_are_those_on_whole_tables_and_rows_past_them_read_the_cold_row(
    config: EmbeddingMLPConfig, seed: int, n: int, users: int, items: int
) -> None:
    categories = 4 if config.categories else 0
    data = random_period(seed, n, users=6, items=9, categories=categories, structure=seed)
    params = random_params(config, seed, user=users, item=items, category=3)
    got = localised_logits(config, params, data)
    expected = [slow_logit(config, params, data, k) for k in range(n)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_touched_rows_are_these_by_hand() -> None:
    data = period(
        [5, 2], [7, 3], [[8, 3], []], [1, 0], users=6, items=9, categories=5,
        item_categories=[[-1], [1], [1], [4], [1], [1], [1], [-1], [2]],
    )  # fmt: skip
    local = localise([data.batch(torch.tensor([0, 1]))], {"user": 4, "item": 8, "category": 3}, data.item_categories)
    # User 5 and item 8 are past the tables, category 4 is too: they read row 0. Item 7 has no category.
    assert local.rows["user"].tolist() == [0, 2]
    assert local.rows["item"].tolist() == [0, 3, 7]
    assert local.rows["category"].tolist() == [0, 2]
    assert local.batches[0].user.tolist() == [0, 1]
    # Items 3, 7, 8 in this order.
    assert local.features is not None
    assert local.features.row.tolist() == [1, 2, 0]
    assert local.features.categories.tolist() == [[0], [NO_CATEGORY], [1]]
    assert local.batches[0].item.tolist() == [1, 0]
    assert local.batches[0].history.tolist() == [2, 0]


def test_a_model_without_categories_ignores_those_of_the_log() -> None:
    data = random_period(1, 10, categories=4)
    params = random_params(SMALL, 0, user=6, item=9)
    got = localised_logits(SMALL, params, data)
    np.testing.assert_allclose(got.numpy(), [slow_logit(SMALL, params, data, k) for k in range(10)], rtol=1e-4)


def test_an_item_with_categories_that_no_table_knows_keeps_its_known_ones() -> None:
    config = SMALL_CATEGORIES
    data = period([1], [4], [[]], [1], users=2, items=5, categories=3, item_categories=[[-1], [2], [-1], [-1], [1]])
    params = random_params(config, 0, user=2, item=2, category=3)  # item 4 is unknown, its category 1 is not
    got = float(localised_logits(config, params, data))
    assert got == pytest.approx(slow_logit(config, params, data, 0), rel=1e-5)
    uncategorised = replace(data, item_categories=torch.full((5, 1), NO_CATEGORY))
    assert got != pytest.approx(slow_logit(config, params, uncategorised, 0), rel=1e-3)


def test_an_item_past_the_category_matrix_has_no_category() -> None:
    config = SMALL_CATEGORIES
    data = random_period(2, 1, users=3, items=9, categories=4)
    b = data.batch(torch.tensor([0]))._replace(item=torch.tensor([50]))
    params = random_params(config, 0, user=3, item=9, category=4)
    local = localise([b], table_sizes(params), data.item_categories)
    assert local.features is not None
    place = int(local.batches[0].item[0])
    assert int(local.rows["item"][local.features.row[place]]) == 0
    assert local.features.categories[place].tolist() == [NO_CATEGORY, NO_CATEGORY]


@both
def test_with_a_cold_rate_of_one_every_id_is_cold_but_items_keep_their_categories(config: EmbeddingMLPConfig) -> None:
    data = random_period(5, 12, categories=4 if config.categories else 0, structure=5)
    params = random_params(config, 1, user=6, item=9, category=4)
    got = localised_logits(config, params, data, cold_rate=1.0)
    expected = [slow_logit(config, params, data, k, cold=("user", "item")) for k in range(12)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_cold_rate_is_the_fraction_of_ids_read_cold() -> None:
    n = 4000
    data = period(range(1, n + 1), range(1, n + 1), [[]] * n, [1] * n, users=n + 1, items=n + 1)
    b = data.batch(torch.arange(n))
    local = localise([b], data.sizes, cold_rate=0.3, rng=torch_rng(7))
    for name, index in (("user", local.batches[0].user), ("item", local.batches[0].item)):
        rows = local.rows[name][index]
        cold = rows == 0
        # A binomial with n = 4000 and p = 0.3 has a standard deviation of 29.
        assert abs(int(cold.sum()) - 0.3 * n) < 5 * 29
        assert torch.equal(rows[~cold], torch.arange(1, n + 1)[~cold])
    users, items = (local.rows[n][getattr(local.batches[0], n)] == 0 for n in ("user", "item"))
    assert not torch.equal(users, items)


def test_an_id_is_cold_in_all_of_its_places_or_in_none() -> None:
    data = random_period(8, 200, users=6, items=9)
    b = data.batch(torch.arange(200))
    local = localise([b], data.sizes, cold_rate=0.5, rng=torch_rng(3))
    items = local.rows["item"][torch.cat([local.batches[0].item, local.batches[0].history])]
    read: dict[int, set[int]] = {}
    for own, row in zip(torch.cat([b.item, b.history]).tolist(), items.tolist(), strict=True):
        read.setdefault(own, set()).add(row)
    assert all(len(rows) == 1 for rows in read.values())
    assert {0} in read.values()
    assert {0} != set().union(*read.values())


def test_the_coins_are_those_of_the_generator() -> None:
    data = random_period(8, 50, users=40, items=40)
    params = random_params(SMALL, 1, user=40, item=40)
    first, same, other = (localised_logits(SMALL, params, data, cold_rate=0.5, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@both
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(9)))
def test_a_candidate_scores_the_same_wherever_it_stands(
    config: EmbeddingMLPConfig, seed: int, order: list[int]
) -> None:
    data = random_period(seed, 9, categories=4 if config.categories else 0)
    params = random_params(config, seed, user=6, item=9, category=4)
    model = EmbeddingMLP(config)

    def logits(index: torch.Tensor) -> torch.Tensor:
        local = localise([data.batch(index)], table_sizes(params), data.item_categories)
        tables = {name: params[name][rows] for name, rows in local.rows.items()}
        return model.logits(params | tables, local.batches[0], local.features)

    index = torch.tensor(order)
    np.testing.assert_allclose(logits(index), logits(torch.arange(9))[index], rtol=1e-5, atol=1e-6)


@both
def test_a_batch_of_empty_histories_pools_zeros(config: EmbeddingMLPConfig) -> None:
    data = random_period(4, 6, longest=0, categories=4 if config.categories else 0)
    assert len(data.history) == 0
    params = random_params(config, 2, user=6, item=9, category=4)
    got = localised_logits(config, params, data)
    np.testing.assert_allclose(
        got.numpy(), [slow_logit(config, params, data, k) for k in range(6)], rtol=1e-4, atol=1e-5
    )
