"""Adam against a dense one in float64, one epoch against a slow one, divergence, scoring."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from asmg.batch import PeriodData
from asmg.models import EmbeddingMLP, EmbeddingMLPConfig, Params, grow, table_sizes
from asmg.training import Adam, AdamState, DivergedError, evaluate, predict_logits, train_epoch
from tests.asmg.support import (
    SMALL,
    SMALL_CATEGORIES,
    DenseAdam,
    period,
    random_params,
    random_period,
    slow_logit,
    tensors_in,
    torch_rng,
)

# --- Adam


class Pair:
    """Our Adam on a table and a dense tensor beside two dense references, fed with the same gradients."""

    def __init__(self, rows: int, *, lr: float = 1e-2, dtype: torch.dtype = torch.float32) -> None:
        self.rng = np.random.default_rng(1)
        self.lr, self.dtype = lr, dtype
        # A step moves by up to lr = 0.01. float32 rounds by 6e-8 a step; in float64 what is left is ε/√v.
        self.atol = {torch.float32: 5e-6, torch.float64: 2e-7}[dtype]
        start = {"user": self.rng.normal(size=(rows, 3)), "bias": self.rng.normal(size=4)}
        self.reference = {name: DenseAdam(value, lr) for name, value in start.items()}
        self.params = {name: torch.tensor(value, dtype=dtype) for name, value in start.items()}
        self.ours = Adam(self.params, AdamState.zeros(self.params), lr=lr)

    def step(self, touched: list[int], scale: float = 1.0) -> None:
        """One step whose batch touched these rows. What is read before it must be what dense Adam holds."""
        rows = np.array(sorted(touched))
        read = self.ours.read("user", torch.tensor(rows))
        np.testing.assert_allclose(read, self.reference["user"].value[rows], rtol=1e-6, atol=self.atol)
        gradient = np.zeros_like(self.reference["user"].value)
        gradient[rows] = scale * self.rng.normal(size=(len(rows), 3))
        bias = scale * self.rng.normal(size=4)
        self.ours.step(
            {
                "user": torch.tensor(gradient[rows], dtype=self.dtype),
                "bias": torch.tensor(bias, dtype=self.dtype),
            },
            {"user": torch.tensor(rows)},
        )
        self.reference["user"].step(gradient)
        self.reference["bias"].step(bias)

    def grow(self, rows: int) -> None:
        """The next period: a new optimizer on grown tables."""
        state = self.ours.state.grown({"user": rows})
        self.params = {"user": grow(self.params["user"], rows), "bias": self.params["bias"].clone()}
        self.ours = Adam(self.params, state, lr=self.lr)
        self.reference["user"].grow(rows)

    def check(self) -> None:
        """Everything settled is what dense Adam holds, moments too."""
        self.ours.settle()
        state = self.ours.state
        assert state.step == self.reference["user"].t
        assert (state.moved["user"] == state.step).all()
        for name, dense in self.reference.items():
            np.testing.assert_allclose(self.params[name], dense.value, rtol=1e-6, atol=self.atol)
            np.testing.assert_allclose(state.first[name], dense.m, rtol=2e-4, atol=1e-7)
            np.testing.assert_allclose(state.second[name], dense.v, rtol=2e-4, atol=1e-9)


def test_two_steps_by_hand() -> None:
    """With a gradient of 1 both bias corrections cancel: lr in the first step and lr in the second."""
    params = {"user": torch.tensor([[5.0], [7.0]]), "bias": torch.tensor([1.0])}
    ours = Adam(params, AdamState.zeros(params), lr=0.1)
    for _ in range(2):
        ours.read("user", torch.tensor([1]))
        ours.step({"user": torch.ones(1, 1), "bias": -torch.ones(1)}, {"user": torch.tensor([1])})
    assert params["user"].flatten().tolist() == pytest.approx([5.0, 6.8], abs=1e-5)
    assert params["bias"].tolist() == pytest.approx([1.2], abs=1e-5)
    # No gradient in the third: m = .9·.19, v = .999·.001999, still divided by the corrections of t = 3.
    ours.step({"bias": torch.zeros(1)}, {})
    ours.settle()
    rate = 0.1 * math.sqrt(1 - 0.999**3) / (1 - 0.9**3)
    moved = rate * 0.9 * 0.19 / math.sqrt(0.999 * 0.001999)
    assert params["user"].flatten().tolist() == pytest.approx([5.0, 6.8 - moved], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_adam_on_the_rows_touched_is_dense_adam_on_all(dtype: torch.dtype) -> None:
    """Row 0 always, rows 1-3 now and then, row 4 thrice in 900 steps, row 5 once at the start, row 6 never."""
    pair = Pair(7, dtype=dtype)
    start = pair.params["user"][6].clone()
    rng = np.random.default_rng(0)
    for t in range(900):
        touched = {0} | set(rng.choice([1, 2, 3], size=rng.integers(0, 3)).tolist())
        pair.step([*touched, *([4] if t in (10, 11, 700) else []), *([5] if t == 0 else [])])
    pair.check()
    assert torch.equal(pair.params["user"][6], start)


@pytest.mark.parametrize("gap", [1, 2, 17, 800])
@pytest.mark.parametrize("before", [1, 40])
def test_a_row_catches_up_after_any_number_of_missed_steps(before: int, gap: int) -> None:
    pair = Pair(2)
    for _ in range(before):
        pair.step([0, 1])
    for _ in range(gap):
        pair.step([0])
    pair.step([0, 1])  # reads row 1 first, and compares what it reads
    pair.check()


def test_catching_up_moves_a_row_at_all() -> None:
    """Guards the tests around it: the closed form is not about nothing."""
    pair = Pair(2)
    for _ in range(5):
        pair.step([0, 1])
    left = pair.params["user"][1].clone()
    for _ in range(100):
        pair.step([0])
    pair.check()
    assert ((pair.params["user"][1] - left).abs() > pair.lr).all()


def test_the_state_goes_on_over_periods_in_which_the_table_grows() -> None:
    pair = Pair(3)
    rng = np.random.default_rng(3)
    for rows in (3, 5, 6):
        pair.grow(rows)
        for _ in range(150):
            pair.step(rng.choice(rows, size=2, replace=False).tolist())
        pair.check()


def test_the_state_goes_on_without_settling_too() -> None:
    """A crash between two periods may store rows that lag behind."""
    pair = Pair(4)
    for t in range(120):
        pair.step([0, 1 + t % 3] if t < 60 else [0])
    assert (pair.ours.state.moved["user"] < 120).any()
    pair.grow(5)
    for _ in range(30):
        pair.step([0, 4])
    pair.check()


def test_tail_sums_reach_past_the_first_table() -> None:
    """More steps in one period than the spare of the table computed at its start (4096)."""
    pair = Pair(2, dtype=torch.float64)
    for t in range(4200):
        pair.step([0] if t not in (0, 4100) else [0, 1])
    pair.check()


def test_gradients_near_epsilon_stay_close() -> None:
    """ε is not decayed with √v. Where √v is near ε that is an error, but one of at most ρ/β₁ - 1 = 0.05 % a step."""
    value, gradient = np.array([[1.0], [1.0]]), np.array([[3e-7], [3e-7]])
    reference, params = DenseAdam(value, 0.01), {"user": torch.tensor(value)}
    ours = Adam(params, AdamState.zeros(params), lr=0.01)
    ours.step({"user": torch.tensor(gradient)}, {"user": torch.tensor([0, 1])})
    reference.step(gradient)
    for _ in range(300):
        ours.step({}, {})
        reference.step(np.zeros((2, 1)))
    ours.settle()
    moved = 1 - reference.value
    assert (moved > 0.02).all()
    np.testing.assert_allclose(1 - params["user"].numpy(), moved, rtol=0.01)


def test_settling_twice_is_settling_once() -> None:
    pair = Pair(3)
    for _ in range(20):
        pair.step([0])
    pair.step([0, 2])
    pair.step([0])
    pair.ours.settle()
    once = [t.clone() for t in tensors_in([pair.params, pair.ours.state])]
    pair.ours.settle()
    assert all(torch.equal(a, b) for a, b in zip(once, tensors_in([pair.params, pair.ours.state]), strict=True))


def test_zeros_are_the_state_before_the_first_step() -> None:
    params = random_params(SMALL_CATEGORIES, 0, user=3, item=4, category=2)
    state = AdamState.zeros(params)
    assert state.step == 0
    assert set(state.first) == set(state.second) == set(params)
    assert not any(t.any() for t in tensors_in(state))
    assert {name: tuple(s.shape) for name, s in state.moved.items()} == {"user": (3,), "item": (4,), "category": (2,)}


def test_a_grown_state_has_no_momentum_in_new_rows_and_shares_nothing() -> None:
    pair = Pair(2)
    for _ in range(3):
        pair.step([0, 1])
    state = pair.ours.state
    grown = state.grown({"user": 4})
    assert grown.step == 3
    assert grown.moved["user"].tolist() == [3, 3, 3, 3]
    for before, after in ((state.first, grown.first), (state.second, grown.second)):
        assert torch.equal(after["user"][:2], before["user"])
        assert not after["user"][2:].any()
    kept = [t.clone() for t in tensors_in(state)]
    for shrunk in (grown, state.grown({}), state.grown({"user": 1})):
        assert len(shrunk.first["user"]) >= 2
        for tensor in tensors_in(shrunk):
            tensor += 1
    assert all(torch.equal(a, b) for a, b in zip(kept, tensors_in(state), strict=True))


# --- train_epoch


def one_epoch(
    config: EmbeddingMLPConfig, params: Params, data: PeriodData, seed: int = 0, **options: object
) -> tuple[Params, AdamState, float]:
    params = {name: p.clone() for name, p in params.items()}
    optimizer = Adam(params, AdamState.zeros(params), lr=0.05)
    defaults = {"batch_size": 16, "rng": torch_rng(seed)}
    loss = train_epoch(EmbeddingMLP(config), optimizer, data, **(defaults | options))  # type: ignore[arg-type]
    return params, optimizer.state, loss


CONFIGS = {"plain": SMALL, "categories": SMALL_CATEGORIES}
both = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def whole_table_logits(config: EmbeddingMLPConfig, leaves: Params, data: PeriodData, rows: list[int]) -> torch.Tensor:
    """The forward pass over whole tables in plain torch operations, one interaction at a time."""
    logits = []
    for n in rows:

        def vector(row: int) -> torch.Tensor:
            if not config.categories:
                return leaves["item"][row]
            assert data.item_categories is not None
            known = [c for c in data.item_categories[row].tolist() if c >= 0]
            zero = torch.zeros(config.dim, dtype=torch.float64)
            mean = torch.stack([leaves["category"][c] for c in known]).mean(0) if known else zero
            return torch.cat([leaves["item"][row], mean])

        history = data.history[int(data.offsets[n]) : int(data.offsets[n + 1])].tolist()
        item = vector(int(data.item[n]))
        pooled = torch.stack([vector(row) for row in history]).mean(0) if history else torch.zeros_like(item)
        x = torch.cat([leaves["user"][int(data.user[n])], pooled, item])
        for i in range(3):
            x = leaves[f"mlp.{i}.weight"] @ x + leaves[f"mlp.{i}.bias"]
            x = x.relu() if i < 2 else x
        logits.append(x[0])
    return torch.stack(logits)


@both
def test_one_epoch_is_dense_adam_on_whole_tables(config: EmbeddingMLPConfig) -> None:
    """The same permutation, whole tables in float64, dense Adam, mean loss over each batch's own size."""
    data = random_period(0, 70, users=12, items=15, categories=5 if config.categories else 0)
    start = random_params(config, 1, user=12, item=15, category=5)
    got, state, loss = one_epoch(config, start, data, seed=4)

    slow = {name: DenseAdam(p.double().numpy(), 0.05) for name, p in start.items()}
    order = torch.randperm(70, generator=torch_rng(4)).tolist()
    total = 0.0
    for first in range(0, 70, 16):
        rows = order[first : first + 16]
        leaves = {name: torch.tensor(a.value).requires_grad_() for name, a in slow.items()}
        logits = whole_table_logits(config, leaves, data, rows)
        mean = functional.binary_cross_entropy_with_logits(logits, data.label[rows].double())
        total += float(mean.detach()) * len(rows)
        mean.backward()
        for name, a in slow.items():
            gradient = leaves[name].grad
            a.step(np.zeros_like(a.value) if gradient is None else gradient.numpy())
    assert state.step == 5
    assert loss == pytest.approx(total / 70, rel=1e-4)
    for name, a in slow.items():
        np.testing.assert_allclose(got[name], a.value, rtol=1e-3, atol=1e-3)


