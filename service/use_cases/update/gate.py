"""The gate: which of the models that an update has made may serve, decided by numbers and kept with its reason.

The ladder is generated → incremental → previous; previous means: keep serving what is served now. Before anything is
learned from the period just closed, its rows are asked three questions (`Trial`), and a rung is skipped

* when the period is *strange*: what is served does worse on it than a constant would, and orders its rows no better,
  and a model that has learned the first nine tenths is no better than a constant on the last tenth. Its labels are
  then noise, not news;
* when such a model, the rung's rehearsal, is worse on that tenth than a constant, or than what is served;
* when the rung's predecessor did worse on the period than that of the next rung;
* when the new model itself is not finite, or is badly calibrated on recent traffic.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from asmg.metrics import Scores
from service.storage.postgres.repositories import ModelKind

__all__ = ["CALIBRATION_RANGE", "Comparison", "Decision", "Trial", "compare", "decide", "rehearsed", "try_out"]

CALIBRATION_RANGE = (0.5, 2.0)
"""Predicted clicks over clicks, on the newest traffic."""

TOLERANCE = {ModelKind.GENERATED: 0.01, ModelKind.INCREMENTAL: 0.05}
"""Relative LogLoss by which a rung may do worse than the next one. Small differences are noise; and a model that was
not updated can win one period by luck but loses the one after, so leaving the ladder for it takes more."""

MIN_CLICKS = 20
"""Fewer clicks than this say nothing about calibration."""

HELD_OUT = 0.1
"""Newest fraction of a period that a rehearsal does not learn and is asked about."""

CERTAINTY = 3.0
"""Standard errors that make a difference of LogLoss certain: by chance alone one comparison in 700 reaches it."""

MATERIAL = 0.01
"""Relative difference of LogLoss that matters: with a million rows any difference is certain."""

PATIENCE = 3
"""Strange periods in a row that are not served. After them the world has changed for good, and the ladder serves."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """LogLoss (mean cross-entropy, nats) of one model and of another on the same rows."""

    rows: int
    logloss: float
    """Of the one."""
    other: float
    """Of the other."""
    error: float
    """Standard error of their difference, paired row by row; infinite of a single user."""

    @property
    def worse(self) -> bool:
        """Whether the one is certainly, and by an amount that matters, worse; so is one that is not finite."""
        return not self.logloss - self.other <= max(CERTAINTY * self.error, MATERIAL * self.other)

    @property
    def better(self) -> bool:
        """Whether the one is certainly, and by an amount that matters, better."""
        return self.other - self.logloss > max(CERTAINTY * self.error, MATERIAL * self.other)

    def __str__(self) -> str:
        return f"LogLoss {self.logloss:.4f} against {self.other:.4f} ± {self.error:.4f} on {self.rows} rows"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; null for what is not finite."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Comparison":
        """The inverse of `to_json`: a LogLoss that is not finite, or an error of which nothing is known."""
        unknown: dict[str, Any] = {"logloss": math.nan, "other": math.nan, "error": math.inf}
        return cls(**{name: unknown[name] if value is None else value for name, value in values.items()})


def compare(logit: Tensor, other: Tensor, label: Tensor, user: Tensor) -> Comparison:
    """Compare two models on the rows that both have scored.

    Args:
        logit, other: of the two models [N].
        label: 0 and 1 [N].
        user: whose rows they are [N]. Rows of one user resemble each other, so few users say little, however many rows
            they have.

    The variance is the largest of three: that between users, and those that either model itself expects of the rows.
    Rows without a single click differ by little, each by about the same, and would be certain of anything; the models
    know that a click could have come.
    """
    logit, other, label = logit.double(), other.double(), label.double()
    own, others = (functional.binary_cross_entropy_with_logits(x, label, reduction="none") for x in (logit, other))
    rows, difference = len(label), own - others
    _, group, counts = torch.unique(user, return_inverse=True, return_counts=True)
    deviations = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, group, difference - difference.mean())
    users = rows**2 / float((counts.double() ** 2).sum())  # as many with equally many rows would say as much
    between = float((deviations**2).sum()) * _few(users) if users > 1 + 1e-9 else math.inf
    expected = [float((torch.sigmoid(x) * torch.sigmoid(-x) * (logit - other) ** 2).sum()) for x in (logit, other)]
    error = math.sqrt(max(between, *expected)) / rows
    return Comparison(rows=rows, logloss=float(own.mean()), other=float(others.mean()), error=error)


def _few(users: float) -> float:
    """By how much a variance between so few is too small, where `CERTAINTY` standard errors shall mean what they say.

    n / (n - 1), and the square of the ratio of Student's quantile to that of the normal distribution (its expansion).
    """
    z, freedom = CERTAINTY, users - 1
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return users / freedom * (student / z) ** 2


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the rows of a closed period say before anything is learned from them."""

    served: Comparison | None
    """What is served now against a constant, on the whole period; None where nothing that has learned is served."""
    order: Comparison | None
    """The same after a constant was added to its logits, so that its mean is right: how it orders the rows."""
    rehearsals: Mapping[str, Mapping[str, Comparison]]
    """Rung → what would be made of it by the first nine tenths, against a `constant` and what is `served`, on the last
    tenth. Empty where a tenth is less than a row."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        whole = {"served": self.served, "order": self.order}
        return {
            **{name: found and found.to_json() for name, found in whole.items()},
            "rehearsals": {
                rung: {name: found.to_json() for name, found in against.items()}
                for rung, against in self.rehearsals.items()
            },
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Trial":
        """The inverse of `to_json`."""
        return cls(
            **{name: values[name] and Comparison.from_json(values[name]) for name in ("served", "order")},
            rehearsals={
                rung: {name: Comparison.from_json(found) for name, found in against.items()}
                for rung, against in values["rehearsals"].items()
            },
        )

    @property
    def strange(self) -> bool:
        """Whether what is served fails on the period, and nothing better than a constant comes of learning it."""
        if self.served is None or self.order is None or not self.served.worse:
            return False
        return not (self.order.better or any(against["constant"].better for against in self.rehearsals.values()))


def rehearsed(rows: int) -> int:
    """How many rows of a period a rehearsal learns: the oldest, all but `HELD_OUT` of them."""
    return rows - int(rows * HELD_OUT)


def try_out(label: Tensor, user: Tensor, served: Tensor | None, rehearsals: Mapping[str, Tensor]) -> Trial:
    """Put the questions to the rows of a period.

    Args:
        label: 0 and 1 [N], in the order of time.
        user: whose rows they are [N].
        served: logits [N] of what is served now; None where that is the prior.
        rehearsals: rung → logits of the last rows, which it has not learned; it has all rows before.
    """
    found: dict[str, dict[str, Comparison]] = {}
    for rung, logit in rehearsals.items():
        cut = len(label) - len(logit)
        constant = _constant(label[:cut], len(logit))
        found[rung] = {"constant": compare(logit, constant, label[cut:], user[cut:])}
        if served is not None:
            found[rung]["served"] = compare(logit, served[cut:], label[cut:], user[cut:])
    if served is None:
        return Trial(served=None, order=None, rehearsals=found)
    constant = _constant(label, len(label))
    shifted = served.double() + _shift(served.double(), constant)
    whole = {name: compare(x, constant, label, user) for name, x in (("served", served), ("order", shifted))}
    return Trial(**whole, rehearsals=found)


def _constant(label: Tensor, rows: int) -> Tensor:
    """The logit of the click rate, [rows]; one click and one other row are added, so that it is finite."""
    clicks = float(label.sum()) + 1
    return torch.full((rows,), math.log(clicks / (len(label) + 2 - clicks)), dtype=torch.float64)


def _shift(logit: Tensor, constant: Tensor) -> float:
    """What to add to logits so that the mean prediction is that of a constant; by bisection."""
    rate = float(torch.sigmoid(constant[:1]))
    low, high = (float(constant[0] - end) for end in (logit.max(), logit.min()))
    if not math.isfinite(high - low):
        return 0.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if float(torch.sigmoid(logit + middle).mean()) < rate else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Decision:
    """Which model serves next."""

    kind: ModelKind
    reason: str
    checks: Mapping[str, Any]
    """What was looked at, by model; JSON."""
    trial: Trial | None = None
    strange: int = 0
    """Strange periods in a row, this one included."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        values: dict[str, Any] = {"decision": str(self.kind), "reason": self.reason, "checks": dict(self.checks)}
        trial = None if self.trial is None else self.trial.to_json()
        return {**values, "trial": trial, "strange": self.strange}


