"""What an experiment records of a model's predictions for a period: scores by slice, and reliability curves."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from asmg.experiments.periods import Periods
from asmg.experiments.protocol import Protocol
from asmg.metrics import scores

__all__ = ["BINS", "NO_REPEAT", "SLICES", "add_observations", "empty_tables"]

BINS = 20
"""Number of bins of a reliability curve; each has the same number of predictions (±1)."""

NO_REPEAT = "no repeat"
"""Name of the slice of interactions whose item is not among the user's last 30 clicks."""

SLICES = ("all", "cold user", "warm user", "cold item", "warm item", NO_REPEAT)
"""Slices of a period's interactions. Cold: a user without rows, an item without clicks in the earlier periods."""


def empty_tables() -> dict[str, list[dict[str, Any]]]:
    """The result tables of a job without rows, by name."""
    return {"scores": [], "timings": [], "calibration": [], "forgetting": []}


def add_observations(found: dict[str, Any], logits: Tensor, periods: Periods, protocol: Protocol, step: int) -> None:
    """Add the scores and the reliability curve of one model to the tables of a job.

    Args:
        found: the tables.
        logits: [N], the model's predictions for the period after `step`.
        periods: of the log.
        protocol: says whether the period is a test period; only these get a reliability curve.
        step: the update after which the model was scored.
    """
    test = step >= protocol.test_from
    where = {"step": step, "period": step + 1, "test": test}
    found["scores"] += [{**where, **row} for row in _slice_rows(logits, periods, step)]
    if test:
        found["calibration"] += [{"period": step + 1, **row} for row in _bin_rows(logits, periods.data[step].label)]


def _slice_rows(logits: Tensor, periods: Periods, step: int) -> Iterator[dict[str, Any]]:
    """The scores of each slice of the period after `step`."""
    label = periods.data[step].label
    user, item = periods.cold(step)
    masks = (torch.ones_like(user), user, ~user, item, ~item, ~periods.repeats(step))
    for name, mask in zip(SLICES, masks, strict=True):
        if mask.any():
            score = scores(logits[mask], label[mask])
            yield {"slice": name, **asdict(score)}
        else:
            yield {"slice": name, "events": 0, "clicks": 0, "auc": None, "logloss": None, "calibration": None}


def _bin_rows(logits: Tensor, label: Tensor) -> Iterator[dict[str, Any]]:
    """The reliability curve: predictions in ascending order, in `BINS` bins."""
    order = torch.sort(logits, stable=True).indices
    predicted, clicked = torch.sigmoid(logits.double())[order], label.double()[order]
    for n, (p, y) in enumerate(zip(predicted.tensor_split(BINS), clicked.tensor_split(BINS), strict=True)):
        if len(p):
            yield {"bin": n, "count": len(p), "predicted": float(p.mean()), "clicked": float(y.mean())}
