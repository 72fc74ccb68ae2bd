"""The base models: their forward passes, their parameters, how their tables grow."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from asmg.batch import NO_CATEGORY, InteractionBatch, ItemFeatures
from asmg.models import (
    EmbeddingMLP,
    EmbeddingMLPConfig,
    MatrixFactorization,
    MatrixFactorizationConfig,
    build_model,
    config_from_json,
    default_config,
    grow,
    masked_mean,
    read_rows,
    table_sizes,
)
from asmg.training import Execution, predict_logits
from asmg.updaters import UPDATERS, build_updater
from tests.asmg.support import (
    CONFIGS,
    DOT_CATEGORIES,
    MF,
    MF_CATEGORIES,
    SMALL,
    SMALL_CATEGORIES,
    ModelConfig,
    random_params,
    random_period,
    read_by,
    slow_logit,
    torch_rng,
)

all_models = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
both = pytest.mark.parametrize("config", [SMALL, SMALL_CATEGORIES], ids=["plain", "categories"])


def batch_of(user: list[int], item: list[int], histories: list[list[int]]) -> InteractionBatch:
    return InteractionBatch(
        user=torch.tensor(user),
        item=torch.tensor(item),
        history=torch.tensor([row for h in histories for row in h], dtype=torch.int64),
        offsets=torch.tensor([0, *np.cumsum([len(h) for h in histories])]),
        label=torch.zeros(len(user)),
    )


def test_the_logit_by_hand() -> None:
    model = EmbeddingMLP(EmbeddingMLPConfig(dim=1, hidden=(2,)))
    params = {
        "user": torch.tensor([[0.0], [2.0]]),
        "item": torch.tensor([[0.0], [1.0], [3.0]]),
        "mlp.0.weight": torch.tensor([[1.0, 10.0, 100.0], [-1.0, 0.0, 0.0]]),
        "mlp.0.bias": torch.tensor([0.5, 1.0]),
        "mlp.1.weight": torch.tensor([[2.0, 5.0]]),
        "mlp.1.bias": torch.tensor([-7.0]),
    }
    got = model.logits(params, batch_of([1, 0], [2, 1], [[1, 2, 2, 1], []]))
    # User 2, history (1+3+3+1)/4 = 2, item 3: 2 + 20 + 300 + .5 = 322.5; relu(-2 + 1) = 0; 2·322.5 - 7 = 638.
    # User 0, no history, item 1: 100.5; relu(1) = 1; 201 + 5 - 7 = 199.
    assert got.tolist() == [638.0, 199.0]


def test_the_logit_of_a_matrix_factorization_by_hand() -> None:
    """The last column is the bias; the item's row is its own plus the mean of its categories'."""
    model = MatrixFactorization(MatrixFactorizationConfig(dim=2, categories=True))
    params = {
        "user": torch.tensor([[0.0, 0.0, 0.25], [2.0, 3.0, 0.5]]),
        "item": torch.tensor([[7.0, 7.0, 7.0], [10.0, 20.0, 1.0]]),
        "category": torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 4.0], [0.0, 6.0, 0.0]]),
    }
    features = ItemFeatures(torch.tensor([0, 1]), torch.tensor([[-1, -1], [1, 2]]))
    got = model.logits(params, batch_of([1, 0], [1, 1], [[], [1]]), features)
    # Item 1: (10, 20 | 1) + (1, 3 | 2) = (11, 23 | 3): 2·11 + 3·23 + .5 + 3 = 94.5; histories have no say: .25 + 3.
    assert got.tolist() == [94.5, 3.25]


@all_models
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 8))
def test_logits_are_those_of_plain_numpy(config: ModelConfig, seed: int, n: int) -> None:
    data = random_period(seed, n, categories=5 if config.categories else 0, **read_by(config), structure=seed)
    params = random_params(config, seed, user=6, item=9, category=5)
    features = None
    if data.item_categories is not None:
        features = ItemFeatures(torch.arange(9), data.item_categories.long())
    got = build_model(config).logits(params, data.batch(torch.arange(n)), features)
    assert got.shape == (n,)
    np.testing.assert_allclose(got, [slow_logit(config, params, data, k) for k in range(n)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [SMALL_CATEGORIES, MF_CATEGORIES], ids=["mlp", "mf"])
def test_a_model_with_categories_asks_for_them(config: ModelConfig) -> None:
    params = random_params(config, 0, user=2, item=2, category=2)
    with pytest.raises(ValueError, match=r"^features: expected ItemFeatures"):
        build_model(config).logits(params, batch_of([1], [1], [[]]))


def test_a_long_padded_sum_and_our_ragged_one_agree() -> None:
    """The authors pad histories and mask; a mean does not see padding."""
    params = random_params(SMALL, 3, user=3, item=9)
    histories = [[], [4], [1, 2, 3, 4, 5, 6, 7, 8]]
    padded = torch.full((3, 30), NO_CATEGORY)
    for n, history in enumerate(histories):
        padded[n, : len(history)] = torch.tensor(history, dtype=torch.int64)
    model = EmbeddingMLP(SMALL)
    items = params["item"]
    expected = model.head(params, params["user"][[0, 1, 2]], masked_mean(items, padded), items[[1, 2, 3]])
    torch.testing.assert_close(model.logits(params, batch_of([0, 1, 2], [1, 2, 3], histories)), expected)


def test_the_logit_of_numeric_inputs_and_dot_products_by_hand() -> None:
    """dim 1 with categories: an item is (own, category), and the user's number meets both."""
    model = EmbeddingMLP(EmbeddingMLPConfig(dim=1, hidden=(1,), categories=True, numeric=2, dot=True))
    params = {
        "user": torch.tensor([[2.0]]),
        "item": torch.tensor([[3.0], [5.0]]),
        "category": torch.tensor([[0.0], [7.0]]),
        "mlp.0.weight": torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 10.0, 100.0]]),
        "mlp.0.bias": torch.tensor([0.5]),
        "mlp.1.weight": torch.tensor([[2.0]]),
        "mlp.1.bias": torch.tensor([-1.0]),
        "dot.user": torch.tensor([1.0, 10.0]),
        "dot.history": torch.tensor([0.1, 0.01]),
    }
    model.check(params)
    features = ItemFeatures(torch.tensor([0, 1]), torch.tensor([[-1], [1]]))
    batch = batch_of([0, 0], [1, 1], [[0, 1], []])._replace(numeric=torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
    got = model.logits(params, batch, features)
    # The item is (5, 7). MLP: 2·(10 + 200 + .5) - 1 = 420; relu(-10 + .5) = 0 and so -1. User: 2·5 + 10·2·7 = 150.
    # History: the mean of (3, 0) and (5, 7) is (4, 3.5): .1·4·5 + .01·3.5·7 = 2.245; the other has none.
    assert got.tolist() == pytest.approx([420 + 150 + 2.245, -1 + 150])


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
@pytest.mark.parametrize(
    ("width", "given", "message"),
    [
        (7, 0, "^numeric: expected 7 inputs an interaction; received none"),
        (7, 6, "^numeric: expected 7 inputs an interaction; received 6 inputs an interaction"),
        (0, 3, "^numeric: expected none; received 3 inputs an interaction"),
    ],
)
def test_data_of_another_number_of_inputs_is_refused(width: int, given: int, message: str, compiled: bool) -> None:
    """By whatever reads it: scoring, and each stage of each method."""
    config, data = replace(SMALL, numeric=width), random_period(0, 30, numeric=given)
    execution = Execution(device="cpu", compiled=compiled)
    with pytest.raises(ValueError, match=message):
        predict_logits(build_model(config), random_params(config, 0, user=6, item=9), data, execution=execution)
    for name in UPDATERS:
        if name == "sml-mf":
            continue
        updater = build_updater(name, config, execution=execution)
        state = updater.initial(torch_rng(0))
        with pytest.raises(ValueError, match=message):
            updater.update(state, data, rng=torch_rng(0))
        if name in ("sml", "asmg-gru-multi"):  # what has something to learn before the base model
            for t in (1, 2):
                state = updater.update(state, random_period(t, 30, numeric=width), rng=torch_rng(t))
            with pytest.raises(ValueError, match=message):
                updater.run_stage(updater.stages[0], state, data, rng=torch_rng(0))


def test_a_factorization_does_not_look_at_numeric_inputs() -> None:
    data, params = random_period(0, 30, numeric=3), random_params(MF, 0, user=6, item=9)
    expected = predict_logits(build_model(MF), params, replace(data, numeric=None))
    assert torch.equal(predict_logits(build_model(MF), params, data), expected)


# --- masked_mean


def test_masked_mean_by_hand() -> None:
    table = torch.tensor([[1.0, 10.0], [3.0, 30.0], [8.0, 80.0]])
    rows = torch.tensor([[0, 1, NO_CATEGORY], [NO_CATEGORY] * 3, [NO_CATEGORY, 2, NO_CATEGORY], [2, 2, 0]])
    expected = torch.tensor([[2.0, 20.0], [0.0, 0.0], [8.0, 80.0], [17 / 3, 170 / 3]])
    torch.testing.assert_close(masked_mean(table, rows), expected)


def test_masked_mean_of_no_columns_is_zero() -> None:
    assert masked_mean(torch.ones(3, 2), torch.zeros(4, 0, dtype=torch.int64)).tolist() == [[0.0, 0.0]] * 4


def test_the_filler_of_masked_mean_can_be_chosen() -> None:
    assert masked_mean(torch.tensor([[5.0], [7.0]]), torch.tensor([[0, 1]]), fill=0).tolist() == [[7.0]]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 4))
