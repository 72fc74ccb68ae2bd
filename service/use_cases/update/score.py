"""Stage `score`: progressive validation. The models that exist are evaluated on the period before it is learned."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from asmg import metrics
from asmg.batch import PeriodData
from asmg.metrics import Scores
from asmg.models import BaseModel, Params
from asmg.progressive import stage_rng
from asmg.training import predict_logits
from service.storage.postgres.repositories import AliasName, Evaluation, ModelVersion
from service.use_cases.update.checkpoints import Checkpoints
from service.use_cases.update.context import Progress, UpdateContext, UpdateStart, hold_period
from service.use_cases.update.prepare import PrepareNote
from service.use_cases.update.sample import keep_sample
from service.use_cases.update.scored_parts import break_down
from service.use_cases.update.served import read_served
from service.use_cases.update.trial import Trial, rehearsal_rows, try_out

__all__ = ["ScoreNote", "score"]


@dataclass(frozen=True)
class ScoreNote:
    """Result of the stage `score`."""

    scores: Mapping[str, Mapping[str, Any]]
    """Name of a model (`generated`, `incremental`, `previous`, `baseline`) → its version and its scores (JSON). Empty
    for a period that is learned late."""
    trial: Trial
    """Comparisons that the gate decides by."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"scores": self.scores, "trial": self.trial.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], /) -> Self:
        """The inverse of `to_json`."""
        return cls(values["scores"], Trial.from_json(values["trial"]))

    def by_model(self) -> dict[str, Scores]:
        """Name of a model → its scores. JSON has null for a LogLoss that is not finite."""
        found = {}
        for name, values in self.scores.items():
            known = {key: value for key, value in values.items() if key != "version"}
            found[name] = Scores(**{**known, "logloss": math.nan if known["logloss"] is None else known["logloss"]})
        return found


@dataclass(frozen=True)
class _Scored:
    """A model to be evaluated."""

    version: int
    model: BaseModel
    params: Params
    data: PeriodData
    """The period as this model reads it: with the statistics that the model is served with."""


async def score(
    context: UpdateContext,
    checkpoints: Checkpoints,
    start: UpdateStart,
    prepared: PrepareNote,
    progress: Progress,
) -> ScoreNote:
    """Evaluate every model that was there before the period, and compare what is served with a constant and rehearsals.

    After a later period was learned, no model qualifies: what users clicked here was in their histories there. The
    comparisons are made all the same.
    """
    data = await checkpoints.read_data(prepared.data)
    state = await checkpoints.read_state(None)
    models, served = await _existing_models(context, checkpoints, start, state, data)
    scores: dict[str, Mapping[str, Any]] = {}
    evaluations: list[Evaluation] = []
    said: dict[str, Tensor] = {}
    for name, each in models.items():
        said[name] = logits = await asyncio.to_thread(predict_logits, each.model, each.params, each.data)
        if start.late:
            continue
        result = await asyncio.to_thread(metrics.scores, logits, data.label)
        scores[name] = {"version": each.version, **result.to_json()}
        evaluations.append(
            Evaluation(
                period=start.period,
                model=name,
                version=each.version,
                events=result.events,
                auc=result.auc,
                logloss=result.logloss,
                calibration=result.calibration,
            )
        )
    served_logits = said.get(served)
    trial = await asyncio.to_thread(_try_out, context, start, state, data, served_logits, progress)
    sample, parts = None, None
    if not start.late:
        of_served = None if served_logits is None else (models[served].version, served_logits)
        sample = await keep_sample(context, checkpoints, start, prepared, of_served, trial)
        parts = await asyncio.to_thread(break_down, context, checkpoints, start, prepared, state, data, said)
    async with context.database.unit_of_work() as work:
        await hold_period(work, context, start.period)
        await work.evaluations.put(evaluations)
        if sample is not None:
            await work.samples.put(sample)
        if parts is not None:
            await work.breakdowns.put(start.period, parts.to_json())
        await work.commit()
    return ScoreNote(scores, trial)


async def _existing_models(
    context: UpdateContext, checkpoints: Checkpoints, start: UpdateStart, state: Any, data: PeriodData
) -> tuple[dict[str, _Scored], str]:
    """The models to be evaluated by name, and the name of the one that is served now."""
    head, updater = start.head, context.updater
    of_head = await asyncio.to_thread(updater.serving_models, state)
    models = {name: _Scored(head.version, updater.model, params, data) for name, params in of_head.items()}
    others: dict[str, ModelVersion | None] = {}
    async with context.database.read() as session:
        champion = await session.models.alias(AliasName.CHAMPION)
        baseline = await session.models.alias(AliasName.BASELINE)
        head_is_served = champion is not None and champion.version == head.version
        previous = head.parent_version if champion is None or head_is_served else champion.version
        if previous is not None:
            others["previous"] = await session.models.get(previous)
        if baseline is not None:
            others["baseline"] = await session.models.get(baseline.version)
    for name, version in others.items():
        if version is not None and "serving" in version.state:
            models[name] = await _served_by(context, checkpoints, version, data)
    # The head serves the model of its own kind, which for kind `previous` is that of its parent.
    return models, str(head.kind) if head_is_served else "previous"


async def _served_by(
    context: UpdateContext, checkpoints: Checkpoints, version: ModelVersion, data: PeriodData
) -> _Scored:
    """The model that a version serves, which another method may have made, without rows that changed hands since."""
    served = await read_served(context, checkpoints.files, version.state)
    selection = checkpoints.selection
    params = await asyncio.to_thread(served.excerpt, selection)
    read = await asyncio.to_thread(served.prepared, data, selection)
    return _Scored(version.version, served.model, params, read)


def _try_out(
    context: UpdateContext,
    start: UpdateStart,
    state: Any,
    data: PeriodData,
    served_logits: Tensor | None,
    progress: Progress,
) -> Trial:
    """Rehearse the update on the oldest rows of the period, and compare on the newest."""
    rehearsals: dict[str, Tensor] = {}
    first, cut = rehearsal_rows(len(data))
    if cut < len(data):
        older, newest = data.slice(first, cut), data.slice(cut, len(data))
        rng = stage_rng(context.settings.seed, start.period, "rehearse")
        rehearsals = context.team.rehearse(state, older, newest, rng=rng, progress=progress)
    return try_out(data.label, data.user, served_logits, rehearsals)
