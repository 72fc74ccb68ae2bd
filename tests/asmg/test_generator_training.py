"""Training of the generator on a window, compiled and eager, against dense Adam in float64 over whole tables."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from asmg.batch import ItemFeatures, PeriodData
from asmg.generator import DENSE, GeneratorConfig, HiddenState, LinearConfig
from asmg.models import EmbeddingMLPConfig, MatrixFactorizationConfig, Params, grow
from asmg.training import Execution
from asmg.updaters.asmg import Asmg, AsmgState
from asmg.updaters.asmg_config import AsmgConfig
from asmg.updaters.iu import IncrementalUpdate
from tests.asmg.cases import SMALL, SMALL_CATEGORIES, Case
from tests.asmg.support import (
    MF_CATEGORIES,
    DenseAdam,
    ModelConfig,
    mean_loss,
    snapshot,
    torch_rng,
    unchanged,
    unrounded,
)

EXECUTIONS = {"compiled": Execution(device="cpu"), "eager": Execution(device="cpu", compiled=False)}
if torch.cuda.is_available():
    EXECUTIONS["cuda"] = Execution(device="cuda")
executions = pytest.mark.parametrize("execution", EXECUTIONS.values(), ids=EXECUTIONS)
NUMERIC = replace(SMALL, numeric=7)
EVERYTHING = replace(SMALL_CATEGORIES, numeric=1, dot=True, fields=True)
both = pytest.mark.parametrize("config", [SMALL, SMALL_CATEGORIES], ids=["plain", "categories"])
shapes = pytest.mark.parametrize(
    "config",
    [SMALL, SMALL_CATEGORIES, NUMERIC, EVERYTHING],
    ids=["plain", "categories", "numeric", "categories+numeric+dot+fields"],
)

LAST = 6
"""The period that is learned; the window is of models before it."""


def period(config: ModelConfig, t: int, n: int = 300) -> PeriodData:
    """The t-th of a stream in which tables grow."""
    plain = config if isinstance(config, EmbeddingMLPConfig) else replace(SMALL, categories=config.categories)
    return Case("iu", plain).period(t, n)


@cache
def chain(config: ModelConfig) -> tuple[Any, ...]:
    """IU's states before the first period and after each."""
    updater = IncrementalUpdate(config, execution=EXECUTIONS["compiled"])
    states = [updater.initial(torch_rng(3))]
    for t in range(1, LAST):
        states.append(updater.update(states[-1], period(config, t), rng=torch_rng(t)))
    return tuple(states)


def window_state(updater: Asmg, lengths: list[int], *, hidden_rows: int = 1) -> AsmgState:
    """A state in the middle of a stream: one model for each target, of which `lengths` are the interactions; weights
    of a trained size, so that every gradient is a plain one; moments; and a hidden state of so many rows."""
    config, rng = updater.model.config, torch_rng(11)
    states = chain(config)
    models = tuple(states[t].params for t in range(LAST - len(lengths), LAST))
    data = tuple(
        period(config, t, n) for t, n in zip(range(LAST - len(lengths) + 1, LAST), lengths[:-1], strict=True)
    )  # fmt: skip
    state = updater.initial(rng)
    weights = {n: w + 0.3 * torch.randn(w.shape, generator=rng) for n, w in state.weights.items()}
    first, second = (
        {n: scale * torch.rand(w.shape, generator=rng) for n, w in weights.items()} for scale in (1e-3, 1e-5)
    )
    hidden = {
        group: 0.5 * torch.randn(hidden_rows if group != DENSE else 1, *h.shape[1:], generator=rng)
        for group, h in state.hidden.items()
    }
    return replace(
        state, base=states[LAST - 1], models=models, weights=weights, hidden=hidden, data=data,
        adam=replace(state.adam, step=40, first=first, second=second),
    )  # fmt: skip


