"""The compiled kernels, each against eager torch in float64 or a slow loop (whole steps: test_training, test_asmg)."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from torch import Tensor
from torch.nn import functional

from asmg import kernels
from asmg.adam import Adam, AdamState
from asmg.batch import TABLES, Epoch, PeriodData
from asmg.field_columns import FieldColumns
from asmg.generator import DENSE, GeneratorConfig, GRUGenerator, from_lanes, to_lanes
from asmg.kernels.embedding_mlp import BLOCK
from asmg.kernels.gru import LANES
from asmg.models import EmbeddingMLP, EmbeddingMLPConfig, Params
from tests.asmg.support import (
    SHAPES,
    SMALL,
    DenseAdam,
    copied,
    random_params,
    random_period,
    read_by,
    slow_logit,
    torch_rng,
)

shapes = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
residual_or_not = pytest.mark.parametrize("output", ["direct", "residual"])
widths = pytest.mark.parametrize("d", [1, 3, 4, 5, 8])

# --- scalar functions


def on_all(function: Callable[[np.float32], np.float32]) -> Callable[[np.ndarray], np.ndarray]:
    """An inlined kernel as a function of arrays, compiled as the loops that use it are."""

    @njit(fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy")
    def run(x, out):
        for lane in range(len(x)):
            out[lane] = function(x[lane])

    def call(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        run(x, out)
        return out

    return call


def test_tanh_and_sigmoid_are_as_good_as_they_say() -> None:
    x = np.concatenate([np.linspace(-20, 20, 400_001), np.geomspace(1e-30, 1, 10_000)]).astype(np.float32)
    tanh, sigmoid = on_all(kernels.tanh), on_all(kernels.sigmoid)
    exact = np.tanh(x.astype(np.float64))
    assert np.abs(tanh(x) - exact).max() <= 3e-7
    assert (np.abs(tanh(x) - exact) <= 3e-7 * np.abs(exact)).all()
    assert np.abs(tanh(x)).max() <= 1
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert np.abs(sigmoid(x) - exact).max() <= 2e-7
    assert sigmoid(x).min() >= 0
    assert sigmoid(x).max() <= 1


def test_tanh_and_sigmoid_of_no_number_are_none() -> None:
    """A weight that is not finite must not look like a saturated gate."""
    x = np.array([math.nan] * 9, np.float32)
    assert np.isnan(on_all(kernels.tanh)(x)).all()
    assert np.isnan(on_all(kernels.sigmoid)(x)).all()
    x = np.array([math.inf, -math.inf], np.float32)
    assert on_all(kernels.tanh)(x).tolist() == pytest.approx([1, -1], abs=3e-7)
    assert on_all(kernels.sigmoid)(x).tolist() == pytest.approx([1, 0], abs=3e-7)


# --- renumber


@settings(deadline=None)
@given(parts=st.lists(st.lists(st.integers(0, 12), max_size=10), max_size=4), size=st.integers(1, 13))
def test_ids_are_numbered_by_first_appearance(parts: list[list[int]], size: int) -> None:
    numbers, rows, count = np.zeros(13, np.int32), np.zeros(13, np.int32), 0
    for part in parts:
        count = kernels.renumber(np.array(part, np.int32), size, numbers, rows, count)
    expected = list(dict.fromkeys(i if i < size else 0 for part in parts for i in part))
    assert rows[:count].tolist() == expected
    assert [int(numbers[i]) - 1 for i in expected] == list(range(count))
    assert np.count_nonzero(numbers) == count


# --- the GRU


def gru(d: int, output: str, *, seed: int = 0) -> tuple[GRUGenerator, Params]:
    """A generator of this width, and weights of a trained one's size."""
    generator = GRUGenerator(GeneratorConfig(hidden=d, output=output), EmbeddingMLP(SMALL))  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    return generator, {
        name: torch.tensor(0.7 * rng.normal(size=shape), dtype=torch.float32)
        for name, shape in generator.shapes().items()
    }


