"""SML's transfer nets, against the formula written out."""

import math

import numpy as np
import pytest
import torch

from asmg.batch import TABLES
from asmg.models import EmbeddingMLPConfig, MatrixFactorizationConfig, build_model
from asmg.transfer import Output, Transfer
from asmg.updaters.sml import SmlState
from tests.asmg.support import MF, SMALL, ModelConfig, random_params, snapshot, torch_rng, unchanged
from tests.asmg.transfers import PAPER, configs, noisy, outputs, slow_transfer


@outputs
@configs
def test_the_transfer_is_as_written_out(config: ModelConfig, output: Output) -> None:
    """Rows with their own norms, dense tensors with that of the whole tensor."""
    transfer = Transfer(build_model(config), output)
    rng = torch_rng(1)
    weights = {n: torch.randn(shape, generator=rng) * 0.5 for n, shape in transfer.shapes().items()}
    previous, trained = (random_params(config, seed, user=4, item=3, category=2) for seed in (1, 2))
    previous["user"][2] = 0  # of norm zero
    got = transfer.apply(weights, previous, trained)
    assert got.keys() == previous.keys()
    for name, p in previous.items():
        tables = name in TABLES
        rows, others = (t if tables else t.reshape(1, -1) for t in (p, trained[name]))
        expected = [
            slow_transfer(weights, name, a, b, residual=output == "residual")
            for a, b in zip(rows.double().tolist(), others.double().tolist(), strict=True)
        ]
        assert got[name].shape == p.shape
        np.testing.assert_allclose(got[name].reshape(rows.shape), expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_nets_have_the_authors_widths() -> None:
    nets = Transfer(build_model(PAPER)).nets
    assert {name: (net.width, net.filters, net.hidden) for name, net in nets.items()} == {
        "user": (8, (10, 5), 20),
        "item": (8, (10, 5), 20),
        "mlp.0.weight": (288, (5, 3), 40),
        "mlp.0.bias": (12, (5, 3), 20),
        "mlp.1.weight": (72, (5, 3), 20),
        "mlp.1.bias": (6, (5, 3), 10),
        "mlp.2.weight": (6, (5, 3), 10),
        "mlp.2.bias": (1, (5, 3), 1),
    }
    nets = Transfer(build_model(MatrixFactorizationConfig(categories=True))).nets
    assert {n: (net.width, net.filters, net.hidden) for n, net in nets.items()} == dict.fromkeys(
        ("user", "item", "category"), (9, (10, 5), 20)
    )
    deep = Transfer(build_model(EmbeddingMLPConfig(hidden=(9, 9, 9, 1)))).nets
    assert [deep[f"mlp.{i}.weight"].hidden for i in range(5)] == [40, 20, 10, 10, 1]
    assert [deep[f"mlp.{i}.bias"].hidden for i in range(5)] == [20, 10, 10, 1, 1]


def test_a_direct_transfer_begins_glorot_uniform_as_in_tensorflow() -> None:
    """√(6 / (fan_in + fan_out)), from many draws; a convolution's kernel [3, 1, 1, 10] has the fans 3 and 30."""
    draws = [Transfer(build_model(PAPER), "direct").initial(torch_rng(seed)) for seed in range(300)]
    for name, limit in {
        "user.filters.0": math.sqrt(6 / 33),
        "item.filters.1": math.sqrt(6 / 60),
        "user.hidden.weight": math.sqrt(6 / (40 + 20)),
        "user.hidden.bias": math.sqrt(6 / 40),
        "item.output.weight": math.sqrt(6 / 28),
        "item.output.bias": math.sqrt(6 / 16),
        "mlp.0.weight.filters.0": math.sqrt(6 / 18),
        "mlp.0.weight.filters.1": math.sqrt(6 / 20),
        "mlp.0.weight.hidden.weight": math.sqrt(6 / (3 * 288 + 40)),
        "mlp.2.bias.output.weight": math.sqrt(6 / 2),
        "mlp.2.bias.output.bias": math.sqrt(6 / 2),
    }.items():
        values = torch.cat([d[name].reshape(-1) for d in draws])
        assert 0.97 * limit < float(values.abs().max()) <= limit * (1 + 1e-6), name
        # The variance of U(-L, L) is L²/3.
        assert abs(float(values.std()) / (limit / math.sqrt(3)) - 1) < 0.1, name


@configs
def test_an_untrained_residual_transfer_is_the_identity(config: ModelConfig) -> None:
    transfer = Transfer(build_model(config))
    weights = transfer.initial(torch_rng(0))
    previous, trained = (random_params(config, seed, user=40, item=30, category=5) for seed in (1, 2))
    used = transfer.apply(weights, previous, trained)
    assert all(torch.equal(used[name], t) for name, t in trained.items())
    assert all(bool(w.any()) == (".output." not in name) for name, w in weights.items())


@outputs
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_whole_tables_are_generated_as_rows_are(output: Output, chunk: int) -> None:
    transfer = Transfer(build_model(SMALL), output)
    chain = [noisy(SmlState(None, transfer.initial(torch_rng(s)), None), 0.1).weights for s in (1, 2)]  # type: ignore[arg-type]
    previous, trained = (random_params(SMALL, seed, user=23, item=15) for seed in (1, 2))
    before = snapshot([chain, previous, trained])
    got = transfer.generate(chain, previous, trained, chunk=chunk)
    once = transfer.apply(chain[0], previous, trained)
    twice = transfer.apply(chain[1], previous, once)
    for name in trained:
        torch.testing.assert_close(got[name], twice[name], rtol=1e-5, atol=1e-6)
    for row in (0, 11, 22):
        p, u = previous["user"][[row]], trained["user"][[row]]
        one = transfer.run(chain[1], "user", p, transfer.run(chain[0], "user", p, u))
        torch.testing.assert_close(got["user"][[row]], one, rtol=1e-5, atol=1e-6)
    none = transfer.generate([], previous, trained)
    assert all(torch.equal(none[n], t) and none[n] is not t for n, t in trained.items())
    assert unchanged(before, [chain, previous, trained])


@pytest.mark.parametrize("change", ["missing", "shape", "nan"])
def test_weights_of_another_kind_are_refused(change: str) -> None:
    transfer = Transfer(build_model(MF))
    weights = transfer.initial(torch_rng(0))
    transfer.check(weights)
    if change == "missing":
        del weights["user.filters.0"]
    else:
        weights["item.hidden.bias"] = torch.zeros(7) if change == "shape" else torch.full((20,), math.nan)
    with pytest.raises(ValueError, match="expected"):
        transfer.check(weights)
