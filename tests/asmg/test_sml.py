"""SML: whole updates against a slow version in float64, the authors' settings, states and their storage."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from asmg.batch import TABLES, PeriodData
from asmg.checkpoint import CheckpointError
from asmg.models import MatrixFactorizationConfig, Params, read_rows, table_sizes
from asmg.training import DivergedError, Execution, TrainingConfig, predict_logits
from asmg.transfer import Output
from asmg.updaters.iu import IncrementalUpdate
from asmg.updaters.sml import BasePhase, Sml, SmlConfig, SmlState, TransferPhase
from tests.asmg.cases import from_bytes, to_bytes
from tests.asmg.support import (
    CONFIGS,
    MF,
    SMALL,
    DenseAdam,
    ModelConfig,
    mean_loss,
    random_period,
    read_by,
    slow_logit,
    snapshot,
    torch_rng,
    unchanged,
    whole_table_logits,
)
from tests.asmg.transfers import PAPER, configs, noisy, outputs, slow_transfer


def period(config: ModelConfig, t: int, n: int = 60, **changes: Any) -> PeriodData:
    """The t-th period of a stream in which the tables grow; odd items and odd users click more."""
    items = 9 + 2 * t
    more = {"categories": 2 + items // 3} if config.categories else {}
    more |= read_by(config)
    data = random_period(2000 + t, n, **({"users": 6 + t, "items": items} | more | changes))
    if "labels" in changes:
        return data
    odds = (data.item % 2 + data.user % 2).numpy()
    label = np.random.default_rng(t).random(n) < np.array([0.1, 0.5, 0.9])[odds]
    return replace(data, label=torch.tensor(label, dtype=torch.float32))


def sml(config: ModelConfig, *, output: Output = "residual", passes: int = 1, **training: Any) -> Sml:
    """Two passes over the first period, without a held-out part."""
    settings: dict[str, Any] = {"batch_size": 20, "first_epochs": 2, "holdout": 0.0, **training}
    return Sml(config, SmlConfig(output=output, batch_size=25, transfer_epochs=passes), TrainingConfig(**settings))


@cache
def learned(config: ModelConfig, periods: int, output: Output = "residual", passes: int = 1) -> SmlState:
    """A state that is shared by the tests: none may change it."""
    updater = sml(config, output=output, passes=passes)
    if periods == 0:
        return noisy(updater.initial(torch_rng(17)))
    return updater.update(learned(config, periods - 1, output, passes), period(config, periods), rng=torch_rng(periods))


class SlowSml:
    """SML as methods.md says it, on whole tables in float64, every parameter moved by dense Adam in every step."""

    def __init__(self, updater: Sml, state: SmlState) -> None:
        assert state.previous is not None
        self.updater, self.config = updater, updater.model.config
        self.previous = {n: t.double() for n, t in state.previous.items()}

        def optimizers(params: Params, adam: Any, lr: float) -> dict[str, DenseAdam]:
            made = {name: DenseAdam(p.double().numpy(), lr) for name, p in params.items()}
            for name, optimizer in made.items():
                optimizer.t = adam.step
                optimizer.m, optimizer.v = (m[name].double().numpy() for m in (adam.first, adam.second))
            return made

        self.trained = optimizers(state.base.params, state.base.adam, updater.base.config.lr)
        self.weights = optimizers(state.weights, state.adam, updater.config.lr)

    def used(self, weights: Params, previous: Params, trained: Params) -> Params:
        """T as the convolutions that the authors' release has."""
        result = {}
        for name, u in trained.items():
            rows = u if name in TABLES else u.reshape(1, -1)
            p = previous[name].reshape(rows.shape)
            k1, k2, w1, b1, w2, b2 = (
                weights[f"{name}.{part}"]
                for part in ("filters.0", "filters.1", "hidden.weight", "hidden.bias", "output.weight", "output.bias")
            )
            image = torch.stack([p, rows, p * rows / (p.square().sum(1, keepdim=True).sqrt() + 1e-15)], 1).unsqueeze(1)
            x = functional.gelu(functional.conv2d(image, k1.t().reshape(-1, 1, 3, 1)))  # [R, F1, 1, D]
            x = functional.gelu(functional.conv2d(x.transpose(1, 2), k2.t().reshape(-1, 1, len(k2), 1)))
            y = functional.gelu(x.reshape(len(rows), -1) @ w1.t() + b1) @ w2.t() + b2
            result[name] = (rows + y if self.updater.config.output == "residual" else y).reshape(u.shape)
        return result

    def grow(self, sizes: Mapping[str, int]) -> None:
        for name, rows in sizes.items():
            if name in self.trained:
                self.trained[name].grow(rows)
                more = self.previous[name][:1].expand(rows - len(self.previous[name]), -1)
                self.previous[name] = torch.cat([self.previous[name], more])

    def values(self, optimizers: dict[str, DenseAdam]) -> Params:
        return {name: torch.tensor(o.value) for name, o in optimizers.items()}

    def epoch(self, optimizers: dict[str, DenseAdam], data: PeriodData, batch: int, rng: torch.Generator) -> None:
        for index in torch.randperm(len(data), generator=rng).split(batch):
            leaves = {name: t.requires_grad_() for name, t in self.values(optimizers).items()}
            weights, trained = (
                leaves if optimizers is part else self.values(part) for part in (self.weights, self.trained)
            )
            logits = whole_table_logits(self.config, self.used(weights, self.previous, trained), data, index.tolist())
            mean_loss(logits, data.label[index].double(), data, index.tolist()).backward()
            for name, optimizer in optimizers.items():
                gradient = leaves[name].grad
                optimizer.step(np.zeros_like(optimizer.value) if gradient is None else gradient.numpy())

    def generated(self) -> Params:
        return self.used(self.values(self.weights), self.previous, self.values(self.trained))

    def update(self, data: PeriodData, rng: torch.Generator, *, transfers: bool) -> list[float]:
        """One update; the AUC after every pass of T."""
        self.grow(data.sizes)
        aucs, kept = [], []
        for _ in range(self.updater.config.transfer_epochs if transfers else 0):
            self.epoch(self.weights, data, self.updater.config.batch_size, rng)
            used = self.generated()
            aucs.append(slow_auc(whole_table_logits(self.config, used, data, range(len(data))), data.label))
            for name, t in used.items():
                self.trained[name].value = t.numpy()
            weights = {n: replaced(o) for n, o in self.weights.items()}
            kept.append((weights, {n: o.value for n, o in self.trained.items()}))
        if aucs:
            self.weights, values = kept[int(np.argmax(aucs))]
            for name, value in values.items():
                self.trained[name].value = value
        self.previous = self.values(self.trained)
        for _ in range(self.updater.base.config.epochs):
            self.epoch(self.trained, data, self.updater.base.config.batch_size, rng)
        return aucs