def test_training_brings_the_loss_down() -> None:
    """User 1 clicks item 1 and never item 2, user 2 the reverse: it takes the pair, and it can be learned by heart."""
    data = period([1, 1, 2, 2] * 20, [1, 2, 1, 2] * 20, [[]] * 80, [1, 0, 0, 1] * 20, users=3, items=3)
    params = random_params(EmbeddingMLPConfig(), 0, user=3, item=3)
    model, optimizer = EmbeddingMLP(EmbeddingMLPConfig()), Adam(params, AdamState.zeros(params), lr=0.02)
    losses = [train_epoch(model, optimizer, data, batch_size=16, rng=torch_rng(e)) for e in range(40)]
    assert losses[-1] < 0.05 < 0.3 < losses[0]
    assert evaluate(model, params, data).auc == 1.0


def test_the_rows_of_others_stay_as_they_are() -> None:
    data = random_period(1, 30, users=4, items=5)
    start = random_params(SMALL, 1, user=9, item=9)
    got, _, _ = one_epoch(SMALL, start, data)
    assert torch.equal(got["user"][4:], start["user"][4:])
    assert torch.equal(got["item"][5:], start["item"][5:])
    assert torch.equal(got["user"][0], start["user"][0])
    assert not torch.equal(got["user"][1:4], start["user"][1:4])


