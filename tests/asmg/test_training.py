"""Training on the rows that a log touches, against dense Adam in float64 over whole tables.

Every step exists twice, compiled and eager; the tests run both. (Adam itself is in test_adam, the kernels in
test_kernels.)
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from asmg.adam import AdamState
from asmg.batch import COLD_ROW, PeriodData
from asmg.models import EmbeddingMLP, EmbeddingMLPConfig, Params, build_model, table_sizes
from asmg.training import DivergedError, Execution, RowTraining, RowUpdate, commit, evaluate
from tests.asmg.support import (
    CONFIGS,
    SHAPES,
    SMALL,
    Footprint,
    ModelConfig,
    SlowTraining,
    copied,
    padded,
    period,
    random_params,
    random_period,
    read_by,
    snapshot,
    tensors_in,
    torch_rng,
    unchanged,
)

EXECUTIONS = {"compiled": Execution(device="cpu"), "eager": Execution(device="cpu", compiled=False)}
if torch.cuda.is_available():
    EXECUTIONS["cuda"] = Execution(device="cuda")
all_models = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
executions = pytest.mark.parametrize("execution", EXECUTIONS.values(), ids=EXECUTIONS)
MLPS = {name: config for name, config in CONFIGS.items() if "mlp" in name}
mlps = pytest.mark.parametrize("config", MLPS.values(), ids=MLPS)


class Training:
    """Whole tables and their optimizer, trained period by period as the update methods do it."""

    def __init__(self, config: ModelConfig, params: Params, execution: Execution, *, lr: float = 0.05) -> None:
        self.model, self.params, self.execution, self.lr = build_model(config), params, execution, lr
        self.adam = AdamState.zeros(params)
        self.update: RowUpdate | None = None

    def learn(self, data: PeriodData, seed: int = 0, *, epochs: int = 1, **options: Any) -> float:
        """Returns the mean loss of the last epoch."""
        session = RowTraining(self.model, self.params, self.adam, [data], lr=self.lr, execution=self.execution)
        rng, loss = torch_rng(seed), math.nan
        for _ in range(epochs):
            loss = session.epoch(session.periods[0], **({"batch_size": 16, "rng": rng} | options))
        self.update = session.finish()
        self.params, self.adam = commit(self.params, self.adam, self.update)
        return loss


def categories_of(config: ModelConfig, count: int = 6) -> int:
    return count if config.categories else 0


# --- against dense Adam over whole tables


@executions
@all_models
def test_one_epoch_is_dense_adam_on_whole_tables(config: ModelConfig, execution: Execution) -> None:
    """The same permutation, whole tables in float64, dense Adam, mean loss over each batch's own size."""
    data = random_period(0, 70, users=12, items=15, categories=categories_of(config), **read_by(config))
    start = random_params(config, 1, user=12, item=15, category=6)
    ours, slow = Training(config, start, execution), SlowTraining(config, start, 0.05)
    loss = ours.learn(data, seed=4)
    total = slow.epoch(data, torch.randperm(70, generator=torch_rng(4)).tolist(), 16)
    assert ours.adam.step == 5
    assert loss == pytest.approx(total, rel=1e-4)
    for name, a in slow.adam.items():
        np.testing.assert_allclose(ours.params[name], a.value, rtol=1e-3, atol=1e-3)


@executions
@all_models
def test_soft_targets_in_the_order_of_the_log_are_learned_likewise(config: ModelConfig, execution: Execution) -> None:
    data = random_period(0, 70, users=12, items=15, categories=categories_of(config), **read_by(config))
    start = random_params(config, 1, user=12, item=15, category=6)
    target = torch.rand(70, generator=torch_rng(3))
    ours, slow = Training(config, start, execution), SlowTraining(config, start, 0.05)
    loss = ours.learn(data, target=target, shuffle=False)
    assert loss == pytest.approx(slow.epoch(data, range(70), 16, target), rel=1e-4)
    for name, a in slow.adam.items():
        np.testing.assert_allclose(ours.params[name], a.value, rtol=1e-3, atol=1e-3)


