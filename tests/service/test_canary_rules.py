"""When a canary goes on or back: error rates on simulated streams, and the share of the users."""

from datetime import UTC, datetime
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from service.serving.canary_share import CanaryShare
from service.storage.postgres.repositories import Outcome
from service.use_cases.guardrails.canary_evidence import Evidence, Judgement, Verdict
from service.use_cases.guardrails.sequential import difference

SHARE, ITEMS, ALPHA = 0.1, 5, 0.01
LOOKS = range(1000, 6001, 200)
CANARY, CHAMPION = 2, 1


def stream(seed: int, *, loss: float = 0.0) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Arms and click shares of users with click rates of their own; the canary loses a share of its clicks."""
    rng, users = np.random.default_rng(seed), LOOKS[-1]
    arms = rng.random(users) < SHARE
    rates = rng.beta(1, 9, users) * np.where(arms, 1 - loss, 1)
    return arms, rng.binomial(ITEMS, rates) / ITEMS


def is_excluded(arms: NDArray[np.bool_], clicks: NDArray[np.float64]) -> bool:
    """Whether a confidence sequence excludes 0 at any look."""
    for n in LOOKS:
        found = difference(arms[:n], clicks[:n], share=SHARE, alpha=ALPHA, tightest=2000)
        if not found.low <= 0 <= found.high:
            return True
    return False


def is_naively_excluded(arms: NDArray[np.bool_], clicks: NDArray[np.float64]) -> bool:
    """The same by intervals that hold at one look only."""
    for n in LOOKS:
        one, other = clicks[:n][arms[:n]], clicks[:n][~arms[:n]]
        error = np.sqrt(one.var() / len(one) + other.var() / len(other))
        if abs(one.mean() - other.mean()) > 2.576 * error:
            return True
    return False


def test_looking_at_any_time_does_not_inflate_the_error() -> None:
    streams = [stream(seed) for seed in range(200)]
    assert sum(is_excluded(*each) for each in streams) <= 4  # 2 expected at most
    assert sum(is_naively_excluded(*each) for each in streams) >= 10  # ordinary intervals do not stand it
    assert sum(is_excluded(*stream(seed, loss=0.5)) for seed in range(20)) >= 19


def test_the_interval_is_that_of_the_formula() -> None:
    """Four users by hand: ψ of each is computed from the means of those before."""
    canary, values = np.array([False, True, False, True]), np.array([1.0, 0.5, 0.0, 1.0])
    psi = [0 - 1 / 0.75, -1 + 0.5 / 0.25, 0.5 - 1 + 1 / 0.75, 0.5 - 0.5 + 0.5 / 0.25]
    found = difference(canary, values, share=0.25, alpha=0.05, tightest=10)
    wide = -2 * np.log(0.05)
    r = (wide + np.log(wide + 1)) / 10
    margin = np.std(psi) * np.sqrt(2 * (4 * r + 1) / (16 * r) * np.log(np.sqrt(4 * r + 1) / 0.05))
    assert found.difference == pytest.approx(np.mean(psi))
    assert (found.low, found.high) == pytest.approx((np.mean(psi) - margin, np.mean(psi) + margin))


def judged(canary: tuple[float, float], champion: tuple[float, float], *, users: int = 3000) -> Judgement:
    """The judgement, after all of its time, of arms in which an item has a click rate and a score."""
    rng, evidence, now = np.random.default_rng(3), Evidence(CANARY, SHARE), datetime.now(UTC)
    for user in range(users):
        version, (rate, score) = (CANARY, canary) if rng.random() < SHARE else (CHAMPION, champion)
        clicks = rng.binomial(ITEMS, rate) / ITEMS
        logloss = -clicks * np.log(score) - (1 - clicks) * np.log(1 - score)
        outcome = Outcome(str(user), version, now, "r", clicks, logloss)
        evidence.add([outcome, outcome])  # the second impression of a user does not count
    judgement = evidence.judge(over=True)
    assert judgement.numbers["canary_users"] + judgement.numbers["champion_users"] == users
    return judgement


def test_what_is_compared() -> None:
    good = 0.1, 0.1
    same = judged(good, good)
    assert (same.verdict, same.reason) == (Verdict.ON, "not shown to be worse")
    fewer = judged((0.02, 0.02), good)
    assert fewer.verdict is Verdict.BACK and "worse by clicks" in fewer.reason
    wrong = judged((0.1, 0.8), good)
    assert wrong.verdict is Verdict.BACK and "worse by LogLoss" in wrong.reason
    # More clicks are less certain, so their LogLoss is higher; that does not speak against the canary.
    assert judged((0.3, 0.3), good).verdict is Verdict.ON
    few = judged(good, good, users=300)
    assert few.verdict is Verdict.ON and few.reason.startswith("too few impressions to tell")
    assert judged((0.0, 0.001), (0.001, 0.001)).reason.startswith("too few")  # users, but hardly any click


@pytest.mark.parametrize("name", ["{}", "user{}", "a user with a name of more than 32 bytes {}"])
def test_shares_are_as_large_as_they_are_to_be_and_differ_by_salt(name: str) -> None:
    users = [name.format(n) for n in range(20_000)]
    shares = {salt: np.array([CanaryShare(0.1, salt).has(user) for user in users]) for salt in (1, 2, 3, 4, 1 << 31)}
    assert all(0.09 < share.mean() < 0.11 for share in shares.values())
    for first, second in combinations(shares.values(), 2):
        assert 0.0075 < (first & second).mean() < 0.0125  # as of independent draws
    assert not any(CanaryShare(0.0, 7).has(user) for user in users)
    assert all(CanaryShare(1.0, 7).has(user) for user in users)
    assert not CanaryShare(1.0, 7).has(None)  # a visitor without an id stays with the champion


def test_a_share_is_by_xxh64_with_the_salt_as_its_seed() -> None:
    """All processes agree on that hash. The one here is from xxHash's own sanity checks (cli/xsum_sanity_check.c)."""
    hashed = 0xAC75FDA2929B17EF / 2**64  # of no byte, with this seed
    assert CanaryShare(hashed + 1e-9, 0x9E3779B1).has("")
    assert not CanaryShare(hashed - 1e-9, 0x9E3779B1).has("")
