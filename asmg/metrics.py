"""Progressive-validation metrics: AUC, LogLoss and calibration, from logits or probabilities and 0/1 labels."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Scores", "auc", "calibration", "logloss", "scores"]


def auc(score: Tensor, label: Tensor) -> float | None:
    """Area under the ROC curve: how often a random positive is scored above a random negative, a tie counting one half.

    Args:
        score: any monotone score [N]. label: 0 or 1 [N].

    Returns:
        a number in [0, 1]; None where one of the two classes is absent.
    """
    positive = label > 0.5
    n_pos = int(positive.sum())
    n_neg = len(label) - n_pos
    if n_pos == 0 or n_neg == 0:
        return None
    _, group, counts = torch.unique(score, return_inverse=True, return_counts=True)
    last = torch.cumsum(counts, 0).double()
    rank = (last - (counts.double() - 1) / 2)[group]  # mean rank of the tied group, ranks from 1
    return float((rank[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def logloss(logit: Tensor, label: Tensor) -> float:
    """Mean binary cross-entropy in nats, from logits [N] (exact for extreme ones, no clipping)."""
    return float(functional.binary_cross_entropy_with_logits(logit.double(), label.double()))


def calibration(logit: Tensor, label: Tensor) -> float | None:
    """Sum of predicted probabilities over sum of labels: 2 promises twice the clicks; None without clicks."""
    clicks = float(label.double().sum())
    return float(torch.sigmoid(logit.double()).sum()) / clicks if clicks else None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How a model did on a log that it had not been trained on."""

    events: int
    """Interactions scored."""
    clicks: int
    """Those with label 1."""
    auc: float | None
    """Tie-aware AUC; None where the log has one class only."""
    logloss: float
    """Mean cross-entropy, nats."""
    calibration: float | None
    """Predicted clicks over clicks; None without clicks."""

    def to_json(self) -> dict[str, float | int | None]:
        """As plain JSON values."""
        return asdict(self)


def scores(logit: Tensor, label: Tensor) -> Scores:
    """All metrics of one log: logits [N], labels [N]."""
    return Scores(
        events=len(label),
        clicks=int((label > 0.5).sum()),
        auc=auc(logit, label),
        logloss=logloss(logit, label),
        calibration=calibration(logit, label),
    )