def stream(config: ModelConfig) -> Iterator[PeriodData]:
    """Periods whose tables grow, with tiny ones of two users and items in between. The cold rows are in use."""
    for t, n in enumerate((60, 1, 3, 1, 40, 2, 1, 1, 50)):
        users, items = 12 + 2 * t, 15 + t
        more = {"categories": categories_of(config, 9), **read_by(config)}
        data = random_period(t, n, users=users, items=items, **more)
        if n < 10:
            data = replace(data, user=data.user % 2 + 1, item=data.item % 2 + 1, history=data.history % 2 + 1)
        else:
            rows = {name: getattr(data, name) for name in ("user", "item", "history")}
            data = replace(data, **{name: torch.where(r == 3, COLD_ROW, r) for name, r in rows.items()})
        yield data


@executions
@all_models
def test_periods_after_each_other_are_dense_adam_on_whole_tables_throughout(
    config: ModelConfig, execution: Execution
) -> None:
    """What momentum does to rows that a period does not touch is in the tables after every single period."""
    start = random_params(config, 1, user=3, item=4, category=2)
    lr = 0.02
    ours, slow = Training(config, start, execution, lr=lr), SlowTraining(config, start, lr)
    carried = 0
    for t, data in enumerate(stream(config)):
        slow.grow(data.sizes)
        before = copied(ours.params)
        loss = ours.learn(data, seed=t, epochs=2, batch_size=16)
        rng = torch_rng(t)
        for _ in range(2):
            total = slow.epoch(data, torch.randperm(len(data), generator=rng).tolist(), 16)
        assert loss == pytest.approx(total, rel=1e-3)
        assert table_sizes(ours.params) == {name: data.sizes[name] for name in ours.model.tables}
        for name, a in slow.adam.items():
            np.testing.assert_allclose(ours.params[name], a.value, rtol=1e-3, atol=5e-4, err_msg=f"{name} of {t}")
        if len(data) < 10:
            moved = (ours.params["user"][3 : len(before["user"])] - before["user"][3:]).abs().amax(1)
            carried += int((moved > lr / 10).sum())
    assert carried > 20  # what is to be explained: untouched rows moved by momentum


@executions
def test_the_cold_row_and_new_rows_are_as_in_tables_that_were_grown_before(execution: Execution) -> None:
    """With id dropout the cold row moves; a row that is new later starts where the cold row is then."""
    ours = Training(SMALL, random_params(SMALL, 1, user=3, item=4), execution)
    ours.learn(random_period(0, 60, users=3, items=4), cold_rate=0.5)
    cold = ours.params["user"][COLD_ROW].clone()
    data = random_period(1, 20, users=5, items=4)
    data = replace(data, user=torch.where(data.user == 4, 3, data.user))
    ours.learn(data, cold_rate=0.0)
    assert torch.equal(ours.params["user"][4], cold)  # new, and nobody in the log
    assert not ours.adam.first["user"][4].any()
    assert not torch.equal(ours.params["user"][3], cold)  # new, and in the log
    assert not torch.equal(ours.params["user"][COLD_ROW], cold)  # its momentum goes on


def test_a_period_of_smaller_tables_leaves_nobody_behind() -> None:
    """The log says that there are 4 users; the tables know 12, and momentum still moves the last ones."""
    start = random_params(SMALL, 1, user=12, item=15)
    ours, slow = Training(SMALL, start, EXECUTIONS["compiled"]), SlowTraining(SMALL, start, 0.05)
    for data in (random_period(0, 40, users=12, items=15), random_period(1, 20, users=4, items=5)):
        ours.learn(data)
        slow.epoch(data, torch.randperm(len(data), generator=torch_rng(0)).tolist(), 16)
    for name, a in slow.adam.items():
        np.testing.assert_allclose(ours.params[name], a.value, rtol=1e-3, atol=1e-3)


