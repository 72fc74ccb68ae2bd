"""What ASMG adds to the contract of update methods: the window, the hidden state, trust. (Training: see
test_generator_training.)"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from asmg.adam import AdamState
from asmg.batch import PeriodData
from asmg.checkpoint import CheckpointError
from asmg.generator import GeneratorConfig, LinearConfig
from asmg.models import EmbeddingMLPConfig, Params
from asmg.rounding import rounded
from asmg.training import DivergedError, Execution, predict_logits
from asmg.updaters import build_updater
from asmg.updaters.asmg import Asmg
from asmg.updaters.asmg_config import AsmgConfig
from asmg.updaters.iu import IncrementalUpdate
from asmg.updaters.trust import Gain
from tests.asmg.cases import SMALL, SMALL_CATEGORIES, Case, from_bytes, to_bytes
from tests.asmg.support import slow_logit, snapshot, torch_rng, unchanged

GRU = Case("asmg-gru-multi", SMALL)


def asmg(config: EmbeddingMLPConfig = SMALL, **values: Any) -> Asmg:
    return Asmg(config, AsmgConfig(**values))


# --- loss weights, window, hidden state


def test_linear_loss_weights_are_those_of_the_slides() -> None:
    """λ_j = j / Σj' over the window; shorter windows at the start likewise."""
    updater = asmg()
    assert updater.loss_weights(3) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert updater.loss_weights(2) == pytest.approx([1 / 3, 2 / 3])
    assert updater.loss_weights(1) == [1]
    assert updater.loss_weights(5) == pytest.approx([1 / 15, 2 / 15, 3 / 15, 4 / 15, 5 / 15])


def test_the_other_loss_weights_by_hand() -> None:
    assert asmg(loss_weights="uniform").loss_weights(4) == [0.25] * 4
    assert asmg(loss_weights="last").loss_weights(3) == [0, 0, 1]
    assert asmg(loss_weights="last").loss_weights(1) == [1]


@pytest.mark.parametrize("window", [1, 2, 3, 4, None])
def test_the_window_holds_the_last_models_and_the_periods_between_them(window: int | None) -> None:
    """Nothing older, for it costs; and of the newest k-1 periods all, for with the next one they are the targets."""
    updater = asmg(window=window)
    state = updater.initial(torch_rng(0))
    chain: list[Params] = []
    periods: list[PeriodData] = []
    for t in range(1, 7):
        data = GRU.period(t, 40)
        state = updater.update(state, data, rng=torch_rng(t))
        chain.append(state.base.params)
        periods.append(data)
        models = min(t, window or t)
        assert [id(m) for m in state.models] == [id(m) for m in chain[t - models :]]
        assert [id(d) for d in state.data] == [id(d) for d in periods[t - (models - 1) :]]


def test_the_incremental_chain_never_sees_a_generated_model() -> None:
    """Stage by stage it is IU with the same randomness."""
    updater, plain = GRU.build(), IncrementalUpdate(SMALL)
    state = GRU.state(0)
    base = state.base
    for t in (1, 2, 3, 4):
        for stage in updater.stages:
            state = updater.run_stage(stage, state, GRU.period(t), rng=torch_rng(100 * t + len(stage)))
        base = plain.update(base, GRU.period(t), rng=torch_rng(100 * t + len("update_base")))
        assert unchanged(snapshot(base), state.base)


def test_the_hidden_state_is_carried_once_the_window_is_full() -> None:
    """methods.md, section 7a: with the just-trained weights, from the old state, over the window's first model."""
    case = replace(GRU, rounds=False)
    updater = case.build()
    assert isinstance(updater, Asmg)
    for t in (1, 2, 3):  # the state that the update of period 4 starts from
        assert not any(h.any() for h in case.state(t).hidden.values())
    for t in (4, 5, 6):
        before, after = case.state(t - 1), case.state(t)
        _, expected = updater.generator.generate(after.weights, before.models[:1], before.hidden, advance=1)
        assert unchanged(snapshot(expected), after.hidden)
        assert any(h.any() for h in after.hidden.values())