def gru_inputs(positions: int, rows: int, steps: int, d: int) -> tuple[list[Tensor], Tensor]:
    """Inputs [R, P] of each step and a hidden state [R, P, d]."""
    rng = torch_rng(rows + d)
    values = [torch.randn(rows, positions, generator=rng) for _ in range(steps)]
    return values, 2 * torch.rand(rows, positions, d, generator=rng) - 1


def double(params: Params) -> Params:
    return {name: p.double().requires_grad_() for name, p in params.items()}


@widths
@residual_or_not
@pytest.mark.parametrize(
    "counts", [(7,), (5, 3), (1, 1, 1), (LANES + 41, LANES + 3, 9), (2 * LANES, LANES, 0)], ids=str
)
def test_the_gru_of_a_table_and_its_gradient_are_those_of_torch(d: int, output: str, counts: tuple[int, ...]) -> None:
    """In step t only the first counts[t] rows are run."""
    generator, weights = gru(d, output)
    steps, rows = len(counts), counts[0]
    values, hidden = gru_inputs(3, rows, steps, d)
    leaves = double(weights)
    expected, states = generator.run(leaves, "user", [v.double() for v in values], hidden.double())

    x = torch.stack(values).transpose(1, 2).contiguous().numpy()
    h0 = hidden.permute(1, 2, 0).unsqueeze(0).contiguous().numpy()
    lanes = to_lanes(weights, "user").numpy()
    z, r, g, h = (np.full((steps, 3, d, rows), np.nan, np.float32) for _ in range(4))
    y = np.full((steps, 3, rows), np.nan, np.float32)
    kernels.gru_forward(lanes, x, h0, np.array(counts), generator.residual, z, r, g, h, y)
    for t, count in enumerate(counts):
        np.testing.assert_allclose(y[t, :, :count].T, expected[t][:count].detach(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            h[t, :, :, :count].transpose(2, 0, 1), states[t][:count].detach(), rtol=1e-5, atol=1e-5
        )
        assert np.isnan(y[t, :, count:]).all()

    # The loss is a weighted sum of the outputs that were run.
    dy = torch.randn(steps, 3, rows, generator=torch_rng(1))
    total = sum((expected[t][:count] * dy[t, :, :count].t().double()).sum() for t, count in enumerate(counts))
    own = {name: leaf for name, leaf in leaves.items() if name.startswith("user.")}
    gradients = dict(zip(own, torch.autograd.grad(total, list(own.values())), strict=True))
    dw = np.zeros_like(lanes)
    kernels.gru_backward(lanes, x, h0, np.array(counts), z, r, g, h, dy.numpy(), dw)
    scale = float(np.abs(dw).max())
    np.testing.assert_allclose(dw, to_lanes(gradients, "user"), rtol=1e-4, atol=1e-5 * scale)
    once = dw.copy()
    kernels.gru_backward(lanes, x, h0, np.array(counts), z, r, g, h, dy.numpy(), dw)
    np.testing.assert_allclose(dw, 2 * once, rtol=1e-4, atol=1e-5 * scale)  # it adds


@widths
@residual_or_not
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_grus_of_the_mlp_and_their_gradient_are_those_of_torch(d: int, output: str, steps: int) -> None:
    generator, weights = gru(d, output)
    positions = generator.positions[DENSE]
    values, hidden = gru_inputs(positions, 1, steps, d)
    leaves = double(weights)
    expected, states = generator.run(leaves, DENSE, [v.double() for v in values], hidden.double())

    x = torch.cat(values).numpy()
    h0 = hidden.transpose(1, 2).contiguous().numpy()
    lanes = to_lanes(weights, DENSE).numpy()
    z, r, g, h = (np.full((steps, d, positions), np.nan, np.float32) for _ in range(4))
    y = np.full((steps, positions), np.nan, np.float32)
    kernels.gru_forward_dense(lanes, x, h0, generator.residual, z, r, g, h, y)
    for t in range(steps):
        np.testing.assert_allclose(y[t], expected[t][0].detach(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(h[t].T, states[t][0].detach(), rtol=1e-5, atol=1e-5)

    dy = torch.randn(steps, positions, generator=torch_rng(1))
    total = sum((expected[t][0] * dy[t].double()).sum() for t in range(steps))
    own = {name: leaf for name, leaf in leaves.items() if name.startswith(f"{DENSE}.")}
    gradients = dict(zip(own, torch.autograd.grad(total, list(own.values())), strict=True))
    dw = np.ones_like(lanes)
    kernels.gru_backward_dense(lanes, x, h0, z, r, g, h, dy.numpy(), dw)
    np.testing.assert_allclose(dw - 1, to_lanes(gradients, DENSE), rtol=1e-4, atol=1e-5)


@widths
@residual_or_not
def test_lanes_and_back(d: int, output: str) -> None:
    generator, weights = gru(d, output)
    for group in generator.groups:
        lanes = to_lanes(weights, group)
        assert lanes.shape == (3 * d + 3 * d * d + d + 1, generator.positions[group])
        back = from_lanes(lanes, group, d)
        assert all(torch.equal(t, weights[name]) for name, t in back.items())
        assert set(back) == {name for name in weights if name.startswith(f"{group}.")}
        assert all(t.is_contiguous() for t in back.values())


# --- Embedding&MLP


def flat(model: EmbeddingMLP, params: Params) -> np.ndarray:
    """All dense parameters one after the other."""
    return torch.cat([params[name].reshape(-1) for name in model.dense_shapes]).numpy()


def log_of(config: EmbeddingMLPConfig, n: int) -> PeriodData:
    """`n` interactions in which items have up to three categories, one of them twice, and some count more."""
    data = random_period(n, n, users=8, items=11, categories=6 if config.categories else 0, **read_by(config))
    data = replace(data, weight=torch.from_numpy(np.random.default_rng(n).exponential(2, n).astype(np.float32) + 0.1))
    if data.item_categories is not None:
        categories = torch.cat([data.item_categories, data.item_categories[:, :1]], 1)
        return PeriodData(**{**vars(data), "item_categories": categories})
    return data


@shapes
@pytest.mark.parametrize("n", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 9])
def test_the_cross_entropy_and_its_gradient_are_those_of_torch(config: EmbeddingMLPConfig, n: int) -> None:
    """On a batch in the middle of an epoch, with soft targets, a weight, and gradients that are there before."""
    model, data = EmbeddingMLP(config), log_of(config, n + 12)
    params = random_params(config, 1, user=8, item=11, category=6)
    order = torch.randperm(n + 12, generator=torch_rng(n))
    epoch = Epoch([data], [[order[:6], order[6 : n + 6], order[n + 6 :]]])
    plan, target = epoch.plan, torch.rand(n + 12, generator=torch_rng(2))
    lo, hi = (int(b) for b in plan.bounds[1:3])
    ends = slice(*(int(b) for b in plan.entity_bounds[1:3]))
    rows = [plan.rows[k][plan.row_bounds[k, 1] : plan.row_bounds[k, 2]] for k in range(4)]

    none = np.zeros((1, 3), np.float32)
    tables = [params[name].numpy()[own] if name in params else none for name, own in zip(TABLES, rows, strict=True)]
    width = 6 if config.categories else 3
    vectors = np.full((ends.stop - ends.start, width), np.nan, np.float32)
    slots, categories = plan.entity_slot[ends], plan.entity_categories[ends]
    kernels.item_vectors(slots, categories, tables[1], tables[2], vectors)
    act, dact = (np.full((sum(model.widths), BLOCK), np.nan, np.float32) for _ in range(2))
    dense = flat(model, params)
    grads, dvectors, ddense = [np.ones_like(t) for t in tables], np.zeros_like(vectors), np.ones_like(dense)
    found = kernels.cross_entropy(
        plan.user, plan.item, plan.history, plan.offsets, plan.fields, epoch.weights.numpy(), epoch.sums.numpy(),
        epoch.numeric.numpy(), lo, hi, target.numpy(), epoch.importance.numpy(), 0.7,
        tables[0], vectors, tables[3], np.array(model.widths), dense, act, dact, grads[0], dvectors, grads[3], ddense,
    )  # fmt: skip
    kernels.item_vectors_backward(slots, categories, dvectors, grads[1], grads[2])

    leaves = double(params)
    batch = data.batch(order[6 : n + 6])
    batch = batch._replace(numeric=None if batch.numeric is None else batch.numeric.double())
    logits = model.logits(leaves, batch, data.features)
    losses = functional.binary_cross_entropy_with_logits(logits, target[6 : n + 6].double(), reduction="none")
    importance = data.importance[order[6 : n + 6]].double()
    loss = 0.7 * (losses * importance).sum() / importance.sum()
    loss.backward()
    assert found == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, own, got in zip(TABLES, rows, grads, strict=True):
        if name not in leaves:
            continue
        whole = leaves[name].grad
        assert whole is not None
        np.testing.assert_allclose(got - 1, whole[own], rtol=1e-4, atol=1e-6)
        assert not np.delete(whole.numpy(), own, 0).any()
    expected = flat(model, {name: leaves[name].grad for name in model.dense_shapes})  # type: ignore[misc]
    np.testing.assert_allclose(ddense - 1, expected, rtol=1e-4, atol=1e-6)


@shapes
@pytest.mark.parametrize("n", [1, BLOCK, 2 * BLOCK + 9])
def test_predictions_are_those_of_plain_numpy(config: EmbeddingMLPConfig, n: int) -> None:
    model, data = EmbeddingMLP(config), log_of(config, n)
    params = random_params(config, 3, user=8, item=11, category=6)
    vectors = model.item_vectors(params, data.features).numpy()
    logits = np.full(n, np.nan, np.float32)
    read = data.fields or FieldColumns.none(n)
    user, item, history, offsets = (t.numpy() for t in (data.user, data.item, data.history, data.offsets))
    values = params["field"].numpy() if config.fields else np.zeros((1, 3), np.float32)
    kernels.predict(
        user, item, history, offsets, read.rows.numpy(), read.weights.numpy(), read.sums.numpy(), data.inputs.numpy(),
        params["user"].numpy(), vectors, values, np.array(model.widths), flat(model, params), logits,
    )  # fmt: skip
    np.testing.assert_allclose(logits, [slow_logit(config, params, data, k) for k in range(n)], rtol=1e-4, atol=1e-4)


def test_the_item_vectors_of_categories_are_their_means_by_hand() -> None:
    item, category = np.array([[1.0], [2.0]], np.float32), np.array([[10.0], [30.0], [80.0]], np.float32)
    out = np.full((4, 2), np.nan, np.float32)
    categories = np.array([[-1, -1], [0, 1], [2, -1], [1, 1]], np.int32)
    kernels.item_vectors(np.array([1, 0, 0, 1], np.int32), categories, item, category, out)
    assert out.tolist() == [[2, 0], [1, 20], [1, 80], [2, 30]]
    ditem, dcategory = np.zeros_like(item), np.zeros_like(category)
    dout = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float32)
    kernels.item_vectors_backward(np.array([1, 0, 0, 1], np.int32), categories, dout, ditem, dcategory)
    assert ditem.flatten().tolist() == [8, 8]
    assert dcategory.flatten().tolist() == [2, 2 + 4 + 4, 6]


# --- Adam

SETTINGS = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


def rate(step: int) -> float:
    return 0.01 * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)


