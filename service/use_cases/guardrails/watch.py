"""Judge each new version and the period that it was made from: alerts, and the rollback that needs nobody."""

import logging
from collections.abc import Sequence

from service.errors import NotReady, ServiceError
from service.storage.postgres.database import UnitOfWork
from service.storage.postgres.repositories import AlertKind, AliasName, PeriodSample, SampleScore, Severity
from service.use_cases.alerts import close_alert, raise_alert
from service.use_cases.guardrails.rules import PROFILES, find_drift, find_forgetting, find_loss, losing_in_a_row
from service.use_cases.guardrails.scoring import score_waiting
from service.use_cases.rollback import rollback
from service.use_cases.update.context import UpdateContext
from service.use_cases.update.profile import Profile

__all__ = ["ACTOR", "watch"]

logger = logging.getLogger(__name__)

ACTOR = "guardrail"
"""Who rolls back by itself, in the audit."""


async def watch(context: UpdateContext) -> bool:
    """Score the samples that wait for a version, and judge it if it is the newest.

    Scores and alerts are one transaction, so a worker that dies repeats both. Where judging fails, the log says so, and
    the scores are stored alone: no update waits for it.

    Returns:
        whether there was something to do.
    """
    scored = await score_waiting(context)
    if scored is None:
        return False
    version, scores = scored
    try:
        target = await _store_and_judge(context, version, scores)
    except (NotReady, OSError):
        raise
    except Exception:
        logger.exception("version %d is not judged", version)
        target = None
        async with context.database.unit_of_work() as work:
            await work.samples.score(scores)
            await work.commit()
    if target is not None:
        await _roll_back(context, target)
    return True


async def _store_and_judge(context: UpdateContext, version: int, scores: Sequence[SampleScore]) -> int | None:
    """Store scores, and judge the version if it is the newest; the version to go back to, if one must."""
    target: int | None = None
    async with context.database.unit_of_work() as work:
        await work.samples.score(scores)
        if version == await work.models.latest_version():
            samples = await work.samples.newest(PROFILES)
            await _judge(context, work, version, samples)
            target = await _way_back(context, work, samples)
        await work.commit()
    return target


WATCHED = (
    AlertKind.DRIFT_NEW_USERS,
    AlertKind.DRIFT_NEW_ITEMS,
    AlertKind.DRIFT_CLICKS,
    AlertKind.DRIFT_SCORES,
    AlertKind.QUALITY,
    AlertKind.LIVE_LOSS,
    AlertKind.FORGETTING,
)
"""The alerts that are opened and closed here."""


async def _judge(context: UpdateContext, work: UnitOfWork, version: int, samples: Sequence[PeriodSample]) -> None:
    """Open and close the alerts about a new version and its period, the newest of the samples."""
    profiles = [Profile.from_json(sample.profile) for sample in samples]
    findings = [*find_drift(profiles), *find_loss(profiles)]
    scores, _ = await work.samples.scores(first=samples[0].period)
    learned = await work.models.learned_by(samples[0].period)
    if forgotten := find_forgetting(scores, version, learned, context.settings.forgetting_bound):
        findings.append(forgotten)
    found = {finding.kind: finding for finding in findings}
    for kind in WATCHED:
        if kind in found:
            severity = Severity.CRITICAL if kind is AlertKind.LIVE_LOSS else Severity.WARNING
            await raise_alert(
                work,
                kind,
                found[kind].message,
                severity=severity,
                numbers=found[kind].numbers,
                period=samples[-1].period,
                version=version,
                actor=ACTOR,
            )
        else:
            await close_alert(work, kind, reason=f"period {samples[-1].period} is as usual", actor=ACTOR)


async def _way_back(context: UpdateContext, work: UnitOfWork, samples: Sequence[PeriodSample]) -> int | None:
    """The version to go back to, where the served model has lost to a constant for long enough; else None.

    It is the one that was served on the newest period on which that was not worse than a constant, and the prior where
    there is none.
    """
    patience = context.settings.rollback_after
    profiles = [Profile.from_json(sample.profile) for sample in samples]
    lost = losing_in_a_row(profiles)
    if not patience or lost < patience:
        return None
    champion = await work.models.alias(AliasName.CHAMPION)
    earlier = samples[: len(samples) - lost]
    target = next((each.served_version for each in reversed(earlier) if each.served_version is not None), 0)
    return None if champion is None or champion.version == target else target


async def _roll_back(context: UpdateContext, version: int) -> None:
    """Serve an earlier version again; the sequence from which the next update learns stays as it is."""
    try:
        result = await rollback(
            context.database,
            context.notices,
            to_version=version,
            sequence="keep",
            reason=f"what was served was worse than a constant for {context.settings.rollback_after} periods in a row",
            actor=ACTOR,
            settings=context.settings,
            objects=context.artifacts.objects,
        )
    except ServiceError as error:
        logger.warning("not rolled back to version %d: %s", version, error)
    else:
        logger.warning("rolled back from version %d to version %d", result.from_version, version)