def test_padding_changes_no_mean(seed: int, padding: int) -> None:
    rng = np.random.default_rng(seed)
    table = torch.tensor(rng.normal(size=(5, 3)))
    rows = torch.tensor(rng.integers(0, 5, size=(4, 3)))
    padded = functional.pad(rows, (0, padding), value=NO_CATEGORY)[:, torch.tensor(rng.permutation(3 + padding))]
    torch.testing.assert_close(masked_mean(table, padded), masked_mean(table, rows))


# --- parameters


@all_models
def test_initial_parameters_have_one_cold_row_a_table_and_pass_the_check(config: ModelConfig) -> None:
    model = build_model(config)
    params = model.initial(torch_rng(0))
    model.check(params)
    assert table_sizes(params) == dict.fromkeys(model.tables, 1)
    for name in model.tables:
        assert len(params[name][:, : config.dim].unique()) == config.dim
        assert not params[name][:, config.dim :].any()  # a bias begins with zero
    again, other = model.initial(torch_rng(0)), model.initial(torch_rng(1))
    assert all(torch.equal(params[name], again[name]) for name in params)
    assert all(not torch.equal(params[name], other[name]) for name in model.tables)
    assert not any(torch.equal(params[n], other[n]) for n in model.dense_shapes if n.endswith("weight"))


