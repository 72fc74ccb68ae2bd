"""Had another version been served: what it says of the interactions that were kept, beside what was served."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from service.errors import ModelNotFound
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import PeriodSample, SampleScore
from service.use_cases.status import MAX_NUMBER

__all__ = ["PeriodProfile", "Replay", "Replayed", "ReplayedPeriod", "SampleMatrix", "replay", "sample_matrix"]

MAX_PROFILES = 100
"""Newest periods whose profiles are shown."""

CONFIDENCE = 1.959964
"""Standard errors on each side of a 95 % confidence interval."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """A version on some interactions, beside what was served. LogLoss less is better, so a negative difference speaks
    for the version.
    """

    events: int
    logloss: float | None
    served_logloss: float | None
    difference: float | None
    """`logloss - served_logloss`."""
    low: float | None
    """Lower end of its 95 % confidence interval."""
    high: float | None
    """Upper end."""


@dataclass(frozen=True, slots=True)
class ReplayedPeriod(Replayed):
    """A version on what was kept of one period."""

    period: int
    served_version: int | None
    auc: float | None
    """Of the version; null where all labels are equal."""
    failure: str | None
    """Why the version could not be replayed on the period."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What would have been, had a version stayed in service."""

    version: int
    status: Literal["complete", "computing"]
    """`computing` while the worker has not scored all periods; ask again."""
    waiting: int
    """Periods that are still to be scored."""
    total: Replayed
    """Of all periods that are scored."""
    periods: Sequence[ReplayedPeriod]


async def replay(database: Database, version: int, *, first: int | None, last: int | None) -> Replay:
    """What a version says of the samples of later periods; the worker scores those that it has not scored.

    Args:
        database: holds the samples.
        version: of a model.
        first: of the periods; None for the first that the version has not learned.
        last: of the periods; None for the newest.

    Raises:
        ModelNotFound: there is no such version.
    """
    async with database.unit_of_work() as work:
        model = await work.models.get(version) if 0 <= version <= MAX_NUMBER else None
        if model is None:
            raise ModelNotFound(version)
        begin = model.period + 1 if first is None else min(first, MAX_NUMBER)
        end = MAX_NUMBER if last is None else min(last, MAX_NUMBER)
        await work.samples.request(version, begin, end)
        scores, waiting = await work.samples.scores(version=version, first=begin, last=end)
        samples = {sample.period: sample for sample in await work.samples.list(begin, end)}
        await work.commit()
    return Replay(
        version=version,
        status="computing" if waiting else "complete",
        waiting=waiting,
        total=_total(scores),
        periods=[_period(score, samples[score.period]) for score in scores],
    )


def _period(score: SampleScore, sample: PeriodSample) -> ReplayedPeriod:
    total = _total([score])
    return ReplayedPeriod(
        events=score.events,
        logloss=score.logloss,
        served_logloss=score.served_logloss,
        difference=total.difference,
        low=total.low,
        high=total.high,
        period=score.period,
        served_version=sample.served_version,
        auc=score.auc,
        failure=score.failure,
    )


def _total(scores: Sequence[SampleScore]) -> Replayed:
    """Means over all interactions. Periods count as independent of each other."""
    known = [
        (score.events, score.logloss, score.served_logloss, score.error)
        for score in scores
        if score.logloss is not None and score.served_logloss is not None and score.error is not None
    ]
    events = sum(each[0] for each in known)
    if not events:
        return Replayed(0, None, None, None, None, None)
    logloss, served = (sum(each[0] * each[place] for each in known) / events for place in (1, 2))
    error = math.sqrt(sum((each[0] * each[3]) ** 2 for each in known)) / events
    difference, margin = logloss - served, CONFIDENCE * error
    return Replayed(events, logloss, served, difference, difference - margin, difference + margin)


@dataclass(frozen=True, slots=True)
class PeriodProfile:
    """How a period's inputs and served scores were distributed."""

    period: int
    served_version: int | None
    learned_version: int | None
    """The newest version that has learned it; null where none has."""
    profile: Mapping[str, Any]
    """`service.use_cases.update.profile.Profile`."""


@dataclass(frozen=True, slots=True)
class SampleMatrix:
    """What versions say of what was kept of periods, and how those periods were."""

    profiles: Sequence[PeriodProfile]
    cells: Sequence[SampleScore]
    """By version and period."""


async def sample_matrix(database: Database) -> SampleMatrix:
    """All scores that are kept, and the profiles of the periods that they are about."""
    async with database.read() as session:
        samples = await session.samples.newest(MAX_PROFILES)
        cells, _ = await session.samples.scores(first=samples[0].period) if samples else ([], 0)
        learned = await session.models.learned_by(samples[0].period) if samples else {}
    profiles = [
        PeriodProfile(sample.period, sample.served_version, learned.get(sample.period), sample.profile)
        for sample in samples
    ]
    return SampleMatrix(profiles=profiles, cells=cells)