def test_the_hidden_state_and_the_moments_keep_the_bits_that_the_settings_say() -> None:
    """What was rounded to some bits stays when it is rounded to them again, and not with fewer."""
    state = GRU.state(6)
    kept = (
        (state.hidden, 12),
        (state.adam.first, 5),
        (state.adam.second, 5),
        (state.base.adam.first, 7),
        (state.base.adam.second, 7),
    )
    for numbers, bits in kept:
        assert unchanged(snapshot(rounded(numbers, bits, torch_rng(0))), numbers)
        assert not unchanged(snapshot(rounded(numbers, bits - 1, torch_rng(0))), numbers)


@pytest.mark.parametrize("name", ["asmg-gru-zero", "asmg-gru-full"])
def test_without_carrying_the_hidden_state_stays_zero(name: str) -> None:
    case = Case(name, SMALL)
    assert not any(h.any() for h in case.state(5).hidden.values())


@pytest.mark.parametrize("name", ["asmg-gru-multi", "asmg-gru-zero", "asmg-gru-full", "asmg-linear"])
def test_the_generator_serves_from_the_whole_window(name: str) -> None:
    case = Case(name, SMALL, rounds=False)
    updater = case.build()
    assert isinstance(updater, Asmg)
    for t in (1, 2, 3, 4, 5):
        state = case.state(t)
        assert len(state.models) == (t if name == "asmg-gru-full" else min(t, 3))
        expected, _ = updater.generator.generate(state.weights, state.models, state.hidden)
        assert unchanged(snapshot(expected), state.generated)


def test_the_first_period_trains_no_generator() -> None:
    updater, state = GRU.build(), GRU.state(0)
    after = updater.run_stage("train_generator", state, GRU.period(1), rng=torch_rng(0))
    assert unchanged(snapshot(state.weights), after.weights)
    assert after.adam.step == 0
    assert after.evidence == (Gain(),) * 5


# --- the authors' schedule


def test_the_authors_sequence_begins_behind_pretraining_and_waits_for_a_full_window() -> None:
    """methods.md: the pretrained model is not part of the sequence (2), the first step has three models (6, 7a), the
    window of that step starts from zeros, the next one from the state after its first model."""
    case = Case("asmg-gru-multi", SMALL, reference=True)
    updater = case.build()
    assert isinstance(updater, Asmg)
    state = updater.pretrained([case.period(1), case.period(2)], case.period(3), rng=torch_rng(0))
    assert state.models == ()
    assert unchanged(snapshot(state.base.params), updater.serving_models(state)["generated"])
    steps, chain = math.ceil(300 / 256), []
    for t in range(3, 9):
        before, state = state, updater.update(state, case.period(t), rng=torch_rng(t))
        chain.append(state.base.params)
        assert state.base.periods == t - 1
        assert [id(m) for m in state.models] == [id(m) for m in chain[-3:]]
        assert state.adam.step == max(0, t - 5) * steps
        assert unchanged(snapshot(before.weights), state.weights) == (t < 6)
        moved = any(h.any() for h in state.hidden.values())
        assert moved == (t >= 6)
        # Nobody asks for evidence: the generator is trusted, as bad as it is at first.
        assert unchanged(snapshot(state.generated), updater.serving_models(state)["generated"])


def test_the_base_model_is_the_same_whatever_the_generator_is() -> None:
    """So that methods can be compared without pretraining: they begin with one base model, and learn one chain."""
    chains = []
    for name in ("iu", "asmg-linear", "asmg-gru-single", "asmg-gru-multi", "asmg-gru-full"):
        updater = build_updater(name, SMALL)
        state = updater.initial(torch_rng(3))
        begun = updater.base_of(state)
        for t in (1, 2):
            for stage in updater.stages:
                state = updater.run_stage(stage, state, Case(name, SMALL).period(t, 60), rng=torch_rng(t))
        chains.append([begun, updater.base_of(state)])
    for hidden in (1, 9):
        config = AsmgConfig(generator=GeneratorConfig(hidden=hidden))
        chains.append([Asmg(SMALL, config).initial(torch_rng(3)).base, chains[0][1]])
    for chain in chains[1:]:
        assert unchanged(snapshot(chains[0]), chain)


