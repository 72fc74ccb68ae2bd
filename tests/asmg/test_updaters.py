"""The contract of every update method (`updater:check`), and what ASMG adds to it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from asmg.batch import ItemFeatures, PeriodData
from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.generator import DENSE, GRUGenerator, HiddenState
from asmg.models import EmbeddingMLP, EmbeddingMLPConfig, Params, grow, table_sizes
from asmg.progressive import progressive_validation
from asmg.training import Adam, AdamState, DivergedError, predict_logits, train_epoch
from asmg.updaters import UPDATERS, build_updater
from asmg.updaters.asmg import AsmgConfig, AsmgGru, AsmgState
from asmg.updaters.base import Updater
from asmg.updaters.iu import IncrementalUpdate, TrainingConfig, dump_data, load_data
from tests.asmg.support import (
    DenseAdam,
    random_period,
    slow_logit,
    tensors_in,
    torch_rng,
)

Parts = dict[str, bytes]

# Wide enough not to start with every ReLU closed: all rows start as the cold row, so a unit is open for all or none.
SMALL = EmbeddingMLPConfig(dim=3, hidden=(8, 6))
SMALL_CATEGORIES = replace(SMALL, categories=True)


@dataclass(frozen=True)
class Case:
    """An update method on a small base model, with or without categories."""

    updater: str
    config: EmbeddingMLPConfig

    def build(self) -> Updater[Any]:
        return build_updater(self.updater, self.config)

    def period(self, t: int, n: int = 300, **changes: Any) -> PeriodData:
        """The t-th period of a stream in which the tables grow. Its rows are the same with and without categories."""
        items = 9 + 2 * t
        more = {"categories": 2 + items // 3} if self.config.categories else {}
        data = random_period(1000 + t, n, **({"users": 6 + t, "items": items} | more | changes))
        if "labels" in changes:
            return data
        # Odd items and odd users click more, so that there is something to learn.
        odds = (data.item % 2 + data.user % 2).numpy()
        label = np.random.default_rng(t).random(n) < np.array([0.1, 0.5, 0.9])[odds]
        return replace(data, label=torch.tensor(label, dtype=torch.float32))

    def state(self, periods: int) -> Any:
        """The state after so many periods. It is shared by the checks: none may change it."""
        return learned(self, periods)


@cache
def learned(case: Case, periods: int) -> Any:
    updater = case.build()
    if periods == 0:
        return updater.initial(torch_rng(17))
    # The first period is larger, so that the models are past their nearly constant beginnings.
    data = case.period(periods, 900 if periods == 1 else 300)
    return updater.update(learned(case, periods - 1), data, rng=torch_rng(periods))


CASES = {
    name + suffix: Case(name, config)
    for name in UPDATERS
    for suffix, config in (("", SMALL), ("+categories", SMALL_CATEGORIES))
}
CHECKS: dict[str, Callable[[Case], None]] = {}


def check(function: Callable[[Case], None]) -> Callable[[Case], None]:
    """Adds a check to the contract."""
    CHECKS[function.__name__] = function
    return function


def to_bytes(updater: Updater[Any], state: Any) -> Parts:
    return {name: part.to_bytes() for name, part in updater.dump(state).items()}


def from_bytes(updater: Updater[Any], parts: Mapping[str, bytes]) -> Any:
    return updater.load({name: Checkpoint.from_bytes(data) for name, data in parts.items()})


def snapshot(value: Any) -> list[Tensor]:
    return [t.clone() for t in tensors_in(value)]


def unchanged(before: list[Tensor], value: Any) -> bool:
    after = tensors_in(value)
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def mapped(value: Any, change: Callable[[str, Tensor], Tensor]) -> Any:
    """A copy of a state with every named tensor replaced."""
    if isinstance(value, dict):
        return {n: change(n, t) if isinstance(t, Tensor) else mapped(t, change) for n, t in value.items()}
    if isinstance(value, tuple):
        return tuple(mapped(part, change) for part in value)
    if is_dataclass(value) and not isinstance(value, (type, PeriodData)):
        return replace(value, **{f.name: mapped(getattr(value, f.name), change) for f in fields(value)})
    return value


def check_served(updater: Updater[Any], state: Any, data: PeriodData) -> None:
    """There are models to serve, finite, of the right shapes and as large as the period's tables."""
    models = updater.serving_models(state)
    assert models
    for params in models.values():
        updater.model.check(params)
        assert table_sizes(params) == {name: data.sizes[name] for name in updater.model.tables}
        assert bool(torch.isfinite(predict_logits(updater.model, params, data)).all())


