"""The meta generators: the GRU against a loop over single scalars, written from methods.md, section 7, and the linear
one against its formula (section 6)."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.batch import Epoch, excerpt
from asmg.generator import (
    DENSE,
    Generator,
    GeneratorConfig,
    GRUGenerator,
    HiddenState,
    LinearConfig,
    LinearGenerator,
)
from asmg.models import EmbeddingMLPConfig, Params, build_model, grow, read_rows
from tests.asmg.support import (
    CONFIGS,
    FIELD_ROWS,
    SMALL,
    SMALL_CATEGORIES,
    ModelConfig,
    random_params,
    random_period,
    read_by,
    snapshot,
    torch_rng,
    unchanged,
)

OUTPUTS = ["direct", "residual"]
outputs = pytest.mark.parametrize("output", OUTPUTS)
both = pytest.mark.parametrize("config", [SMALL, SMALL_CATEGORIES], ids=["plain", "categories"])
all_models = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
both_ways = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])


def make(config: ModelConfig, output: str = "direct", hidden: int = 4) -> GRUGenerator:
    return GRUGenerator(GeneratorConfig(hidden=hidden, output=output), build_model(config))  # type: ignore[arg-type]


def random_weights(generator: Generator, seed: int = 0) -> Params:
    """Weights of a trained generator's size, the outputs' too (which a fresh residual one has at zero)."""
    rng = np.random.default_rng(seed)
    return {
        name: torch.tensor(0.7 * rng.normal(size=tuple(w.shape)), dtype=torch.float32)
        for name, w in generator.initial(torch_rng()).items()
    }


def random_hidden(generator: GRUGenerator, seed: int = 0, **rows: int) -> HiddenState:
    rng = np.random.default_rng(seed)
    d = generator.config.hidden
    return {
        group: torch.tensor(rng.uniform(-1, 1, size=(rows.get(group, 1), width, d)), dtype=torch.float32)
        for group, width in generator.positions.items()
    }


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_gru(
    weights: Params, group: str, position: int, values: Sequence[float], state: list[float], *, residual: bool
) -> tuple[list[float], list[list[float]]]:
    """One scalar's GRU: its outputs and hidden states, one number at a time in float64."""
    d = len(state)

    def w(part: str) -> list[list[float]]:
        return weights[f"{group}.{part}"][position].tolist()

    u_z, u_r, u_g = (w("input")[0][k * d : (k + 1) * d] for k in range(3))
    w_z, w_r = ([row[k * d : (k + 1) * d] for row in w("gates")] for k in range(2))
    w_g, w_y, b = w("candidate"), w("output"), w("bias")[0][0]
    h, ys, states = list(state), [], []
    for x in values:
        z = [sigmoid(x * u_z[j] + sum(h[i] * w_z[i][j] for i in range(d))) for j in range(d)]
        r = [sigmoid(x * u_r[j] + sum(h[i] * w_r[i][j] for i in range(d))) for j in range(d)]
        g = [math.tanh(x * u_g[j] + sum(h[i] * r[i] * w_g[i][j] for i in range(d))) for j in range(d)]
        h = [(1 - z[j]) * h[j] + z[j] * g[j] for j in range(d)]
        ys.append(sum(h[j] * w_y[j][0] for j in range(d)) + b + (x if residual else 0.0))
        states.append(h)
    return ys, states


def places(generator: Generator, rows: dict[str, int]) -> list[tuple[str, int, int, str, tuple[int, ...]]]:
    """Every scalar of a model: its group, position, row, tensor and index there.

    In a table the position is the dimension; the MLP's scalars are counted tensor by tensor, each row by row.
    """
    found: list[tuple[str, int, int, str, tuple[int, ...]]] = []
    for table in generator.model.tables:
        width = generator.model.table_widths[table]
        found += [(table, c, r, table, (r, c)) for r in range(rows[table]) for c in range(width)]
    position = 0
    for name, shape in generator.model.dense_shapes.items():
        for index in np.ndindex(shape):
            found.append((DENSE, position, 0, name, index))
            position += 1
    return found