def test_a_window_of_all_models_is_never_full_and_waits_for_none() -> None:
    case = Case("asmg-gru-full", SMALL, reference=True)
    updater = case.build()
    state = updater.pretrained([case.period(1)], case.period(2), rng=torch_rng(0))
    for t in range(2, 6):
        state = updater.update(state, case.period(t), rng=torch_rng(t))
        assert len(state.models) == t - 1
        assert state.adam.step == (t - 2) * math.ceil(300 / 256)


def test_by_default_the_pretrained_model_is_the_first_of_the_sequence() -> None:
    updater = GRU.build()
    assert isinstance(updater, Asmg)
    state = updater.pretrained([GRU.period(1), GRU.period(2)], GRU.period(3), rng=torch_rng(0))
    assert [id(m) for m in state.models] == [id(state.base.params)]
    assert updater.trust(state) == 0
    after = updater.update(state, GRU.period(3), rng=torch_rng(1))
    assert after.adam.step == updater.config.epochs * math.ceil(300 / updater.config.batch_size) > 0
    assert [id(m) for m in after.models] == [id(state.base.params), id(after.base.params)]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("asmg-gru-multi", {}),
        ("asmg-gru-single", {"loss_weights": "last"}),
        ("asmg-gru-unif", {"loss_weights": "uniform"}),
        ("asmg-gru-zero", {"carry_hidden": False}),
        ("asmg-gru-full", {"carry_hidden": False, "window": None}),
        ("asmg-linear", {"carry_hidden": False, "loss_weights": "last", "generator": LinearConfig(window=3)}),
    ],
)
def test_the_variants_of_the_paper_are_these(name: str, changes: dict[str, Any]) -> None:
    """methods.md, sections 6 to 7e."""
    paper: dict[str, Any] = {
        "generator": GeneratorConfig(hidden=4, output="direct"), "window": 3, "loss_weights": "linear",
        "carry_hidden": True, "lr": 1e-2, "dense_share": 1.0, "batch_size": 256, "epochs": 1, "average": False,
        "blends": (1.0,), "full_window": True, "skip_first": True, "untouched": "generate",
        "moment_bits": None, "hidden_bits": None,
    }  # fmt: skip
    for reference in (False, True):
        updater = build_updater(name, SMALL, reference=reference)
        assert isinstance(updater, Asmg)
        named = paper | changes if reference else changes
        for field, value in named.items():
            assert getattr(updater.config, field) == value, field
        assert updater.base.config.restless is reference
        assert (updater.base.config.moment_bits is None) is reference


# --- trust


def evidence(*totals: float, squares: float = 0.0) -> tuple[Gain, ...]:
    return tuple(Gain(total, squares) for total in totals)


def test_nothing_is_trusted_without_evidence() -> None:
    updater = GRU.build()
    assert isinstance(updater, Asmg)
    for t in (0, 1):
        assert updater.trust(GRU.state(t)) == 0
    served = updater.serving_models(GRU.state(1))
    assert unchanged(snapshot(served["incremental"]), served["generated"])


def test_trust_is_the_fraction_with_the_largest_gain_and_the_smallest_of_equals() -> None:
    updater, state = asmg(), GRU.state(1)
    for found, expected in (
        ((0.0, 1.0, 2.0, 1.0, 0.0), 0.5),
        ((0.0, 1.0, 1.0, 1.0, 1.5), 1.0),
        ((0.0, 1.0, 1.0, 1.0, 0.0), 0.25),
        ((0.0, 0.0, 0.0, 0.0, 0.0), 0.0),
        ((0.0, -1.0, -2.0, -3.0, -4.0), 0.0),
    ):
        assert updater.trust(replace(state, evidence=evidence(*found))) == expected
    assert asmg(blends=(1.0,)).trust(replace(state, evidence=evidence(0.0))) == 1