def replaced(optimizer: DenseAdam) -> DenseAdam:
    """Where an optimizer is, to be gone on from."""
    copy = DenseAdam(optimizer.value, optimizer.lr, t=optimizer.t)
    copy.m, copy.v = optimizer.m, optimizer.v
    return copy


def slow_auc(score: Tensor, label: Tensor) -> float:
    pairs = [(p > n) + (p == n) / 2 for p in score[label == 1].tolist() for n in score[label == 0].tolist()]
    return float(np.mean(pairs))


@pytest.mark.parametrize(("passes", "epochs"), [(1, 1), (3, 2)], ids=["once", "several"])
@outputs
@configs
def test_updates_equal_whole_tables_in_float64(config: ModelConfig, output: Output, passes: int, epochs: int) -> None:
    """Three updates after the first, in which the tables grow: the base alone, then T and the base twice."""
    updater = sml(config, output=output, passes=passes, epochs=epochs, cold_rate=0.0, lr=1e-2)
    state = updater.update(noisy(updater.initial(torch_rng(5))), period(config, 1), rng=torch_rng(1))
    slow = SlowSml(updater, state)
    for t in (2, 3, 4):
        data = period(config, t)
        before = state
        state = updater.update(state, data, rng=torch_rng(t))
        aucs = slow.update(data, torch_rng(t), transfers=t > 2)
        assert len(aucs) == (passes if t > 2 else 0)
        assert state.adam.step == next(iter(slow.weights.values())).t
        assert state.previous is not None
        assert state.generated is not None
        for kind, got, expected in (
            ("weights", state.weights, slow.values(slow.weights)),
            ("previous", state.previous, slow.previous),
            ("trained", state.base.params, slow.values(slow.trained)),
            ("generated", state.generated, slow.generated()),
        ):
            for name, tensor in expected.items():
                assert got[name].shape == tensor.shape
                # Adam moves by up to lr whatever the gradient's size, so a tiny one is all noise in float32.
                error = (got[name].double() - tensor).abs() / (1 + tensor.abs())
                assert float(error.max()) < 2e-3, (t, kind, name)
                assert float(error.quantile(0.9)) < 5e-5, (t, kind, name)
        for name, optimizer in slow.trained.items():
            np.testing.assert_allclose(state.base.adam.first[name], optimizer.m, rtol=1e-2, atol=2e-5, err_msg=name)
        # There was something to be explained.
        moved = {n: float((w - before.weights[n]).abs().max()) for n, w in state.weights.items()}
        assert np.mean([m > 1e-3 for m in moved.values()]) >= 0.5 if t > 2 else not any(moved.values()), moved
        assert all(not torch.equal(p, state.base.params[n]) for n, p in state.previous.items())