# --- the contract


@check
def inputs_are_left_as_they_are(case: Case) -> None:
    updater = case.build()
    for t in (1, 2, 3, 4):
        state, data = case.state(t - 1), case.period(t)
        for stage in updater.stages:
            before = snapshot([state, data])
            after = updater.run_stage(stage, state, data, rng=torch_rng(t))
            assert unchanged(before, [state, data])
            state = after
        before = snapshot(state)
        updater.serving_models(state)
        updater.dump(state)
        assert unchanged(before, state)


@check
def the_same_seed_gives_the_same_bits(case: Case) -> None:
    updater = case.build()

    def run(seed: int, noise: int) -> Parts:
        torch.manual_seed(noise)  # nobody else's randomness matters
        state = updater.initial(torch_rng(seed))
        for t in (1, 2):
            state = updater.update(state, case.period(t), rng=torch_rng(seed + t))
        return to_bytes(updater, state)

    first = run(1, noise=1)
    assert run(1, noise=2) == first
    assert run(2, noise=1)["base"] != first["base"]


@check
def the_global_generator_is_not_drawn_from(case: Case) -> None:
    before = torch.random.get_rng_state()
    case.build().update(case.state(2), case.period(3), rng=torch_rng(0))
    assert torch.equal(before, torch.random.get_rng_state())