@both_ways
@outputs
@all_models
@pytest.mark.parametrize("d", [1, 4, 5])
def test_generation_is_a_gru_on_every_single_scalar(config: ModelConfig, output: str, compiled: bool, d: int) -> None:
    generator = make(config, output, d)
    rows = {"user": 4, "item": 5, "category": 3, "field": 4}
    models = [random_params(config, seed, **rows) for seed in range(3)]
    weights, hidden = random_weights(generator), random_hidden(generator, **rows)
    advanced = {}
    for advance in (0, 1, 2, 3):
        got, advanced[advance] = generator.generate(weights, models, hidden, advance=advance, compiled=compiled)
        generator.model.check(got)
    for group, position, row, name, index in places(generator, rows):
        values = [float(m[name][index]) for m in models]
        start = hidden[group][row, position].tolist()
        ys, states = slow_gru(weights, group, position, values, start, residual=output == "residual")
        assert float(got[name][index]) == pytest.approx(ys[-1], rel=1e-4, abs=1e-5)
        for advance, state in enumerate([start, *states]):
            np.testing.assert_allclose(advanced[advance][group][row, position], state, rtol=1e-4, atol=1e-5)


def test_one_step_by_hand() -> None:
    """d = 1, every weight 1, x = 2, h = 0: z = r = σ(2), g = tanh(2), h' = σ(2)·tanh(2), y = h' + 1."""
    generator = make(EmbeddingMLPConfig(dim=1, hidden=(1,)), hidden=1)
    weights = {name: torch.ones_like(w) for name, w in generator.initial(torch_rng()).items()}
    (y,), (h,) = generator.run(weights, "user", [torch.tensor([[2.0]])], torch.zeros(1, 1, 1))
    expected = math.tanh(2) / (1 + math.exp(-2))
    for compiled in (True, False):
        last = generator.last(
            weights, "user", [torch.tensor([[2.0]])], torch.zeros(1, 1, 1), state_after=1, compiled=compiled
        )
        for got_y, got_h in ((y, h), last):
            assert float(got_h) == pytest.approx(expected, abs=1e-6)
            assert float(got_y) == pytest.approx(expected + 1, abs=1e-6)


@outputs
def test_every_step_of_a_run_is_the_last_of_a_shorter_one(output: str) -> None:
    generator = make(SMALL, output)
    weights, hidden = random_weights(generator), random_hidden(generator, user=4)
    inputs = [random_params(SMALL, s, user=4, item=5)["user"] for s in range(4)]
    ys, states = generator.run(weights, "user", inputs, hidden["user"])
    assert len(ys) == len(states) == 4
    for length in range(1, 5):
        shorter, shorter_states = generator.run(weights, "user", inputs[:length], hidden["user"])
        torch.testing.assert_close(shorter[-1], ys[length - 1])
        torch.testing.assert_close(shorter_states[-1], states[length - 1])
    # ... and a run that is cut in two goes on from the state in between.
    tail, _ = generator.run(weights, "user", inputs[2:], states[1])
    torch.testing.assert_close(tail[-1], ys[-1])


@both_ways
@outputs
@all_models
def test_rows_run_alone_are_those_of_the_whole_table(config: ModelConfig, output: str, compiled: bool) -> None:
    generator = make(config, output)
    rows = {"user": 12, "item": 15, "category": 6, "field": FIELD_ROWS}
    models = [random_params(config, seed, **rows) for seed in range(3)]
    weights, hidden = random_weights(generator), random_hidden(generator, **rows)
    whole, _ = generator.generate(weights, models, hidden, compiled=compiled)
    data = random_period(0, 5, users=12, items=15, categories=6 if config.categories else 0, **read_by(config))
    (small,), touched = excerpt([data], generator.model.tables)
    steps = Epoch([small], [[torch.arange(5)]])
    assert set(touched) == set(generator.model.tables)
    for table, index in touched.items():
        own = index[steps.local(0, steps.label).rows[table]]
        assert len(own) > 1 and (len(own) < rows[table] or table == "field")
        ys, _ = generator.run(weights, table, generator.inputs(models, table, own), read_rows(hidden[table], own))
        torch.testing.assert_close(ys[-1], whole[table][own])
    if generator.model.dense_shapes:
        ys, _ = generator.run(weights, DENSE, generator.inputs(models, DENSE, None), hidden[DENSE])
        for name, tensor in generator.dense(ys[-1]).items():
            torch.testing.assert_close(tensor, whole[name])


