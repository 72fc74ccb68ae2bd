"""The contract of every update method (`updater:check`), whatever its stages, its state and its base model are.

(What of it is about stored states is in test_contract_storage.)
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from asmg import kernels
from asmg.batch import PeriodData
from asmg.checkpoint import CheckpointError
from asmg.progressive import progressive_validation
from asmg.training import DivergedError, Execution, predict_logits
from asmg.updaters import UPDATERS, build_updater
from tests.asmg.cases import (
    SMALL_CATEGORIES,
    Case,
    Contract,
    Parts,
    check_served,
    from_bytes,
    mapped,
    stages_of,
    to_bytes,
)
from tests.asmg.support import Footprint, padded, random_period, slow_logit, snapshot, torch_rng, unchanged

contract = Contract()
check, check_reference_too = contract.check, contract.check_reference_too


# --- functions of (state, data, rng)


@check_reference_too
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


@check_reference_too
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
    before, of_numpy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    case.build().update(case.state(2), case.period(3), rng=torch_rng(0))
    assert torch.equal(before, torch.random.get_rng_state())
    assert (of_numpy == np.random.get_state()[1]).all()  # type: ignore[index]


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
    futures["in another order"] = last.select(torch.randperm(60, generator=torch_rng(1)))
    seen = []
    for future in futures.values():
        steps = list(progressive_validation(updater, [*periods[:2], future], seed=1))
        seen.append([(report, to_bytes(updater, state)) for report, state in steps])
    for other in seen[1:]:
        assert other[:2] == seen[0][:2]
    assert all(other[2] != seen[0][2] for other in seen[1:])


@check
def rows_that_nobody_touches_change_nothing_and_cost_nothing_but_in_the_last_stage(case: Case) -> None:
    """With a catalogue larger by 60,000 rows of each table: the same weights to the bit, and before the last stage no
    array as large as a table but an int32 look-up for each, and one to spare. (With statistics the last two stages.)"""
    updater, more, largest = case.build(), 60_000, 0
    state = other = case.state(1)
    # A row begins where the cold row is when the table grows: here in period 2 and not again.
    sizes = {"users": 14, "items": 25} | ({"categories": 11} if case.config.categories else {})
    for t in (2, 3, 4, 5):
        data = case.period(t, **sizes)
        large = padded(data, more)
        rng, other_rng = torch_rng(t), torch_rng(t)
        for stage in updater.stages:
            state = updater.run_stage(stage, state, data, rng=rng)
            with Footprint() if t == 5 else nullcontext() as footprint:
                other = updater.run_stage(stage, other, large, rng=other_rng)
            if footprint is None:
                continue
            if stage not in updater.stages[-2 if case.statistics else -1 :]:
                assert footprint.elements < more // 2, stage
                assert footprint.numpy_bytes < (len(updater.model.tables) + 1) * 4 * more + 400_000, stage
            largest = max(largest, footprint.elements)
        served = updater.serving_models(other)
        for name, params in updater.serving_models(state).items():
            for part, tensor in params.items():
                assert len(served[name][part]) == len(tensor) + (more if part in updater.model.tables else 0)
                assert torch.equal(served[name][part][: len(tensor)], tensor), (t, name, part)
    assert largest > more  # in the last stage


@check_reference_too
def a_rehearsal_is_what_the_base_model_makes_of_a_part(case: Case) -> None:
    """To the bit; and it leaves everything as it is, the very first period too."""
    updater = case.build()
    for t in (1, 3):
        state, data = case.state(t - 1), case.period(t)
        older, newest = (updater.prepare(state, data.slice(*part)) for part in ((0, 270), (270, 300)))
        before = snapshot([state, data])
        found = updater.rehearse(state, older, newest, rng=torch_rng(t))
        assert unchanged(before, [state, data])
        base = updater.base.committed(updater.base.train(updater.base_of(state), older, torch_rng(t)))
        assert torch.equal(found["incremental"], predict_logits(updater.model, base.params, newest))
        assert set(found) <= set(updater.serving_models(updater.update(state, data, rng=torch_rng(t))))


@check
def a_rehearsal_touches_no_table(case: Case) -> None:
    """No array as large as a table with 60,000 more rows, but an int32 look-up for each."""
    updater, more = case.build(), 60_000
    small = case.period(4, users=14, items=25, **({"categories": 11} if case.config.categories else {}))
    data = padded(small, more)
    state = updater.update(case.state(2), padded(case.period(3), more), rng=torch_rng(3))
    with Footprint() as footprint:
        updater.rehearse(state, data.slice(0, 270), data.slice(270, 300), rng=torch_rng(4))
    assert footprint.elements < more // 4
    assert footprint.numpy_bytes < 3 * (len(updater.model.tables) + 1) * 4 * more


@check
def new_rows_cost_no_copy_of_the_tables(case: Case) -> None:
    """The last stage writes each table once, with or without new rows: ten more cost less than one more copy would."""
    updater, more, state = case.build(), 10_000, case.state(1)
    sizes = {"users": 14, "items": 25} | ({"categories": 11} if case.config.categories else {})
    for t in (2, 3):
        state = updater.update(state, padded(case.period(t, 60, **sizes), more), rng=torch_rng(t))
    written = []
    for new in (0, 10):
        after, data = state, padded(case.period(4, 60, **sizes), more + new)
        for stage in updater.stages:
            with Footprint() if stage == updater.stages[-1] else nullcontext() as footprint:
                after = updater.run_stage(stage, after, data, rng=torch_rng(0))
        assert footprint is not None
        written.append(footprint.all_elements)
        check_served(updater, after, data)
    assert written[0] > more
    assert 0 < written[1] - written[0] < more


# --- what a period may look like


@check
def ids_never_seen_read_the_cold_rows_and_get_rows_of_their_own(case: Case) -> None:
    updater, state = case.build(), case.state(3)
    # Nobody and nothing in this period was there before; the catalogue is larger, its categories are new too.
    items = 60
    more: dict[str, Any] = {"categories": 2 + items // 3} if case.config.categories else {}
    more["fields"] = case.config.fields
    numeric = 0 if case.statistics else updater.model.numeric
    data = random_period(0, 80, users=40, items=items, numeric=numeric, **more)
    data = replace(data, user=data.user % 20 + 20, item=data.item % 20 + 40, history=data.history % 20 + 40)
    data = updater.prepare(state, data)
    for params in updater.serving_models(state).values():
        got = predict_logits(updater.model, params, data)
        expected = [slow_logit(updater.model.config, params, data, n, cold=("user", "item")) for n in range(80)]
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
    data = case.period(4).slice(0, 3)
    check_served(updater, updater.update(case.state(3), data, rng=torch_rng(0)), data)


@check
def categories_of_the_log_are_of_no_account_without_a_table_for_them(case: Case) -> None:
    case = replace(case, config=replace(case.config, categories=False))
    updater = case.build()
    state = other = updater.initial(torch_rng(3))
    for t in (1, 2, 3):
        data = case.period(t, 60)
        with_categories = replace(case, config=replace(case.config, categories=True)).period(t, 60)
        assert with_categories.categories
        assert unchanged(snapshot([data.history, data.label]), [with_categories.history, with_categories.label])
        state = updater.update(state, data, rng=torch_rng(t))
        other = updater.update(other, with_categories, rng=torch_rng(t))
        for name, params in updater.serving_models(state).items():
            assert unchanged(snapshot(params), updater.serving_models(other)[name])


@check
def training_that_diverges_raises_and_leaves_the_state(case: Case) -> None:
    updater, data = case.build(), case.period(4)
    dense = list(updater.model.dense_shapes)
    first, middle, last = (dense[0], dense[2], dense[-1]) if dense else ("item", "user", "user")

    def poison(value: float, *names: str) -> Any:
        return mapped(
            case.state(3), lambda n, t: torch.full_like(t, value) if n in names and t.is_floating_point() else t
        )

    for state in (poison(math.nan, first), poison(math.inf, last), poison(3e38, middle, "item")):
        before = snapshot([state, data])
        with pytest.raises(DivergedError):
            updater.update(state, data, rng=torch_rng(0))
        after = snapshot([state, data])
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after, strict=True))


# --- stages, progress, serving


@check
def an_unknown_stage_is_refused(case: Case) -> None:
    updater = case.build()
    for stage in ("", "publish", updater.stages[0].upper()):
        with pytest.raises(ValueError, match=f"^stage: expected one of .*; received {stage!r}"):
            updater.run_stage(stage, case.state(2), case.period(3), rng=torch_rng(0))


@check_reference_too
def progress_rises_within_zero_and_one(case: Case) -> None:
    updater = case.build()
    for t in (1, 2, 4):
        told: list[float] = []
        updater.update(case.state(t - 1), case.period(t), rng=torch_rng(0), progress=told.append)
        assert told
        assert told == sorted(told)
        assert 0 <= told[0] <= told[-1] <= 1


@check_reference_too
def nothing_is_served_before_the_first_period(case: Case) -> None:
    updater = case.build()
    assert updater.serving_models(case.state(0)) == {}
    for t in (1, 2, 4):
        names = list(updater.serving_models(case.state(t)))
        assert names in (["incremental"], ["generated", "incremental"])
        check_served(updater, case.state(t), case.period(t))


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
    last = updater.prepare(state, easy(4))
    for params in updater.serving_models(state).values():
        score = predict_logits(updater.model, params, last)
        right = score[last.label == 1][:, None] > score[last.label == 0][None, :]
        assert float(right.float().mean()) > 0.8


@check
def the_models_of_this_suite_tell_interactions_apart(case: Case) -> None:
    """Guards the other checks: a model that says the same of everything would pass many of them."""
    updater = case.build()
    for t in (1, 3, 5):
        data = updater.prepare(case.state(t), case.period(t))
        for params in updater.serving_models(case.state(t)).values():
            assert float(predict_logits(updater.model, params, data).std()) > 0.02


# --- other beginnings


@check_reference_too
def a_pretrained_state_serves_and_goes_on(case: Case) -> None:
    """… to the same bits from its dump; labels of the validation period choose a pass and nothing else."""
    updater = case.build()
    sizes = {n: getattr(case.period(3), n) for n in ("users", "items", "categories", "item_categories")}
    periods, validation = [replace(case.period(t, 150), **sizes) for t in (1, 2)], case.period(3, 80)
    before = snapshot([periods, validation])
    state = restored = updater.pretrained(periods, validation, rng=torch_rng(7))
    assert to_bytes(updater, updater.pretrained(periods, validation, rng=torch_rng(7))) == to_bytes(updater, state)
    assert unchanged(before, [periods, validation])
    check_served(updater, state, validation)
    for data in (validation, case.period(4, 60), case.period(5, 60), case.period(6, 60)):
        restored = from_bytes(updater, to_bytes(updater, restored))
        state = updater.update(state, data, rng=torch_rng(1))
        restored = updater.update(restored, data, rng=torch_rng(1))
        check_served(updater, state, data)
        assert to_bytes(updater, state) == to_bytes(updater, restored)


@check
def the_base_model_of_another_method_is_adopted(case: Case) -> None:
    updater, donor = case.build(), Case("iu", case.config, statistics=case.statistics)
    parts = donor.build().dump(donor.state(3))
    if updater.model.config != case.config:
        with pytest.raises(CheckpointError):
            updater.adopted(parts, rng=torch_rng(0))
        donor = case  # a method may adopt from itself
        parts = updater.dump(case.state(3))
    state = updater.adopted(parts, rng=torch_rng(0))
    served = updater.serving_models(state)
    assert unchanged(snapshot(donor.build().serving_models(donor.state(3))["incremental"]), served["incremental"])
    for t in (4, 5, 6, 7):
        state = updater.update(state, case.period(t), rng=torch_rng(t))
        check_served(updater, state, case.period(t))
    beginning = updater.adopted(updater.dump(case.state(0)), rng=torch_rng(0))
    assert updater.serving_models(beginning) == {}
    check_served(updater, updater.update(beginning, case.period(1), rng=torch_rng(0)), case.period(1))
    unfinished = case.build().dump(stages_of(case, 4)[-3 if case.statistics else -2])
    for bad in ({}, {"base": parts["base"]}, {"optimizer": parts["optimizer"]}, unfinished):
        with pytest.raises(CheckpointError):
            updater.adopted(bad, rng=torch_rng(0))


@pytest.mark.parametrize("name", UPDATERS)
def test_without_machine_code_no_kernel_computes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the first period nor in pretraining, a rehearsal or validation; only the planning of an epoch is."""

    def refused(*_: object) -> None:
        raise AssertionError("a kernel was asked")

    for kernel in set(kernels.__all__) - {"Plan", "plan_epoch", "renumber", "sigmoid", "tanh"}:
        monkeypatch.setattr(kernels, kernel, refused)
    case = Case(name, replace(SMALL_CATEGORIES, numeric=2, dot=True))
    updater = build_updater(name, case.config, execution=Execution(device="cpu", compiled=False))
    sizes = {n: getattr(case.period(4), n) for n in ("users", "items", "categories", "item_categories")}
    periods = [replace(case.period(t, 40), **sizes) for t in (1, 2, 3, 4)]
    *_, (report, state) = progressive_validation(updater, periods)
    assert set(report.scores) == set(updater.serving_models(state))
    updater.rehearse(state, periods[0], periods[1], rng=torch_rng(0))
    updater.update(updater.pretrained(periods[:2], periods[2], rng=torch_rng(0)), periods[3], rng=torch_rng(0))


@pytest.mark.parametrize(("case", "function"), contract.params())
def test_contract(case: Case, function: Callable[[Case], None]) -> None:
    function(case)