@check
def ids_never_seen_read_the_cold_rows_and_get_rows_of_their_own(case: Case) -> None:
    updater, state = case.build(), case.state(3)
    # Nobody and nothing in this period was there before; the catalogue is larger, its categories are new too.
    items = 60
    more = {"categories": 2 + items // 3} if case.config.categories else {}
    data = random_period(0, 80, users=40, items=items, **more)
    data = replace(data, user=data.user % 20 + 20, item=data.item % 20 + 40, history=data.history % 20 + 40)
    for params in updater.serving_models(state).values():
        got = predict_logits(updater.model, params, data)
        expected = [slow_logit(case.config, params, data, n, cold=("user", "item")) for n in range(80)]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    after = updater.update(state, data, rng=torch_rng(0))
    check_served(updater, after, data)
    params = updater.serving_models(after)["incremental"]
    assert not torch.allclose(params["user"][data.user.long()], params["user"][0])


@check
def periods_of_one_class_are_learned(case: Case) -> None:
    updater = case.build()
    for t in (1, 2, 4):
        for label in (0.0, 1.0):
            data = case.period(t, 40, labels=[label] * 40)
            after = updater.update(case.state(t - 1), data, rng=torch_rng(0))
            check_served(updater, after, data)
            # The next period of both classes is learned as well.
            check_served(updater, updater.update(after, case.period(t + 1, 40), rng=torch_rng(1)), case.period(t + 1))


@check
def empty_histories_are_learned(case: Case) -> None:
    updater = case.build()
    for t in (1, 2, 4):
        data = case.period(t, 40, longest=0)
        assert len(data.history) == 0
        check_served(updater, updater.update(case.state(t - 1), data, rng=torch_rng(0)), data)


@check
def a_period_of_a_single_row_is_learned(case: Case) -> None:
    updater = case.build()
    for t in (1, 2, 4):
        data = case.period(t, 1)
        after = updater.update(case.state(t - 1), data, rng=torch_rng(0))
        check_served(updater, after, data)
        # It is a short one in the window of the next.
        check_served(updater, updater.update(after, case.period(t + 1), rng=torch_rng(1)), case.period(t + 1))


@check
def a_small_period_after_a_large_one_keeps_the_tables(case: Case) -> None:
    """Sizes never shrink in the service; a period that touches little of them is the usual case."""
    updater = case.build()
    data = replace(case.period(4), **{n: getattr(case.period(4).slice(0, 3), n) for n in
                   ("user", "item", "history", "offsets", "label")})  # fmt: skip
    check_served(updater, updater.update(case.state(3), data, rng=torch_rng(0)), data)


@check
def a_stored_state_goes_on_to_the_same_bits(case: Case) -> None:
    """dump → bytes → load between all stages of four periods, from the very first state on."""
    updater, another = case.build(), case.build()
    state = restored = updater.initial(torch_rng(5))
    for t in (1, 2, 3, 4):
        for stage in updater.stages:
            restored = from_bytes(another, to_bytes(another, restored))
            state = updater.run_stage(stage, state, case.period(t, 60), rng=torch_rng(t))
            restored = another.run_stage(stage, restored, case.period(t, 60), rng=torch_rng(t))
            assert to_bytes(updater, state) == to_bytes(another, restored)
    for name, params in updater.serving_models(state).items():
        assert unchanged(snapshot(params), another.serving_models(restored)[name])


@check
def a_dump_is_deterministic_and_load_is_its_inverse(case: Case) -> None:
    updater = case.build()
    for periods in (0, 1, 2, 4):
        parts = to_bytes(updater, case.state(periods))
        assert to_bytes(updater, case.state(periods)) == parts
        assert to_bytes(updater, from_bytes(updater, parts)) == parts


@check
def a_part_that_a_period_did_not_change_keeps_its_bytes(case: Case) -> None:
    """What is in a state twice, or moved on from the state before, is stored once by a store that goes by content."""
    updater = case.build()
    for t in (2, 3, 4, 5):
        before, after = (updater.dump(case.state(n)) for n in (t - 1, t))
        same = 0
        for part in after.values():
            for old in before.values():
                equal = old.tensors.keys() == part.tensors.keys() and all(
                    torch.equal(old.tensors[n], part.tensors[n]) for n in part.tensors
                )
                if equal and part.tensors and old.meta == part.meta:
                    same += 1
                    assert old.to_bytes() == part.to_bytes()
        moved = {f"model.{age}" for age in range(1, 9)} | {f"data.{age}" for age in range(1, 9)}
        assert same >= len(moved & after.keys())


@check
def the_future_changes_nothing_before_it(case: Case) -> None:
    updater = case.build()
    periods = [case.period(t, 60) for t in (1, 2, 3)]
    last = periods[-1]
    futures = {
        "as it is": last,
        "in another order": last,
        "with other labels": replace(last, label=1 - last.label),
        "another one": case.period(3, 20, users=50),
    }
    order = torch.randperm(60, generator=torch_rng(1))
    b = last.batch(order)
    futures["in another order"] = replace(
        last, user=b.user.int(), item=b.item.int(), history=b.history.int(), offsets=b.offsets, label=b.label
    )
    seen = []
    for future in futures.values():
        steps = list(progressive_validation(updater, [*periods[:2], future], seed=1))
        seen.append([(report, to_bytes(updater, state)) for report, state in steps])
    for other in seen[1:]:
        assert other[:2] == seen[0][:2]
    assert all(other[2] != seen[0][2] for other in seen[1:])


@check
def an_unknown_stage_is_refused(case: Case) -> None:
    updater = case.build()
    for stage in ("", "publish", updater.stages[0].upper()):
        with pytest.raises(ValueError, match=f"^stage: expected one of .*; received {stage!r}"):
            updater.run_stage(stage, case.state(2), case.period(3), rng=torch_rng(0))


@check
def the_state_of_another_method_or_configuration_is_refused(case: Case) -> None:
    updater = case.build()
    for periods in (0, 3):
        parts = updater.dump(case.state(periods))
        for name in UPDATERS.keys() - {case.updater}:
            with pytest.raises(CheckpointError):
                build_updater(name, case.config).load(parts)
        for config in (
            replace(case.config, dim=4),
            replace(case.config, hidden=(5, 3)),
            replace(case.config, categories=not case.config.categories),
        ):
            with pytest.raises(CheckpointError):
                build_updater(case.updater, config).load(parts)


@check
def a_dump_that_lacks_a_part_is_refused(case: Case) -> None:
    updater = case.build()
    parts = updater.dump(case.state(4))
    with pytest.raises(CheckpointError):
        updater.load({})
    for missing in parts.keys() - {"generated"}:  # which the initial state lacks rightly
        with pytest.raises(CheckpointError, match=missing.replace(".", r"\.")):
            updater.load({name: part for name, part in parts.items() if name != missing})


@check
def training_that_diverges_raises_and_leaves_the_state(case: Case) -> None:
    updater, data = case.build(), case.period(4)

    def poison(value: float, *names: str) -> Any:
        return mapped(
            case.state(3), lambda n, t: torch.full_like(t, value) if n in names and t.is_floating_point() else t
        )

    for state in (
        poison(math.nan, "mlp.0.weight"),
        poison(math.inf, "mlp.2.bias"),
        poison(3e38, "mlp.1.weight", "item"),
    ):
        before = snapshot([state, data])
        with pytest.raises((DivergedError, ValueError)):
            updater.update(state, data, rng=torch_rng(0))
        assert all(
            torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, tensors_in([state, data]), strict=True)
        )


