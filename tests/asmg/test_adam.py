"""Adam row by row against a dense one in float64."""

import math

import numpy as np
import pytest
import torch

from asmg.adam import AT_REST, Adam, AdamState
from asmg.training import RowUpdate, commit
from tests.asmg.support import (
    SMALL_CATEGORIES,
    DenseAdam,
    random_params,
    snapshot,
    tensors_in,
    unchanged,
)


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
        self.params, state = commit(self.params, self.ours.state, grown(self.params, self.ours.state, rows))
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


def grown(params: dict[str, torch.Tensor], state: AdamState, rows: int) -> RowUpdate:
    """An update that touches nothing but finds so many rows."""
    none = {"user": torch.zeros(0, dtype=torch.int64)}
    tables = {name: t[:0] if name == "user" else t.clone() for name, t in params.items()}
    first, second = (
        {name: t[:0] if name == "user" else t.clone() for name, t in moments.items()}
        for moments in (state.first, state.second)
    )
    adam = AdamState(step=state.step, first=first, second=second, moved={"user": state.moved["user"][:0]})
    return RowUpdate(none, tables, adam, {"user": rows})


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


def test_a_clone_shares_nothing() -> None:
    pair = Pair(2)
    for _ in range(3):
        pair.step([0, 1])
    state = pair.ours.state
    before, clone = snapshot(state), state.clone()
    assert unchanged(before, clone)
    assert clone.step == 3
    for tensor in tensors_in(clone):
        tensor += 1
    assert unchanged(before, state)


def test_the_rows_that_are_not_restless_are_where_dense_adam_leaves_them() -> None:
    """After hundreds of steps without a gradient momentum has died; what it may yet do is bounded by AT_REST."""
    pair = Pair(40, dtype=torch.float64)
    for t in range(400):
        pair.step([0, 1 + t // 12] if t < 396 else [0])
    pair.ours.settle()
    restless = pair.ours.restless("user").tolist()
    assert restless == sorted(set(restless))
    dense, before = pair.reference["user"], pair.reference["user"].value
    for _ in range(2000):
        dense.step(np.zeros_like(dense.value))
    left = np.abs(dense.value - before).max(1)
    calm = [row for row in range(40) if row not in restless]
    assert {35, 36, 37, 38, 39} <= set(calm)  # never touched
    assert {1, 2, 3} <= set(calm)  # touched long ago
    assert left[calm].max() <= AT_REST * 1.001
    assert 20 < len(calm) < 40
    assert (left[restless] > AT_REST / 10).all()  # and hardly a row is called restless without need
    assert 0 in restless


@pytest.mark.parametrize("steps", [1, 3, 30, 3000])
def test_the_bound_of_what_momentum_may_do_holds_from_the_first_step_on(steps: int) -> None:
    """lr·m/√v·Σρʲ, without the bias corrections: these make early steps smaller than late ones, never larger."""
    ratio = 0.9 / math.sqrt(0.999)
    m, v = 1 - 0.9**steps, 1 - 0.999**steps  # after as many gradients of 1
    lr = 0.999 * AT_REST / (m / math.sqrt(v) * ratio / (1 - ratio))
    for scale, restless in ((1.0, []), (1.002, [0])):
        params = {"user": torch.zeros(1, 1, dtype=torch.float64)}
        ours, row = Adam(params, AdamState.zeros(params), lr=scale * lr), torch.tensor([0])
        for _ in range(steps):
            ours.read("user", row)
            ours.step({"user": torch.ones(1, 1, dtype=torch.float64)}, {"user": row})
        assert ours.restless("user").tolist() == restless
        before = float(params["user"])
        for _ in range(1000):
            ours.step({}, {})
        ours.settle()
        assert 0 < before - float(params["user"]) <= scale * AT_REST