# --- compiled and eager


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("cold_rate", [0.0, 0.3])
def test_compiled_and_eager_steps_agree(config: ModelConfig, cold_rate: float) -> None:
    """From one state in the middle of training, with the same rng: permutation, coins and all."""
    rows = {"user": 30, "item": 40, "category": 12}
    more = {"categories": categories_of(config, 12), **read_by(config)}
    data = random_period(0, 900, users=34, items=44, **more)
    start = Training(config, random_params(config, 1, **rows), EXECUTIONS["compiled"], lr=1e-2)
    start.learn(random_period(1, 300, users=30, items=40, **more), cold_rate=0.3)
    results = []
    for execution in EXECUTIONS.values():
        ours = Training(config, copied(start.params), execution, lr=1e-2)
        ours.adam = start.adam.clone()
        loss = ours.learn(data, seed=5, cold_rate=cold_rate, target=torch.rand(900, generator=torch_rng(1)))
        results.append((ours, loss))
    (first, loss), *others = results
    assert first.adam.step == 19 + 57
    for other, other_loss in others:
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for name, p in first.params.items():
            before = start.params[name]
            assert float((p[: len(before)] - before).abs().max()) > 0.01
            # 57 steps of 0.01 at most that round in another order.
            np.testing.assert_allclose(other.params[name], p, rtol=1e-5, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(other.adam.first[name], first.adam.first[name], rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(other.adam.second[name], first.adam.second[name], rtol=1e-3, atol=1e-7)
        assert other.adam.step == first.adam.step
        for name, moved in first.adam.moved.items():
            assert torch.equal(other.adam.moved[name], moved)


def test_where_and_how_it_is_computed() -> None:
    mlp, mf = (build_model(CONFIGS[name]) for name in ("mlp", "mf"))
    assert EXECUTIONS["compiled"].uses_kernels(mlp)
    assert not EXECUTIONS["compiled"].uses_kernels(mf)
    assert not EXECUTIONS["eager"].uses_kernels(mlp)
    assert Execution().torch_device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert Execution(device="cpu").torch_device == torch.device("cpu")


@pytest.mark.parametrize("device", ["", "tpu", "meta", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=rf"^device: expected auto, cpu or a cuda device that torch sees; .*{device}"):
        Execution(device=device)


# --- what it leaves alone


@executions
def test_taking_rows_out_and_training_them_leaves_the_tables(execution: Execution) -> None:
    ours = Training(SMALL, random_params(SMALL, 1, user=6, item=9), execution)
    data = random_period(1, 30)
    ours.learn(data)
    params, adam = ours.params, ours.adam
    before = snapshot([params, adam, data])
    session = RowTraining(ours.model, params, adam, [data], lr=0.05, execution=execution)
    session.epoch(session.periods[0], batch_size=8, rng=torch_rng(0))
    update = session.finish()
    assert unchanged(before, [params, adam, data])
    stored = snapshot(update)
    committed = commit(params, adam, update)
    assert unchanged([*before, *stored], [params, adam, data, update])
    assert not unchanged(snapshot(params), committed[0])
    # Trained further, the session does not reach what it gave out before.
    session.epoch(session.periods[0], batch_size=8, rng=torch_rng(1))
    if execution.torch_device.type == "cuda":
        assert unchanged(stored, update)


def test_the_rows_of_others_stay_as_they_are() -> None:
    data = random_period(1, 30, users=4, items=5)
    start = random_params(SMALL, 1, user=9, item=9)
    ours = Training(SMALL, start, EXECUTIONS["compiled"])
    ours.learn(replace(data, users=9, items=9))
    assert torch.equal(ours.params["user"][4:], start["user"][4:])
    assert torch.equal(ours.params["item"][5:], start["item"][5:])
    assert torch.equal(ours.params["user"][0], start["user"][0])
    assert not torch.equal(ours.params["user"][1:4], start["user"][1:4])
    assert ours.update is not None
    assert sorted(ours.update.rows["user"].tolist()) == [0, 1, 2, 3]
    assert sorted(ours.adam.restless["user"].tolist()) == [1, 2, 3]


@executions
@mlps
def test_id_dropout_trains_the_cold_rows_and_nothing_else_of_the_tables_at_a_rate_of_one(
    config: ModelConfig, execution: Execution
) -> None:
    data = random_period(1, 60, categories=categories_of(config, 4), **read_by(config))
    start = random_params(config, 1, user=6, item=9, category=4)
    ours = Training(config, start, execution)
    ours.learn(data, cold_rate=1.0)
    for name in ("user", "item"):
        assert torch.equal(ours.params[name][1:], start[name][1:])
        assert not torch.equal(ours.params[name][0], start[name][0])
    if config.categories:
        assert not torch.equal(ours.params["category"][1:], start["category"][1:])


PADDING = 1_000_000


def padded_tables(params: Params, adam: AdamState) -> tuple[Params, AdamState]:
    """The same with a million rows more in every table, which no momentum moves."""

    def wide(tensors: Params) -> Params:
        return {n: torch.cat([t, t.new_zeros(PADDING, *t.shape[1:])]) if n in adam.moved else t
                for n, t in tensors.items()}  # fmt: skip

    moments = {part: wide(getattr(adam, part)) for part in ("first", "second", "moved")}
    return wide(params), replace(adam, **moments)


@executions
@all_models
def test_the_cost_of_training_does_not_depend_on_the_tables(config: ModelConfig, execution: Execution) -> None:
    """Nothing as large as a table is made but one int32 look-up array for each; the result is the same to the bit."""
    small = Training(config, random_params(config, 1, user=6, item=9, category=4), execution)
    small.learn(random_period(0, 60, categories=categories_of(config, 4), **read_by(config)))
    data = random_period(1, 30, categories=categories_of(config, 4), **read_by(config))
    params, adam = padded_tables(small.params, small.adam)
    large = padded(data, PADDING)
    updates = []
    for tables, moments, log in ((small.params, small.adam, data), (params, adam, large)):
        with Footprint() as footprint:
            session = RowTraining(small.model, tables, moments, [log], lr=0.05, execution=execution)
            loss = session.epoch(session.periods[0], batch_size=8, rng=torch_rng(1), cold_rate=0.2)
            updates.append((session.finish(), loss))
    assert footprint.elements < PADDING // 100
    assert footprint.numpy_bytes < len(small.model.tables) * 4 * (PADDING + 10) + 1_000_000
    (narrow_update, narrow_loss), (wide_update, wide_loss) = updates
    assert max(t.numel() for t in tensors_in(wide_update)) < 1000
    assert wide_loss == narrow_loss
    assert wide_update.sizes == {name: size + PADDING for name, size in narrow_update.sizes.items()}
    assert unchanged(snapshot(narrow_update), wide_update)


def test_a_footprint_sees_whole_tables() -> None:
    """Guards the test above."""
    table = torch.ones(PADDING, 3)
    with Footprint() as footprint:
        np.zeros(PADDING, np.int32)
        table[:10].clone()
        table.t().unsqueeze(0)
    assert footprint.elements < 100
    assert 4 * PADDING <= footprint.numpy_bytes < 4 * PADDING + 100_000
    for make in (table.clone, lambda: table + 1, lambda: table.index_copy(0, torch.tensor([0]), torch.ones(1, 3))):
        with Footprint() as footprint:
            make()
        assert footprint.elements == 3 * PADDING


# --- a session


@executions
def test_a_session_goes_back_to_where_it_was(execution: Execution) -> None:
    data = random_period(1, 40)
    start = random_params(SMALL, 1, user=6, item=9)
    session = RowTraining(EmbeddingMLP(SMALL), start, AdamState.zeros(start), [data], lr=0.05, execution=execution)

    def epoch(seed: int) -> list[torch.Tensor]:
        session.epoch(session.periods[0], batch_size=8, rng=torch_rng(seed))
        return snapshot(session.finish())

    first = epoch(0)
    kept = session.keep()
    second = epoch(1)
    assert not unchanged(first, second)
    session.restore(kept)
    assert unchanged(first, session.finish())
    assert unchanged(second, epoch(1))


@executions
def test_several_periods_are_of_one_session(execution: Execution) -> None:
    """Each can be learned on its own, on the rows of all of them."""
    periods = [random_period(1, 20, users=4, items=6), random_period(2, 30, users=6, items=9)]
    start = random_params(SMALL, 1, user=6, item=9)
    session = RowTraining(EmbeddingMLP(SMALL), start, AdamState.zeros(start), periods, lr=0.05, execution=execution)
    slow = SlowTraining(SMALL, start, 0.05)
    for k in (1, 0, 1):
        loss = session.epoch(session.periods[k], batch_size=16, rng=torch_rng(k))
        order = torch.randperm(len(periods[k]), generator=torch_rng(k)).tolist()
        assert loss == pytest.approx(slow.epoch(periods[k], order, 16), rel=1e-3)
    part = session.periods[1].slice(5, 25)
    session.epoch(part, batch_size=16, rng=torch_rng(0), shuffle=False)
    slow.epoch(periods[1].slice(5, 25), range(20), 16)
    params, _ = commit(start, AdamState.zeros(start), session.finish())
    for name, a in slow.adam.items():
        np.testing.assert_allclose(params[name], a.value, rtol=1e-3, atol=1e-3)


def test_a_log_without_the_categories_that_the_model_reads_is_refused() -> None:
    config = CONFIGS["mlp+categories"]
    params = random_params(config, 1, user=6, item=9, category=4)
    with pytest.raises(ValueError, match=r"^data: expected rows for the tables .*; received none for \{'category'\}"):
        Training(config, params, EXECUTIONS["compiled"]).learn(random_period(0, 9))


@executions
def test_training_brings_the_loss_down(execution: Execution) -> None:
    """User 1 clicks item 1 and never item 2, user 2 the reverse: it takes the pair, and it can be learned by heart."""
    data = period([1, 1, 2, 2] * 20, [1, 2, 1, 2] * 20, [[]] * 80, [1, 0, 0, 1] * 20, users=3, items=3)
    config = EmbeddingMLPConfig()
    ours = Training(config, random_params(config, 0, user=3, item=3), execution, lr=0.02)
    losses = [ours.learn(data, seed=e) for e in range(40)]
    assert losses[-1] < 0.05 < 0.3 < losses[0]
    assert evaluate(ours.model, ours.params, data).auc == 1.0


@executions
def test_the_same_generator_gives_the_same_bits(execution: Execution) -> None:
    data = random_period(1, 60)
    start = random_params(SMALL, 1, user=6, item=9)

    def tensors(seed: int) -> list[torch.Tensor]:
        ours = Training(SMALL, start, execution)
        ours.learn(data, seed=seed, cold_rate=0.3)
        return tensors_in([ours.params, ours.adam])

    assert all(torch.equal(a, b) for a, b in zip(tensors(1), tensors(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(tensors(1), tensors(2), strict=True))


def test_progress_rises_to_one() -> None:
    told: dict[str, list[float]] = {}
    for name in ("compiled", "eager"):
        told[name] = []
        ours = Training(SMALL, random_params(SMALL, 1, user=6, item=9), EXECUTIONS[name])
        ours.learn(random_period(1, 40), progress=told[name].append)
    assert told["eager"] == [1 / 3, 2 / 3, 1.0]
    assert told["compiled"] == [1.0]  # now and then: 32 steps are made in one go
    ours.execution, told["many"] = EXECUTIONS["compiled"], []
    ours.learn(random_period(1, 70), batch_size=1, progress=told["many"].append)
    assert told["many"] == [32 / 70, 64 / 70, 1.0]


@executions
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["mlp.0.weight", "mlp.1.bias", "user", "item"])
def test_a_loss_that_is_not_finite_stops_training(name: str, bad: float, execution: Execution) -> None:
    params = random_params(SMALL, 1, user=6, item=9)
    if name == "mlp.1.bias":
        params["mlp.2.weight"].fill_(1)
    params[name].fill_(bad)
    with pytest.raises(DivergedError, match=r"^loss: expected a finite number; received (nan|inf)"):
        Training(SMALL, params, execution).learn(random_period(1, 40, labels=[0.0] * 40))


@executions
def test_a_step_size_beyond_reason_diverges(execution: Execution) -> None:
    ours = Training(SMALL, random_params(SMALL, 1, user=6, item=9), execution, lr=1e30)
    with pytest.raises(DivergedError):
        ours.learn(random_period(1, 40), batch_size=8, epochs=5)


@executions
def test_weights_that_are_not_finite_come_out_of_no_session(execution: Execution) -> None:
    """The only loss is from before the only step, and finite; its momentum is beyond reason."""
    ours = Training(SMALL, random_params(SMALL, 1, user=6, item=9), execution)
    ours.adam.first["mlp.2.bias"].fill_(3e38)
    before = snapshot([ours.params, ours.adam])
    with pytest.raises(DivergedError, match=r"^mlp\.2\.bias: expected finite numbers after training"):
        ours.learn(random_period(1, 40), batch_size=40, epochs=1)
    assert unchanged(before, [ours.params, ours.adam])


# --- commit


def test_a_commit_by_hand() -> None:
    params = {"user": torch.tensor([[1.0], [2.0], [3.0]]), "mlp.0.bias": torch.tensor([4.0])}
    adam = AdamState(
        step=5,
        first={"user": torch.tensor([[0.1], [0.2], [0.3]]), "mlp.0.bias": torch.tensor([0.4])},
        second={"user": torch.tensor([[1.1], [1.2], [1.3]]), "mlp.0.bias": torch.tensor([1.4])},
        moved={"user": torch.tensor([5, 5, 2], dtype=torch.int32)},
        restless={"user": torch.tensor([1])},
    )
    update = RowUpdate(
        rows={"user": torch.tensor([0, 1, 4])},
        params={"user": torch.tensor([[10.0], [20.0], [50.0]]), "mlp.0.bias": torch.tensor([40.0])},
        adam=AdamState(
            step=9,
            first={"user": torch.tensor([[6.1], [6.2], [6.5]]), "mlp.0.bias": torch.tensor([6.4])},
            second={"user": torch.tensor([[7.1], [7.2], [7.5]]), "mlp.0.bias": torch.tensor([7.4])},
            moved={"user": torch.tensor([9, 9, 9], dtype=torch.int32)},
            restless={"user": torch.tensor([4])},
        ),
        sizes={"user": 6},
    )
    before = snapshot([params, adam, update])
    got, state = commit(params, adam, update)
    # Rows 3 and 5 are new and were not touched: they start as the cold row that the others started from.
    assert got["user"].flatten().tolist() == [10, 20, 3, 1, 50, 1]
    assert got["mlp.0.bias"].tolist() == [40]
    assert state.step == 9
    np.testing.assert_allclose(state.first["user"].flatten(), [6.1, 6.2, 0.3, 0, 6.5, 0])
    np.testing.assert_allclose(state.second["user"].flatten(), [7.1, 7.2, 1.3, 0, 7.5, 0])
    assert state.moved["user"].tolist() == [9, 9, 2, 9, 9, 9]
    assert state.moved["user"].dtype == torch.int32
    assert state.restless["user"].tolist() == [4]
    assert unchanged(before, [params, adam, update])
    got["user"] += 1
    state.first["user"] += 1
    assert unchanged(before, [params, adam, update])