@all_models
def test_glorot_parameters_fill_the_range_of_the_authors_release(config: ModelConfig) -> None:
    """methods.md, section 0: L = √(6 / (rows + dim)) for a table, √(3 / n) for a bias of size n, and no bias in MF's
    (section 9)."""
    wide = replace(config, dim=50, **({"hidden": (40, 30)} if isinstance(config, EmbeddingMLPConfig) else {}))
    model, sizes = build_model(wide), {"user": 300, "item": 500, "category": 40, "field": 60}
    draws = [model.glorot(sizes, torch_rng(seed)) for seed in range(20)]
    limits = {name: math.sqrt(6 / (sizes[name] + 50)) for name in model.tables}
    for name, shape in model.dense_shapes.items():
        if name.startswith("dot."):
            assert all((params[name] == 1).all() for params in draws)
            continue
        limits[name] = math.sqrt(6 / sum(shape)) if len(shape) == 2 else math.sqrt(3 / shape[0])
    for params in draws:
        model.check(params)
        assert table_sizes(params) == {name: sizes[name] for name in model.tables}
    for name, limit in limits.items():
        values = torch.stack([params[name][:, :50] if name in sizes else params[name] for params in draws])
        # The largest of n ≥ 20 uniform draws is under 0.75 of the limit with probability 0.75ⁿ ≤ 0.003, and seeded.
        assert 0.75 * limit < float(values.abs().max()) <= limit * (1 + 1e-6), name
        if values.numel() > 1000:
            assert float(values.std()) == pytest.approx(limit / math.sqrt(3), rel=0.05)
            assert float(values.min()) < 0 < float(values.max())
    if not model.dense_shapes:
        assert not any(params[name][:, 50].any() for params in draws for name in model.tables)


