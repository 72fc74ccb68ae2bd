"""Training of the base model, which all update methods share, and IU, which is nothing else.

(What holds for every method is in test_contract.)
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from asmg.base_state import BaseState
from asmg.base_training import BaseTraining
from asmg.batch import PeriodData, concatenate
from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.metrics import auc
from asmg.models import table_sizes
from asmg.rounding import rounded_moments
from asmg.training import DivergedError, Execution, RowTraining, TrainingConfig, commit, predict_logits
from asmg.updaters import UPDATERS, build_updater
from asmg.updaters.asmg import Asmg
from asmg.updaters.bu import BatchUpdate
from asmg.updaters.incctr import IncCTR
from asmg.updaters.iu import IncrementalUpdate
from asmg.updaters.sml import Sml
from asmg.updaters.spmf import ReservoirUpdate
from tests.asmg.cases import SMALL, SMALL_CATEGORIES, Case
from tests.asmg.support import CONFIGS, ModelConfig, padded, snapshot, torch_rng, unchanged

PLAIN = Case("iu", SMALL)


def iu(**training: Any) -> IncrementalUpdate:
    return IncrementalUpdate(SMALL, TrainingConfig(**({"lr": 3e-3} | training)))


def test_the_name_of_no_method_is_refused() -> None:
    names = ", ".join(UPDATERS)
    with pytest.raises(ValueError, match=rf"^updater: expected one of {names}; received 'sml2'"):
        build_updater("sml2", SMALL)


def test_a_method_can_be_told_where_to_compute() -> None:
    execution = Execution(device="cpu", compiled=False)
    for name in UPDATERS:
        for reference in (False, True):
            assert build_updater(name, SMALL, reference=reference, execution=execution).base.execution is execution


@pytest.mark.parametrize(
    ("events", "size"), [(1, 64), (3_225, 64), (64_999, 64), (65_000, 65), (141_478, 141), (256_000, 256), (10**9, 256)]
)
def test_a_pass_has_a_thousand_steps_as_far_as_its_batches_allow(events: int, size: int) -> None:
    assert TrainingConfig().batch(events) == size
    assert TrainingConfig(batch_size=20).batch(events) == 20
    assert TrainingConfig.reference().batch(events) == 256


# --- a later period


def test_a_later_period_is_one_epoch_from_the_last_model_with_its_moments() -> None:
    updater, state, data = PLAIN.build(), PLAIN.state(2), PLAIN.period(3)
    assert isinstance(updater, IncrementalUpdate)
    config = updater.base.config
    got = updater.update(state, data, rng=torch_rng(9))
    session = RowTraining(
        updater.model, state.params, state.adam, [data], lr=config.lr, execution=Execution(), restless=False
    )
    rng = torch_rng(9)
    session.epoch(session.periods[0], batch_size=64, rng=rng, cold_rate=config.cold_rate)
    update = session.finish()
    update = replace(update, adam=rounded_moments(update.adam, 7, rng))
    assert unchanged(snapshot(commit(state.params, state.adam, update)), [got.params, got.adam])
    assert got.periods == 3
    assert got.pending is None
    assert got.adam.step == state.adam.step + math.ceil(300 / 64)


def test_what_is_learned_is_pending_until_it_is_committed() -> None:
    """… and as large as the traffic: users 1 … 3 of a period in a world of thousands."""
    updater, state = PLAIN.build(), PLAIN.state(2)
    data = padded(PLAIN.period(3, 20), 5000)
    data = replace(data, user=data.user % 3 + 1)
    before = snapshot([state.params, state.adam])
    trained = updater.run_stage("update_base", state, data, rng=torch_rng(0))
    assert unchanged(before, [trained.params, trained.adam])
    assert trained.periods == 2
    assert trained.pending is not None
    touched = set(trained.pending.rows["user"].tolist())
    assert touched == {0, 1, 2, 3} | set(state.adam.restless["user"].tolist())
    assert len(trained.pending.params["user"]) == len(touched)
    assert unchanged(snapshot(updater.serving_models(state)), updater.serving_models(trained))
    done = updater.run_stage("commit", trained, data, rng=torch_rng(0))
    assert done.periods == 3
    assert table_sizes(done.params) == data.sizes
    with pytest.raises(ValueError, match=r"^state: expected one with a pending update; received one without"):
        updater.run_stage("commit", done, data, rng=torch_rng(0))


def test_the_epochs_of_a_later_period_can_be_chosen() -> None:
    state = PLAIN.state(1)
    steps = iu(epochs=3, batch_size=100).update(state, PLAIN.period(2), rng=torch_rng(0)).adam.step
    assert steps == state.adam.step + 3 * 3


def test_other_targets_and_the_order_of_the_log_can_be_had() -> None:
    """What distillation and the reservoir ask for."""
    base, state, data = PLAIN.build().base, PLAIN.state(2), PLAIN.period(3)
    target = torch.rand(len(data), generator=torch_rng(1))
    got = base.train(state, data, torch_rng(0), target=target, shuffle=False).pending
    config = base.config
    session = RowTraining(
        base.model, state.params, state.adam, [data], lr=config.lr, execution=Execution(), restless=False
    )
    rng = torch_rng(0)
    session.epoch(session.periods[0], batch_size=64, rng=rng, cold_rate=config.cold_rate, target=target, shuffle=False)
    update = session.finish()
    assert unchanged(snapshot(replace(update, adam=rounded_moments(update.adam, 7, rng))), got)
    assert not unchanged(snapshot(base.train(state, data, torch_rng(0)).pending), got)


# --- passes that are chosen


def chosen_by_hand(
    base: BaseTraining, state: BaseState, data: PeriodData, seed: int, most: int
) -> tuple[list[torch.Tensor], list[float]]:
    """What comes out and what is known of the passes then: each number of passes trained from the start, one by one."""
    older, newest = data.slice(0, 270), data.slice(270, 300)
    best = min(range(len(state.passes)), key=lambda n: state.passes[n]) if state.passes else 0
    tried, cold_rate = min(most, best + 2), base.config.cold_rate

    def trained(count: int, *, then: bool = False) -> RowTraining:
        """`count` passes, and perhaps one over the newest part, in an order drawn after those of all tried."""
        session, other = (
            RowTraining(
                base.model, state.params, state.adam, [older, newest], lr=3e-3, execution=Execution(), restless=False
            )
            for _ in range(2)
        )
        rng = torch_rng(seed)
        for n in range(tried):
            (session if n < count else other).epoch(
                session.periods[0], batch_size=64, rng=rng, cold_rate=base.config.cold_rate
            )
        if then:
            session.epoch(session.periods[1], batch_size=64, rng=rng, cold_rate=cold_rate)
        return session

    losses = []
    for count in range(1, tried + 1):
        session = trained(count)
        logits = predict_logits(base.model, session.params, session.periods[1]).double()
        losses.append(float(functional.binary_cross_entropy_with_logits(logits, newest.label.double())))
    known = [0.7 * (state.passes[n] if n < len(state.passes) else 0) for n in range(max(tried, len(state.passes)))]
    known = [k + (losses[n] - losses[0] if n < tried else 0) for n, k in enumerate(known)]
    count = min(1 + known.index(min(known)), tried)
    update = trained(count, then=True).finish()
    return snapshot(commit(state.params, state.adam, update)), known


def test_the_passes_over_a_period_are_those_that_its_tail_and_earlier_ones_favour() -> None:
    """To the bit, along a stream that favours more passes, and then one that favours fewer."""
    base = BaseTraining(SMALL, TrainingConfig(most_epochs=3, moment_bits=None), Execution())
    state, counts = IncrementalUpdate(SMALL).update(PLAIN.state(0), PLAIN.period(1), rng=torch_rng(0)), []
    for t in range(2, 9):
        data = PLAIN.period(t)
        if t > 5:  # the tail contradicts the rest
            data = replace(data, label=torch.cat([(data.item % 2).float()[:270], 1 - (data.item % 2).float()[270:]]))
        expected, known = chosen_by_hand(base, state, data, t, 3)
        got = base.committed(base.train(state, data, torch_rng(t)))
        assert unchanged(expected, [got.params, got.adam])
        assert got.passes == pytest.approx(known, abs=1e-6)
        counts.append(base.favoured(got.passes))
        state = got
    assert counts[0] == 2 and max(counts) == 3 and counts[-1] == 1


def test_without_a_choice_there_is_no_memory_of_it() -> None:
    state = PLAIN.state(3)
    assert state.passes == ()
    base, chooses = BaseTraining(SMALL, TrainingConfig(), Execution()), TrainingConfig(most_epochs=3)
    choosing = BaseTraining(SMALL, chooses, Execution())
    remembered = choosing.committed(choosing.train(state, PLAIN.period(4), torch_rng(0)))
    assert len(remembered.passes) == 2
    # Whoever does not choose makes as many passes as he is told, whatever was favoured before.
    plain = base.train(replace(state, passes=(0.0, -1.0)), PLAIN.period(4), torch_rng(1)).pending
    assert unchanged(snapshot(base.train(state, PLAIN.period(4), torch_rng(1)).pending), plain)
    # A period without a tail is learned as often as was favoured.
    tiny = PLAIN.period(4, 9)
    twice = BaseTraining(SMALL, TrainingConfig(epochs=2), Execution())
    got = choosing.train(replace(state, passes=(0.0, -1.0)), tiny, torch_rng(1)).pending
    assert got is not None
    assert unchanged(snapshot(twice.train(state, tiny, torch_rng(1)).pending), got)
    assert got.passes == (0.0, -1.0)


@pytest.mark.parametrize("make", [IncrementalUpdate, IncCTR, ReservoirUpdate, BatchUpdate, Asmg])
def test_methods_choose_and_remember_through_storage(make: Any) -> None:
    training = TrainingConfig(most_epochs=3)
    updater = make(SMALL, training) if make is IncrementalUpdate else make(SMALL, None, training)
    state = updater.initial(torch_rng(0))
    for t in (1, 2, 3, 4):
        told: list[float] = []
        for stage in updater.stages:
            stored = {n: Checkpoint.from_bytes(p.to_bytes()) for n, p in updater.dump(state).items()}
            again = updater.run_stage(stage, updater.load(stored), PLAIN.period(t), rng=torch_rng(t))
            state = updater.run_stage(stage, state, PLAIN.period(t), rng=torch_rng(t), progress=told.append)
            assert unchanged(snapshot(state), again)
            assert updater.base_of(again).passes == updater.base_of(state).passes
        assert all(0 <= fraction <= 1 for fraction in told)
        assert len(updater.base_of(state).passes) >= (2 if t > 1 else 0)
    # A rehearsal is what learning the older part alone comes to, here too.
    older, newest = PLAIN.period(5).slice(0, 270), PLAIN.period(5).slice(270, 300)
    base = updater.base.committed(updater.base.train(updater.base_of(state), older, torch_rng(5)))
    found = updater.rehearse(state, older, newest, rng=torch_rng(5))
    assert torch.equal(found["incremental"], predict_logits(updater.model, base.params, newest))


def test_sml_has_no_passes_to_choose() -> None:
    with pytest.raises(ValueError, match=r"^most_epochs: expected None, for SML has no held-out part; received 2"):
        Sml(SMALL, None, TrainingConfig(most_epochs=2))


# --- the first period


def test_the_first_period_gets_the_passes_that_its_tail_favours() -> None:
    """Adam's steps tell the passes: 8 at most over the older 90 %, then one over the newest 10 %."""
    updater = iu(batch_size=10)
    state = updater.initial(torch_rng(0))
    data = PLAIN.period(1, 100)
    # What the head says of item and label, the tail says too: every pass helps.
    data = replace(data, label=(data.item % 2).float())
    assert updater.update(state, data, rng=torch_rng(0)).adam.step == 8 * 9 + 1
    # The tail contradicts the head: the first pass already makes it worse, the second worse still.
    against = replace(data, label=torch.cat([torch.ones(90), torch.zeros(10)]))
    assert iu(batch_size=10, lr=0.05).update(state, against, rng=torch_rng(0)).adam.step == 1 * 9 + 1
    # Without a tail nothing says when to stop.
    assert iu(batch_size=10, holdout=0).update(state, against, rng=torch_rng(0)).adam.step == 8 * 10
    assert updater.update(state, PLAIN.period(1, 9), rng=torch_rng(0)).adam.step == 8


