"""What is known of a canary and of the champion beside it, and what follows from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from service.storage.postgres.repositories import Outcome
from service.use_cases.guardrails.sequential import Floats, difference

__all__ = ["Evidence", "Judgement", "Verdict"]

ALPHA = 0.01
"""Most probability that a canary as good as the champion is ever taken for worse, whenever and however often it is
looked at. Each of the two comparisons gets a half."""

LEAST_USERS = 100
"""Users of each arm before anything is decided: the intervals are those of a normal distribution."""

LEAST_CLICKS = 30
"""Clicks that the canary's users would have made at the champion's rate, before anything is decided: with fewer the
variance is not known."""

MARGIN = 0.05
"""A canary goes on before its time is over where it loses at most this share of the champion's clicks, and of the
LogLoss of a constant."""

MOST_USERS = 200_000
"""Users that are looked at; more would tell nothing new, and each takes some hundred bytes."""


class Verdict(StrEnum):
    """What to do with a canary."""

    BACK = "back"
    ON = "on"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What to do, and why."""

    verdict: Verdict
    reason: str
    numbers: Mapping[str, Any]
    """Users of each arm, and how many of them clicked; all impressions that were looked at. Of each comparison the
    difference (canary less champion) with its interval, and the `bound` within which the canary goes on early."""


class Evidence:
    """The first impression of each user, in the order in which they were shown.

    Two numbers are compared. *Clicks*: the share of the items that were clicked. *LogLoss*: that of the scores, less
    that of a constant on the same items, the click rate of the users before. A version that shows more attractive items
    has a higher LogLoss, for their outcome is less certain; the constant has it too.

    Args:
        canary: its version.
        share: of the users.
    """

    def __init__(self, canary: int, share: float) -> None:
        self._canary, self._share = canary, share
        self._impressions = 0
        self._users: set[str] = set()
        self._arms: list[bool] = []
        self._clicks: list[float] = []
        self._logloss: list[float] = []

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Note further impressions; only the first of each user counts."""
        self._impressions += len(outcomes)
        for outcome in outcomes:
            if outcome.user_id not in self._users and len(self._users) < MOST_USERS:
                self._users.add(outcome.user_id)
                self._arms.append(outcome.model_version == self._canary)
                self._clicks.append(outcome.clicks)
                self._logloss.append(outcome.logloss)

    @property
    def full(self) -> bool:
        """Whether more users would tell nothing new."""
        return len(self._users) >= MOST_USERS

    def judge(self, *, over: bool) -> Judgement:
        """What to do now.

        Args:
            over: whether the canary's time is over.
        """
        arms = np.array(self._arms, np.bool_)
        clicks, logloss = np.array(self._clicks), np.array(self._logloss)
        of_canary, others = int(arms.sum()), int((~arms).sum())
        numbers: dict[str, Any] = {
            "canary_users": of_canary,
            "champion_users": others,
            "canary_clicked": int((clicks[arms] > 0).sum()),
            "champion_clicked": int((clicks[~arms] > 0).sum()),
            "impressions": self._impressions,
        }
        rate = float(clicks[~arms].mean()) if others else 0.0
        # An impression with a click has a share of 1/items at least, so this counts no more clicks than there were.
        expected = of_canary * float((clicks[~arms] > 0).mean()) if others else 0.0
        if min(of_canary, others) < LEAST_USERS or expected < LEAST_CLICKS:
            few = f"too few impressions to tell: {of_canary} users of the canary, {others} of the champion"
            return Judgement(Verdict.ON if over else Verdict.WAIT, few, numbers)
        constant = _constant_loss(clicks)
        tightest = 2 * LEAST_USERS / self._share
        compared = {
            name: difference(arms, values, share=self._share, alpha=ALPHA / 2, tightest=tightest)
            for name, values in (("clicks", clicks), ("logloss", logloss - constant))
        }
        bounds = {"clicks": -MARGIN * rate, "logloss": MARGIN * float(constant[~arms].mean())}
        for name, found in compared.items():
            numbers[name] = {
                "difference": found.difference,
                "low": found.low,
                "high": found.high,
                "bound": bounds[name],
            }
        if compared["clicks"].high < 0:
            return Judgement(Verdict.BACK, _say("worse by clicks", numbers["clicks"]), numbers)
        if compared["logloss"].low > 0:
            return Judgement(Verdict.BACK, _say("worse by LogLoss", numbers["logloss"]), numbers)
        if compared["clicks"].low > bounds["clicks"] and compared["logloss"].high < bounds["logloss"]:
            return Judgement(Verdict.ON, "shown to be no worse than by a small margin", numbers)
        return Judgement(Verdict.ON if over else Verdict.WAIT, "not shown to be worse", numbers)


def _constant_loss(clicks: Floats) -> Floats:
    """Of each user the LogLoss of the click rate of the users before, smoothed by one user of rate 1/2."""
    before = np.cumsum(clicks) - clicks
    rate = (before + 0.5) / (np.arange(len(clicks)) + 1)
    loss: Floats = -(clicks * np.log(rate) + (1 - clicks) * np.log1p(-rate))
    return loss


def _say(what: str, found: Mapping[str, float]) -> str:
    digits = max(4, 2 - math.floor(math.log10(abs(found["difference"]) or 1.0)))
    low, difference_, high = (f"{found[name]:+.{digits}f}" for name in ("low", "difference", "high"))
    return f"shown to be {what}: {difference_} ({low} to {high})"
