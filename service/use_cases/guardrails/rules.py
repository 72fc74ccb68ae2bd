"""What counts as wrong: rules about profiles of periods, and about how versions score samples of earlier periods.

Each rule compares a period with those before it, by a robust measure of how much they differ anyway, and asks for a
difference that is both unlikely and large enough to matter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from service.storage.postgres.repositories import SampleScore
from service.use_cases.update.sample import Profile

__all__ = ["Finding", "find_drift", "find_forgetting", "find_loss", "losing_in_a_row"]

DEVIATIONS = 5.0
"""Standard deviations beyond which a difference is not taken for chance. There are few periods to estimate it from, and
each is looked at by several rules."""

LEAST_BEFORE = 5
"""Fewest earlier periods that a rule needs."""

WINDOW = 12
"""Most earlier periods that a rule looks at."""

LAG = 3
"""Newest earlier periods that are left out of what is usual, so that what goes wrong slowly is not taken for that; and
the periods whose scores those of the next one are compared with."""

SHARE_CHANGE = 0.1
"""Least change of a share of interactions that matters."""

RATE_CHANGE = 0.5
"""Least change of the click rate that matters, relative to what it was."""

STABILITY = 0.25
"""Least population stability index of the served scores that matters."""

GAIN_CHANGE = 0.05
"""Least fall that matters of the LogLoss that the served model saves, as a share of that of a constant."""

SPAN = 4
"""Periods whose mean gain is compared with that of as many before, to see a slow decay."""

DECAY = 0.25
"""Least fall of that mean that matters, relative to what it was at its best."""

DECAY_CERTAINTY = 3.5
"""Standard errors by which that mean must have fallen."""

CERTAINTY = 3.0
"""Standard errors by which the served model must be worse than a constant."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong."""

    kind: str
    """Of the alert."""
    message: str
    """One sentence with the numbers."""
    numbers: Mapping[str, float]


def find_drift(profiles: Sequence[Profile]) -> list[Finding]:
    """How the newest period differs from those before it: new ids, clicks, scores.

    Args:
        profiles: of periods in order, the newest last.
    """
    if not profiles:
        return []
    *before, now = profiles
    before = before[-WINDOW:]
    found = []
    for name, what in (("new_users", "users"), ("new_items", "items")):
        share = float(getattr(now, name))
        usual, limit = _usual([float(getattr(each, name)) for each in before], share, now.events, SHARE_CHANGE)
        if share > usual + limit:
            found.append(
                Finding(
                    f"drift_{name}",
                    f"{share:.1%} of the interactions are with {what} that no model knows; usual is {usual:.1%}",
                    {"now": share, "usual": usual, "limit": limit},
                )
            )
    rate = now.clicks / now.events
    rates = [each.clicks / each.events for each in before]
    usual, limit = _usual(rates, rate, now.events, RATE_CHANGE * median(rates) if rates else 0.0)
    if abs(rate - usual) > limit:
        numbers = {"now": rate, "usual": usual, "limit": limit}
        found.append(
            Finding("drift_clicks", f"{rate:.1%} of the interactions are clicks; usual is {usual:.1%}", numbers)
        )
    return [*found, *_find_drift_of_scores(profiles)]


def _find_drift_of_scores(profiles: Sequence[Profile]) -> list[Finding]:
    """A model that still learns much moves its scores too, so the newest move is compared with those before it."""
    known = [each.logits for each in profiles if each.logits is not None]
    if not known or profiles[-1].logits is None:
        return []
    moves = [stability(known[n], known[n - LAG : n]) for n in range(LAG, len(known))]
    if len(moves) <= LEAST_BEFORE:
        return []
    *before, now = moves
    before = before[-WINDOW:]
    limit = max(STABILITY, median(before) + DEVIATIONS * _deviation(before))
    if now <= limit:
        return []
    usual = median(before)
    message = f"the served scores are distributed otherwise than before: index {now:.2f}, usual is {usual:.2f}"
    return [Finding("drift_scores", message, {"now": now, "usual": usual, "limit": limit})]


def find_loss(profiles: Sequence[Profile]) -> list[Finding]:
    """Whether the served model is worse than a constant, or saves less LogLoss than it used to.

    Args:
        profiles: of periods in order, the newest last.
    """
    found = []
    in_a_row = losing_in_a_row(profiles)
    # A model that has learned one or two periods may lose once: it is still unsure of itself in the wrong places.
    if in_a_row and (in_a_row > 1 or len(profiles) > LEAST_BEFORE):
        now = profiles[-1]
        assert now.logloss is not None
        assert now.constant is not None
        message = (
            f"what is served is worse than a constant, {in_a_row} periods in a row: "
            f"LogLoss {now.logloss:.4f} against {now.constant:.4f}"
        )
        found.append(Finding("live_loss", message, {"logloss": now.logloss, "constant": now.constant}))
    known = [each for each in profiles if each.logloss is not None and each.constant and each.error]
    if known and known[-1] is profiles[-1]:
        gains = [(_gain(each), (each.error or 0.0) / (each.constant or 1.0)) for each in known]
        found += _find_fall(gains) or _find_decay(gains)
    return found