def test_the_first_step_size_is_that_of_the_first_period_alone() -> None:
    first, rest = (PLAIN.period(t, 60) for t in (1, 2))
    state = iu().initial(torch_rng(0))
    fast = iu(first_lr=0.03).update(state, first, rng=torch_rng(0))
    assert unchanged(snapshot(iu(lr=0.03).update(state, first, rng=torch_rng(0))), fast)
    assert not unchanged(snapshot(iu().update(state, first, rng=torch_rng(0))), fast)
    assert unchanged(
        snapshot(iu().update(fast, rest, rng=torch_rng(1))), iu(first_lr=0.03).update(fast, rest, rng=torch_rng(1))
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tables_begin_with_rows_near_the_cold_row(config: ModelConfig) -> None:
    base = BaseTraining(config, TrainingConfig(), Execution())
    initial = base.initial(torch_rng(1))
    before = snapshot(initial)
    state = base.begun(initial, {"user": 400, "item": 300, "category": 200, "field": 100}, torch_rng(2))
    assert unchanged(before, initial)
    assert (state.periods, state.pending, state.adam.step) == (0, None, 0)
    base.model.check(state.params)
    for name, rows in {"user": 400, "item": 300, "category": 200, "field": 100}.items():
        if name not in base.model.tables:
            continue
        table = state.params[name][:, : config.dim]
        assert len(state.params[name]) == rows
        assert torch.equal(table[0], initial.params[name][0, : config.dim])
        away = table[1:] - table[0]
        assert float(away.std()) == pytest.approx(0.05, rel=0.1)
        assert float(away.mean()) == pytest.approx(0, abs=0.01)
        assert len(table.unique(dim=0)) == rows
    for name in base.model.dense_shapes:
        assert torch.equal(state.params[name], initial.params[name])


def test_the_biases_of_a_factorization_begin_with_zero() -> None:
    """methods.md, section 9: "biases zero-initialised"."""
    base = BaseTraining(CONFIGS["mf"], TrainingConfig(), Execution())
    state = base.begun(base.initial(torch_rng(1)), {"user": 40, "item": 30}, torch_rng(2))
    assert not state.params["user"][:, 3].any()
    assert not state.params["item"][:, 3].any()


def test_the_authors_tables_begin_as_they_say() -> None:
    base = BaseTraining(SMALL, TrainingConfig.reference(), Execution())
    state = base.begun(base.initial(torch_rng(1)), {"user": 40, "item": 30}, torch_rng(2))
    expected = base.model.glorot({"user": 40, "item": 30}, torch_rng(2))
    assert unchanged(snapshot(expected), state.params)


def test_a_first_period_without_the_categories_that_the_model_reads_is_refused() -> None:
    updater = IncrementalUpdate(SMALL_CATEGORIES)
    with pytest.raises(ValueError, match=r"^data: expected rows for the tables .*; received none for \{'category'\}"):
        updater.update(updater.initial(torch_rng(0)), PLAIN.period(1), rng=torch_rng(0))


# --- pretraining


def pretraining() -> tuple[list[PeriodData], PeriodData]:
    return [PLAIN.period(1, 200), PLAIN.period(2, 150)], PLAIN.period(3, 100)


@pytest.mark.parametrize("initial", ["cold", "glorot"])
def test_pretraining_keeps_the_pass_with_the_best_auc_on_the_next_period(initial: str) -> None:
    """Seven passes over both periods together, one by one, each followed by a look at the third."""
    training = TrainingConfig(lr=0.02, first_epochs=7, batch_size=64, cold_rate=0.2, initial=initial)  # type: ignore[arg-type]
    base = BaseTraining(SMALL, training, Execution())
    periods, validation = pretraining()
    got = base.pretrained(periods, validation, torch_rng(5))
    rng = torch_rng(5)
    whole = concatenate(periods)
    state = base.begun(base.initial(rng), whole.sizes, rng)
    session = RowTraining(base.model, state.params, state.adam, [whole], lr=0.02, execution=Execution(), restless=False)
    found, results = [], []
    for _ in range(7):
        session.epoch(session.periods[0], batch_size=64, rng=rng, cold_rate=0.2)
        results.append([t.clone() for t in snapshot(commit(state.params, state.adam, session.finish()))])
        params, _ = commit(state.params, state.adam, session.finish())
        found.append(auc(predict_logits(base.model, params, validation), validation.label))
    best = int(np.argmax(found))
    assert unchanged(results[best], [got.params, got.adam])
    assert got.periods == 1
    assert got.pending is None
    assert len(set(found)) > 3
    # Flipped labels of that period make the worst pass the best; nothing else of it matters.
    other = base.pretrained(periods, replace(validation, label=1 - validation.label), torch_rng(5))
    assert unchanged(results[int(np.argmin(found))], [other.params, other.adam])


def test_pretraining_that_nothing_can_be_said_of_keeps_the_first_pass() -> None:
    """There is no AUC of a period of one class."""
    base = BaseTraining(SMALL, TrainingConfig(first_epochs=4, batch_size=64), Execution())
    periods, validation = pretraining()
    got = base.pretrained(periods, replace(validation, label=torch.ones(100)), torch_rng(5))
    assert got.adam.step == math.ceil(350 / 64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_learns_the_first_period_and_pretrains_as_a_cpu_does() -> None:
    periods, validation = pretraining()
    made = []
    for device in ("cpu", "cuda"):
        base = BaseTraining(SMALL, TrainingConfig(first_epochs=2, cold_rate=0.0), Execution(device=device))
        first = base.train(base.initial(torch_rng(1)), periods[0], torch_rng(2))
        made.append([first, base.pretrained(periods, validation, torch_rng(3))])
    for a, b in zip(snapshot(made[0]), snapshot(made[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-3)


# --- configuration


def test_the_authors_settings() -> None:
    """methods.md, sections 0 to 2."""
    config = TrainingConfig.reference()
    assert (config.lr, config.batch_size, config.epochs, config.first_epochs) == (1e-3, 256, 1, 10)
    assert (config.holdout, config.cold_rate, config.initial, config.first_lr) == (0, 0, "glorot", None)
    assert TrainingConfig.reference(lr=1e-2).lr == 1e-2
    assert build_updater("iu", SMALL, reference=True).base.config == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0}, "^training: expected positive lr, epochs, first_epochs"),
        ({"epochs": 0}, "^training: expected positive"),
        ({"batch_size": 0}, "^batch_size: expected at least 1, or None; received 0"),
        ({"first_epochs": -1}, "^training: expected positive"),
        ({"first_lr": 0.0}, r"^first_lr: expected a positive number or None; received 0.0"),
        ({"holdout": 1.0}, r"^holdout: expected a number in \[0, 1\); received 1.0"),
        ({"cold_rate": -0.1}, r"^cold_rate: expected a number in \[0, 1\); received -0.1"),
        ({"most_epochs": 0}, "^most_epochs: expected at least epochs, 1, and a holdout above 0, or None; received 0"),
        ({"most_epochs": 2, "epochs": 3}, "^most_epochs: expected at least epochs, 3"),
        ({"most_epochs": 2, "holdout": 0.0}, r"^most_epochs: .*; received 2 with holdout 0\.0"),
        ({"initial": "zeros"}, r"^initial: expected cold or glorot; received 'zeros'"),
    ],
)
def test_training_of_no_meaning_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**values)