@both
def test_id_dropout_trains_the_cold_rows_and_nothing_else_of_the_tables_at_a_rate_of_one(
    config: EmbeddingMLPConfig,
) -> None:
    data = random_period(1, 60, categories=4 if config.categories else 0)
    start = random_params(config, 1, user=6, item=9, category=4)
    got, _, _ = one_epoch(config, start, data, cold_rate=1.0)
    for name in ("user", "item"):
        assert torch.equal(got[name][1:], start[name][1:])
        assert not torch.equal(got[name][0], start[name][0])
    if config.categories:
        assert not torch.equal(got["category"][1:], start["category"][1:])


def test_the_same_generator_gives_the_same_bits() -> None:
    data = random_period(1, 60)
    start = random_params(SMALL, 1, user=6, item=9)

    def tensors(seed: int) -> list[torch.Tensor]:
        params, state, _ = one_epoch(SMALL, start, data, seed=seed, cold_rate=0.3)
        return tensors_in([params, state])

    assert all(torch.equal(a, b) for a, b in zip(tensors(1), tensors(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(tensors(1), tensors(2), strict=True))


def test_progress_rises_to_one() -> None:
    told: list[float] = []
    one_epoch(SMALL, random_params(SMALL, 1, user=6, item=9), random_period(1, 40), progress=told.append)
    assert told == [16 / 40, 32 / 40, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["mlp.1.bias", "user", "item"])
def test_a_loss_that_is_not_finite_stops_training(name: str, bad: float) -> None:
    params = random_params(SMALL, 1, user=6, item=9)
    if name == "mlp.1.bias":
        params["mlp.2.weight"].fill_(1)
    params[name].fill_(bad)
    with pytest.raises(DivergedError, match=r"^loss: expected a finite number; received (nan|inf)"):
        one_epoch(SMALL, params, random_period(1, 40, labels=[0.0] * 40))


def test_a_step_size_beyond_reason_diverges() -> None:
    params = random_params(SMALL, 1, user=6, item=9)
    optimizer = Adam(params, AdamState.zeros(params), lr=1e30)
    with pytest.raises(DivergedError):
        for seed in range(5):
            train_epoch(EmbeddingMLP(SMALL), optimizer, random_period(1, 40), batch_size=8, rng=torch_rng(seed))


# --- scoring


@both
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_predicted_logits_are_in_the_order_of_the_log(config: EmbeddingMLPConfig, batch_size: int) -> None:
    data = random_period(9, 23, users=8, items=12, categories=6 if config.categories else 0)
    params = random_params(config, 3, user=5, item=7, category=4)  # the log knows more than the model
    got = predict_logits(EmbeddingMLP(config), params, data, batch_size=batch_size)
    np.testing.assert_allclose(got, [slow_logit(config, params, data, n) for n in range(23)], rtol=1e-4, atol=1e-4)


def test_scoring_leaves_no_graph_and_changes_nothing() -> None:
    params = {n: p.requires_grad_() for n, p in random_params(SMALL, 1, user=6, item=9).items()}
    before = [p.detach().clone() for p in tensors_in(params)]
    assert not predict_logits(EmbeddingMLP(SMALL), params, random_period(1)).requires_grad
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


def test_a_log_larger_than_the_model_reads_as_one_of_unknown_ids() -> None:
    data = random_period(2, 30, users=6, items=9)
    params = random_params(SMALL, 1, user=3, item=4)
    cold = replace(
        data,
        user=torch.where(data.user < 3, data.user, 0),
        item=torch.where(data.item < 4, data.item, 0),
        history=torch.where(data.history < 4, data.history, 0),
    )
    model = EmbeddingMLP(SMALL)
    assert table_sizes(params) == {"user": 3, "item": 4}
    torch.testing.assert_close(predict_logits(model, params, data), predict_logits(model, params, cold))