def test_the_pass_with_the_best_auc_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights, T's optimizer as it then was, and the base after its assignment."""
    state, data = learned(MF, 3), period(MF, 4)
    passed = {n: sml(MF, passes=n) for n in (1, 2, 3)}

    def after(n: int, *aucs: float | None) -> SmlState:
        told = iter(aucs)
        monkeypatch.setattr(TransferPhase, "auc", lambda self: next(told))
        return passed[n].run_stage("train_transfer", state, data, rng=torch_rng(9))

    one, two, three = after(1), after(2, 0.5, 0.6), after(3, 0.5, 0.6, 0.7)
    assert [len(s.chain) for s in (one, two, three)] == [1, 2, 3]
    assert [s.adam.step - state.adam.step for s in (one, two, three)] == [3, 6, 9]
    for aucs, expected in (
        ((0.5, 0.7, 0.6), two),
        ((0.5, 0.7, 0.7), two),
        ((0.7, 0.6, 0.5), one),
        ((0.7, 0.7, 0.7), one),
        ((None, None, None), one),
        ((0.1, 0.2, 0.3), three),
    ):
        got = after(3, *aucs)
        assert len(got.chain) == len(expected.chain)
        assert unchanged(snapshot(expected), got), aucs
    # What is assigned is T₂(p, T₁(p, u)), of all rows.
    after_base = passed[2].run_stage("update_base", two, data, rng=torch_rng(1))
    made = passed[2].run_stage("generate", after_base, data, rng=torch_rng(1))
    transfer = passed[2].transfer
    assert state.previous is not None
    once = transfer.apply(two.chain[0], state.previous, state.base.params)
    twice = transfer.apply(two.chain[1], state.previous, once)
    assert made.previous is not None
    for name, t in twice.items():
        torch.testing.assert_close(made.previous[name][: len(t)], t, rtol=1e-5, atol=1e-6)
        assert bool((made.previous[name][len(t) :] == made.previous[name][0]).all())