@both_ways
@pytest.mark.parametrize("chunk", [1, 2, 5, 7])
def test_chunks_make_no_difference(chunk: int, compiled: bool) -> None:
    generator = make(SMALL_CATEGORIES, "residual")
    rows = {"user": 7, "item": 10, "category": 4}
    models = [random_params(SMALL_CATEGORIES, seed, **rows) for seed in range(3)]
    weights, hidden = random_weights(generator), random_hidden(generator, user=7, item=3)
    for advance in (0, 1, 2):
        whole = generator.generate(weights, models, hidden, advance=advance, compiled=compiled)
        parts = generator.generate(weights, models, hidden, advance=advance, compiled=compiled, chunk=chunk)
        for of_whole, of_parts in zip(whole, parts, strict=True):
            assert set(of_whole) == set(of_parts)
            for name in of_whole:
                torch.testing.assert_close(of_parts[name], of_whole[name])


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_rows_past_a_models_size_behave_as_its_cold_row(
    first: int, second: int, state: int, advance: int, compiled: bool
) -> None:
    """Older models and the hidden state know fewer rows: grown ones, whose new rows are the cold row, give the same."""
    generator = make(SMALL)
    weights = random_weights(generator)
    sizes = [(first, second), (second, 4), (5, 6)]
    models = [random_params(SMALL, seed, user=u, item=i) for seed, (u, i) in enumerate(sizes)]
    hidden = random_hidden(generator, user=state, item=state)
    got, advanced = generator.generate(weights, models, hidden, advance=advance, compiled=compiled)
    grown = [{n: grow(p, {"user": 5, "item": 6}.get(n, 0)) if p.dim() == 2 and n in ("user", "item") else p
              for n, p in m.items()} for m in models]  # fmt: skip
    wide = {g: torch.cat([h, h[:1].expand(6 - len(h), -1, -1)]) if g != DENSE else h for g, h in hidden.items()}
    expected, states = generator.generate(weights, grown, wide, advance=advance, compiled=compiled)
    assert {n: len(t) for n, t in got.items() if n in ("user", "item")} == {"user": 5, "item": 6}
    for name in got:
        torch.testing.assert_close(got[name], expected[name])
    # The state is one of the rows that there were at that time, in the hidden state or in the model.
    for k, name in enumerate(("user", "item")):
        rows = max(state, sizes[advance - 1][k] if advance else 0)
        assert len(advanced[name]) == rows
        torch.testing.assert_close(advanced[name], states[name][:rows])


@both_ways
def test_the_state_advances_for_every_row_of_the_model(compiled: bool) -> None:
    generator = make(SMALL)
    weights = random_weights(generator)
    models = [random_params(SMALL, 0, user=5, item=2), random_params(SMALL, 1, user=6, item=4)]
    _, advanced = generator.generate(weights, models, generator.initial_hidden(), advance=1, compiled=compiled)
    assert {group: tuple(h.shape) for group, h in advanced.items()} == {
        "user": (5, 3, 4), "item": (2, 3, 4), DENSE: (1, 79, 4),  # 5·9 + 5 + 4·5 + 4 + 4 + 1
    }  # fmt: skip


@both_ways
@all_models
def test_an_untrained_residual_generator_is_the_identity(config: ModelConfig, compiled: bool) -> None:
    generator = make(config, "residual")
    rows = {"user": 4, "item": 5, "category": 3, "field": 4}
    models = [random_params(config, seed, **rows) for seed in range(3)]
    got, _ = generator.generate(
        generator.initial(torch_rng(5)), models, generator.initial_hidden(), compiled=compiled
    )  # fmt: skip
    assert set(got) == set(models[-1])
    assert all(torch.equal(got[name], models[-1][name]) for name in got)