@cache
def slow_training(
    of: ModelConfig, config: AsmgConfig, lengths: tuple[int, ...], hidden_rows: int, lambdas: tuple[float, ...]
) -> tuple[list[Params], dict[str, DenseAdam]]:
    """ω's training in float64 over whole tables that every model knows: the iterates, and the optimizers after them.

    It is the same for all executions, and nobody may change it."""
    updater = Asmg(of, config)
    state, data = window_state(updater, list(lengths), hidden_rows=hidden_rows), period(of, LAST)
    model, generator = updater.model, updater.generator
    targets = [*state.data, data][-len(state.models) :]
    sizes = data.sizes

    def wide(params: Params) -> Params:
        return {n: (grow(p, sizes[n]) if n in sizes else p).double() for n, p in params.items()}

    models = [wide(m) for m in state.models]
    hidden: HiddenState = {
        g: (torch.cat([h, h[:1].expand(sizes.get(g, 1) - len(h), -1, -1)])).double() for g, h in state.hidden.items()
    }
    features = None
    if data.item_categories is not None:
        features = ItemFeatures(torch.arange(data.items), data.item_categories.long())
    optimizers = {
        n: DenseAdam(w.double().numpy(), config.lr * (config.dense_share if n.startswith(f"{DENSE}.") else 1))
        for n, w in state.weights.items()
    }
    for name, optimizer in optimizers.items():
        optimizer.t = state.adam.step
        optimizer.m, optimizer.v = (m[name].double().numpy() for m in (state.adam.first, state.adam.second))
    steps = math.ceil(len(data) / config.batch_size)
    rng = torch_rng(7)
    orders = [torch.randperm(len(d), generator=rng).tensor_split(steps) for d in targets]
    iterates = []
    for n in range(steps):
        weights = {name: torch.tensor(o.value).requires_grad_() for name, o in optimizers.items()}
        loss = torch.zeros((), dtype=torch.float64)
        outputs = {
            g: generator.run(weights, g, generator.inputs(models, g, None), hidden[g])[0] for g in generator.groups
        }
        for j, weight in enumerate(lambdas):
            if not len(orders[j][n]):
                continue
            params = {g: outputs[g][j] for g in outputs if g != DENSE}
            params |= generator.dense(outputs[DENSE][j]) if DENSE in outputs else {}
            batch = targets[j].batch(orders[j][n])
            batch = batch._replace(numeric=None if batch.numeric is None else batch.numeric.double())
            logits = model.logits(params, batch, features)
            loss = loss + weight * mean_loss(logits, batch.label.double(), targets[j], orders[j][n].tolist())
        loss.backward()
        for name, optimizer in optimizers.items():
            gradient = weights[name].grad
            optimizer.step(np.zeros_like(optimizer.value) if gradient is None else gradient.numpy())
        iterates.append({name: torch.tensor(o.value) for name, o in optimizers.items()})
    return iterates, optimizers


LAMBDAS = {
    "linear": {1: [1.0], 2: [1 / 3, 2 / 3], 3: [1 / 6, 2 / 6, 3 / 6]},
    "uniform": {1: [1.0], 2: [1 / 2] * 2, 3: [1 / 3] * 3},
    "last": {1: [1.0], 2: [0.0, 1.0], 3: [0.0, 0.0, 1.0]},
}


def check_trained(updater: Asmg, lengths: list[int], lambdas: list[float], *, hidden_rows: int = 1) -> None:
    """One pass is that of the slow training, weights and moments."""
    of, config = updater.model.config, replace(updater.config, average=False)
    state = window_state(updater, lengths, hidden_rows=hidden_rows)
    got = unrounded(updater).run_stage("train_generator", state, period(of, LAST), rng=torch_rng(7))
    iterates, optimizers = slow_training(of, config, tuple(lengths), hidden_rows, tuple(lambdas))
    assert got.adam.step == state.adam.step + len(iterates)
    average = updater.config.average
    for name, weight in got.weights.items():
        expected = torch.stack([i[name] for i in iterates]).mean(0) if average else iterates[-1][name]
        # Adam moves by about lr = 0.01 a step whatever the gradient's size, so a tiny one is all noise in float32.
        error = (weight - expected).abs()
        assert float(error.max()) < 2e-3, name
        assert float(error.quantile(0.95)) < 2e-5, name
        # That it moved is what is to be explained.
        assert float((weight - state.weights[name]).abs().mean()) > 1e-4, name
        np.testing.assert_allclose(got.adam.first[name], optimizers[name].m, rtol=1e-2, atol=1e-6)
        np.testing.assert_allclose(got.adam.second[name], optimizers[name].v, rtol=1e-2, atol=1e-8)


@executions
@pytest.mark.parametrize("average", [False, True], ids=["last", "average"])
@pytest.mark.parametrize("kind", LAMBDAS)
@pytest.mark.parametrize("length", [1, 2, 3])
@both
def test_the_generator_is_trained_on_all_targets_of_the_window(
    config: EmbeddingMLPConfig, length: int, kind: str, average: bool, execution: Execution
) -> None:
    """Against dense Adam in float64 over whole tables: output j is scored on the period after model j, weight λ_j."""
    settings: dict[str, Any] = {"loss_weights": kind, "average": average, "batch_size": 100, "epochs": 1}
    updater = Asmg(config, AsmgConfig(**settings), execution=execution)
    check_trained(updater, [300] * length, LAMBDAS[kind][length], hidden_rows=4)