def decide(
    progressive: Mapping[str, Scores],
    recent: Mapping[str, Scores],
    trial: Trial | None = None,
    before: Mapping[str, Any] | None = None,
) -> Decision:
    """Walk down the ladder.

    Args:
        progressive: the models of before on the period just closed ("generated", "incremental", "previous"); any may be
            absent.
        recent: the models just made ("generated", "incremental") on the newest traffic, which they have learned from.
        trial: of the period.
        before: the decision, as JSON, on the version whose training state the update went on from.
    """
    strange = int((before or {}).get("strange", 0)) + 1 if trial is not None and trial.strange else 0
    refused = 0 < strange <= PATIENCE
    checks: dict[str, dict[str, Any]] = {name: {"recent": scores.to_json()} for name, scores in recent.items()}
    reasons: list[str] = []
    if refused:
        assert trial is not None
        reasons.append(
            f"the period is strange, {strange} in a row: what is served against a constant had {trial.served}, and "
            "nothing better than a constant was learned from it"
        )
    rungs = [ModelKind.GENERATED, ModelKind.INCREMENTAL]
    for rung, below in zip(rungs, (ModelKind.INCREMENTAL, ModelKind.PREVIOUS), strict=True):
        if rung not in recent or refused:
            continue
        fault = _insane(recent[rung]) or _failed(rung, trial) or _beaten(rung, below, progressive)
        checks[rung]["passed"] = fault is None
        if fault is None:
            reasons.append(f"{rung} passed every check")
            return Decision(rung, "; ".join(reasons), checks, trial, strange)
        reasons.append(f"{rung}: {fault}")
    reasons.append("the model served before stays")
    return Decision(ModelKind.PREVIOUS, "; ".join(reasons), checks, trial, strange)