@pytest.mark.parametrize("training", [TrainingConfig(lr=1e38, cold_rate=0), TrainingConfig(lr=1e38)])
@pytest.mark.parametrize("t", [1, 3])
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_a_step_size_beyond_reason_diverges_and_leaves_the_state(
    training: TrainingConfig, t: int, compiled: bool
) -> None:
    execution = Execution(compiled=compiled)
    for updater, state in (
        (IncrementalUpdate(SMALL, training, execution), PLAIN.state(t - 1)),
        (Asmg(SMALL, None, training, execution), Case("asmg-gru-multi", SMALL).state(t - 1)),
    ):
        before = snapshot(state)
        with pytest.raises(DivergedError):
            updater.update(state, PLAIN.period(t), rng=torch_rng(0))
        assert unchanged(before, state)


# --- storage


def test_a_pending_update_survives_storage_and_is_no_part_of_a_finished_one() -> None:
    updater, data = PLAIN.build(), PLAIN.period(3)
    trained = updater.run_stage("update_base", PLAIN.state(2), data, rng=torch_rng(0))
    parts = updater.dump(trained)
    assert set(parts) == {"updater", "base", "optimizer", "pending"}
    got = updater.load(parts)
    assert unchanged(snapshot(trained), got)
    assert got.pending is not None
    assert trained.pending is not None
    assert got.pending.sizes == trained.pending.sizes
    assert got.pending.adam.step == trained.pending.adam.step > PLAIN.state(2).adam.step
    assert set(updater.dump(PLAIN.state(3))) == {"updater", "base", "optimizer"}


def test_a_base_model_of_another_shape_is_refused() -> None:
    updater = PLAIN.build()
    parts = updater.dump(PLAIN.state(2))
    wrong = Checkpoint("model", {"model": SMALL_CATEGORIES.to_json()}, parts["base"].tensors)
    with pytest.raises(CheckpointError, match=r"^model: expected .*; received .*"):
        updater.load({**parts, "base": wrong})
    cut = {**parts["base"].tensors, "user": parts["base"].tensors["user"][:, :2]}
    with pytest.raises(ValueError, match=r"^user: expected shape \(None, 3\)"):
        updater.load({**parts, "base": replace(parts["base"], tensors=cut)})
