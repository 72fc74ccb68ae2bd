"""Excerpts: computing with the touched rows alone gives the numbers of whole tables."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.batch import COLD_ROW, NO_CATEGORY, Excerpt, PeriodData, excerpt
from asmg.models import Params, build_model, table_sizes
from tests.asmg.support import (
    CONFIGS,
    SMALL,
    SMALL_CATEGORIES,
    ModelConfig,
    period,
    random_params,
    random_period,
    read_by,
    slow_logit,
    snapshot,
    unchanged,
)


def taken(params: Params, rows: dict[str, torch.Tensor]) -> Params:
    """The rows of an excerpt out of whole tables, the cold row for one past a table's end; one at a time."""
    small = {
        name: torch.stack([params[name][r if r < len(params[name]) else 0] for r in index.tolist()])
        for name, index in rows.items()
    }
    return params | small


def excerpt_logits(config: ModelConfig, params: Params, found: Excerpt) -> list[torch.Tensor]:
    """What the model says of each log on the excerpt's rows alone."""
    model, small = build_model(config), taken(params, found.rows)
    return [model.logits(small, p.batch(torch.arange(len(p))), p.features) for p in found.periods]


all_models = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)

CATEGORIES = 4


def two_periods(seed: int, n: int, categories: int, numeric: int = 0, fields: bool = False) -> list[PeriodData]:
    """The second knows more users and items."""
    more = {"categories": categories, "structure": seed, "numeric": numeric, "fields": fields}
    return [random_period(seed + k, n, users=6 + k, items=9 + 2 * k, **more) for k in range(2)]


@all_models
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), users=st.integers(1, 8), items=st.integers(1, 12))
def test_logits_on_an_excerpt_are_those_on_whole_tables_and_rows_past_them_read_the_cold_row(
    config: ModelConfig, seed: int, n: int, users: int, items: int
) -> None:
    periods = two_periods(seed, n, CATEGORIES if config.categories else 0, **read_by(config))
    params = random_params(config, seed, user=users, item=items, category=3)
    found = excerpt(periods, build_model(config).tables, sizes=table_sizes(params))
    for data, small, got in zip(periods, found.periods, excerpt_logits(config, params, found), strict=True):
        assert len(small) == n
        known = replace(data, item_categories=periods[-1].item_categories, items=periods[-1].items)
        expected = [slow_logit(config, params, known, k) for k in range(n)]
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 12),
    limits=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 14)),
    more=st.none() | st.tuples(st.lists(st.integers(0, 6), max_size=4), st.lists(st.integers(0, 10), max_size=4)),
)
def test_renumbering_is_a_bijection_by_first_appearance(
    seed: int, n: int, limits: tuple[int, int] | None, more: tuple[list[int], list[int]] | None
) -> None:
    periods = two_periods(seed, n, 0)
    tables = ("user", "item")
    sizes = dict(zip(tables, limits, strict=True)) if limits else None
    extra = {t: torch.tensor(rows, dtype=torch.int64) for t, rows in zip(tables, more, strict=True)} if more else None
    before = snapshot([periods, sizes, extra])
    found = excerpt(periods, tables, sizes=sizes, more=extra)
    assert unchanged(before, [periods, sizes, extra])
    bound = sizes or periods[-1].sizes
    read = {"user": [p.user for p in periods], "item": [t for p in periods for t in (p.item, p.history)]}
    small = {
        "user": [p.user for p in found.periods],
        "item": [t for p in found.periods for t in (p.item, p.history)],
    }
    for name in tables:
        ids = [i for part in read[name] for i in part.tolist()]
        wanted = [*ids, *(extra[name].tolist() if extra else [])]
        order = dict.fromkeys([0, *(i if i < bound[name] else 0 for i in wanted)])
        assert found.rows[name].tolist() == list(order)
        assert found.rows[name].dtype == torch.int64
        numbers = torch.cat(small[name])
        assert numbers.dtype == torch.int32
        back = found.rows[name][numbers.long()].tolist()
        assert back == [i if i < bound[name] else COLD_ROW for i in ids]
    for data, part in zip(periods, found.periods, strict=True):
        assert part.sizes == {name: len(found.rows[name]) for name in tables}
        assert torch.equal(part.label, data.label)
        assert torch.equal(part.offsets, data.offsets)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 12),
    limits=st.tuples(st.integers(1, 9), st.integers(1, 14), st.integers(1, 8)),
    more=st.lists(st.integers(0, 10), max_size=4),
)
def test_the_categories_of_items_survive_whether_the_item_is_known_or_not(
    seed: int, n: int, limits: tuple[int, int, int], more: list[int]
) -> None:
    periods = two_periods(seed, n, 6)
    sizes = dict(zip(("user", "item", "category"), limits, strict=True))
    extra = {"item": torch.tensor(more, dtype=torch.int64), "category": torch.tensor([0, 2])}
    found = excerpt(periods, ("user", "item", "category"), sizes=sizes, more=extra)
    matrix = periods[-1].item_categories
    assert matrix is not None
    categories = found.rows["category"]
    assert categories[0] == COLD_ROW
    assert len(set(categories.tolist())) == len(categories)
    assert {2} <= {*categories.tolist()} or sizes["category"] <= 2
    assert {*more} <= {*found.rows["item"].tolist()}
    for data, part in zip(periods, found.periods, strict=True):
        # An item past the table has a number of its own, for it has categories of its own.
        assert torch.equal(found.rows["item"][part.item.long()], data.item.long())
        assert torch.equal(found.rows["item"][part.history.long()], data.history.long())
        assert part.item_categories is not None
        assert part.categories == len(categories)
        for number, item in enumerate(found.rows["item"].tolist()):
            own = [c for c in part.item_categories[number].tolist() if c != NO_CATEGORY]
            expected = [c if c < sizes["category"] else 0 for c in matrix[item].tolist() if c != NO_CATEGORY]
            assert categories[own].tolist() == expected


