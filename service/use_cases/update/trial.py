"""What the rows of a closed period say about the models before any model learns from it.

The stage `score` makes the comparisons, the stage `gate` decides by them. Two models are compared by LogLoss, row by
row, with a standard error that allows for the rows of one user resembling each other. A *rehearsal* learns the oldest
nine tenths of the period, of a large one the last of them (`MOST_REHEARSED`), and is scored on the newest tenth.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Comparison", "Trial", "compare", "rehearsal_rows", "try_out"]

CERTAINTY = 3.0
"""Standard errors from which on a difference of LogLoss counts as certain: chance alone reaches it in one comparison of
700."""

MATERIAL = 0.01
"""Relative difference of LogLoss from which on it matters: with a million rows any difference is certain."""

HELD_OUT = 0.1
"""Fraction of a period, its newest rows, that a rehearsal does not learn and is scored on."""

MOST_REHEARSED = 100_000
"""Most rows that a rehearsal learns. They tell whether there is something to learn, and a rehearsal of all rows would
take as long as the update."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """LogLoss (mean cross-entropy, nats) of a model and of another one on the same rows."""

    rows: int
    logloss: float
    """Of the model."""
    other: float
    """Of the other one."""
    error: float
    """Standard error of their difference, paired row by row; infinite for the rows of a single user."""

    @property
    def worse(self) -> bool:
        """Whether the model is certainly and materially worse than the other; true if its LogLoss is not finite."""
        return not self.logloss - self.other <= max(CERTAINTY * self.error, MATERIAL * self.other)

    @property
    def better(self) -> bool:
        """Whether the model is certainly and materially better than the other."""
        return self.other - self.logloss > max(CERTAINTY * self.error, MATERIAL * self.other)

    def __str__(self) -> str:
        return f"LogLoss {self.logloss:.4f} against {self.other:.4f} ± {self.error:.4f} on {self.rows} rows"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; null for numbers that are not finite."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Comparison":
        """The inverse of `to_json`; null becomes NaN for a LogLoss and infinity for the error."""
        unknown: dict[str, Any] = {"logloss": math.nan, "other": math.nan, "error": math.inf}
        return cls(**{name: unknown[name] if value is None else value for name, value in values.items()})


def compare(logit: Tensor, other: Tensor, label: Tensor, user: Tensor) -> Comparison:
    """Compare two models on rows that both have scored.

    Args:
        logit: of the model [N].
        other: logits of the other one [N].
        label: 0 and 1 [N].
        user: the user of each row [N]. Rows of one user resemble each other, so few users say little, however many rows
            they have.

    The variance of the difference is the largest of three: the variance between users, and the variances that either
    model expects of the rows. Without the latter, rows with no click at all would look certain: their differences are
    all about the same, though the models know that a click could have come.
    """
    logit, other, label = logit.double(), other.double(), label.double()
    own, others = (functional.binary_cross_entropy_with_logits(x, label, reduction="none") for x in (logit, other))
    rows, difference = len(label), own - others
    _, group, counts = torch.unique(user, return_inverse=True, return_counts=True)
    deviations = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, group, difference - difference.mean())
    users = rows**2 / float((counts.double() ** 2).sum())  # the number of equally active users that would say as much
    between = float((deviations**2).sum()) * _small_sample_factor(users) if users > 1 + 1e-9 else math.inf
    expected = [float((torch.sigmoid(x) * torch.sigmoid(-x) * (logit - other) ** 2).sum()) for x in (logit, other)]
    error = math.sqrt(max(between, *expected)) / rows
    return Comparison(rows=rows, logloss=float(own.mean()), other=float(others.mean()), error=error)


def _small_sample_factor(users: float) -> float:
    """Factor by which to enlarge a variance estimated from few users, so that `CERTAINTY` keeps its probability.

    It is n / (n - 1) times the squared ratio of Student's quantile (its expansion) to that of the normal distribution.
    """
    z, freedom = CERTAINTY, users - 1
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return users / freedom * (student / z) ** 2


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Comparisons on the rows of a closed period, made before any model has learned them."""

    served: Comparison | None
    """The model that is served now against a constant, on the whole period; None where that is the prior."""
    order: Comparison | None
    """The same after a constant was added to its logits, so that its mean prediction is right: how well it orders the
    rows."""
    rehearsals: Mapping[str, Mapping[str, Comparison]]
    """Rung of the gate's ladder → its rehearsal against a `constant` and against the model `served`, on the newest
    tenth. Empty where a tenth is less than a row."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        whole = {"served": self.served, "order": self.order}
        return {
            **{name: comparison and comparison.to_json() for name, comparison in whole.items()},
            "rehearsals": {
                rung: {name: comparison.to_json() for name, comparison in against.items()}
                for rung, against in self.rehearsals.items()
            },
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Trial":
        """The inverse of `to_json`."""
        return cls(
            **{name: values[name] and Comparison.from_json(values[name]) for name in ("served", "order")},
            rehearsals={
                rung: {name: Comparison.from_json(comparison) for name, comparison in against.items()}
                for rung, against in values["rehearsals"].items()
            },
        )

    @property
    def strange(self) -> bool:
        """Whether the served model fails on the period, and no rehearsal becomes better than a constant."""
        if self.served is None or self.order is None or not self.served.worse:
            return False
        return not (self.order.better or any(against["constant"].better for against in self.rehearsals.values()))


def rehearsal_rows(rows: int) -> tuple[int, int]:
    """The first of a period's rows that a rehearsal learns, and the first of the newest, which it does not learn."""
    cut = rows - int(rows * HELD_OUT)
    return max(0, cut - MOST_REHEARSED), cut


def try_out(label: Tensor, user: Tensor, served: Tensor | None, rehearsals: Mapping[str, Tensor]) -> Trial:
    """Compare the served model and the rehearsals with constants, and the rehearsals with the served model.

    Args:
        label: 0 and 1 [N], in the order of time.
        user: the user of each row [N].
        served: logits [N] of the model that is served now; None where that is the prior.
        rehearsals: rung → logits of the newest rows. The rung's rehearsal has learned rows before them.
    """
    compared: dict[str, dict[str, Comparison]] = {}
    for rung, logit in rehearsals.items():
        cut = len(label) - len(logit)
        constant = _constant(label[:cut], len(logit))
        compared[rung] = {"constant": compare(logit, constant, label[cut:], user[cut:])}
        if served is not None:
            compared[rung]["served"] = compare(logit, served[cut:], label[cut:], user[cut:])
    if served is None:
        return Trial(served=None, order=None, rehearsals=compared)
    constant = _constant(label, len(label))
    shifted = served.double() + _shift(served.double(), constant)
    whole = {name: compare(x, constant, label, user) for name, x in (("served", served), ("order", shifted))}
    return Trial(**whole, rehearsals=compared)


def _constant(label: Tensor, rows: int) -> Tensor:
    """The logit of the click rate [rows]; one click and one row without a click are added, so that it is finite."""
    clicks = float(label.sum()) + 1
    return torch.full((rows,), math.log(clicks / (len(label) + 2 - clicks)), dtype=torch.float64)


def _shift(logit: Tensor, constant: Tensor) -> float:
    """What to add to the logits so that their mean prediction is that of the constant; found by bisection."""
    rate = float(torch.sigmoid(constant[:1]))
    low, high = (float(constant[0] - end) for end in (logit.max(), logit.min()))
    if not math.isfinite(high - low):
        return 0.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if float(torch.sigmoid(logit + middle).mean()) < rate else (low, middle)
    return (low + high) / 2