def test_glorot_parameters_have_the_numbers_of_the_release() -> None:
    """methods.md, section 0: a bias of 12 has L = 0.5, the final one of size 1 has L = 1.73."""
    draws = [EmbeddingMLP(EmbeddingMLPConfig()).glorot({"user": 9, "item": 9}, torch_rng(s)) for s in range(200)]
    for name, limit in (("mlp.0.bias", 0.5), ("mlp.1.bias", math.sqrt(0.5)), ("mlp.2.bias", math.sqrt(3))):
        assert 0.95 * limit < max(float(p[name].abs().max()) for p in draws) <= limit


def test_initial_weights_fill_the_glorot_range_and_hidden_biases_are_slightly_positive() -> None:
    params = EmbeddingMLP(EmbeddingMLPConfig(dim=100, hidden=(200, 50))).initial(torch_rng(0))
    for i, (fan_in, fan_out) in enumerate([(300, 200), (200, 50)]):
        limit = math.sqrt(6 / (fan_in + fan_out))
        weight = params[f"mlp.{i}.weight"]
        assert weight.shape == (fan_out, fan_in)
        # Of 10,000 uniform draws the largest is over 0.99 of the limit but once in 10⁴³; the deviation is L/√3.
        assert 0.99 * limit < float(weight.abs().max()) <= limit
        assert float(weight.std()) == pytest.approx(limit / math.sqrt(3), rel=0.02)
        assert bool((params[f"mlp.{i}.bias"] == torch.tensor(0.1)).all())
    assert float(params["mlp.2.bias"]) == 0


def test_no_seed_begins_with_a_model_that_says_the_same_of_everything() -> None:
    """A ReLU that is closed for every interaction gets no gradient and stays closed."""
    batch = InteractionBatch(
        user=torch.arange(20),
        item=torch.arange(20),
        history=torch.arange(20),
        offsets=torch.arange(21),
        label=torch.zeros(20),
    )
    for seed in range(300):
        rng = torch_rng(seed)
        model = EmbeddingMLP(EmbeddingMLPConfig())
        params = model.initial(rng)
        for name in model.tables:
            params[name] = grow(params[name], 20) + model.scatter(name, 20, rng)
        assert float(model.logits(params, batch).std()) > 0, f"seed {seed}"


def test_the_dense_shapes_are_the_papers() -> None:
    """24 → 12 → 6 → 1 (of the paper); with categories an item is twice as wide: 8 + 16 + 16."""
    assert EmbeddingMLP(EmbeddingMLPConfig()).dense_shapes == {
        "mlp.0.weight": (12, 24), "mlp.0.bias": (12,), "mlp.1.weight": (6, 12), "mlp.1.bias": (6,),
        "mlp.2.weight": (1, 6), "mlp.2.bias": (1,),
    }  # fmt: skip
    assert EmbeddingMLP(EmbeddingMLPConfig(categories=True)).dense_shapes["mlp.0.weight"] == (12, 40)


def test_a_matrix_factorization_is_tables_alone() -> None:
    model = MatrixFactorization(MatrixFactorizationConfig(categories=True))
    assert model.dense_shapes == {}
    assert model.table_widths == {"user": 9, "item": 9, "category": 9}
    assert not model.reads_history
    assert EmbeddingMLP(SMALL).reads_history


def test_dot_products_are_weighted_place_by_place_behind_the_mlp() -> None:
    """Nothing may take the last dense parameter for the last bias."""
    model = EmbeddingMLP(EmbeddingMLPConfig(categories=True, numeric=3, dot=True))
    assert list(model.dense_shapes)[-3:] == ["mlp.2.bias", "dot.user", "dot.history"]
    assert (model.dense_shapes["dot.user"], model.dense_shapes["dot.history"]) == ((16,), (16,))
    assert model.dense_shapes["mlp.0.weight"] == (12, 43)
    params = model.initial(torch_rng(0))
    assert (params["mlp.2.bias"] == 0).all()
    for name in ("dot.user", "dot.history"):
        assert (params[name] == 1).all()