@check
def progress_rises_within_zero_and_one(case: Case) -> None:
    updater = case.build()
    for t in (1, 2, 4):
        told: list[float] = []
        updater.update(case.state(t - 1), case.period(t), rng=torch_rng(0), progress=told.append)
        assert told
        assert told == sorted(told)
        assert 0 <= told[0] <= told[-1] <= 1


@check
def nothing_is_served_before_the_first_period(case: Case) -> None:
    updater = case.build()
    assert updater.serving_models(case.state(0)) == {}
    for t in (1, 2, 4):
        names = list(updater.serving_models(case.state(t)))
        assert names in (["incremental"], ["generated", "incremental"])
        check_served(updater, case.state(t), case.period(t))


@check
def categories_of_the_log_are_of_no_account_without_a_table_for_them(case: Case) -> None:
    if case.config.categories:
        case = replace(case, config=SMALL)
    updater = case.build()
    state = other = updater.initial(torch_rng(3))
    for t in (1, 2, 3):
        data = case.period(t, 60)
        with_categories = Case(case.updater, SMALL_CATEGORIES).period(t, 60)
        assert with_categories.categories
        assert unchanged(snapshot([data.history, data.label]), [with_categories.history, with_categories.label])
        state = updater.update(state, data, rng=torch_rng(t))
        other = updater.update(other, with_categories, rng=torch_rng(t))
        for name, params in updater.serving_models(state).items():
            assert unchanged(snapshot(params), updater.serving_models(other)[name])


@check
def what_is_plain_to_see_is_learned(case: Case) -> None:
    """Items of odd rows are clicked nine times as often as others: after three periods this is known."""
    updater = case.build()
    state = updater.initial(torch_rng(0))

    def easy(t: int) -> PeriodData:
        data = case.period(1, 1000)
        rng = np.random.default_rng(t)
        item = rng.integers(1, data.items, size=1000)
        label = rng.random(1000) < np.where(item % 2, 0.9, 0.1)
        return replace(data, item=torch.tensor(item, dtype=torch.int32), label=torch.tensor(label, dtype=torch.float32))

    for t in (1, 2, 3):
        state = updater.update(state, easy(t), rng=torch_rng(t))
    last = easy(4)
    for params in updater.serving_models(state).values():
        score = predict_logits(updater.model, params, last)
        right = score[last.label == 1][:, None] > score[last.label == 0][None, :]
        assert float(right.float().mean()) > 0.8


@check
def the_models_of_this_suite_tell_interactions_apart(case: Case) -> None:
    """Guards the other checks: a model that says the same of everything would pass many of them."""
    updater = case.build()
    for t in (1, 3, 5):
        for params in updater.serving_models(case.state(t)).values():
            assert float(predict_logits(updater.model, params, case.period(t)).std()) > 0.02


@pytest.mark.parametrize(
    ("case", "function"),
    [
        pytest.param(case, function, id=f"{name}:{of}")
        for name, case in CASES.items()
        for of, function in CHECKS.items()
    ],
)
def test_contract(case: Case, function: Callable[[Case], None]) -> None:
    function(case)


def test_the_name_of_no_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^updater: expected one of iu, asmg-gru-multi, .*; received 'sml2'"):
        build_updater("sml2", SMALL)


# --- IU


def iu(**training: Any) -> IncrementalUpdate:
    return IncrementalUpdate(SMALL, TrainingConfig(**training))


PLAIN = Case("iu", SMALL)


def test_a_later_period_is_one_epoch_from_the_last_model_with_its_moments() -> None:
    updater, state, data = PLAIN.build(), PLAIN.state(2), PLAIN.period(3)
    got = updater.update(state, data, rng=torch_rng(9))
    params = {n: grow(p, data.sizes[n]) if n in data.sizes else p.clone() for n, p in state.params.items()}
    optimizer = Adam(params, state.adam.grown(data.sizes), lr=3e-3)
    train_epoch(EmbeddingMLP(SMALL), optimizer, data, batch_size=256, rng=torch_rng(9), cold_rate=0.1)
    assert unchanged(snapshot([params, optimizer.state]), [got.params, got.adam])
    assert got.periods == 3
    assert got.adam.step == state.adam.step + math.ceil(300 / 256)


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


