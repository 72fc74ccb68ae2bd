"""The gate: which of the models that an update has made may serve, decided by numbers and kept with its reason.

The ladder is generated → incremental → previous. A rung is skipped when its new model is not finite or is badly
calibrated on recent traffic, or when its predecessor did clearly worse than the next rung's on the period just closed
(scored before anything was trained on it). Previous means: keep serving what is served now.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asmg.metrics import Scores
from service.storage.repositories import ModelKind

__all__ = ["CALIBRATION_RANGE", "Decision", "decide"]

CALIBRATION_RANGE = (0.5, 2.0)
"""Predicted clicks over clicks, on the newest traffic."""

TOLERANCE = {ModelKind.GENERATED: 0.01, ModelKind.INCREMENTAL: 0.05}
"""Relative LogLoss by which a rung may do worse than the next one. Small differences are noise; and a model that was
not updated can win one period by luck but loses the one after, so leaving the ladder for it takes more."""

MIN_CLICKS = 20
"""Fewer clicks than this say nothing about calibration."""


@dataclass(frozen=True)
class Decision:
    """Which model serves next."""

    kind: ModelKind
    reason: str
    checks: Mapping[str, Any]
    """What was looked at, by model; JSON."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"decision": str(self.kind), "reason": self.reason, "checks": dict(self.checks)}


def decide(progressive: Mapping[str, Scores], recent: Mapping[str, Scores]) -> Decision:
    """Walk down the ladder.

    Args:
        progressive: the models of before on the period just closed ("generated", "incremental", "previous"); any may be
            absent.
        recent: the models just made ("generated", "incremental") on the newest traffic, which they have learned from.
    """
    checks: dict[str, dict[str, Any]] = {name: {"recent": scores.to_json()} for name, scores in recent.items()}
    reasons: list[str] = []
    rungs = [ModelKind.GENERATED, ModelKind.INCREMENTAL]
    for rung, below in zip(rungs, (ModelKind.INCREMENTAL, ModelKind.PREVIOUS), strict=True):
        if rung not in recent:
            continue
        fault = _insane(recent[rung]) or _beaten(rung, below, progressive)
        checks[rung]["passed"] = fault is None
        if fault is None:
            return Decision(rung, "; ".join([*reasons, f"{rung} passed every check"]), checks)
        reasons.append(f"{rung}: {fault}")
    return Decision(ModelKind.PREVIOUS, "; ".join([*reasons, "the model served before stays"]), checks)


def _insane(recent: Scores) -> str | None:
    if not math.isfinite(recent.logloss):
        return f"LogLoss on recent traffic is {recent.logloss}"
    low, high = CALIBRATION_RANGE
    ratio = recent.calibration
    if ratio is not None and recent.clicks >= MIN_CLICKS and not low <= ratio <= high:
        return f"predicts {ratio:.2f} times the clicks of recent traffic, expected {low} to {high}"
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
