"""Histories, periods, ragged batches, and excerpts: the rows that a log touches, numbered anew."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.batch import (
    COLD_ROW,
    NO_CATEGORY,
    Epoch,
    Excerpt,
    InteractionBatch,
    PeriodData,
    build_histories,
    build_recent,
    concatenate,
    excerpt,
)
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
    torch_rng,
    unchanged,
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


# --- build_recent, and ties


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


# --- numeric inputs


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


# --- excerpt


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
