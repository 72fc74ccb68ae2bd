"""Progressive validation: each period is scored by what was there before it, then learned."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from asmg.batch import PeriodData
from asmg.models import Params
from asmg.progressive import progressive_validation, stage_rng
from asmg.training import evaluate
from asmg.updaters import build_updater
from tests.asmg.support import SMALL, random_params, random_period, slow_logit, tensors_in

pytestmark = pytest.mark.compiles


def stream(count: int, *, seed: int = 0) -> list[PeriodData]:
    """Periods whose tables grow."""
    return [random_period(seed + t, 50, users=5 + t, items=8 + t) for t in range(count)]


@dataclass
class Spy:
    """An updater whose model after t periods is the t-th of a list; it writes down what it is asked."""

    models: list[Params]
    notes: list[Any]
    stages = ("first", "second")
    base = build_updater("iu", SMALL).base
    model = base.model

    def initial(self, rng: torch.Generator) -> int:
        self.notes.append(("initial", rng.initial_seed()))
        return 0

    def serving_models(self, state: int) -> dict[str, Params]:
        self.notes.append(("score", state))
        return {"incremental": self.models[state]} if state else {}

    def run_stage(self, stage: str, state: int, data: PeriodData, *, rng: torch.Generator) -> int:
        self.notes.append((stage, state, id(data), rng.initial_seed()))
        return state + (stage == "second")


def test_every_period_is_scored_before_it_is_learned_and_stages_run_in_order() -> None:
    periods = stream(3)
    models = [random_params(SMALL, t, user=4, item=5) for t in range(4)]
    spy = Spy(models, [])
    reports = list(progressive_validation(spy, periods, seed=7))  # type: ignore[arg-type]

    def seed(number: int, stage: str) -> int:
        return stage_rng(7, number, stage).initial_seed()

    expected: list[Any] = [("initial", seed(0, "initial"))]
    for t, data in enumerate(periods):
        expected.append(("score", t))
        expected += [(stage, t, id(data), seed(t + 1, stage)) for stage in ("first", "second")]
    assert spy.notes == expected
    assert [report.period for report, _ in reports] == [1, 2, 3]
    assert [state for _, state in reports] == [1, 2, 3]
    assert reports[0][0].scores == {}
    for (report, state), data in zip(reports[1:], periods[1:], strict=True):
        logits = np.array([slow_logit(SMALL, models[state - 1], data, n) for n in range(len(data))])
        loss = np.mean(np.logaddexp(0, logits) - data.label.numpy() * logits)
        assert report.scores["incremental"].logloss == pytest.approx(float(loss), rel=1e-5)


def test_it_learns_no_further_than_it_is_read() -> None:
    drawn = []

    def periods() -> Iterator[PeriodData]:
        for t, data in enumerate(stream(3)):
            drawn.append(t)
            yield data

    reports = progressive_validation(build_updater("iu", SMALL), periods())
    assert drawn == []
    next(reports)
    assert drawn == [0]
    next(reports)
    assert drawn == [0, 1]


def test_an_altered_future_changes_nothing_before_it() -> None:
    updater = build_updater("asmg-gru-multi", SMALL)
    periods = stream(4)
    last = periods[-1]
    altered = [*periods[:3], replace(last, label=1 - last.label), random_period(99, 20, users=8, items=11)]
    seen, other = (list(progressive_validation(updater, p, seed=3)) for p in (periods, altered))
    for (report, state), (other_report, other_state) in zip(seen[:3], other[:3], strict=True):
        assert report == other_report
        assert all(torch.equal(a, b) for a, b in zip(tensors_in(state), tensors_in(other_state), strict=True))
    # What the altered period is scored with is the same too; only its labels and what is learned from it differ.
    assert seen[3][0].scores["generated"].calibration != other[3][0].scores["generated"].calibration
    for name, params in updater.serving_models(seen[2][1]).items():
        assert seen[3][0].scores[name] == evaluate(updater.model, params, last)
        assert other[3][0].scores[name] == evaluate(updater.model, params, altered[3])


def test_the_same_seed_gives_the_same_reports_and_another_seed_others() -> None:
    updater, periods = build_updater("iu", SMALL), stream(3)
    runs = [[report for report, _ in progressive_validation(updater, periods, seed=seed)] for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_stage_has_its_own_randomness_wherever_it_runs() -> None:
    def draws(*place: Any) -> list[float]:
        return torch.rand(4, generator=stage_rng(*place)).tolist()

    state = torch.random.get_rng_state()
    places = [(s, p, stage) for s in (0, 1, 2**31) for p in (0, 1, 2, 11) for stage in ("a", "b", "initial", "1:a")]
    seen = {tuple(draws(*place)) for place in places}
    assert len(seen) == len(places)
    assert draws(5, 3, "a") == draws(5, 3, "a")
    assert torch.equal(state, torch.random.get_rng_state())