def test_the_epochs_of_a_later_period_can_be_chosen() -> None:
    state = PLAIN.state(1)
    steps = iu(epochs=3, batch_size=100).update(state, PLAIN.period(2), rng=torch_rng(0)).adam.step
    assert steps == state.adam.step + 3 * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0}, "^training: expected positive lr, batch_size, epochs, first_epochs"),
        ({"epochs": 0}, "^training: expected positive"),
        ({"first_epochs": -1}, "^training: expected positive"),
        ({"holdout": 1.0}, r"^holdout: expected a number in \[0, 1\); received 1.0"),
        ({"cold_rate": -0.1}, r"^cold_rate: expected a number in \[0, 1\); received -0.1"),
    ],
)
def test_training_of_no_meaning_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**values)


@pytest.mark.parametrize("training", [TrainingConfig(lr=1e38, cold_rate=0), TrainingConfig(lr=1e38)])
@pytest.mark.parametrize("t", [1, 3])
def test_a_step_size_beyond_reason_diverges_and_leaves_the_state(training: TrainingConfig, t: int) -> None:
    for updater, state in (
        (IncrementalUpdate(SMALL, training), PLAIN.state(t - 1)),
        (AsmgGru(SMALL, None, training), GRU.state(t - 1)),
    ):
        before = snapshot(state)
        with pytest.raises((DivergedError, ValueError)):
            updater.update(state, PLAIN.period(t), rng=torch_rng(0))  # type: ignore[arg-type]
        assert unchanged(before, state)


@pytest.mark.parametrize("categories", [0, 5])
def test_the_data_of_a_period_survive_storage(categories: int) -> None:
    data = random_period(3, 20, categories=categories)
    got = load_data(Checkpoint.from_bytes(dump_data(data).to_bytes(), "period-data"))
    for field in fields(PeriodData):
        before, after = getattr(data, field.name), getattr(got, field.name)
        if isinstance(before, Tensor):
            assert before.dtype == after.dtype
            assert torch.equal(before, after)
        else:
            assert before == after


# --- ASMG


GRU = Case("asmg-gru-multi", SMALL)
GRU_CATEGORIES = Case("asmg-gru-multi", SMALL_CATEGORIES)


def asmg(config: EmbeddingMLPConfig = SMALL, **values: Any) -> AsmgGru:
    return AsmgGru(config, AsmgConfig(**values))


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


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_the_window_holds_the_last_models_and_the_periods_between_them(window: int) -> None:
    updater = asmg(window=window)
    state = updater.initial(torch_rng(0))
    chain: list[Params] = []
    periods: list[PeriodData] = []
    for t in range(1, 7):
        data = GRU.period(t, 40)
        state = updater.update(state, data, rng=torch_rng(t))
        chain.append(state.base.params)
        periods.append(data)
        assert [id(m) for m in state.models] == [id(m) for m in chain[-window:]]
        assert [id(d) for d in state.data] == [id(d) for d in periods[-(window - 1) :] if window > 1]


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
    updater = GRU.build()
    assert isinstance(updater, AsmgGru)
    for t in (1, 2, 3):  # the state that the update of period 4 starts from
        assert not any(h.any() for h in GRU.state(t).hidden.values())
    for t in (4, 5, 6):
        before, after = GRU.state(t - 1), GRU.state(t)
        expected = updater.generator.advance(after.weights, before.models[0], before.hidden)
        assert unchanged(snapshot(expected), after.hidden)
        assert any(h.any() for h in after.hidden.values())


def test_without_carrying_the_hidden_state_stays_zero() -> None:
    case = Case("asmg-gru-zero", SMALL)
    assert not any(h.any() for h in case.state(5).hidden.values())


def test_the_generator_serves_from_the_whole_window() -> None:
    updater, state = GRU.build(), GRU.state(5)
    assert isinstance(updater, AsmgGru)
    expected = updater.generator.generate(state.weights, state.models, state.hidden)
    assert unchanged(snapshot(expected), state.generated)