def test_the_default_shape_is_a_wider_one_with_dot_products_and_what_the_log_has() -> None:
    paper = EmbeddingMLPConfig()
    wide = replace(paper, dim=16, hidden=(32, 16), dot=True)
    assert default_config(categories=False, numeric=20) == replace(wide, numeric=20)
    assert default_config(categories=True, numeric=0) == replace(wide, categories=True)


def test_a_configuration_of_before_numeric_inputs_is_read_and_is_still_equal_to_its_own() -> None:
    """What is stored of a model without them has neither field, now as then."""
    stored = {"dim": 8, "hidden": [12, 6], "categories": True}
    config = EmbeddingMLPConfig(categories=True)
    assert config_from_json(stored) == config
    assert config.to_json() == stored
    assert replace(config, numeric=2).to_json() == {**stored, "numeric": 2}
    assert replace(config, dot=True).to_json() == {**stored, "dot": True}


def test_a_negative_number_of_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^numeric: expected at least 0; received -1"):
        EmbeddingMLPConfig(numeric=-1)


@pytest.mark.parametrize("values", [{"dim": 0}, {"hidden": ()}, {"hidden": (3, 0)}])
def test_a_model_of_no_width_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected positive widths; received dim="):
        EmbeddingMLPConfig(**values)  # type: ignore[arg-type]


def test_a_factorization_of_no_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^dim: expected at least 1; received 0"):
        MatrixFactorizationConfig(dim=0)


@all_models
def test_a_configuration_survives_json(config: ModelConfig) -> None:
    values = json.loads(json.dumps(config.to_json()))
    assert type(config).from_json(values) == config
    assert config_from_json(values) == config
    assert build_model(config).config == config


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("user", torch.ones(3, 4), r"^user: expected shape \(None, 3\); received \(3, 4\)"),
        ("item", torch.ones(3), r"^item: expected shape \(None, 3\); received \(3,\)"),
        ("category", torch.full((2, 3), math.inf), "^category: expected finite numbers; received NaN or infinity"),
        ("mlp.0.weight", torch.ones(15, 5), r"^mlp\.0\.weight: expected shape \(5, 15\); received \(15, 5\)"),
        ("mlp.1.bias", torch.full((4,), math.nan), r"^mlp\.1\.bias: expected finite numbers; received NaN or infinity"),
        ("surprise", torch.ones(1), "^parameters: expected .*; received .*surprise"),
        ("mlp.2.bias", None, r"^parameters: expected .*mlp\.2\.bias"),
    ],
)
def test_the_check_names_the_bad_tensor(name: str, tensor: torch.Tensor | None, message: str) -> None:
    model = EmbeddingMLP(SMALL_CATEGORIES)
    params = random_params(SMALL_CATEGORIES, 0, user=3, item=4, category=2)
    model.check(params)
    bad = {**params, name: tensor} if tensor is not None else {n: t for n, t in params.items() if n != name}
    with pytest.raises(ValueError, match=message):
        model.check(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("user", torch.ones(3, 3), r"^user: expected shape \(None, 4\); received \(3, 3\)"),
        ("item", torch.full((4, 4), math.nan), "^item: expected finite numbers; received NaN or infinity"),
        ("mlp.0.bias", torch.ones(1), r"^parameters: expected .*; received .*mlp\.0\.bias"),
    ],
)
def test_the_check_of_a_factorization_names_the_bad_tensor(name: str, tensor: torch.Tensor, message: str) -> None:
    model = build_model(MF_CATEGORIES)
    params = random_params(MF_CATEGORIES, 0, user=3, item=4, category=2)
    model.check(params)
    with pytest.raises(ValueError, match=message):
        model.check({**params, name: tensor})


# --- growing