def test_a_gain_counts_for_what_is_certain_of_it() -> None:
    """A gain of 3 with a standard error of 2 is certain by 2 - at one of them, not at two."""
    state = GRU.state(1)
    found = (Gain(), Gain(1.0, 0.01), Gain(3.0, 4.0), Gain(0.5, 0.0), Gain(0.0, 0.0))
    # At no caution 3 wins; at one standard error 1 - 0.1 < 3 - 2; at two 1 - 0.2 > 3 - 4; at nine .1 < .5.
    for caution, expected in ((0.0, 0.5), (1.0, 0.5), (2.0, 0.25), (9.0, 0.75)):
        assert asmg(caution=caution).trust(replace(state, evidence=found)) == expected
    assert Gain(3.0, 4.0).certain(1.0) == 1.0
    # What is uncertain is not trusted, whatever it gained.
    assert asmg(caution=2.0).trust(replace(state, evidence=(Gain(), *[Gain(3.0, 4.0)] * 4))) == 0


def test_a_blend_lies_between_the_incremental_and_the_generated_model() -> None:
    updater, state = GRU.build(), GRU.state(4)
    assert isinstance(updater, Asmg)
    for fraction in (0.0, 0.25, 1.0, 1.5):
        for name, tensor in updater.blended(state, fraction).items():
            low, high = state.base.params[name].double(), state.generated[name].double()
            torch.testing.assert_close(tensor.double(), low + fraction * (high - low), rtol=1e-5, atol=1e-6)
    assert unchanged(snapshot(state.base.params), updater.blended(state, 0.0))
    assert unchanged(snapshot(state.generated), updater.blended(state, 1.0))
    assert not unchanged(snapshot(state.base.params), state.generated)
    with pytest.raises(ValueError, match=r"^state: expected one that has learned a period"):
        updater.blended(GRU.state(0), 0.5)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_evidence_is_the_decayed_sum_of_reductions_of_losses_from_before_training(decay: float, compiled: bool) -> None:
    blends = (0.0, 0.5, 2.0)
    config = AsmgConfig(blends=blends, evidence_decay=decay, caution=0.0)
    updater = Asmg(SMALL, config, execution=Execution(device="cpu", compiled=compiled))
    state = updater.initial(torch_rng(0))
    total, squares = np.zeros(3), np.zeros(3)
    for t in (1, 2, 3, 4):
        data = GRU.period(t, 60)
        if t > 1:
            losses = []
            for fraction in blends:
                mixed = {n: p + fraction * (state.generated[n] - p) for n, p in state.base.params.items()}  # type: ignore[index]
                logits = np.array([slow_logit(SMALL, mixed, data, n) for n in range(60)])
                losses.append(np.logaddexp(0, logits) - data.label.numpy() * logits)
            gains = losses[0] - np.stack(losses)
            total = decay * total + gains.sum(1)
            squares = decay**2 * squares + (gains**2).sum(1)
        state = updater.update(state, data, rng=torch_rng(t))
        assert state.evidence[0] == Gain()
        np.testing.assert_allclose([g.total for g in state.evidence], total, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose([g.squares for g in state.evidence], squares, rtol=1e-3, atol=1e-6)
    assert np.abs(total).max() > 0.01
    served = updater.serving_models(state)["generated"]
    fraction = blends[int(np.argmax(total))]
    for name, p in state.base.params.items():
        assert state.generated is not None
        torch.testing.assert_close(served[name], p + fraction * (state.generated[name] - p))


@pytest.mark.parametrize("name", ["asmg-gru-multi", "asmg-gru-zero", "asmg-gru-full", "asmg-linear"])
@pytest.mark.parametrize("periods", [1, 2, 4])
def test_a_rehearsal_ends_the_sequence_with_what_was_learned_of_a_part(name: str, periods: int) -> None:
    """As the last stage does on whole tables; ω is still that of before."""
    case = Case(name, SMALL_CATEGORIES)
    updater, data = case.build(), case.period(periods + 1)
    assert isinstance(updater, Asmg)
    state = replace(case.state(periods), evidence=evidence(0, 1, 2, 3, 2))  # three quarters of the correction
    older, newest = data.slice(0, 250), data.slice(250, 300)
    found = updater.rehearse(state, older, newest, rng=torch_rng(1))
    learned = replace(state, base=updater.base.train(state.base, older, torch_rng(1)))
    expected = updater.serving_models(updater.run_stage("generate", learned, data, rng=torch_rng(2)))["generated"]
    assert torch.allclose(found["generated"], predict_logits(updater.model, expected, newest), atol=1e-6)


def test_a_single_blend_needs_no_evidence() -> None:
    updater = asmg(blends=(1.0,))
    state = updater.initial(torch_rng(0))
    for t in (1, 2, 3):
        state = updater.update(state, GRU.period(t, 40), rng=torch_rng(t))
    assert state.evidence == (Gain(),)
    assert unchanged(snapshot(state.generated), updater.serving_models(state)["generated"])


# --- configuration, divergence, storage


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_a_generator_step_beyond_reason_diverges_and_leaves_the_state(compiled: bool) -> None:
    updater = Asmg(SMALL, AsmgConfig(lr=1e30, batch_size=20), execution=Execution(device="cpu", compiled=compiled))
    state = GRU.state(4)
    before = snapshot(state)
    with pytest.raises(DivergedError):
        updater.update(state, GRU.period(5), rng=torch_rng(0))
    assert unchanged(before, state)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 0}, "^asmg: expected positive window, lr, batch_size, epochs"),
        ({"lr": 0.0}, "^asmg: expected positive window"),
        ({"batch_size": 0}, "^asmg: expected positive window"),
        ({"epochs": 0}, "^asmg: expected positive window"),
        ({"dense_share": 0.0}, r"^dense_share: expected a number in \(0, 1\]; received 0\.0"),
        ({"loss_weights": "exp"}, "^loss_weights: expected linear, uniform or last; received 'exp'"),
        ({"moment_bits": 23}, "^moment_bits: expected None or 0 to 22; received 23"),
        ({"hidden_bits": -1}, "^hidden_bits: expected None or 0 to 22; received -1"),
        ({"untouched": "drop"}, "^untouched: expected generate, keep or plain; received 'drop'"),
        ({"blends": ()}, "^blends: expected distinct fractions ≥ 0, ascending"),
        ({"blends": (0.5, 0.0)}, "^blends: expected distinct fractions"),
        ({"blends": (0.5, 0.5)}, "^blends: expected distinct fractions"),
        ({"blends": (-0.5, 0.5)}, "^blends: expected distinct fractions"),
        ({"evidence_decay": 1.1}, r"^evidence_decay: expected a number in \[0, 1\]; received 1.1"),
        ({"caution": -1.0}, r"^caution: expected a number ≥ 0; received -1\.0"),
        (
            {"generator": LinearConfig(window=4), "carry_hidden": False},
            r"^window: expected the generator's, 4; received 3",
        ),
        ({"generator": LinearConfig()}, r"^carry_hidden: expected False with the linear generator; received True"),
    ],
)
def test_a_configuration_of_no_meaning_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AsmgConfig(**values)


def test_the_moments_of_an_optimizer_survive_storage() -> None:
    state = GRU.state(3)
    got = from_bytes(GRU.build(), to_bytes(GRU.build(), state))
    assert isinstance(got.adam, AdamState)
    assert got.adam.step == state.adam.step > 0
    assert got.base.adam.step == state.base.adam.step > 0
    assert unchanged(snapshot([state.adam, state.base.adam]), [got.adam, got.base.adam])
    assert got.evidence == state.evidence
    assert got.evidence[-1].squares > 0


def test_a_learned_state_without_its_generated_model_is_refused() -> None:
    """It would serve nothing, although it has learned four periods, and weigh no evidence."""
    updater = GRU.build()
    parts = updater.dump(GRU.state(4))
    with pytest.raises(CheckpointError, match="generated"):
        updater.load({name: part for name, part in parts.items() if name != "generated"})


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_passes_over_a_window_can_be_chosen(epochs: int) -> None:
    updater, state = asmg(epochs=epochs, batch_size=100), GRU.state(3)
    after = updater.run_stage("train_generator", state, GRU.period(4), rng=torch_rng(0))
    assert after.adam.step == state.adam.step + epochs * 3
