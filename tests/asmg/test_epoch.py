"""Epochs planned ahead: what each step reads, against a slow planner; id dropout; the steps as batches of torch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asmg.batch import NO_CATEGORY, NO_VALUE, Epoch, LocalBatches, PeriodData
from asmg.models import Params, build_model
from tests.asmg.support import (
    CONFIGS,
    SMALL,
    ModelConfig,
    inputs_of,
    period,
    random_fields,
    random_params,
    random_period,
    read_by,
    slow_logit,
    torch_rng,
)

all_models = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
Batches = list[list[Tensor]]


def in_batches(data: PeriodData, size: int) -> list[Tensor]:
    """The log in its own order, `size` interactions at a time."""
    return list(torch.arange(len(data)).split(size))


def logs(seed: int, lengths: list[int], categories: int = 0, fields: bool = False) -> list[PeriodData]:
    """Periods on the same tables; some items are of category 0, as an excerpt has it where no table knows theirs."""
    more: dict[str, Any] = {"categories": categories, "structure": seed, "fields": fields}
    periods = [random_period(seed + k, n, **more) for k, n in enumerate(lengths)]
    if periods[0].item_categories is None:
        return periods
    own = periods[0].item_categories
    return [replace(p, item_categories=torch.where(own == 2, 0, own)) for p in periods]


def cut(draw: st.DataObject, periods: list[PeriodData], steps: int) -> Batches:
    """Each period in a random order, cut anywhere into `steps` batches, empty ones included."""
    batches = []
    for data in periods:
        order = torch.tensor(draw.draw(st.permutations(range(len(data)))))
        places = sorted(draw.draw(st.lists(st.integers(0, len(data)), min_size=steps - 1, max_size=steps - 1)))
        batches.append(list(order.tensor_split(places)))
    return batches


# --- the plan, against a slow one


def slow_plan(periods: list[PeriodData], batches: Batches, cold_rate: float, coins: list[float]) -> dict[str, Any]:
    """What asmg.kernels.Plan says that it holds, interaction by interaction."""
    order: list[int] = []
    lists: dict[str, list[Any]] = {
        name: [] for name in ("user", "item", "history", "fields", "slot", "categories", "counts")
    }
    offsets, bounds, entity_bounds, row_bounds = [0], [0], [0], [[0], [0], [0], [0]]
    rows: list[list[int]] = [[], [], [], []]
    matrix = periods[0].item_categories
    starts = [sum(len(p) for p in periods[:k]) for k in range(len(periods))]
    tossed = iter(coins)
    for step in zip(*batches, strict=True):
        users, items, categories, values = {0: 0}, [0], [0], {0: 0}
        value_rows = [0]
        entities: dict[int, int] = {}
        user_rows, counts = [0], []
        for data, index, start in zip(periods, step, starts, strict=True):
            for n in index.tolist():
                order.append(start + n)
                user = int(data.user[n])
                if user not in users:
                    cold = cold_rate > 0 and next(tossed) < cold_rate
                    users[user] = 0 if cold else len(user_rows)
                    user_rows += [] if cold else [user]
                lists["user"].append(users[user])
                history = data.history[int(data.offsets[n]) : int(data.offsets[n + 1])].tolist()
                for item in (int(data.item[n]), *history):
                    if item not in entities:
                        entities[item] = len(entities)
                        cold = item == 0 or (cold_rate > 0 and next(tossed) < cold_rate)
                        lists["slot"].append(0 if cold else len(items))
                        items += [] if cold else [item]
                        own = [] if matrix is None else matrix[item].tolist()
                        for c in own:
                            if c != NO_CATEGORY and c not in categories:
                                categories.append(c)
                        lists["categories"].append([categories.index(c) if c != NO_CATEGORY else -1 for c in own])
                lists["item"].append(entities[int(data.item[n])])
                lists["history"] += [entities[item] for item in history]
                offsets.append(len(lists["history"]))
                columns = (
                    [] if data.fields is None else list(zip(data.fields.rows[n], data.fields.weights[n], strict=True))
                )
                for row, weight in ((int(row), float(weight)) for row, weight in columns):
                    if row != NO_VALUE and row not in values:
                        heads = cold_rate > 0 and weight == 1 and next(tossed) < cold_rate
                        if cold_rate > 0 and weight != 1:
                            next(tossed)
                        values[row] = 0 if heads else len(value_rows)
                        value_rows += [] if heads else [row]
                lists["fields"].append([values[int(row)] if row != NO_VALUE else -1 for row, _ in columns])
            bounds.append(len(order))
            counts.append((len(user_rows), len(items), len(categories), len(value_rows), len(entities)))
        lists["counts"].append(counts)
        entity_bounds.append(len(lists["slot"]))
        for k, own_rows in enumerate((user_rows, items, categories, value_rows)):
            rows[k] += own_rows
            row_bounds[k].append(len(rows[k]))
    return lists | {
        "order": order, "bounds": bounds, "offsets": offsets, "entity_bounds": entity_bounds,
        "row_bounds": row_bounds, "rows": rows,
    }  # fmt: skip


@pytest.mark.parametrize("cold_rate", [0.0, 0.4])
@pytest.mark.parametrize(("categories", "fields"), [(0, False), (5, True)])
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000), lengths=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    steps=st.integers(1, 4), draw=st.data(),
)  # fmt: skip
def test_a_plan_is_that_of_a_slow_loop(
    categories: int, fields: bool, cold_rate: float, seed: int, lengths: list[int], steps: int, draw: st.DataObject
) -> None:
    periods = logs(seed, lengths, categories, fields)
    if cold_rate == 0:  # the cold row itself is in a log where an id was past the tables
        periods = [
            replace(p, user=p.user // 2, item=p.item - p.item % 2, history=p.history - p.history % 3) for p in periods
        ]
    batches = cut(draw, periods, steps)
    total = 2 * sum(lengths) + sum(len(p.history) + (0 if p.fields is None else p.fields.rows.numel()) for p in periods)
    coins = torch.rand(total, generator=torch_rng(seed)).tolist()  # in the order in which the ids appear
    got = Epoch(periods, batches, cold_rate=cold_rate, rng=torch_rng(seed))
    expected = slow_plan(periods, batches, cold_rate, coins)
    plan = got.plan
    assert len(got) == steps
    for name in ("order", "bounds", "user", "item", "history", "offsets", "fields", "entity_bounds", "row_bounds"):
        assert getattr(plan, name).tolist() == expected[name], name
    assert plan.entity_slot.tolist() == expected["slot"]
    assert [rows.tolist() for rows in plan.rows] == expected["rows"]
    assert plan.entity_categories.tolist() == expected["categories"]
    assert plan.counts.transpose(1, 2, 0).tolist() == [[list(c) for c in counts] for counts in expected["counts"]]
    labels = torch.cat([p.label for p in periods])
    assert got.label.tolist() == labels[plan.order].tolist()


def test_coins_without_a_generator_are_refused() -> None:
    data = random_period(0, 4)
    with pytest.raises(ValueError, match=r"^rng: expected a torch.Generator with cold_rate > 0; received None"):
        Epoch([data], [in_batches(data, 2)], cold_rate=0.1)


# --- the steps, as eager torch reads them


def logits_of(config: ModelConfig, params: Params, local: LocalBatches) -> list[Tensor]:
    """What the model says of each batch of a step, on the few table rows of the step."""
    for rows in local.rows.values():
        assert rows[0] == 0
        assert len(set(rows.tolist())) == len(rows)
    tables = {name: params[name][rows] for name, rows in local.rows.items()}
    model = build_model(config)
    assert set(tables) == set(model.tables)
    return [model.logits(params | tables, batch, local.features) for batch in local.batches]


def for_model(config: ModelConfig, periods: list[PeriodData]) -> list[PeriodData]:
    """The logs as an excerpt has them for this model: without categories where it has none, with fields and numbers."""
    if not config.categories:
        periods = [replace(p, categories=0, item_categories=None) for p in periods]
    if "field" in build_model(config).tables:
        periods = [replace(p, fields=random_fields(len(p) + k, len(p))) for k, p in enumerate(periods)]
    if width := inputs_of(config):
        periods = [replace(p, numeric=torch.randn(len(p), width, generator=torch_rng(len(p)))) for p in periods]
    return periods


@all_models
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000), lengths=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    steps=st.integers(1, 3), draw=st.data(),
)  # fmt: skip
def test_every_batch_of_every_step_reads_its_own_interactions(
    config: ModelConfig, seed: int, lengths: list[int], steps: int, draw: st.DataObject
) -> None:
    periods = for_model(config, logs(seed, lengths, 4))
    params = random_params(config, seed, user=6, item=9, category=4)
    batches = cut(draw, periods, steps)
    epoch = Epoch(periods, batches)
    target = torch.rand(sum(lengths), generator=torch_rng(seed))
    for step in range(steps):
        local = epoch.local(step, target[epoch.order])
        assert (local.features is not None) == config.categories
        for data, index, batch, got in zip(
            periods, (b[step] for b in batches), local.batches, logits_of(config, params, local), strict=True
        ):
            expected = [slow_logit(config, params, data, n) for n in index.tolist()]
            np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)
            start = sum(len(p) for p in periods[: next(k for k, p in enumerate(periods) if p is data)])
            assert batch.label.tolist() == target[start:][index].tolist()


@all_models
def test_with_a_cold_rate_of_one_every_id_is_cold_but_items_keep_their_categories(config: ModelConfig) -> None:
    data = random_period(5, 12, categories=4 if config.categories else 0, **read_by(config), structure=5)
    params = random_params(config, 1, user=6, item=9, category=4)
    epoch = Epoch([data], [in_batches(data, 5)], cold_rate=1.0, rng=torch_rng(0))
    got = torch.cat([logits_of(config, params, epoch.local(s, epoch.label))[0] for s in range(3)])
    expected = [slow_logit(config, params, data, n, cold=("user", "item", "field")) for n in range(12)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_cold_rate_is_the_fraction_of_ids_read_cold() -> None:
    n = 4000
    data = period(range(1, n + 1), range(1, n + 1), [[]] * n, [1] * n, users=n + 1, items=n + 1)
    epoch = Epoch([data], [in_batches(data, n)], cold_rate=0.3, rng=torch_rng(7))
    local = epoch.local(0, epoch.label)
    colds = []
    for name, index in (("user", local.batches[0].user), ("item", local.batches[0].item)):
        rows = local.rows[name][index]
        cold = rows == 0
        # A binomial with n = 4000 and p = 0.3 has a standard deviation of 29.
        assert abs(int(cold.sum()) - 0.3 * n) < 5 * 29
        assert torch.equal(rows[~cold], torch.arange(1, n + 1)[~cold])
        colds.append(cold)
    assert not torch.equal(*colds)


def test_an_id_is_cold_in_all_places_of_a_step_or_in_none_and_anew_in_the_next_step() -> None:
    data = random_period(8, 400, users=6, items=9)
    epoch = Epoch([data], [in_batches(data, 200)], cold_rate=0.5, rng=torch_rng(3))
    steps = []
    for step in (0, 1):
        local = epoch.local(step, epoch.label)
        own = data.batch(torch.arange(200) + 200 * step)
        items = local.rows["item"][torch.cat([local.batches[0].item, local.batches[0].history])]
        read: dict[int, set[int]] = {}
        for item, row in zip(torch.cat([own.item, own.history]).tolist(), items.tolist(), strict=True):
            read.setdefault(item, set()).add(row)
        assert all(len(rows) == 1 for rows in read.values())
        assert {0} in read.values()
        assert {0} != set().union(*read.values())
        steps.append(read)
    assert steps[0] != steps[1]


def test_the_coins_are_those_of_the_generator() -> None:
    data = random_period(8, 50, users=40, items=40)

    def rows(seed: int) -> list[list[int]]:
        epoch = Epoch([data], [in_batches(data, 20)], cold_rate=0.5, rng=torch_rng(seed))
        return [r.tolist() for r in epoch.plan.rows]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


@all_models
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(9)))
def test_a_candidate_scores_the_same_wherever_it_stands(config: ModelConfig, seed: int, order: list[int]) -> None:
    data = random_period(seed, 9, categories=4 if config.categories else 0, **read_by(config))
    params = {n: p.double() for n, p in random_params(config, seed, user=6, item=9, category=4).items()}

    def logits(index: Tensor) -> Tensor:
        epoch = Epoch([data], [[index]])
        return logits_of(config, params, epoch.local(0, epoch.label))[0]

    index = torch.tensor(order)
    np.testing.assert_allclose(logits(index), logits(torch.arange(9))[index], rtol=1e-5, atol=1e-6)


def test_the_slots_of_the_newest_batches_come_first() -> None:
    """By hand: two periods in lock-step. The older one's batch adds rows behind those of the newer one's."""
    newer = period([3, 4], [5, 6], [[], [7]], [1, 0], users=9, items=9)
    older = period([4, 2], [7, 8], [[5], [1]], [0, 1], users=9, items=9)
    epoch = Epoch([newer, older], [[torch.tensor([1, 0])], [torch.tensor([0, 1])]])
    local = epoch.local(0, epoch.label)
    assert local.rows["user"].tolist() == [0, 4, 3, 2]
    assert local.rows["item"].tolist() == [0, 6, 7, 5, 8, 1]
    assert epoch.plan.counts[:2, 0].tolist() == [[3, 4], [4, 6]]
    assert [b.user.tolist() for b in local.batches] == [[1, 2], [1, 3]]
    assert [b.item.tolist() for b in local.batches] == [[1, 3], [2, 4]]
    assert [b.history.tolist() for b in local.batches] == [[2], [3, 5]]
    assert [b.offsets.tolist() for b in local.batches] == [[0, 1, 1], [0, 1, 2]]
    assert [b.label.tolist() for b in local.batches] == [[0, 1], [0, 1]]


def test_a_table_may_be_far_larger_than_what_a_step_reads_of_it() -> None:
    data = period([900, 3], [700, 2], [[600], []], [1, 0], users=1000, items=1000)
    params = random_params(SMALL, 0, user=1000, item=1000)
    epoch = Epoch([data], [in_batches(data, 1)])
    for step in (0, 1):
        local = epoch.local(step, epoch.label)
        assert max(len(rows) for rows in local.rows.values()) <= 3
        (got,) = logits_of(SMALL, params, local)
        assert float(got) == pytest.approx(slow_logit(SMALL, params, data, step), rel=1e-4)