def test_a_row_past_the_end_reads_the_cold_row() -> None:
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert read_rows(table, torch.tensor([1, 2, 0, 99])).tolist() == [[3, 4], [1, 2], [1, 2], [1, 2]]
    states = torch.arange(8.0).reshape(2, 2, 2)
    assert read_rows(states, torch.tensor([7, 1])).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_a_new_row_starts_as_the_cold_row() -> None:
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert grow(table, 4).tolist() == [[1, 2], [3, 4], [1, 2], [1, 2]]
    assert table.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_a_grown_table_never_shrinks_and_shares_nothing(rows: int) -> None:
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    grown = grow(table, rows)
    assert len(grown) == max(2, rows)
    grown += 1
    assert table.tolist() == [[1, 2], [3, 4]]
    if rows == 3:  # the new row is a copy of the cold one, not a view of it
        grown[2] = 0
        assert grown[0].tolist() == [2, 3]


@all_models
def test_growing_changes_no_prediction(config: ModelConfig) -> None:
    data = random_period(3, 30, categories=6 if config.categories else 0, **read_by(config))
    model, params = build_model(config), random_params(config, 1, user=3, item=4, category=3)
    grown = {n: grow(p, data.sizes[n]) if n in data.sizes else p for n, p in params.items()}
    torch.testing.assert_close(predict_logits(model, grown, data), predict_logits(model, params, data))


@all_models
@pytest.mark.parametrize("shift", [-3.5, 0.25])
def test_a_shift_raises_every_logit_alike_and_changes_nothing_else(config: ModelConfig, shift: float) -> None:
    data = random_period(3, 30, categories=6 if config.categories else 0, **read_by(config))
    model, params = build_model(config), random_params(config, 1, user=3, item=4, category=3)
    before = {name: tensor.clone() for name, tensor in params.items()}
    shifted = model.shifted(params, shift)
    expected = predict_logits(model, params, data) + shift
    torch.testing.assert_close(predict_logits(model, shifted, data), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(params[name], before[name]) for name in before)
    assert sum(not torch.equal(shifted[name], before[name]) for name in before) == 1
    model.check(shifted)


# --- gradients


@both
def test_gradients_reach_only_the_rows_that_were_looked_up(config: EmbeddingMLPConfig) -> None:
    data = random_period(2, 3, users=30, items=40, categories=12 if config.categories else 0, **read_by(config))
    params = random_params(config, 5, user=30, item=40, category=12)
    leaves = {name: p.requires_grad_() for name, p in params.items()}
    features, items = None, {*data.item.tolist(), *data.history.tolist()}
    touched = {"user": set(data.user.tolist()), "item": items}
    if data.item_categories is not None:
        features = ItemFeatures(torch.arange(40), data.item_categories.long())
        touched["category"] = {c for i in items for c in data.item_categories[i].tolist() if c != NO_CATEGORY}
        assert touched["category"]
    # A bias large enough for every ReLU to be open, so that each row looked up has a gradient.
    with torch.no_grad():
        for i in range(len(config.hidden)):
            leaves[f"mlp.{i}.bias"].fill_(1e3)
    EmbeddingMLP(config).logits(leaves, data.batch(torch.arange(3)), features).sum().backward()
    for name, rows in touched.items():
        gradient = leaves[name].grad
        assert gradient is not None
        assert set(torch.nonzero(gradient.abs().sum(1)).squeeze(1).tolist()) == rows
    assert all(leaf.grad is not None for leaf in leaves.values())


@pytest.mark.parametrize("config", [DOT_CATEGORIES, MF_CATEGORIES], ids=["mlp", "mf"])
def test_gradients_are_those_of_finite_differences(config: ModelConfig) -> None:
    data = random_period(6, 5, categories=4, **read_by(config))
    assert data.item_categories is not None
    features = ItemFeatures(torch.arange(9), data.item_categories.long())
    batch = data.batch(torch.arange(5))
    batch = batch._replace(
        label=batch.label.double(), numeric=None if batch.numeric is None else batch.numeric.double()
    )
    params = {n: p.double() for n, p in random_params(config, 9, user=6, item=9, category=4).items()}
    names = sorted(params)
    model = build_model(config)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        logits = model.logits(dict(zip(names, values, strict=True)), batch, features)
        return functional.binary_cross_entropy_with_logits(logits, batch.label)

    assert torch.autograd.gradcheck(loss, [params[name].requires_grad_() for name in names], fast_mode=True)