@configs
def test_it_begins_as_the_incremental_update(config: ModelConfig) -> None:
    """T is the identity until it is trained, which it is first on the third period."""
    updater, iu = sml(config), IncrementalUpdate(config, sml(config).base.config)
    state, plain = updater.initial(torch_rng(2)), iu.initial(torch_rng(2))
    for t in (1, 2):
        for stage in updater.stages:
            state = updater.run_stage(stage, state, period(config, t), rng=torch_rng(t))
        plain = iu.update(plain, period(config, t), rng=torch_rng(t))
        assert state.adam.step == 0
        served = updater.serving_models(state)
        assert list(served) == ["generated", "incremental"]
        for name, p in plain.params.items():
            for params in served.values():
                torch.testing.assert_close(params[name], p, rtol=1e-4, atol=2e-5)
    state = updater.update(state, period(config, 3), rng=torch_rng(3))
    assert state.adam.step == 3
    served = updater.serving_models(state)
    assert all(not torch.equal(served["generated"][n], p) for n, p in served["incremental"].items())


def test_a_direct_one_serves_the_plain_first_model() -> None:
    """Nothing has been trained through T yet."""
    served = sml(SMALL).serving_models(learned(SMALL, 1, "direct"))
    assert unchanged(snapshot(served["incremental"]), served["generated"])


@pytest.mark.parametrize("config", [SMALL, MF], ids=["mlp", "mf"])
def test_pretraining_is_the_first_period(config: ModelConfig) -> None:
    updater = sml(config, output="direct")
    periods = [period(config, t, users=12, items=20) for t in (1, 2, 3)]
    state = updater.pretrained(periods[:2], periods[2], rng=torch_rng(0))
    assert state.previous is not None
    assert unchanged(snapshot(state.base.params), state.previous)
    assert unchanged(snapshot(state.base.params), state.generated)
    after = updater.run_stage("train_transfer", state, periods[2], rng=torch_rng(1))
    assert after.chain == ()
    assert unchanged(snapshot(state), after)
    after = updater.update(state, periods[2], rng=torch_rng(1))
    assert after.previous is not None
    assert unchanged(snapshot(state.base.params), after.previous)  # nothing was assigned: T had not been trained
    expected = updater.transfer.apply(state.weights, state.base.params, after.base.params)
    for name, t in expected.items():
        assert after.generated is not None
        torch.testing.assert_close(after.generated[name], t, rtol=1e-5, atol=1e-6)
    again = updater.run_stage("train_transfer", after, periods[1], rng=torch_rng(1))
    assert len(again.chain) == 1


@configs
@pytest.mark.parametrize("periods", [1, 2, 3])
def test_fewer_passes_give_the_models_that_more_pass_through(config: ModelConfig, periods: int) -> None:
    """So an experiment can look at T(Θ', Θ) after every pass."""
    data = period(config, periods + 1)
    most = sml(config, epochs=4)
    state = most.run_stage("train_transfer", learned(config, periods), data, rng=torch_rng(1))
    phase, rng = BasePhase(most, state, data), torch_rng(2)
    for epochs in (1, 2, 3, 4):
        phase.epoch(rng)
        expected = snapshot(phase.finish().params)
        got = sml(config, epochs=epochs).run_stage("update_base", state, data, rng=torch_rng(2))
        assert got.base.pending is not None
        assert unchanged(expected, got.base.pending.params)


