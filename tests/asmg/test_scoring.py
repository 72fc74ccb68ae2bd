"""Predictions of whole logs, against the slow model, compiled and eager."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from asmg.models import EmbeddingMLP, build_model, table_sizes
from asmg.training import Execution, evaluate, narrow, predict_logits
from tests.asmg.support import (
    CONFIGS,
    MF,
    MF_CATEGORIES,
    SHAPES,
    SMALL,
    ModelConfig,
    random_params,
    random_period,
    read_by,
    slow_logit,
    snapshot,
    tensors_in,
    unchanged,
)

all_models = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
@pytest.mark.parametrize("config", [*SHAPES.values(), MF, MF_CATEGORIES], ids=[*SHAPES, "mf", "mf+categories"])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_predicted_logits_are_in_the_order_of_the_log(config: ModelConfig, batch_size: int, compiled: bool) -> None:
    data = random_period(9, 23, users=8, items=12, categories=6 if config.categories else 0, **read_by(config))
    params = random_params(config, 3, user=5, item=7, category=4)  # the log knows more than the model
    execution = Execution(device="cpu", compiled=compiled)
    got = predict_logits(build_model(config), params, data, batch_size=batch_size, execution=execution)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, [slow_logit(config, params, data, n) for n in range(23)], rtol=1e-4, atol=1e-4)


@all_models
def test_models_cut_down_to_a_log_say_the_same_of_it(config: ModelConfig) -> None:
    data = random_period(9, 23, users=8, items=12, categories=6 if config.categories else 0, **read_by(config))
    models = [random_params(config, seed, user=5, item=7, category=4) for seed in (3, 4)]
    before = snapshot([models, data])
    small, log = narrow(build_model(config), models, data)
    assert unchanged(before, [models, data])
    for params, cut in zip(models, small, strict=True):
        assert table_sizes(cut) == log.sizes
        expected = [slow_logit(config, params, data, n) for n in range(23)]
        np.testing.assert_allclose(predict_logits(build_model(config), cut, log), expected, rtol=1e-4, atol=1e-4)


@all_models
def test_scoring_leaves_no_graph_and_changes_nothing(config: ModelConfig) -> None:
    params = {n: p.requires_grad_() for n, p in random_params(config, 1, user=6, item=9, category=4).items()}
    before = [p.detach().clone() for p in tensors_in(params)]
    data = random_period(1, categories=4 if config.categories else 0, **read_by(config))
    assert not predict_logits(build_model(config), params, data).requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_in(params), strict=True))


def test_an_evaluation_is_that_of_the_slow_logits() -> None:
    data = random_period(2, 30)
    params = random_params(SMALL, 1, user=6, item=9)
    got = evaluate(EmbeddingMLP(SMALL), params, data)
    logits = np.array([slow_logit(SMALL, params, data, n) for n in range(30)])
    labels = data.label.numpy()
    assert got.events == 30
    assert got.clicks == labels.sum()
    assert got.logloss == pytest.approx(float(np.mean(np.logaddexp(0, logits) - labels * logits)), rel=1e-5)
    wins = np.sign(logits[labels == 1][:, None] - logits[labels == 0][None, :]) / 2 + 0.5
    assert got.auc == pytest.approx(float(wins.mean()))


class OnDevice(torch.Tensor):
    """A tensor that behaves as one on a GPU in this: numpy cannot read it before it is on the CPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if func is torch.Tensor.numpy:
            raise TypeError("can't convert a device's tensor to numpy")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
@all_models
def test_parameters_may_be_on_a_device(config: ModelConfig, compiled: bool) -> None:
    """As those of a training that is under way there."""
    params = random_params(config, 1, user=6, item=9, category=4)
    data = random_period(1, categories=4 if config.categories else 0, **read_by(config))
    there = {name: p.as_subclass(OnDevice) for name, p in params.items()}
    with pytest.raises(TypeError, match="device"):
        there["user"].numpy()
    execution = Execution(device="cpu", compiled=compiled)
    got = predict_logits(build_model(config), there, data, execution=execution)
    assert type(got) is torch.Tensor
    assert torch.equal(got, predict_logits(build_model(config), params, data, execution=execution))


class Negated(EmbeddingMLP):
    """A model with another forward pass than the one that there are kernels for."""

    def head(self, *args: Any) -> torch.Tensor:
        return -super().head(*args)


def test_a_derived_model_is_not_scored_by_the_kernel_of_the_one_that_it_derives_from() -> None:
    data, params = random_period(1), random_params(SMALL, 1, user=6, item=9)
    for execution in (None, Execution(device="cpu"), Execution(device="cpu", compiled=False)):
        got = predict_logits(Negated(SMALL), params, data, execution=execution)
        torch.testing.assert_close(got, -predict_logits(EmbeddingMLP(SMALL), params, data), rtol=1e-5, atol=1e-5)
    assert not Execution(device="cpu").uses_kernels(Negated(SMALL))


@all_models
def test_a_log_larger_than_the_model_reads_as_one_of_unknown_ids(config: ModelConfig) -> None:
    data = random_period(2, 30, users=6, items=9, **read_by(config))
    params = random_params(replace(config, categories=False), 1, user=3, item=4)
    cold = replace(
        data,
        user=torch.where(data.user < 3, data.user, 0),
        item=torch.where(data.item < 4, data.item, 0),
        history=torch.where(data.history < 4, data.history, 0),
    )
    model = build_model(replace(config, categories=False))
    assert {name: size for name, size in table_sizes(params).items() if name != "field"} == {"user": 3, "item": 4}
    torch.testing.assert_close(predict_logits(model, params, data), predict_logits(model, params, cold))