@executions
@pytest.mark.parametrize("output", ["direct", "residual"])
@pytest.mark.parametrize("d", [1, 3, 5, 8])
@shapes
def test_generators_of_any_shape_are_trained_likewise(
    config: EmbeddingMLPConfig, d: int, output: str, execution: Execution
) -> None:
    """Also with smaller steps for the MLP's GRUs, and with older periods so small that most batches of theirs are
    empty."""
    generator = GeneratorConfig(hidden=d, output=output)  # type: ignore[arg-type]
    settings = AsmgConfig(generator=generator, dense_share=0.3, batch_size=40, epochs=1, average=False)
    updater = Asmg(config, settings, execution=execution)
    check_trained(updater, [2, 150, 300], LAMBDAS["linear"][3], hidden_rows=4)


@pytest.mark.parametrize("config", [SMALL, SMALL_CATEGORIES, MF_CATEGORIES], ids=["plain", "categories", "mf"])
def test_the_linear_generator_is_trained_likewise(config: ModelConfig) -> None:
    settings = AsmgConfig(
        generator=LinearConfig(), carry_hidden=False, loss_weights="last", batch_size=40, epochs=1, average=False
    )  # fmt: skip
    updater = Asmg(config, settings, execution=EXECUTIONS["compiled"])
    check_trained(updater, [300] * 3, LAMBDAS["last"][3])


def test_the_gru_generates_factorizations_likewise() -> None:
    settings = AsmgConfig(batch_size=100, epochs=1, average=False)
    updater = Asmg(MatrixFactorizationConfig(dim=3), settings, execution=EXECUTIONS["compiled"])
    check_trained(updater, [300] * 3, LAMBDAS["linear"][3], hidden_rows=4)


# --- compiled and eager


@pytest.mark.parametrize("output", ["direct", "residual"])
@pytest.mark.parametrize(
    ("lengths", "kind", "d"),
    [
        ([300], "linear", 4),
        ([40, 300], "linear", 3),
        ([300, 300], "last", 5),
        ([300, 2, 100, 1, 300], "uniform", 4),
        ([30, 300, 700, 300, 300], "linear", 1),
    ],
    ids=str,
)
@shapes
def test_compiled_and_eager_passes_agree(
    config: EmbeddingMLPConfig, lengths: list[int], kind: str, d: int, output: str
) -> None:
    """From one state with the same rng, two passes, the second averaged; then what is generated."""
    generator = GeneratorConfig(hidden=d, output=output)  # type: ignore[arg-type]
    settings = AsmgConfig(
        generator=generator, window=len(lengths), loss_weights=kind, batch_size=30, epochs=2,  # type: ignore[arg-type]
        dense_share=0.5, moment_bits=None, hidden_bits=None,  # or the last bit of a sum may decide the rounding
    )  # fmt: skip
    results = []
    for execution in EXECUTIONS.values():
        updater = Asmg(config, settings, execution=execution)
        state = window_state(updater, lengths, hidden_rows=7)
        before = snapshot(state)
        trained = updater.run_stage("train_generator", state, period(config, LAST), rng=torch_rng(1))
        assert unchanged(before, state)
        trained = updater.run_stage("update_base", trained, period(config, LAST), rng=torch_rng(2))
        results.append(updater.run_stage("generate", trained, period(config, LAST), rng=torch_rng(3)))
    first, *others = results
    assert first.adam.step == 40 + 20
    for other in others:
        assert other.adam.step == first.adam.step
        for name, weight in first.weights.items():
            assert float((weight - state.weights[name]).abs().max()) > 1e-3
            # 20 steps of 0.01 at most that round in another order.
            np.testing.assert_allclose(other.weights[name], weight, rtol=1e-5, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(other.adam.first[name], first.adam.first[name], rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(other.adam.second[name], first.adam.second[name], rtol=1e-3, atol=1e-8)
        for name in first.hidden:
            np.testing.assert_allclose(other.hidden[name], first.hidden[name], rtol=1e-5, atol=1e-5)
        for name, p in first.generated.items():
            np.testing.assert_allclose(other.generated[name], p, rtol=1e-5, atol=1e-5, err_msg=name)


@executions
def test_a_pass_reports_its_progress(execution: Execution) -> None:
    updater = Asmg(SMALL, AsmgConfig(batch_size=2, epochs=2), execution=execution)
    told: list[float] = []
    updater.run_stage(
        "train_generator", window_state(updater, [100] * 3), period(SMALL, LAST), rng=torch_rng(0),
        progress=told.append,
    )  # fmt: skip
    assert len(told) >= 2 * math.ceil(150 / 32)
    assert told == sorted(told)
    assert told[-1] == 1
    assert 0.5 in told
