"""The gate's decision, from scores made by hand."""

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest

from asmg.metrics import Scores
from service.storage.repositories import ModelKind
from service.use_cases.gate import decide


def scores(logloss: float = 0.5, *, calibration: float | None = 1.0, clicks: int = 500) -> Scores:
    return Scores(events=1_000, clicks=clicks, auc=0.7, logloss=logloss, calibration=calibration)


SANE = {"generated": scores(), "incremental": scores()}


def passed(checks: Mapping[str, Any]) -> dict[str, bool | None]:
    return {name: check.get("passed") for name, check in checks.items()}


def test_with_nothing_against_it_the_generated_model_serves() -> None:
    decision = decide({"generated": scores(0.50), "incremental": scores(0.51), "previous": scores(0.52)}, SANE)
    assert decision.kind is ModelKind.GENERATED
    assert decision.reason == "generated passed every check"
    # The rungs below were not looked at.
    assert passed(decision.checks) == {"generated": True, "incremental": None}


def test_before_any_score_the_generated_model_serves() -> None:
    assert decide({}, SANE).kind is ModelKind.GENERATED
    assert decide({"baseline": scores(0.1)}, SANE).kind is ModelKind.GENERATED


def test_a_method_that_does_not_generate_starts_one_rung_lower() -> None:
    decision = decide({"incremental": scores(0.5), "previous": scores(0.5)}, {"incremental": scores()})
    assert (decision.kind, decision.reason) == (ModelKind.INCREMENTAL, "incremental passed every check")


def test_without_a_new_model_the_old_one_stays() -> None:
    decision = decide({"previous": scores()}, {})
    assert (decision.kind, decision.reason) == (ModelKind.PREVIOUS, "the model served before stays")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_that_is_not_finite_falls(bad: float) -> None:
    one = decide({}, {"generated": scores(bad), "incremental": scores()})
    assert one.kind is ModelKind.INCREMENTAL
    assert one.reason == f"generated: LogLoss on recent traffic is {bad}; incremental passed every check"
    assert passed(one.checks) == {"generated": False, "incremental": True}

    both = decide({}, {"generated": scores(bad), "incremental": scores(bad)})
    assert both.kind is ModelKind.PREVIOUS
    assert both.reason.count(f"LogLoss on recent traffic is {bad}") == 2
    assert both.reason.endswith("; the model served before stays")


@pytest.mark.parametrize(("ratio", "sane"), [(0.49, False), (0.5, True), (1.0, True), (2.0, True), (2.01, False)])
def test_calibration_has_a_range(ratio: float, sane: bool) -> None:
    decision = decide({}, {"generated": scores(calibration=ratio), "incremental": scores()})
    assert decision.kind is (ModelKind.GENERATED if sane else ModelKind.INCREMENTAL)
    if not sane:
        assert f"generated: predicts {ratio:.2f} times the clicks of recent traffic" in decision.reason


@pytest.mark.parametrize(("clicks", "trusted"), [(0, False), (19, False), (20, True)])
def test_few_clicks_say_nothing_about_calibration(clicks: int, trusted: bool) -> None:
    ratio = 9.0 if clicks else None
    decision = decide({}, {"generated": scores(calibration=ratio, clicks=clicks), "incremental": scores()})
    assert decision.kind is (ModelKind.INCREMENTAL if trusted else ModelKind.GENERATED)


# By hand: 1 % of 0.5 is 0.005, 5 % is 0.025.
@pytest.mark.parametrize(
    ("generated", "incremental", "previous", "kind"),
    [
        (0.5049, 0.5, 0.1, ModelKind.GENERATED),  # only the next rung counts, the one after it does not
        (0.5051, 0.5, 0.5, ModelKind.INCREMENTAL),
        (0.5051, 0.5, 0.4763, ModelKind.INCREMENTAL),  # 0.4763 · 1.05 = 0.500115
        (0.5051, 0.5, 0.4761, ModelKind.PREVIOUS),  # 0.4761 · 1.05 = 0.499905
        (0.3, 0.5, 0.1, ModelKind.GENERATED),
    ],
)
def test_a_rung_may_do_a_little_worse_than_the_next(
    generated: float, incremental: float, previous: float, kind: ModelKind
) -> None:
    progressive = {
        "generated": scores(generated),
        "incremental": scores(incremental),
        "previous": scores(previous),
        "baseline": scores(0.01),
    }
    decision = decide(progressive, SANE)
    assert decision.kind is kind
    if kind is not ModelKind.GENERATED:
        assert "generated: LogLoss 0.5051 on the closed period, incremental had 0.5000" in decision.reason
    if kind is ModelKind.PREVIOUS:
        assert "incremental: LogLoss 0.5000 on the closed period, previous had 0.4761" in decision.reason


def test_exactly_the_tolerance_passes() -> None:
    limit = 0.5 * 1.01
    assert decide({"generated": scores(limit), "incremental": scores(0.5)}, SANE).kind is ModelKind.GENERATED
    above = math.nextafter(limit, 1)
    assert decide({"generated": scores(above), "incremental": scores(0.5)}, SANE).kind is ModelKind.INCREMENTAL


def test_a_score_without_its_counterpart_beats_nobody() -> None:
    assert decide({"generated": scores(9.0)}, SANE).kind is ModelKind.GENERATED
    assert decide({"incremental": scores(0.1)}, SANE).kind is ModelKind.GENERATED
    only = {"incremental": scores()}
    assert decide({"incremental": scores(9.0)}, only).kind is ModelKind.INCREMENTAL


def test_the_sane_model_of_a_bad_predecessor_does_not_serve() -> None:
    """Each rung has to pass both: what it is now, and what its predecessor did."""
    progressive = {"generated": scores(0.5), "incremental": scores(0.6), "previous": scores(0.5)}
    decision = decide(progressive, {"generated": scores(calibration=3.0), "incremental": scores()})
    assert decision.kind is ModelKind.PREVIOUS
    assert "generated: predicts 3.00 times" in decision.reason
    assert "incremental: LogLoss 0.6000" in decision.reason


def test_the_decision_is_kept_as_json() -> None:
    decision = decide({}, {"generated": scores(calibration=None, clicks=0), "incremental": scores(0.4)})
    document = json.loads(json.dumps(decision.to_json()))
    assert document["decision"] == "generated"
    assert document["reason"] == decision.reason
    assert document["checks"]["generated"] == {
        "recent": {"events": 1_000, "clicks": 0, "auc": 0.7, "logloss": 0.5, "calibration": None},
        "passed": True,
    }