def _insane(recent: Scores) -> str | None:
    if not math.isfinite(recent.logloss):
        return f"LogLoss on recent traffic is {recent.logloss}"
    low, high = CALIBRATION_RANGE
    ratio = recent.calibration
    if ratio is not None and recent.clicks >= MIN_CLICKS and not low <= ratio <= high:
        return f"predicts {ratio:.2f} times the clicks of recent traffic, expected {low} to {high}"
    return None


def _failed(rung: ModelKind, trial: Trial | None) -> str | None:
    """What speaks against a rung in its rehearsal; one that has none is judged by that of the incremental model."""
    found = {} if trial is None else trial.rehearsals
    against = found.get(rung, found.get(ModelKind.INCREMENTAL, {}))
    for name, words in (("constant", "a constant"), ("served", "what is served")):
        if name in against and against[name].worse:
            return f"its rehearsal is worse than {words} on rows that it has not learned: {against[name]}"
    return None


def _beaten(rung: ModelKind, below: ModelKind, progressive: Mapping[str, Scores]) -> str | None:
    """What speaks against a rung in the scores of its predecessor, compared with those of the rung below."""
    if rung not in progressive or below not in progressive:
        return None
    own, other = progressive[rung], progressive[below]
    limit = other.logloss * (1 + TOLERANCE[rung])
    if own.logloss > limit:
        return f"LogLoss {own.logloss:.4f} on the closed period, {below} had {other.logloss:.4f}"
    return None
