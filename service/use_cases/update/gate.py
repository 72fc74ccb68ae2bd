"""Stage `gate`: which of the models that the update has made may serve; the decision is stored with its reason.

The gate walks down a ladder, generated → incremental → previous. Previous means: keep serving the model that is served
now. It skips a rung

* when the period is *strange*: the served model does worse on it than a constant and does not order its rows better
  either, and no rehearsal is better than a constant. The period's labels are then taken for noise;
* when the rung's rehearsal is worse on the newest tenth than a constant, or than the served model;
* when the rung's predecessor did worse on the period than that of the next rung;
* when the new model itself is not finite, or is badly calibrated on recent traffic.
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from asmg.metrics import Scores
from asmg.training import evaluate
from service.storage.postgres.repositories import ModelKind
from service.use_cases.update.checkpoints import Checkpoints
from service.use_cases.update.context import Progress, UpdateContext, UpdateStart
from service.use_cases.update.prepare import PrepareNote
from service.use_cases.update.score import ScoreNote
from service.use_cases.update.train import TrainNote
from service.use_cases.update.trial import Trial

__all__ = ["CALIBRATION_RANGE", "Decision", "decide", "gate"]

RECENT_EVENTS = 50_000
"""The newest interactions of the period, on which the gate evaluates the new models."""

CALIBRATION_RANGE = (0.5, 2.0)
"""Allowed ratio of predicted clicks to clicks on the newest interactions."""

MIN_CLICKS = 20
"""Least number of clicks that the calibration is judged by; fewer say nothing about it."""

TOLERANCE = {ModelKind.GENERATED: 0.01, ModelKind.INCREMENTAL: 0.05}
"""Relative LogLoss by which a rung may do worse than the next one. Small differences are noise. And a model that was
not updated can win one period by luck but loses the one after, so leaving the ladder for it takes more."""

PATIENCE = 3
"""Most strange periods in a row that are not served. After them the world has changed for good: the ladder serves."""


@dataclass(frozen=True)
class Decision:
    """Which model serves next: the result of the stage `gate`, and stored with the version."""

    kind: ModelKind
    reason: str
    checks: Mapping[str, Any]
    """What was checked, by model (JSON)."""
    trial: Trial | None = None
    strange: int = 0
    """Strange periods in a row, this one included."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        values: dict[str, Any] = {"decision": str(self.kind), "reason": self.reason, "checks": dict(self.checks)}
        trial = None if self.trial is None else self.trial.to_json()
        return {**values, "trial": trial, "strange": self.strange}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], /) -> Self:
        """The inverse of `to_json`."""
        trial = None if values["trial"] is None else Trial.from_json(values["trial"])
        return cls(ModelKind(values["decision"]), values["reason"], values["checks"], trial, values["strange"])


async def gate(
    context: UpdateContext,
    checkpoints: Checkpoints,
    start: UpdateStart,
    prepared: PrepareNote,
    scored: ScoreNote,
    trained: TrainNote,
    _progress: Progress,
) -> Decision:
    """Evaluate the new models on the newest interactions of the period and decide which one serves."""
    data = await checkpoints.read_data(prepared.data)
    recent = data.slice(max(0, len(data) - RECENT_EVENTS), len(data))
    state = await checkpoints.read_state(trained.parts)
    models = await asyncio.to_thread(context.updater.serving_models, state)
    scores = {
        name: await asyncio.to_thread(evaluate, context.updater.model, params, recent)
        for name, params in models.items()
    }
    return decide(scored.by_model(), scores, scored.trial, start.head.gate)


def decide(
    progressive: Mapping[str, Scores],
    recent: Mapping[str, Scores],
    trial: Trial | None = None,
    before: Mapping[str, Any] | None = None,
) -> Decision:
    """Walk down the ladder.

    Args:
        progressive: scores on the closed period of the models that existed before it ("generated", "incremental",
            "previous"); any may be absent.
        recent: scores of the new models ("generated", "incremental") on the newest interactions, which they have
            learned.
        trial: of the period.
        before: the decision (JSON) on the version whose training state the update has continued.
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
        fault = _fault_in_recent(recent[rung])
        fault = fault or _fault_in_rehearsal(rung, trial) or _fault_in_scores(rung, below, progressive)
        checks[rung]["passed"] = fault is None
        if fault is None:
            reasons.append(f"{rung} passed every check")
            return Decision(rung, "; ".join(reasons), checks, trial, strange)
        reasons.append(f"{rung}: {fault}")
    reasons.append("the model served before stays")
    return Decision(ModelKind.PREVIOUS, "; ".join(reasons), checks, trial, strange)


def _fault_in_recent(recent: Scores) -> str | None:
    """What is wrong with a new model on the newest interactions; None where nothing is."""
    if not math.isfinite(recent.logloss):
        return f"LogLoss on recent traffic is {recent.logloss}"
    low, high = CALIBRATION_RANGE
    ratio = recent.calibration
    if ratio is not None and recent.clicks >= MIN_CLICKS and not low <= ratio <= high:
        return f"predicts {ratio:.2f} times the clicks of recent traffic, expected {low} to {high}"
    return None


def _fault_in_rehearsal(rung: ModelKind, trial: Trial | None) -> str | None:
    """What is wrong with a rung's rehearsal; a rung that has none is judged by that of the incremental model."""
    rehearsals = {} if trial is None else trial.rehearsals
    against = rehearsals.get(rung, rehearsals.get(ModelKind.INCREMENTAL, {}))
    for name, words in (("constant", "a constant"), ("served", "what is served")):
        if name in against and against[name].worse:
            return f"its rehearsal is worse than {words} on rows that it has not learned: {against[name]}"
    return None


def _fault_in_scores(rung: ModelKind, below: ModelKind, progressive: Mapping[str, Scores]) -> str | None:
    """What is wrong with the scores of a rung's predecessor, compared with those of the rung below."""
    if rung not in progressive or below not in progressive:
        return None
    own, other = progressive[rung], progressive[below]
    limit = other.logloss * (1 + TOLERANCE[rung])
    if own.logloss > limit:
        return f"LogLoss {own.logloss:.4f} on the closed period, {below} had {other.logloss:.4f}"
    return None
