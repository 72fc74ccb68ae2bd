"""The rules of the guardrails, on made-up profiles and scores."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from service.storage.postgres.repositories import SampleScore
from service.use_cases.guardrails.rules import (
    check_drift,
    find_drift,
    find_forgetting,
    find_loss,
    losing_in_a_row,
    stability,
)
from service.use_cases.update.profile import EDGES, Profile


def profile(
    *, clicks: int = 200, new: float = 0.05, mean: float = -1.5, gain: float = 0.1, events: int = 1000, seed: int = 0
) -> Profile:
    """A period of which the served model saves `gain` of a constant's LogLoss."""
    logits = np.random.default_rng(seed).normal(mean, 1, events)
    bins = np.bincount(np.digitize(logits, EDGES), minlength=len(EDGES) + 1)
    return Profile(
        events=events,
        clicks=clicks,
        new_users=new,
        new_items=new,
        logits=bins.tolist(),
        logloss=0.5 * (1 - gain),
        constant=0.5,
        error=0.004,
    )


def usual(count: int = 12) -> list[Profile]:
    """Periods that differ by as much as periods do."""
    rng = np.random.default_rng(3)
    return [
        profile(
            clicks=int(200 + rng.normal(0, 15)),
            new=0.05 + rng.normal(0, 0.01),
            gain=0.1 + rng.normal(0, 0.005),
            seed=number,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("now", "kinds"),
    [
        (profile(seed=99), []),
        (profile(new=0.4, seed=99), ["drift_new_users", "drift_new_items"]),
        (profile(new=0.0, seed=99), []),  # nobody new is nothing to worry about
        (profile(clicks=950, seed=99), ["drift_clicks"]),
        (profile(clicks=40, seed=99), ["drift_clicks"]),
        (profile(mean=0.5, seed=99), ["drift_scores"]),
    ],
)
def test_what_differs_is_named(now: Profile, kinds: Sequence[str]) -> None:
    assert [finding.kind for finding in find_drift([*usual(), now])] == kinds
    for check in check_drift([*usual(), now]):
        low, high = check.low if check.low is not None else -math.inf, check.high
        assert high is not None and (check.finding is not None) is not (low <= check.now <= high), check
    assert find_drift([*usual(4), now]) == []  # too little is known
    assert {check.high for check in check_drift([*usual(4), now])} == {None}


def test_a_fall_of_the_gain_is_noticed_and_so_is_a_slow_one() -> None:
    assert find_loss(usual()) == []
    assert [finding.kind for finding in find_loss([*usual(), profile(gain=0.0, seed=99)])] == ["quality"]
    slowly = usual()
    noticed = 0
    while not find_loss(slowly):
        noticed += 1
        slowly.append(profile(gain=0.1 - 0.01 * noticed, seed=noticed))
    assert noticed == 4  # the median of four periods has fallen by a quarter


@pytest.mark.parametrize("gain", [-10.0, -0.2, 0.0])
@pytest.mark.parametrize("at", [6, 12])
def test_one_broken_period_is_told_of_when_it_happens_and_not_later(at: int, gain: float) -> None:
    broken = dataclasses.replace(profile(gain=gain, seed=99), error=0.1 if gain < -1 else 0.004)
    periods = [*usual()[:at], broken, *usual(20)]
    told = [n for n in range(len(periods)) if find_loss(periods[: n + 1])]
    assert told == ([] if at == 6 and gain == 0 else [at])  # `quality` wants eight periods before


def test_a_slow_decay_is_noticed_in_spite_of_a_broken_period() -> None:
    slowly = usual()
    slowly[6] = profile(gain=-10, seed=99)
    noticed = 0
    while not find_loss(slowly):
        noticed += 1
        slowly.append(profile(gain=0.1 - 0.01 * noticed, seed=noticed))
    assert noticed == 4  # as without it


def test_a_model_that_loses_is_noticed_at_once_and_counted() -> None:
    lost = profile(gain=-0.2, seed=99)
    assert losing_in_a_row([*usual(), lost, lost]) == 2
    assert losing_in_a_row([*usual(), lost, profile()]) == 0
    assert find_loss([profile(), lost]) == []  # it is young
    assert [finding.kind for finding in find_loss([*usual(5), lost])] == ["live_loss"]
    found = find_loss([profile(), lost, lost])
    assert [(finding.kind, "2 periods in a row" in finding.message) for finding in found] == [("live_loss", True)]


@pytest.mark.parametrize(("fall", "found"), [(0.0, False), (0.05, False), (0.2, True)])
def test_forgetting_is_measured_against_those_who_had_just_learned(fall: float, found: bool) -> None:
    def score(version: int, period: int, auc: float) -> SampleScore:
        return SampleScore(
            version=version, period=period, events=100, auc=auc, logloss=0.5, served_logloss=0.5, error=0.01
        )

    learned = {period: period for period in range(1, 8)}
    fresh = [score(n, n, 0.7 + n / 100) for n in learned]
    now = [score(7, n, 0.7 + n / 100 - fall + (n % 3 - 1) / 100) for n in range(1, 7)]
    finding = find_forgetting([*fresh, *now], 7, learned, 0.1)
    assert (finding is not None) is found
    if finding is not None:
        assert finding.numbers["fall"] == pytest.approx(fall, abs=0.01)
        assert "6 earlier periods" in finding.message


def test_the_stability_index_by_hand() -> None:
    before = [[10, 20, 30]] * 5
    assert stability([10, 20, 30], before) == pytest.approx(0, abs=1e-3)
    shares = np.array([30.5, 20.5, 10.5]) / 61.5
    past = np.array([50.5, 100.5, 150.5]) / 301.5
    assert stability([30, 20, 10], before) == pytest.approx(float(((shares - past) * np.log(shares / past)).sum()))