def test_the_served_model_is_factors_and_biases_of_the_transferred_rows() -> None:
    """⟨u, v⟩ + b_u + b_v, written out; the bias is transferred with its row."""
    updater, state, data = sml(MF), learned(MF, 4), period(MF, 4, 10)
    assert state.previous is not None
    logits = predict_logits(updater.model, updater.serving_models(state)["generated"], data)
    for n in range(10):
        rows = {}
        for name, ids in (("user", data.user), ("item", data.item)):
            p, u = (m[name][int(ids[n])].double().tolist() for m in (state.previous, state.base.params))
            rows[name] = slow_transfer(state.weights, name, p, u, residual=True)
        user, item = rows["user"], rows["item"]
        expected = user[0] * item[0] + user[1] * item[1] + user[2] * item[2] + user[3] + item[3]
        assert float(logits[n]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_histories_say_nothing_to_matrix_factorization() -> None:
    updater, state, data = sml(MF), learned(MF, 3), period(MF, 4)
    expected = to_bytes(updater, updater.update(state, data, rng=torch_rng(0)))
    assert to_bytes(updater, updater.update(state, data.without_history(), rng=torch_rng(0))) == expected


@pytest.mark.parametrize("passes", [1, 3])
@outputs
@configs
def test_a_stored_state_goes_on_to_the_same_bits(config: ModelConfig, output: Output, passes: int) -> None:
    """dump → bytes → load between all stages of four periods; and no stage changes what it is given."""
    updater, another = (sml(config, output=output, passes=passes) for _ in range(2))
    state = restored = updater.initial(torch_rng(5))
    for t in (1, 2, 3, 4):
        for stage in updater.stages:
            restored = from_bytes(another, to_bytes(another, restored))
            data = period(config, t)
            before = snapshot([state, data])
            after = updater.run_stage(stage, state, data, rng=torch_rng(t))
            assert unchanged(before, [state, data]), stage
            state, restored = after, another.run_stage(stage, restored, data, rng=torch_rng(t))
            assert to_bytes(updater, state) == to_bytes(another, restored)
    before = snapshot(state)
    for name, params in updater.serving_models(state).items():
        assert unchanged(snapshot(params), another.serving_models(restored)[name])
    assert unchanged(before, state)


@configs
def test_the_same_seed_gives_the_same_bits(config: ModelConfig) -> None:
    updater, data = sml(config, passes=2), period(config, 5)

    def run(seed: int) -> dict[str, bytes]:
        torch.manual_seed(seed + 1000)  # nobody else's randomness matters
        return to_bytes(updater, updater.update(learned(config, 4), data, rng=torch_rng(seed)))

    drawn = torch.random.get_rng_state()
    first = run(1)
    torch.random.set_rng_state(drawn)
    assert run(1) == first
    other = run(2)
    assert all(other[name] != first[name] for name in ("base", "transfer", "previous", "generated"))


@pytest.mark.parametrize("periods", [1, 2, 3])
@configs
def test_periods_of_one_class_or_one_row_are_learned(config: ModelConfig, periods: int) -> None:
    updater, state, t = sml(config, passes=2), learned(config, periods, "residual", 2), periods + 1
    for data in (
        period(config, t, 30, labels=[0.0] * 30),
        period(config, t, 30, labels=[1.0] * 30),
        period(config, t, 1),
        period(config, t, longest=0),
    ):
        after = updater.update(state, data, rng=torch_rng(0))
        after = updater.update(after, period(config, t + 1), rng=torch_rng(1))
        for params in updater.serving_models(after).values():
            updater.model.check(params)


@outputs
@configs
def test_ids_never_seen_read_the_cold_rows_and_get_rows_of_their_own(config: ModelConfig, output: Output) -> None:
    updater, state = sml(config, output=output), learned(config, 3, output)
    items = 60
    categories = 2 + items // 3 if config.categories else 0
    data = random_period(0, 80, users=40, items=items, categories=categories, **read_by(config))
    data = replace(data, user=data.user % 10 + 20, item=data.item % 10 + 40, history=data.history % 10 + 40)
    for params in updater.serving_models(state).values():
        got = predict_logits(updater.model, params, data)
        expected = [slow_logit(config, params, data, n, cold=("user", "item")) for n in range(80)]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    after = updater.update(state, data, rng=torch_rng(0))
    assert after.previous is not None
    for params in (*updater.serving_models(after).values(), after.previous):
        assert table_sizes(params) == {name: data.sizes[name] for name in updater.model.tables}
    # Those in the period learned something; those that are not, but have rows now, are the cold row.
    user = after.base.params["user"]
    assert not bool((user[20:30] == read_rows(after.previous["user"], torch.arange(20, 30))).all(1).any())
    for params in (after.base.params, after.previous):
        assert bool((params["user"][31:] == after.previous["user"][0]).all())
    old = table_sizes(state.base.params)["user"]
    assert bool((after.previous["user"][old:] == after.previous["user"][0]).all())


@configs
def test_a_row_that_nobody_touches_is_assigned_too(config: ModelConfig) -> None:
    """Its momentum has died down, so in the new model it is where T put it."""
    updater, state, data = sml(config), learned(config, 3), period(config, 4)
    quiet = {name: m.clone() for name, m in state.base.adam.first.items()}
    for name in updater.model.tables:
        quiet[name][2] = 0
    state = replace(state, base=replace(state.base, adam=replace(state.base.adam, first=quiet)))
    data = replace(data, user=torch.where(data.user == 2, 1, data.user))
    middle = updater.run_stage("train_transfer", state, data, rng=torch_rng(0))
    after = updater.run_stage("update_base", middle, data, rng=torch_rng(0))
    after = updater.run_stage("generate", after, data, rng=torch_rng(0))
    assert state.previous is not None
    assert after.previous is not None
    expected = updater.transfer.run(middle.weights, "user", state.previous["user"][[2]], state.base.params["user"][[2]])
    assert not torch.equal(expected, state.base.params["user"][[2]])
    for params in (after.previous, after.base.params):
        torch.testing.assert_close(params["user"][[2]], expected, rtol=1e-5, atol=1e-7)


@configs
def test_training_that_diverges_raises_and_leaves_the_state(config: ModelConfig) -> None:
    updater, state, data = sml(config), learned(config, 3), period(config, 4)

    def spoilt(params: Params, value: float, name: str) -> Params:
        return {n: torch.full_like(t, value) if n == name else t for n, t in params.items()}

    base, weights = state.base, state.weights
    for bad in (
        replace(state, base=replace(base, params=spoilt(base.params, math.nan, "item"))),
        replace(state, base=replace(base, params=spoilt(base.params, 3e38, "user"))),
        replace(state, weights=spoilt(weights, math.inf, "user.filters.0")),
        replace(state, weights=spoilt(weights, 1e30, "item.output.weight")),
        replace(state, adam=replace(state.adam, first=spoilt(state.adam.first, math.nan, "user.output.bias"))),
    ):
        before = [t.nan_to_num() for t in snapshot([bad, data])]
        with pytest.raises(DivergedError):
            updater.update(bad, data, rng=torch_rng(0))
        assert all(torch.equal(a, b.nan_to_num()) for a, b in zip(before, snapshot([bad, data]), strict=True))
    wild = Sml(config, SmlConfig(lr=1e30, batch_size=10), updater.base.config)
    with pytest.raises(DivergedError):
        wild.update(state, data, rng=torch_rng(0))


def test_generated_numbers_that_are_not_finite_are_divergence() -> None:
    updater, state = sml(MF), learned(MF, 3)
    after = updater.run_stage("train_transfer", state, period(MF, 4), rng=torch_rng(0))
    after = updater.run_stage("update_base", after, period(MF, 4), rng=torch_rng(0))
    huge = {n: torch.full_like(w, 1e38) if "weight" in n else w for n, w in after.weights.items()}
    with pytest.raises(DivergedError):
        updater.run_stage("generate", replace(after, weights=huge), period(MF, 4), rng=torch_rng(0))


def test_stages_out_of_place_are_refused() -> None:
    updater, state, data = sml(SMALL), learned(SMALL, 3), period(SMALL, 4)
    for stage in ("", "publish", "TRAIN_TRANSFER", "train_generator"):
        with pytest.raises(ValueError, match=f"^stage: expected one of .*; received {stage!r}"):
            updater.run_stage(stage, state, data, rng=torch_rng(0))
    with pytest.raises(ValueError, match=r"^state: expected one after the stage train_transfer"):
        updater.run_stage("update_base", state, data, rng=torch_rng(0))
    with pytest.raises(ValueError, match=r"^state: expected one with a pending update"):
        updater.run_stage("generate", state, data, rng=torch_rng(0))


def test_the_state_of_another_method_or_configuration_is_refused() -> None:
    state = learned(SMALL, 3)
    parts = sml(SMALL).dump(state)
    for other in (
        sml(MF),
        sml(replace(SMALL, dim=4)),
        sml(replace(SMALL, categories=True)),
        sml(SMALL, output="direct"),
    ):
        with pytest.raises(CheckpointError, match=r"^updater: expected a state of"):
            other.load(parts)
    with pytest.raises(CheckpointError):
        IncrementalUpdate(SMALL).load(parts)


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_a_dump_that_lacks_a_part_is_refused(stages: int) -> None:
    updater, state = sml(MF, passes=2), learned(MF, 3, "residual", 2)
    for stage in updater.stages[:stages]:
        state = updater.run_stage(stage, state, period(MF, 4), rng=torch_rng(0))
    parts = updater.dump(state)
    names = {"updater", "base", "optimizer", "transfer", "transfer_optimizer", "previous", "generated"}
    assert parts.keys() == names | [set(), {"chain"}, {"chain", "pending"}, set()][stages]
    for missing in parts.keys() - {"pending"}:  # which not every state has
        with pytest.raises(CheckpointError, match=missing):
            updater.load({name: part for name, part in parts.items() if name != missing})
    with pytest.raises(CheckpointError, match="hidden"):
        updater.load({**parts, "hidden": parts["base"]})


def test_data_without_categories_is_refused_by_a_model_with_them() -> None:
    config = CONFIGS["mlp+categories"]
    for periods, stage in ((0, "update_base"), (2, "train_transfer"), (1, "update_base")):
        with pytest.raises(ValueError, match="categor"):
            sml(config).run_stage(stage, learned(config, periods), period(SMALL, 4), rng=torch_rng(0))


@configs
def test_progress_rises_within_zero_and_one(config: ModelConfig) -> None:
    for periods, passes in itertools.product((0, 1, 3), (1, 3)):
        told: list[float] = []
        state, data = learned(config, periods, "residual", passes), period(config, periods + 1)
        sml(config, passes=passes, epochs=2).update(state, data, rng=torch_rng(0), progress=told.append)
        assert told
        assert told == sorted(told)
        assert 0 <= told[0] <= told[-1] <= 1


def test_names_and_settings() -> None:
    mf = MatrixFactorizationConfig()
    assert (Sml(PAPER).name, Sml(mf).name) == ("sml", "sml-mf")
    ours = Sml(PAPER)
    assert (ours.config.output, ours.base.config) == ("residual", TrainingConfig())
    authors, on_mf = Sml.reference(PAPER), Sml.reference(mf, Execution(device="cpu", compiled=False))
    assert authors.config == SmlConfig(output="direct", lr=1e-3, batch_size=256, transfer_epochs=1)
    assert on_mf.config == SmlConfig(output="direct", lr=1e-3, batch_size=256, transfer_epochs=5)
    for updater, first, epochs in ((authors, 1e-3, 1), (on_mf, 1e-2, 5)):
        training = updater.base.config
        assert (training.lr, training.first_lr, training.epochs) == (1e-2, first, epochs)
        assert (training.first_epochs, training.cold_rate, training.initial) == (10, 0.0, "glorot")
    assert not on_mf.execution.compiled
    assert SmlConfig(lr=0.5).to_json() == {"output": "residual", "lr": 0.5, "batch_size": 256, "transfer_epochs": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "^sml: expected positive lr, batch_size, transfer_epochs"),
        ({"batch_size": 0}, "^sml: expected positive"),
        ({"transfer_epochs": 0}, "^sml: expected positive"),
        ({"output": "mixed"}, "^output: expected 'residual' or 'direct'; received 'mixed'"),
    ],
)
def test_a_configuration_of_no_meaning_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmlConfig(**values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@configs
def test_a_cuda_device_computes_the_same(config: ModelConfig) -> None:
    made = []
    for device in ("cpu", "cuda"):
        updater = sml(config, passes=2, cold_rate=0.0)
        updater = Sml(config, updater.config, updater.base.config, Execution(device=device))
        made.append(updater.update(learned(config, 3), period(config, 4), rng=torch_rng(0)))
    for a, b in zip(snapshot(made[0]), snapshot(made[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-3)