def test_an_untrained_direct_generator_is_not() -> None:
    generator = make(SMALL, "direct")
    models = [random_params(SMALL, seed, user=4, item=5) for seed in range(3)]
    got, _ = generator.generate(generator.initial(torch_rng(5)), models, generator.initial_hidden())
    assert not torch.allclose(got["user"], models[-1]["user"], atol=0.1)


def test_the_hidden_state_starts_at_zero_with_the_cold_row_alone() -> None:
    hidden = make(SMALL_CATEGORIES).initial_hidden()
    assert {group: len(h) for group, h in hidden.items()} == dict.fromkeys(("user", "item", "category", DENSE), 1)
    assert not any(h.any() for h in hidden.values())


def test_the_groups_are_tables_first() -> None:
    assert make(SMALL).groups == ("user", "item", DENSE)
    assert make(SMALL_CATEGORIES).groups == ("user", "item", "category", DENSE)


def test_fresh_weights_fill_tensorflows_glorot_range_for_stacked_tensors() -> None:
    """methods.md, section 7: the numbers for tables (P = 8) and fcn1's kernel (P = 288) and fcn3's bias (P = 1)."""
    generator = make(EmbeddingMLPConfig(), "direct")
    weights = [generator.initial(torch_rng(seed)) for seed in range(40)]

    def largest(name: str, positions: slice = slice(None)) -> float:
        return max(float(w[name][positions].abs().max()) for w in weights)

    everything, kernel, last = slice(None), slice(0, 288), slice(384, 385)
    limits = [
        ("user.input", everything, math.sqrt(6 / 40)),
        ("user.gates", everything, math.sqrt(6 / 64)),
        ("user.candidate", everything, math.sqrt(6 / 64)),
        ("item.output", everything, math.sqrt(6 / 40)),
        ("item.bias", everything, math.sqrt(6 / 16)),
        (f"{DENSE}.input", kernel, 0.0645497),
        (f"{DENSE}.gates", kernel, 0.0510310),
        (f"{DENSE}.output", kernel, 0.0645497),
        (f"{DENSE}.bias", kernel, 0.1020621),
        (f"{DENSE}.input", last, math.sqrt(6 / 5)),
        (f"{DENSE}.gates", last, math.sqrt(6 / 8)),
        (f"{DENSE}.bias", last, math.sqrt(3)),
    ]
    for name, positions, limit in limits:
        # The largest of n uniform draws is under 0.85 L with probability 0.85ⁿ, n ≥ 40: 0.0015 at worst, and seeded.
        assert 0.85 * limit < largest(name, positions) <= limit * (1 + 1e-6), name


def test_fresh_weights_follow_the_seed_and_pass_the_check() -> None:
    for output in OUTPUTS:
        generator = make(SMALL_CATEGORIES, output)
        first, same, other = (generator.initial(torch_rng(seed)) for seed in (1, 1, 2))
        generator.check(first)
        assert all(torch.equal(first[n], same[n]) for n in first)
        assert not torch.equal(first["user.gates"], other["user.gates"])
        assert all(t.is_contiguous() for t in first.values())


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("user.input", torch.ones(3, 1, 8), r"^user\.input: expected shape \(3, 1, 12\); received \(3, 1, 8\)"),
        ("mlp.bias", torch.full((79, 1, 1), math.nan), r"^mlp\.bias: expected finite numbers; received NaN"),
        ("item.output", torch.full((3, 4, 1), math.inf), r"^item\.output: expected finite numbers; received NaN"),
        ("extra", torch.ones(1), "^generator: expected .*; received .*extra"),
    ],
)
def test_the_check_names_the_bad_tensor(name: str, tensor: torch.Tensor, message: str) -> None:
    generator = make(SMALL)
    weights = generator.initial(torch_rng())
    generator.check(weights)
    with pytest.raises(ValueError, match=message):
        generator.check({**weights, name: tensor})


