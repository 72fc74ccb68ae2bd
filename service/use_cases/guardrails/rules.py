"""What counts as wrong: rules about profiles of periods, and about how versions score samples of earlier periods.

Each rule compares a period with those before it, by a robust measure of how much they differ anyway, and asks for a
difference that is both unlikely and large enough to matter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from service.storage.postgres.repositories import SampleScore
from service.use_cases.update.profile import Profile

__all__ = [
    "PROFILES",
    "Check",
    "Finding",
    "check_drift",
    "check_forgetting",
    "check_loss",
    "find_drift",
    "find_forgetting",
    "find_loss",
    "losing_in_a_row",
]

PROFILES = 16
"""Newest periods whose profiles the rules look at."""

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
"""Periods whose median gain is compared with that of as many before, to see a slow decay. One of them may be broken."""

MEDIAN_ERROR = 1.09
"""Standard error of the median of four normal values, relative to that of their mean."""

DECAY = 0.25
"""Least fall of that median that matters, relative to what it was at its best."""

DECAY_CERTAINTY = 3.5
"""Standard errors by which that median must have fallen."""

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


@dataclass(frozen=True)
class Check:
    """What a rule has seen, wrong or not. All is well while `now` is not outside of `low` and `high`."""

    rule: str
    """Its name: the kind of its alert, or `decay`, which is of the kind `quality`."""
    now: float
    usual: float | None = None
    low: float | None = None
    """None where there is no such bound, or not yet."""
    high: float | None = None
    finding: Finding | None = None
    """None where all is well."""


def find_drift(profiles: Sequence[Profile]) -> list[Finding]:
    """How the newest period differs from those before it: new ids, clicks, scores.

    Args:
        profiles: of periods in order, the newest last.
    """
    return _found(check_drift(profiles))


def check_drift(profiles: Sequence[Profile]) -> list[Check]:
    """The same, with what is not wrong. The rule about scores is missing where it knows too little."""
    if not profiles:
        return []
    *before, now = profiles
    before = before[-WINDOW:]
    checks = []
    for name, what in (("new_users", "users"), ("new_items", "items")):
        share = float(getattr(now, name))
        usual, limit = _usual([float(getattr(each, name)) for each in before], share, now.events, SHARE_CHANGE)
        finding = None
        if share > usual + limit:
            finding = Finding(
                f"drift_{name}",
                f"{share:.1%} of the interactions are with {what} that no model knows; usual is {usual:.1%}",
                {"now": share, "usual": usual, "limit": limit},
            )
        checks.append(Check(f"drift_{name}", share, *_bounds(usual, None, limit), finding))
    rate = now.clicks / now.events
    rates = [each.clicks / each.events for each in before]
    usual, limit = _usual(rates, rate, now.events, RATE_CHANGE * median(rates) if rates else 0.0)
    finding = None
    if abs(rate - usual) > limit:
        numbers = {"now": rate, "usual": usual, "limit": limit}
        finding = Finding("drift_clicks", f"{rate:.1%} of the interactions are clicks; usual is {usual:.1%}", numbers)
    checks.append(Check("drift_clicks", rate, *_bounds(usual, limit, limit), finding))
    return [*checks, *_check_drift_of_scores(profiles)]


def _bounds(usual: float, below: float | None, above: float | None) -> tuple[float | None, float | None, float | None]:
    """What is usual and the bounds below and above it; nothing where a distance is infinite: too little is known."""
    if math.inf in (below, above):
        return None, None, None
    return usual, None if below is None else usual - below, None if above is None else usual + above


def _check_drift_of_scores(profiles: Sequence[Profile]) -> list[Check]:
    """A model that still learns much moves its scores too, so the newest move is compared with those before it."""
    known = [each.logits for each in profiles if each.logits is not None]
    if not known or profiles[-1].logits is None:
        return []
    moves = [stability(known[n], known[n - LAG : n]) for n in range(LAG, len(known))]
    if len(moves) <= LEAST_BEFORE:
        return []
    *before, now = moves
    before = before[-WINDOW:]
    usual = median(before)
    limit = max(STABILITY, usual + DEVIATIONS * _deviation(before))
    finding = None
    if now > limit:
        message = f"the served scores are distributed otherwise than before: index {now:.2f}, usual is {usual:.2f}"
        finding = Finding("drift_scores", message, {"now": now, "usual": usual, "limit": limit})
    return [Check("drift_scores", now, usual, high=limit, finding=finding)]


def find_loss(profiles: Sequence[Profile]) -> list[Finding]:
    """Whether the served model is worse than a constant, or saves less LogLoss than it used to.

    Args:
        profiles: of periods in order, the newest last.
    """
    return _found(check_loss(profiles))


def check_loss(profiles: Sequence[Profile]) -> list[Check]:
    """The same, with what is not wrong. A rule that knows too little is missing."""
    checks = _check_live_loss(profiles)
    known = [each for each in profiles if each.logloss is not None and each.constant and each.error]
    if known and known[-1] is profiles[-1]:
        gains = [(_gain(each), (each.error or 0.0) / (each.constant or 1.0)) for each in known]
        checks += [*_check_fall(gains), *_check_decay(gains)]
    return checks


def _check_live_loss(profiles: Sequence[Profile]) -> list[Check]:
    """Whether what is served is worse than a constant on the newest period."""
    if not profiles:
        return []
    now = profiles[-1]
    if now.logloss is None or now.constant is None or now.error is None:
        return []
    in_a_row, finding = losing_in_a_row(profiles), None
    # A model that has learned one or two periods may lose once: it is still unsure of itself in the wrong places.
    if in_a_row and (in_a_row > 1 or len(profiles) > LEAST_BEFORE):
        often = f", {in_a_row} periods in a row" if in_a_row > 1 else ""
        message = (
            f"what is served is worse than a constant{often}: LogLoss {now.logloss:.4f} against {now.constant:.4f}"
        )
        finding = Finding("live_loss", message, {"logloss": now.logloss, "constant": now.constant})
    return [Check("live_loss", now.logloss - now.constant, high=CERTAINTY * now.error, finding=finding)]


def _check_fall(gains: Sequence[tuple[float, float]]) -> list[Check]:
    """Whether the newest of the gains, with their standard errors, is far below what is usual."""
    gain, error = gains[-1]
    before = [each for each, _ in gains[:-1]][: len(gains) - 1 - LAG][-WINDOW:]
    if len(before) < LEAST_BEFORE:
        return []
    usual = median(before)
    limit = max(GAIN_CHANGE, DEVIATIONS * _deviation(before), DEVIATIONS * error)
    finding = None
    if gain < usual - limit:
        message = f"what is served saves {gain:.1%} of a constant's LogLoss; usual is {usual:.1%}"
        finding = Finding("quality", message, {"now": gain, "usual": usual, "limit": limit})
    return [Check("quality", gain, usual, low=usual - limit, finding=finding)]


def _check_decay(gains: Sequence[tuple[float, float]]) -> list[Check]:
    """Whether the median of the newest gains is below the best median of as many before: a slow loss of quality.

    One broken period does not move the median; other rules tell of it when it happens.
    """
    medians = [_middle(gains[end - SPAN : end]) for end in range(SPAN, len(gains) + 1)][-WINDOW - SPAN :]
    if len(medians) <= SPAN:
        return []
    now, error = medians[-1]
    best, best_error = max(medians[:-SPAN])
    limit = max(DECAY * best, DECAY_CERTAINTY * math.hypot(error, best_error))
    finding = None
    if best - now > limit:
        message = (
            f"what is served saved {now:.1%} of a constant's LogLoss in the median of the last {SPAN} periods; "
            f"at its best {best:.1%}"
        )
        finding = Finding("quality", message, {"now": now, "usual": best, "limit": limit})
    return [Check("decay", now, best, low=best - limit, finding=finding)]


def _found(checks: Sequence[Check]) -> list[Finding]:
    """What is wrong; of each kind the first."""
    by_kind: dict[str, Finding] = {}
    for check in checks:
        if check.finding is not None:
            by_kind.setdefault(check.finding.kind, check.finding)
    return list(by_kind.values())


def _middle(gains: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The median of some gains, and its standard error, to which a single period counts no more than others."""
    error = median(error for _, error in gains)
    return median(gain for gain, _ in gains), MEDIAN_ERROR * error / math.sqrt(len(gains))


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
    check = check_forgetting(scores, version, learned, bound)
    return None if check is None else check.finding


def check_forgetting(
    scores: Sequence[SampleScore], version: int, learned: Mapping[int, int], bound: float
) -> Check | None:
    """The same, with what is not wrong; None where too little is known."""
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
    finding = None
    if fall - error > bound:
        message = (
            f"version {version} ranks {len(falls)} earlier periods worse than when they had just been learned: "
            f"the AUC fell by {fall:.3f} in the mean"
        )
        finding = Finding("forgetting", message, {"fall": fall, "bound": bound, "periods": len(falls)})
    return Check("forgetting", fall, high=bound + error, finding=finding)


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