def reference_generator_training(
    updater: AsmgGru, state: AsmgState, data: PeriodData, lambdas: list[float], seed: int
) -> tuple[list[Params], dict[str, DenseAdam]]:
    """ω's training in float64 over whole tables that every model knows: the iterates, and the optimizers after them."""
    model, generator = updater.model, GRUGenerator(updater.config.generator, updater.model)
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
    optimizers = {n: DenseAdam(w.double().numpy(), updater.config.lr) for n, w in state.weights.items()}
    for name, optimizer in optimizers.items():
        optimizer.t = state.adam.step
        optimizer.m, optimizer.v = (m[name].double().numpy() for m in (state.adam.first, state.adam.second))
    steps = math.ceil(len(data) / updater.config.batch_size)
    rng = torch_rng(seed)
    orders = [torch.randperm(len(d), generator=rng).tensor_split(steps) for d in targets]
    iterates = []
    for n in range(steps):
        weights = {name: torch.tensor(o.value).requires_grad_() for name, o in optimizers.items()}
        loss = torch.zeros((), dtype=torch.float64)
        outputs = {
            g: generator.run(weights, g, generator.inputs(models, g, None), hidden[g])[0] for g in generator.groups
        }
        for j, weight in enumerate(lambdas):
            params = {g: outputs[g][j] for g in outputs if g != DENSE} | generator.dense(outputs[DENSE][j])
            batch = targets[j].batch(orders[j][n])
            logits = model.logits(params, batch, features)
            loss = loss + weight * functional.binary_cross_entropy_with_logits(logits, batch.label.double())
        loss.backward()
        for name, optimizer in optimizers.items():
            gradient = weights[name].grad
            assert gradient is not None
            optimizer.step(gradient.numpy())
        iterates.append({name: torch.tensor(o.value) for name, o in optimizers.items()})
    return iterates, optimizers


