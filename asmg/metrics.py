"""Metrics of predictions: AUC, LogLoss and calibration, from logits and 0/1 labels."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Scores", "auc", "calibration", "logloss", "scores"]


def auc(score: Tensor, label: Tensor) -> float | None:
    """Area under the ROC curve: the probability that a random positive has a higher score than a random negative.

    A tie counts one half.

    Args:
        score: [N], logits or any other score that increases with the click probability.
        label: [N], 0 or 1.

    Returns:
        a number in [0, 1]; None if one of the two classes is absent.
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
    """Mean binary cross-entropy in nats of logits [N] and labels [N]; exact for extreme logits, without clipping."""
    return float(functional.binary_cross_entropy_with_logits(logit.double(), label.double()))


def calibration(logit: Tensor, label: Tensor) -> float | None:
    """Sum of the predicted probabilities divided by the number of clicks: 2 predicts twice too many. None without
    clicks.
    """
    clicks = float(label.double().sum())
    return float(torch.sigmoid(logit.double()).sum()) / clicks if clicks else None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The metrics of a model on a log that it was not trained on."""

    events: int
    """Number of interactions."""
    clicks: int
    """Number of interactions with label 1."""
    auc: float | None
    """AUC; None if the log has only one class."""
    logloss: float
    """Mean cross-entropy in nats."""
    calibration: float | None
    """Predicted clicks divided by clicks; None without clicks."""

    def to_json(self) -> dict[str, float | int | None]:
        """The metrics as plain JSON values."""
        return asdict(self)


def scores(logit: Tensor, label: Tensor) -> Scores:
    """All metrics of a log with logits [N] and labels [N]."""
    return Scores(
        events=len(label),
        clicks=int((label > 0.5).sum()),
        auc=auc(logit, label),
        logloss=logloss(logit, label),
        calibration=calibration(logit, label),
    )