def test_an_excerpt_by_hand() -> None:
    data = period(
        [5, 2], [7, 3], [[8, 3], []], [1, 0], users=6, items=9, categories=5,
        item_categories=[[-1], [1], [1], [4], [1], [1], [1], [-1], [2]],
    )  # fmt: skip
    found = excerpt([data], ("user", "item", "category"), sizes={"user": 4, "item": 8, "category": 3})
    # User 5 and category 4 are past the tables and read row 0. Item 8 is too, but it has a category. Item 7 has none.
    assert found.rows["user"].tolist() == [0, 2]
    assert found.rows["item"].tolist() == [0, 7, 3, 8]
    assert found.rows["category"].tolist() == [0, 2]
    (small,) = found.periods
    assert small.user.tolist() == [0, 1]
    assert small.item.tolist() == [1, 2]
    assert small.history.tolist() == [3, 2]
    assert small.item_categories is not None
    assert small.item_categories.tolist() == [[NO_CATEGORY], [NO_CATEGORY], [0], [1]]
    assert small.sizes == {"user": 2, "item": 4, "category": 2}
    # Without a table for categories, item 8 is an unknown one like any other.
    found = excerpt([data], ("user", "item"), sizes={"user": 4, "item": 8})
    assert found.rows["item"].tolist() == [0, 7, 3]
    assert found.periods[0].history.tolist() == [0, 2]
    assert found.periods[0].item_categories is None


def test_further_rows_are_in_the_excerpt_behind_those_of_the_logs() -> None:
    data = period([3, 1], [2, 2], [[4], []], [1, 0], users=9, items=9)
    found = excerpt([data], ("user", "item"), more={"user": torch.tensor([8, 1, 7])})
    assert found.rows["user"].tolist() == [0, 3, 1, 8, 7]
    assert found.rows["item"].tolist() == [0, 2, 4]
    assert found.periods[0].users == 5


def test_a_model_without_categories_ignores_those_of_the_log() -> None:
    data = random_period(1, 10, categories=4)
    params = random_params(SMALL, 0, user=6, item=9)
    found = excerpt([data], ("user", "item"), sizes=table_sizes(params))
    assert set(found.rows) == {"user", "item"}
    assert found.periods[0].categories == 0
    (got,) = excerpt_logits(SMALL, params, found)
    np.testing.assert_allclose(got.numpy(), [slow_logit(SMALL, params, data, k) for k in range(10)], rtol=1e-4)


def test_a_model_with_categories_asks_for_those_of_the_log() -> None:
    with pytest.raises(ValueError, match=r"^item_categories: expected them for a model with categories; received none"):
        excerpt([random_period(1, 10)], ("user", "item", "category"), sizes={"user": 6, "item": 9, "category": 2})


def test_an_item_with_categories_that_no_table_knows_keeps_its_known_ones() -> None:
    config = SMALL_CATEGORIES
    data = period([1], [4], [[]], [1], users=2, items=5, categories=3, item_categories=[[-1], [2], [-1], [-1], [1]])
    params = random_params(config, 0, user=2, item=2, category=3)  # item 4 is unknown, its category 1 is not
    tables = ("user", "item", "category")
    (got,) = excerpt_logits(config, params, excerpt([data], tables, sizes=table_sizes(params)))
    assert float(got) == pytest.approx(slow_logit(config, params, data, 0), rel=1e-5)
    uncategorised = replace(data, item_categories=torch.full((5, 1), NO_CATEGORY))
    assert float(got) != pytest.approx(slow_logit(config, params, uncategorised, 0), rel=1e-3)


def test_an_item_past_the_category_matrix_has_no_category() -> None:
    """The newest log knows the categories of 9 items; an older one, and the model, know of item 50."""
    older = period([1], [50], [[3]], [1], users=3, items=60)
    newest = random_period(2, 1, users=3, items=9, categories=4)
    found = excerpt([older, newest], ("user", "item", "category"), sizes={"user": 3, "item": 60, "category": 4})
    place = int(found.periods[0].item[0])
    assert int(found.rows["item"][place]) == 50
    assert found.periods[0].item_categories is not None
    assert found.periods[0].item_categories[place].tolist() == [NO_CATEGORY, NO_CATEGORY]


@all_models
def test_a_log_of_empty_histories_pools_zeros(config: ModelConfig) -> None:
    data = random_period(4, 6, longest=0, categories=CATEGORIES if config.categories else 0, **read_by(config))
    assert len(data.history) == 0
    params = random_params(config, 2, user=6, item=9, category=4)
    (got,) = excerpt_logits(config, params, excerpt([data], build_model(config).tables))
    expected = [slow_logit(config, params, data, k) for k in range(6)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)