LAMBDAS = {"linear": [[1.0], [1 / 3, 2 / 3], [1 / 6, 2 / 6, 3 / 6], [1 / 6, 2 / 6, 3 / 6]],
           "uniform": [[1.0], [1 / 2] * 2, [1 / 3] * 3, [1 / 3] * 3],
           "last": [[1.0], [0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]}  # fmt: skip


@pytest.mark.parametrize("average", [False, True], ids=["last", "average"])
@pytest.mark.parametrize("kind", LAMBDAS)
@pytest.mark.parametrize("t", [2, 3, 4, 5])
@pytest.mark.parametrize("case", [GRU, GRU_CATEGORIES], ids=["plain", "categories"])
def test_the_generator_is_trained_on_all_targets_of_the_window(case: Case, t: int, kind: str, average: bool) -> None:
    """Against dense Adam in float64 over whole tables: output j is scored on the period after model j, weight λ_j."""
    updater = asmg(case.config, loss_weights=kind, average=average, batch_size=100, epochs=1, min_steps=0)
    # From weights of a trained size, so that every gradient is a plain one.
    rng = torch_rng(t)
    state = case.state(t - 1)
    state = replace(state, weights={n: w + 0.3 * torch.randn(w.shape, generator=rng) for n, w in state.weights.items()})
    data = case.period(t)
    got = updater.run_stage("train_generator", state, data, rng=torch_rng(7))
    iterates, optimizers = reference_generator_training(updater, state, data, LAMBDAS[kind][t - 2], 7)
    assert len(iterates) == 3
    assert got.adam.step == state.adam.step + 3
    for name, weight in got.weights.items():
        expected = torch.stack([i[name] for i in iterates]).mean(0) if average else iterates[-1][name]
        # Adam moves by about lr = 0.01 a step whatever the gradient's size, so a tiny one is all noise in float32.
        error = (weight - expected).abs()
        assert float(error.max()) < 2e-3, name
        assert float(error.quantile(0.95)) < 2e-5, name
        # That it moved is what is to be explained. At t = 2 there is one model and no hidden state to multiply with.
        still = t == 2 and name.endswith((".gates", ".candidate"))
        assert (float((weight - state.weights[name]).abs().mean()) > 1e-4) is not still, name
        np.testing.assert_allclose(got.adam.first[name], optimizers[name].m, rtol=1e-2, atol=1e-6)


def test_the_first_period_trains_no_generator() -> None:
    updater, state = GRU.build(), GRU.state(0)
    after = updater.run_stage("train_generator", state, GRU.period(1), rng=torch_rng(0))
    assert unchanged(snapshot(state.weights), after.weights)
    assert after.adam.step == 0
    assert after.evidence == (0.0,) * 5


def test_nothing_is_trusted_without_evidence() -> None:
    updater = GRU.build()
    assert isinstance(updater, AsmgGru)
    for t in (0, 1):
        assert updater.trust(GRU.state(t)) == 0
    served = updater.serving_models(GRU.state(1))
    assert unchanged(snapshot(served["incremental"]), served["generated"])


def test_trust_is_the_fraction_with_the_least_loss_and_the_smallest_of_equals() -> None:
    updater, state = GRU.build(), GRU.state(1)
    assert isinstance(updater, AsmgGru)
    for evidence, expected in (
        ((3.0, 2.0, 1.0, 2.0, 3.0), 0.5),
        ((3.0, 2.0, 2.0, 2.0, 1.5), 1.0),
        ((2.0, 1.0, 1.0, 1.0, 2.0), 0.25),
        ((1.0, 1.0, 1.0, 1.0, 1.0), 0.0),
    ):
        assert updater.trust(replace(state, evidence=evidence)) == expected
    assert asmg(blends=(1.0,)).trust(replace(state, evidence=(0.0,))) == 1


def test_a_blend_lies_between_the_incremental_and_the_generated_model() -> None:
    updater, state = GRU.build(), GRU.state(4)
    assert isinstance(updater, AsmgGru)
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
def test_evidence_is_the_decayed_sum_of_losses_from_before_training(decay: float) -> None:
    updater = asmg(blends=(0.0, 0.5, 2.0), evidence_decay=decay)
    state = updater.initial(torch_rng(0))
    expected = np.zeros(3)
    for t in (1, 2, 3, 4):
        data = GRU.period(t, 60)
        if t > 1:
            losses = []
            for fraction in (0.0, 0.5, 2.0):
                mixed = {n: p + fraction * (state.generated[n] - p) for n, p in state.base.params.items()}  # type: ignore[index]
                logits = np.array([slow_logit(SMALL, mixed, data, n) for n in range(60)])
                losses.append(np.mean(np.logaddexp(0, logits) - data.label.numpy() * logits))
            expected = decay * expected + losses
        state = updater.update(state, data, rng=torch_rng(t))
        np.testing.assert_allclose(state.evidence, expected, rtol=1e-5)
    served = updater.serving_models(state)["generated"]
    fraction = (0.0, 0.5, 2.0)[int(np.argmin(expected))]
    for name, p in state.base.params.items():
        assert state.generated is not None
        torch.testing.assert_close(served[name], p + fraction * (state.generated[name] - p))


def test_a_single_blend_needs_no_evidence() -> None:
    updater = asmg(blends=(1.0,))
    state = updater.initial(torch_rng(0))
    for t in (1, 2, 3):
        state = updater.update(state, GRU.period(t, 40), rng=torch_rng(t))
    assert state.evidence == (0.0,)
    assert unchanged(snapshot(state.generated), updater.serving_models(state)["generated"])


def test_a_generator_step_beyond_reason_diverges_and_leaves_the_state() -> None:
    updater = asmg(lr=1e30, batch_size=20)
    state = GRU.state(4)
    before = snapshot(state)
    with pytest.raises((DivergedError, ValueError)):
        updater.update(state, GRU.period(5), rng=torch_rng(0))
    assert unchanged(before, state)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 0}, "^asmg: expected positive window, lr, batch_size, epochs"),
        ({"lr": 0.0}, "^asmg: expected positive window"),
        ({"batch_size": 0}, "^asmg: expected positive window"),
        ({"epochs": 0}, "^asmg: expected positive window"),
        ({"loss_weights": "exp"}, "^loss_weights: expected linear, uniform or last; received 'exp'"),
        ({"blends": ()}, "^blends: expected distinct fractions ≥ 0, ascending"),
        ({"blends": (0.5, 0.0)}, "^blends: expected distinct fractions"),
        ({"blends": (0.5, 0.5)}, "^blends: expected distinct fractions"),
        ({"blends": (-0.5, 0.5)}, "^blends: expected distinct fractions"),
        ({"evidence_decay": 1.1}, r"^evidence_decay: expected a number in \[0, 1\]; received 1.1"),
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


@pytest.mark.parametrize(
    ("events", "passes"),
    [(1, 4), (256, 4), (256 * 75, 4), (256 * 76, 4), (256 * 100, 3), (256 * 150, 2), (256 * 10_000, 2)],
)
def test_a_small_period_is_passed_over_more_often(events: int, passes: int) -> None:
    """Until it has had 300 steps of 256 interactions, at least 2 and at most 4 times."""
    assert AsmgGru(SMALL).epochs(events) == passes