def test_adam_on_flat_arrays_is_dense_adam() -> None:
    rng = np.random.default_rng(0)
    reference = DenseAdam(rng.normal(size=70), 0.01)
    p, m, v = reference.value.astype(np.float32), np.zeros(70, np.float32), np.zeros(70, np.float32)
    for t in range(1, 200):
        gradient = rng.normal(size=70) * 10 ** rng.uniform(-4, 2)
        reference.step(gradient)
        kernels.adam_dense(p, m, v, gradient.astype(np.float32), rate(t), 0.9, 0.999, 1e-8)
    np.testing.assert_allclose(p, reference.value, rtol=1e-6, atol=5e-6)
    np.testing.assert_allclose(m, reference.m, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(v, reference.v, rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("gap", [1, 2, 17, 800])
@pytest.mark.parametrize("before", [1, 40])
def test_adam_on_rows_with_catching_up_is_dense_adam_on_all(before: int, gap: int) -> None:
    """Row 3 has a gradient in the first steps, then none in `gap` of them, and is then read once more."""
    rng = np.random.default_rng(before)
    reference = DenseAdam(rng.normal(size=(5, 3)), 0.01)
    p = reference.value.astype(np.float32)
    m, v, moved, out = np.zeros_like(p), np.zeros_like(p), np.zeros(5, np.int32), np.zeros((2, 3), np.float32)
    tail = Adam({}, AdamState.zeros({}), lr=0.01).tail.numpy()

    def step(t: int, rows: list[int]) -> None:
        index = np.array(rows, np.int32)
        kernels.read_rows(index, p, m, v, moved, t, *SETTINGS.values(), tail, out)
        np.testing.assert_allclose(out[: len(rows)], reference.value[rows], rtol=1e-6, atol=5e-6)
        np.testing.assert_array_equal(out[: len(rows)], p[rows])
        gradient = np.zeros((5, 3))
        gradient[rows] = rng.normal(size=(len(rows), 3))
        reference.step(gradient)
        narrow = gradient[rows].astype(np.float32)
        kernels.adam_rows(index, p, m, v, moved, narrow, t + 1, rate(t + 1), 0.9, 0.999, 1e-8)

    for t in range(before):
        step(t, [0, 3])
    left = p[3].copy()
    for t in range(before, before + gap):
        step(t, [0])
    assert (p[3] == left).all()
    assert moved.tolist() == [before + gap, 0, 0, before, 0]
    step(before + gap, [3, 0])
    assert moved[3] == before + gap + 1
    np.testing.assert_allclose(p[[0, 3]], reference.value[[0, 3]], rtol=1e-6, atol=5e-6)
    np.testing.assert_allclose(m[[0, 3]], reference.m[[0, 3]], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(v[[0, 3]], reference.v[[0, 3]], rtol=2e-4, atol=1e-9)
    assert (p[[1, 2, 4]] == reference.value[[1, 2, 4]].astype(np.float32)).all()


def test_the_compiled_read_of_rows_is_the_eager_one() -> None:
    """From one state in which rows lag behind by different numbers of steps."""
    params = {"user": torch.randn(50, 3, generator=torch_rng(1))}
    state = AdamState(
        step=700,
        first={"user": torch.randn(50, 3, generator=torch_rng(2))},
        second={"user": torch.rand(50, 3, generator=torch_rng(3))},
        moved={"user": torch.randint(1, 701, (50,), generator=torch_rng(4), dtype=torch.int32)},
    )
    index = torch.randperm(50, generator=torch_rng(5))[:30]
    before, eager = params["user"].clone(), Adam(copied(params), state.clone(), lr=0.01)
    expected = eager.read("user", index)
    assert ((expected - before[index]).abs().amax(1) > 1e-5).sum() > 20  # it is not about nothing
    p, m, v, moved = (t["user"].numpy() for t in (params, state.first, state.second, state.moved))
    out = np.zeros((30, 3), np.float32)
    kernels.read_rows(
        index.int().numpy(), p, m, v, moved, 700, *SETTINGS.values(), eager.tail.numpy(), out
    )  # fmt: skip
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    for got, wanted in ((p, eager.params), (m, eager.first), (v, eager.second)):
        np.testing.assert_allclose(got, wanted["user"], rtol=1e-5, atol=1e-6)
    assert moved.tolist() == eager.moved["user"].tolist()