@pytest.mark.parametrize(
    ("values", "message"),
    [({"hidden": 0}, "^hidden: expected at least 1; received 0"), ({"output": "sum"}, "^output: expected 'residual'")],
)
def test_a_generator_of_no_shape_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**values)  # type: ignore[arg-type]


@both_ways
def test_generation_changes_nothing_that_it_reads_and_shares_nothing_with_it(compiled: bool) -> None:
    generator = make(SMALL, "residual")
    models = [random_params(SMALL, seed, user=4, item=5) for seed in range(3)]
    weights, hidden = random_weights(generator), random_hidden(generator, user=2)
    before = snapshot([weights, hidden, models])
    got, advanced = generator.generate(weights, models, hidden, advance=1, compiled=compiled)
    for tensor in (got | advanced).values():
        tensor += 1
    assert unchanged(before, [weights, hidden, models])


def test_gradients_reach_every_weight_through_the_generated_model() -> None:
    generator = make(SMALL, "direct")
    leaves = {n: w.requires_grad_() for n, w in random_weights(generator).items()}
    models = [random_params(SMALL, seed, user=4, item=5) for seed in range(3)]
    total = torch.zeros(())
    for group in generator.groups:
        ys, _ = generator.run(
            leaves, group, generator.inputs(models, group, None), random_hidden(generator, user=4, item=5)[group]
        )
        total = total + ys[-1].square().sum()
    total.backward()
    for leaf in leaves.values():
        assert leaf.grad is not None
        assert leaf.grad.abs().amax((1, 2)).min() > 0  # every position has its own


# --- the linear generator


def linear(config: ModelConfig, window: int = 3) -> LinearGenerator:
    return LinearGenerator(LinearConfig(window=window), build_model(config))


@all_models
@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_linear_generator_is_a_convex_combination_of_every_single_scalar(config: ModelConfig, length: int) -> None:
    """methods.md, section 6: logits for each embedding dimension, shared by all ids, and for each scalar of the MLP."""
    generator = linear(config)
    rows = {"user": 4, "item": 5, "category": 3, "field": 4}
    models = [random_params(config, seed, **rows) for seed in range(length)]
    weights = random_weights(generator)
    got, _ = generator.generate(weights, models, generator.initial_hidden())
    generator.model.check(got)
    for group, position, _, name, index in places(generator, rows):
        logits = weights[f"{group}.mix"][position].tolist()[3 - length :]
        shares = [math.exp(a) / sum(math.exp(b) for b in logits) for a in logits]
        expected = sum(share * float(m[name][index]) for share, m in zip(shares, models, strict=True))
        assert float(got[name][index]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_every_output_of_the_linear_generator_is_the_last_of_a_shorter_sequence() -> None:
    generator = linear(SMALL)
    weights = random_weights(generator)
    inputs = [random_params(SMALL, s, user=4, item=5)["user"] for s in range(3)]
    hidden = generator.initial_hidden()["user"]
    ys, states = generator.run(weights, "user", inputs, hidden)
    assert len(ys) == len(states) == 3
    for length in (1, 2, 3):
        torch.testing.assert_close(generator.run(weights, "user", inputs[:length], hidden)[0][-1], ys[length - 1])
    torch.testing.assert_close(ys[0], inputs[0])


@all_models
def test_an_untrained_linear_generator_is_the_plain_average(config: ModelConfig) -> None:
    generator = linear(config)
    rows = {"user": 4, "item": 5, "category": 3, "field": 4}
    models = [random_params(config, seed, **rows) for seed in range(3)]
    weights = generator.initial(torch_rng())
    generator.check(weights)
    assert {n: tuple(w.shape) for n, w in weights.items()} == {
        f"{group}.mix": (width, 3) for group, width in generator.positions.items()
    }
    got, _ = generator.generate(weights, models, generator.initial_hidden())
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, torch.stack([m[name] for m in models]).mean(0))


def test_a_linear_generator_of_no_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^window: expected at least 1; received 0"):
        LinearConfig(window=0)