def _find_fall(gains: Sequence[tuple[float, float]]) -> list[Finding]:
    """Whether the newest of the gains, with their standard errors, is far below what is usual."""
    gain, error = gains[-1]
    before = [each for each, _ in gains[:-1]][: len(gains) - 1 - LAG][-WINDOW:]
    if len(before) < LEAST_BEFORE:
        return []
    usual = median(before)
    limit = max(GAIN_CHANGE, DEVIATIONS * _deviation(before), DEVIATIONS * error)
    if gain >= usual - limit:
        return []
    message = f"what is served saves {gain:.1%} of a constant's LogLoss; usual is {usual:.1%}"
    return [Finding("quality", message, {"now": gain, "usual": usual, "limit": limit})]


def _find_decay(gains: Sequence[tuple[float, float]]) -> list[Finding]:
    """Whether the mean of the newest gains is below the best mean of as many before: a slow loss of quality."""
    means = [_mean(gains[end - SPAN : end]) for end in range(SPAN, len(gains) + 1)][-WINDOW - SPAN :]
    if len(means) <= SPAN:
        return []
    now, error = means[-1]
    best, best_error = max(means[:-SPAN])
    limit = max(DECAY * best, DECAY_CERTAINTY * math.hypot(error, best_error))
    if best - now <= limit:
        return []
    message = (
        f"in the last {SPAN} periods what is served saved {now:.1%} of a constant's LogLoss; at its best {best:.1%}"
    )
    return [Finding("quality", message, {"now": now, "usual": best, "limit": limit})]


def _mean(gains: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean of some gains and its standard error."""
    return fmean(gain for gain, _ in gains), math.sqrt(sum(error**2 for _, error in gains)) / len(gains)


def losing_in_a_row(profiles: Sequence[Profile]) -> int:
    """How many of the newest periods in a row the served model was surely worse on than a constant."""
    count = 0
    for each in reversed(profiles):
        if each.logloss is None or each.constant is None or each.error is None:
            break
        if each.logloss - each.constant <= CERTAINTY * each.error:
            break
        count += 1
    return count


def find_forgetting(
    scores: Sequence[SampleScore], version: int, learned: Mapping[int, int], bound: float
) -> Finding | None:
    """Whether a version ranks what was kept of earlier periods worse than the versions that had just learned them.

    Args:
        scores: of this and of earlier versions.
        version: the one that is judged.
        learned: period → version that has learned it last, before the others.
        bound: mean fall of the AUC beyond which that counts as forgetting.
    """
    by_cell = {(each.version, each.period): each.auc for each in scores if each.auc is not None}
    falls = []
    for period, first in learned.items():
        fresh, now = by_cell.get((first, period)), by_cell.get((version, period))
        if first < version and fresh is not None and now is not None:
            falls.append(fresh - now)
    if len(falls) < LEAST_BEFORE:
        return None
    fall = fmean(falls)
    error = DEVIATIONS / 2 * _spread(falls) / math.sqrt(len(falls))
    if fall - error <= bound:
        return None
    message = (
        f"version {version} ranks {len(falls)} earlier periods worse than when they had just been learned: "
        f"the AUC fell by {fall:.3f} in the mean"
    )
    return Finding("forgetting", message, {"fall": fall, "bound": bound, "periods": len(falls)})


def stability(now: Sequence[int], before: Sequence[Sequence[int]]) -> float:
    """Population stability index of a histogram against the sum of those before it."""
    past = [sum(column) for column in zip(*before, strict=True)]
    ours, theirs = (_shares(counts) for counts in (now, past))
    return sum((a - b) * math.log(a / b) for a, b in zip(ours, theirs, strict=True))


def _shares(counts: Sequence[int]) -> list[float]:
    """Shares of the bins; half an interaction is added to each, so that none is empty."""
    total = sum(counts) + len(counts) / 2
    return [(count + 0.5) / total for count in counts]


def _gain(profile: Profile) -> float:
    assert profile.logloss is not None
    assert profile.constant is not None
    return 1 - profile.logloss / profile.constant


def _usual(before: Sequence[float], now: float, events: int, least: float) -> tuple[float, float]:
    """What a share usually is, and the difference from which on it is not; no difference is, where little is known."""
    if len(before) < LEAST_BEFORE:
        return now, math.inf
    usual = median(before)
    chance = math.sqrt(max(usual * (1 - usual), 1 / events) / events)
    return usual, max(least, DEVIATIONS * _deviation(before), DEVIATIONS * chance)


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation, estimated from the median absolute deviation."""
    middle = median(values)
    return 1.4826 * median(abs(value - middle) for value in values)


def _spread(values: Sequence[float]) -> float:
    middle = fmean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / max(1, len(values) - 1))
