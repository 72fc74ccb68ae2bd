"""Periods that change only the rows that their training reads: `AsmgConfig.untouched`, `TrainingConfig.restless`."""

from dataclasses import replace
from typing import Literal

import pytest
import torch

from asmg.adam import Adam
from asmg.base_training import BaseTraining
from asmg.batch import COLD_ROW, PeriodData
from asmg.models import EmbeddingMLPConfig
from asmg.training import Execution, TrainingConfig, predict_logits
from asmg.updaters.asmg import Asmg, AsmgState
from asmg.updaters.asmg_config import AsmgConfig
from tests.asmg.cases import SMALL, SMALL_CATEGORIES, Case, to_bytes
from tests.asmg.support import torch_rng, unrounded
from tests.asmg.test_asmg import evidence

CASE = Case("asmg-gru-multi", SMALL_CATEGORIES)
Untouched = Literal["generate", "keep", "plain"]

each_choice = pytest.mark.parametrize("untouched", ["keep", "plain"])


def asmg(untouched: Untouched, *, carry_hidden: bool = True, model: EmbeddingMLPConfig = SMALL_CATEGORIES) -> Asmg:
    config = AsmgConfig(untouched=untouched, window=2, carry_hidden=carry_hidden)
    return unrounded(Asmg(model, config, TrainingConfig(restless=False)))


def quiet(t: int) -> PeriodData:
    """The first period reads every row, each later one a few; the tables grow by more than what is read."""
    return CASE.period(t, 900 if t == 1 else 3)


def learned(updater: Asmg, periods: int) -> AsmgState:
    state = updater.initial(torch_rng(0))
    for t in range(1, periods + 1):
        state = updater.update(state, quiet(t), rng=torch_rng(t))
    return state


@each_choice
@pytest.mark.parametrize("carry_hidden", [True, False])
def test_a_period_generates_the_rows_that_it_read_and_no_others(untouched: Untouched, carry_hidden: bool) -> None:
    """Row by row: one that was read is as in the model generated as a whole, with its hidden state of before; another
    one has its last generated row (or, if it is new, that of the cold row), or none but its own."""
    updater, others = asmg(untouched, carry_hidden=carry_hidden), 0
    before = learned(updater, 1)
    for t in range(2, 8):
        trained = before
        for stage in updater.stages[:-1]:
            trained = updater.run_stage(stage, trained, quiet(t), rng=torch_rng(t))
        after = updater.run_stage("generate", trained, quiet(t), rng=torch_rng(t))
        assert before.generated is not None and after.generated is not None and trained.base.pending is not None
        models = (*before.models, after.base.params)
        leaving = len(models) > 2
        whole, moved = updater.generator.generate(
            trained.weights, models[int(leaving and not carry_hidden) :], before.hidden,
            advance=int(leaving and carry_hidden),
        )  # fmt: skip
        assert after.models == models[int(leaving) :]
        for name, p in after.generated.items():
            if name not in updater.model.tables:
                torch.testing.assert_close(p, whole[name])
                continue
            read = set(trained.base.pending.rows[name].tolist())
            assert COLD_ROW in read
            old, states = before.generated[name], before.hidden[name]
            assert len(p) == len(after.base.params[name]) == quiet(t).sizes[name]
            for row in range(len(p)):
                kept = old[row if row < len(old) else COLD_ROW]
                expected = kept if untouched == "keep" else after.base.params[name][row]
                torch.testing.assert_close(p[row], whole[name][row] if row in read else expected)
                others += row not in read
            assert len(after.hidden[name]) == len(moved[name])
            for row, state in enumerate(after.hidden[name]):
                kept = states[row if row < len(states) else COLD_ROW]
                torch.testing.assert_close(state, moved[name][row] if row in read else kept)
        before = after
    assert others > 60


def test_where_every_row_is_read_all_choices_generate_the_same() -> None:
    """To the bit; and each continues the state of another, whose stored form does not tell them apart."""
    found = []
    for first in ("generate", "keep", "plain"):
        updater = asmg(first, model=SMALL)
        state = updater.initial(torch_rng(0))
        for t in range(1, 5):
            state = updater.update(state, CASE.period(t, 300), rng=torch_rng(t))
        found.append(to_bytes(updater, state))
        dump = updater.dump(state)
        for then in ("generate", "keep", "plain"):
            other = asmg(then, model=SMALL)
            other.update(other.load(dump), quiet(5), rng=torch_rng(5))
    assert found[0] == found[1] == found[2]


@each_choice
def test_a_rehearsal_generates_what_the_older_part_reads(untouched: Untouched) -> None:
    """Rows that only the newest part reads get what the last stage gives to untouched rows."""
    updater = asmg(untouched)
    state = replace(learned(updater, 4), evidence=evidence(0, 1, 2, 3, 2))  # three quarters of the correction
    data = CASE.period(5, 60)
    older, newest = data.slice(0, 3), data.slice(3, 60)
    found = updater.rehearse(state, older, newest, rng=torch_rng(1))
    trained = replace(state, base=updater.base.train(state.base, older, torch_rng(1)))
    expected = updater.serving_models(updater.run_stage("generate", trained, data, rng=torch_rng(2)))["generated"]
    assert torch.equal(
        found["incremental"], predict_logits(updater.model, updater.base.committed(trained.base).params, newest)
    )
    assert torch.allclose(found["generated"], predict_logits(updater.model, expected, newest), atol=1e-6)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_rows_left_where_they_are_make_up_for_it_when_they_are_read_again(compiled: bool) -> None:
    """Training is the same as with all rows that momentum moves: only rows that nobody reads wait for their moves."""
    execution = Execution(device="cpu", compiled=compiled)
    always, when_read = (
        BaseTraining(SMALL_CATEGORIES, TrainingConfig(restless=restless, moment_bits=None), execution)
        for restless in (True, False)
    )
    exact = waiting = always.initial(torch_rng(0))
    behind = 0.0
    for t in range(1, 8):
        data = quiet(t)
        exact, pending = (
            base.train(state, data, torch_rng(t)) for base, state in ((always, exact), (when_read, waiting))
        )
        assert pending.pending is not None
        rows, before = pending.pending.rows, waiting.params
        if t > 1:
            read = {"user": data.user, "item": torch.cat([data.item, data.history])}
            assert {name: set(rows[name].tolist()) for name in read} == {
                name: {COLD_ROW, *ids.tolist()} for name, ids in read.items()
            }
        exact, waiting = always.committed(exact), when_read.committed(pending)
        assert all(not len(at) for at in waiting.adam.restless.values())
        for name, at in rows.items():
            if t > 1:
                kept = torch.ones(len(before[name]), dtype=torch.bool)
                kept[at[at < len(kept)]] = False
                assert torch.equal(waiting.params[name][: len(kept)][kept], before[name][kept])
            behind = max(behind, float((exact.params[name] - waiting.params[name]).abs().max()))
        settled = []
        for state in (exact, waiting):
            params, adam = {n: p.clone() for n, p in state.params.items()}, state.adam.clone()
            Adam(params, adam, lr=always.config.lr).settle()
            settled.append(params)
        for name, p in settled[0].items():
            torch.testing.assert_close(settled[1][name], p, rtol=0, atol=2e-6)
    assert behind > 1e-3  # what is to be made up for
