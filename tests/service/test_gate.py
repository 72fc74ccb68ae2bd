"""The gate's decision, from scores made by hand."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from asmg.metrics import Scores
from service.storage.postgres.repositories import ModelKind
from service.use_cases.update.gate import decide
from service.use_cases.update.trial import Comparison, Trial, compare, try_out


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
    """Each rung has to pass both checks: the present model's, and its predecessor's scores."""
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


# --- what the rows of a period say

USERS = torch.arange(400) % 100
"""100 users with four rows each."""
CLICKS = (torch.arange(400) % 4 == 0).float()
"""A quarter."""


def logits(probability: float, rows: int = 400) -> torch.Tensor:
    return torch.full((rows,), math.log(probability / (1 - probability)))


def knowing(share: float, label: torch.Tensor, *, by: float = 2.0) -> torch.Tensor:
    """Logits of a model that is right about a share of the rows and says the mean for all others."""
    right = torch.arange(len(label)) % 10 < 10 * share
    return torch.where(right, by * (2 * label - 1), logits(float(label.mean()), len(label)))


def one(comparison: dict[str, Any] | None = None, **changes: Any) -> Comparison:
    return Comparison(**{"rows": 100, "logloss": 0.5, "other": 0.5, "error": 0.01, **(comparison or {}), **changes})


class TestComparison:
    def test_by_hand(self) -> None:
        """Two users, two rows each; the models say 0.8 and 0.5. -ln 0.8 = 0.2231, -ln 0.2 = 1.6094, ln 2 = 0.6931."""
        label, user = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([3, 3, 8, 8])
        found = compare(logits(0.8, 4), logits(0.5, 4), label, user)
        assert found.logloss == pytest.approx((3 * 0.22314 + 1.60944) / 4, abs=1e-5)
        assert found.other == pytest.approx(0.693147, abs=1e-5)
        # Rows differ by -0.47, +0.916, -0.47, -0.47; users by 0.6931 each from what their rows have on average.
        few = 2 * (27.75 / 3) ** 2  # n / (n - 1), and Student's quantile (as expanded) over the normal one
        assert found.error == pytest.approx(math.sqrt(2 * 0.693147**2 * few) / 4, rel=1e-4)

    def test_the_error_is_that_of_many_draws(self) -> None:
        """Compared with the spread of the difference over 300 newly drawn logs, whose users' rows are correlated."""
        rng = np.random.default_rng(0)
        differences, errors = [], []
        for _ in range(300):
            mood = rng.normal(size=100).repeat(4)
            label = torch.from_numpy((rng.random(400) < 1 / (1 + np.exp(1 - mood))).astype(np.float32))
            found = compare(torch.from_numpy(0.5 * mood - 1), logits(0.3), label, torch.arange(400) // 4)
            differences.append(found.logloss - found.other)
            errors.append(found.error)
        assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.25)

    def test_rows_of_one_user_prove_nothing(self) -> None:
        found = compare(logits(0.99), logits(0.3), CLICKS, torch.zeros(400))
        assert found.logloss > 2 * found.other
        assert (found.error, found.worse) == (math.inf, False)

    def test_few_users_prove_less_than_many(self) -> None:
        label = (torch.arange(400) < 100).float()  # with four users one has clicked everything
        few = compare(logits(0.6), logits(0.25), label, torch.arange(400) // 100)
        many = compare(logits(0.6), logits(0.25), label, torch.arange(400))
        assert few.logloss - few.other == many.logloss - many.other
        assert (few.worse, many.worse) == (False, True)

    @pytest.mark.parametrize("clicks", [0, 1])
    def test_rows_of_which_none_or_one_was_clicked_are_not_certain_of_anything(self, clicks: int) -> None:
        """1 % is hardly worse than 0.5 %, although every row without a click says so."""
        label = torch.zeros(400)
        label[:clicks] = 1
        found = compare(logits(0.01), logits(0.005), label, torch.arange(400))
        assert not found.worse
        assert not found.better

    @pytest.mark.parametrize(
        ("logloss", "worse", "better"), [(0.531, True, False), (0.529, False, False), (0.469, False, True)]
    )
    def test_three_standard_errors_are_certain(self, logloss: float, worse: bool, better: bool) -> None:
        found = one(logloss=logloss)
        assert (found.worse, found.better) == (worse, better)

    @pytest.mark.parametrize(("logloss", "worse"), [(0.5049, False), (0.5051, True)])
    def test_less_than_a_hundredth_does_not_matter(self, logloss: float, worse: bool) -> None:
        assert one(logloss=logloss, error=0.0001).worse is worse

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_not_finite_is_worse(self, bad: float) -> None:
        assert one(logloss=bad).worse
        assert compare(torch.full((400,), bad), logits(0.25), CLICKS, USERS).worse

    def test_json_and_back(self) -> None:
        trial = Trial(
            served=one(logloss=math.nan), order=None, rehearsals={"incremental": {"constant": one(error=math.inf)}}
        )
        values = json.loads(json.dumps(trial.to_json(), allow_nan=False))
        back = Trial.from_json(values)
        assert back.served is not None and back.served.worse
        assert back.order is None
        assert back.rehearsals["incremental"]["constant"] == one(error=math.inf)


class TestTrial:
    def test_each_question_by_hand(self) -> None:
        served = knowing(0.5, CLICKS)
        trial = try_out(CLICKS, USERS, served, {"incremental": logits(0.5, 40)})
        assert trial.served is not None and trial.order is not None
        rate = 101 / 402  # one click and one other row are added
        constant = -(100 * math.log(rate) + 300 * math.log(1 - rate)) / 400
        assert (trial.served.rows, trial.served.other) == (400, pytest.approx(constant, abs=1e-6))
        tail = trial.rehearsals["incremental"]
        assert {name: found.rows for name, found in tail.items()} == {"constant": 40, "served": 40}
        assert tail["constant"].logloss == pytest.approx(math.log(2), abs=1e-6)
        rate = 91 / 362  # of the rows before the tenth
        assert tail["constant"].other == pytest.approx(-(10 * math.log(rate) + 30 * math.log(1 - rate)) / 40, abs=1e-6)
        assert tail["served"].other == pytest.approx(
            float(torch.nn.functional.binary_cross_entropy_with_logits(served[-40:], CLICKS[-40:])), abs=1e-6
        )

    def test_another_click_rate_does_not_hide_that_the_order_is_right(self) -> None:
        """The served model knows which rows are clicked, but is wrong by a factor about how many."""
        trial = try_out(CLICKS, USERS, knowing(0.5, CLICKS) + 3, {"incremental": logits(0.25, 40)})
        assert trial.served is not None and trial.served.worse
        assert trial.order is not None and trial.order.better
        assert not trial.strange

    @pytest.mark.parametrize("label", [torch.zeros(400), torch.ones(400), (torch.arange(400) % 20 != 0).float()])
    def test_rows_without_order_are_strange(self, label: torch.Tensor) -> None:
        """All of one kind, or 95 % clicked regardless of the row; a model that learned them predicts the rate, and
        nothing else.
        """
        rate = min(0.999, max(0.001, float(label.mean())))
        trial = try_out(label, torch.arange(400), knowing(0.5, CLICKS), {"incremental": logits(rate, 40)})
        assert trial.strange

    def test_something_new_is_not_strange(self) -> None:
        """The served model is wrong about all rows; one that learned nine tenths is right about the last tenth."""
        news = (torch.arange(4_000) % 2).float()
        trial = try_out(news, torch.arange(4_000), -2 * (2 * news - 1), {"incremental": 2 * (2 * news[-400:] - 1)})
        assert trial.served is not None and trial.served.worse
        assert trial.order is not None and not trial.order.better
        assert not trial.strange

    def test_before_anything_has_learned_nothing_is_strange(self) -> None:
        assert not try_out(CLICKS, USERS, None, {"incremental": logits(0.9, 40)}).strange

    def test_less_than_ten_rows_have_no_last_tenth(self) -> None:
        trial = try_out(CLICKS[:9], USERS[:9], logits(0.25, 9), {})
        assert trial.rehearsals == {}
        assert decide({}, SANE, trial).kind is ModelKind.GENERATED


def a_trial(**rehearsals: dict[str, Comparison]) -> Trial:
    return Trial(served=one(), order=one(), rehearsals=rehearsals)


STRANGE = Trial(served=one(logloss=0.9), order=one(), rehearsals={"incremental": {"constant": one(), "served": one()}})


class TestRehearsal:
    @pytest.mark.parametrize(("name", "words"), [("constant", "a constant"), ("served", "what is served")])
    def test_a_rung_falls_by_its_own(self, name: str, words: str) -> None:
        good, bad = {"constant": one(), "served": one()}, {"constant": one(), "served": one(), name: one(logloss=0.6)}
        decision = decide({}, SANE, a_trial(generated=bad, incremental=good))
        assert decision.kind is ModelKind.INCREMENTAL
        assert decision.reason == (
            f"generated: its rehearsal is worse than {words} on rows that it has not learned: LogLoss 0.6000 against "
            "0.5000 ± 0.0100 on 100 rows; incremental passed every check"
        )
        assert decide({}, SANE, a_trial(generated=bad, incremental=bad)).kind is ModelKind.PREVIOUS

    def test_a_rung_without_one_falls_with_the_incremental(self) -> None:
        decision = decide({}, SANE, a_trial(incremental={"constant": one(logloss=0.6)}))
        assert decision.kind is ModelKind.PREVIOUS

    def test_the_numbers_are_kept(self) -> None:
        document = json.loads(json.dumps(decide({}, SANE, a_trial(incremental={"constant": one()})).to_json()))
        assert document["trial"]["rehearsals"]["incremental"]["constant"] == {
            "rows": 100,
            "logloss": 0.5,
            "other": 0.5,
            "error": 0.01,
        }
        assert document["trial"]["served"]["rows"] == 100
        assert document["strange"] == 0


class TestStrange:
    def test_what_was_served_stays_for_three_in_a_row(self) -> None:
        before: dict[str, Any] = {}
        kinds = []
        for _ in range(5):
            decision = decide({}, SANE, STRANGE, before)
            before = json.loads(json.dumps(decision.to_json()))
            kinds.append((str(decision.kind), decision.strange))
        assert kinds == [("previous", 1), ("previous", 2), ("previous", 3), ("generated", 4), ("generated", 5)]

    def test_one_that_is_not_ends_the_row(self) -> None:
        between = decide({}, SANE, a_trial(), {"strange": 3})
        assert (between.kind, between.strange) == (ModelKind.GENERATED, 0)
        assert decide({}, SANE, STRANGE, between.to_json()).kind is ModelKind.PREVIOUS

    def test_the_reason_has_the_numbers(self) -> None:
        reason = decide({}, SANE, STRANGE).reason
        assert "the period is strange, 1 in a row" in reason
        assert "LogLoss 0.9000 against 0.5000 ± 0.0100 on 100 rows" in reason
        assert reason.endswith("the model served before stays")
