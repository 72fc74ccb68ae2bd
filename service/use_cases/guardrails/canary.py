"""Canaries: a new version answers a share of the users first, and then all of them or nobody.

`publish` starts one; the leading worker keeps looking at what its users did, and decides (`keep_judging`).
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from service.errors import ServiceError, StateConflict
from service.settings import Settings
from service.storage.postgres.database import Database, Lock, UnitOfWork
from service.storage.postgres.repositories import AlertKind, AliasName, Canary, CanaryState
from service.storage.redis.notices import Notices
from service.use_cases.alerts import close_alert, raise_alert
from service.use_cases.guardrails.canary_evidence import Evidence, Judgement, Verdict
from service.use_cases.takeover import release_champion
from service.use_cases.webhooks.announce import Event, announce

__all__ = ["CanaryJudge", "end_canary", "keep_judging", "note_end", "start_canary"]

logger = logging.getLogger(__name__)

ACTOR = "guardrail"
"""Who decides by itself, in the audit."""

IMPRESSIONS_AT_ONCE = 2000
"""Impressions that are read at a time."""

CLICK_SHARE = 0.25
"""Share of a canary's time in which clicks on an impression count, if the attribution window is not shorter. The
impressions of the last such time are not looked at."""

TROUBLE_SECONDS = 5.0
"""Pause where Postgres does not answer."""

LATEST = "\U0010ffff"
"""Sorts behind all request ids."""


async def start_canary(work: UnitOfWork, version: int, settings: Settings, *, actor: str, reason: str) -> None:
    """Announce a version as the canary beside the champion. It replaces one that runs, and takes its users over, so
    that none of them goes back to an older version.

    Args:
        work: the transaction that publishes, with `Lock.MODELS`.
        version: the new version, which is in the table already.
        settings: say how large the share is, and for how long.
        actor: who publishes.
        reason: for the audit.
    """
    champion = await work.models.alias(AliasName.CHAMPION)
    assert champion is not None, "version 0 is made before the first update"
    running = await work.canaries.running()
    share, salt, minutes = settings.canary_share, version, settings.canary_minutes
    if running is not None:
        share, salt = running.share, running.salt
        await work.canaries.end(
            running.version,
            CanaryState.REPLACED,
            actor=actor,
            reason=f"version {version} is newer",
            numbers=running.numbers,
        )
    await work.canaries.start(version, champion.version, share=share, salt=salt, minutes=minutes)
    await work.models.set_alias(
        AliasName.CHAMPION, champion.version, lead_seconds=None, actor=actor, reason=reason, canary=version
    )
    detail = {"version": version, "champion": champion.version, "share": share, "minutes": minutes}
    await work.audit.add(actor, "start_canary", detail, reason=reason)
    await announce(work, Event.CANARY_STARTED, detail)


async def note_end(
    work: UnitOfWork, running: Canary, *, promoted: bool, actor: str, reason: str, numbers: Any = None
) -> None:
    """Note what became of the canary that runs; the caller moves the champion in the same transaction.

    Args:
        work: the transaction.
        running: the canary.
        promoted: whether it answers all users from now on, or none.
        actor: who has decided.
        reason: why.
        numbers: by which it was decided; None for those that the worker has noted so far.
    """
    state, numbers = CanaryState.PROMOTED if promoted else CanaryState.REVERTED, numbers or running.numbers
    await work.canaries.end(running.version, state, actor=actor, reason=reason, numbers=numbers)
    detail = {"version": running.version, "champion": running.champion_version, "numbers": numbers or {}}
    action, event = ("promote_canary", Event.CANARY_PROMOTED) if promoted else ("revert_canary", Event.CANARY_REVERTED)
    await work.audit.add(actor, action, detail, reason=reason)
    await announce(work, event, {**detail, "reason": reason, "actor": actor})
    say = partial(logger.info if promoted else logger.warning, "canary %d is %s: %s", running.version, state, reason)
    work.after_commit(say)


async def end_canary(
    database: Database,
    notices: Notices,
    settings: Settings,
    *,
    promote: bool,
    reason: str,
    actor: str,
    version: int | None = None,
    judgement: Judgement | None = None,
) -> Canary:
    """Let a canary answer all users, or none; the api processes switch together, as to any other version.

    Args:
        database: holds the aliases.
        notices: tell the api processes.
        settings: of the swap.
        promote: whether it becomes the champion.
        reason: for the audit.
        actor: for the audit.
        version: of the canary; None for whichever runs.
        judgement: that has led to it, where no operator has decided.

    Returns:
        the canary, with what became of it.

    Raises:
        StateConflict: no such canary runs.
    """
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        running = await work.canaries.running()
        if running is None or (version is not None and running.version != version):
            runs = "none runs" if running is None else f"version {running.version} runs"
            raise StateConflict(f"expected {'a canary' if version is None else f'canary {version}'} that runs; {runs}")
        target = running.version if promote else running.champion_version
        await work.models.set_alias(AliasName.CHAMPION, target, lead_seconds=None, actor=actor, reason=reason)
        numbers = None if judgement is None else judgement.numbers
        await note_end(work, running, promoted=promote, actor=actor, reason=reason, numbers=numbers)
        if promote:
            await close_alert(
                work, AlertKind.CANARY, reason=f"version {running.version} is in service now", actor=actor
            )
        elif judgement is not None:
            message = f"version {running.version} is out of service again: {reason}"
            await raise_alert(
                work, AlertKind.CANARY, message, numbers=judgement.numbers, version=running.version, actor=actor
            )
        ended = await work.canaries.get(running.version)
        await work.commit()
    await notices.publish_swap()
    if await release_champion(database, settings):  # where no api process runs
        await notices.publish_swap()
    assert ended is not None, "it was found above"
    return ended


@dataclass
class _Looked:
    """How far the impressions of a canary were read."""

    canary: Canary
    learned: int
    """The period that the canary has learned, before that of all its impressions."""
    evidence: Evidence
    last: tuple[Any, str]
    noted: Mapping[str, Any] | None = None
    """The numbers that operators see."""


class CanaryJudge:
    """Looks at what the users of a canary do. It holds what it has read in memory; another worker reads it again.

    Args:
        database: holds the canary and the impressions.
        notices: tell the api processes.
        settings: of the installation.
    """

    def __init__(self, database: Database, notices: Notices, settings: Settings) -> None:
        self._database, self._notices, self._settings = database, notices, settings
        self._looked: _Looked | None = None

    async def look(self) -> Judgement | None:
        """Read what is new, and promote or revert the canary where that is decided; None where none is in service.

        Raises:
            NotReady: Postgres does not answer.
        """
        async with self._database.read() as session:
            running = await session.canaries.running()
            if running is None or running.since is None or (running.elapsed_seconds or 0) <= 0:
                self._looked = None
                return None
            if self._looked is None or self._looked.canary.version != running.version:
                model = await session.models.get(running.version)
                assert model is not None, "canaries refer to versions"
                evidence = Evidence(running.version, running.share)
                self._looked = _Looked(running, model.period, evidence, (running.since, LATEST))
        await self._read(self._looked)
        over = (running.elapsed_seconds or 0) >= running.minutes * 60
        judgement = await asyncio.to_thread(self._looked.evidence.judge, over=over)
        if judgement.verdict is Verdict.WAIT and judgement.numbers != self._looked.noted:
            await self._note(self._looked, judgement)
        if judgement.verdict is not Verdict.WAIT:
            try:
                await end_canary(
                    self._database,
                    self._notices,
                    self._settings,
                    promote=judgement.verdict is Verdict.ON,
                    reason=judgement.reason,
                    actor=ACTOR,
                    version=running.version,
                    judgement=judgement,
                )
            except StateConflict as conflict:  # an operator or a newer version was faster
                logger.info("canary %d: %s", running.version, conflict)
        return judgement

    async def _note(self, looked: _Looked, judgement: Judgement) -> None:
        async with self._database.unit_of_work() as work:
            await work.canaries.note(looked.canary.version, judgement.numbers)
            await work.commit()
        looked.noted = judgement.numbers

    async def _read(self, looked: _Looked) -> None:
        canary = looked.canary
        wait = min(self._settings.attribution_window, timedelta(minutes=canary.minutes * CLICK_SHARE))
        while not looked.evidence.full:
            async with self._database.read() as session:
                outcomes = await session.canaries.outcomes(
                    (canary.champion_version, canary.version),
                    learned=looked.learned,
                    after=looked.last,
                    wait=wait,
                    most=IMPRESSIONS_AT_ONCE,
                )
            looked.evidence.add(outcomes)
            if outcomes:
                looked.last = (outcomes[-1].shown_at, outcomes[-1].request_id)
            if len(outcomes) < IMPRESSIONS_AT_ONCE:
                break


async def keep_judging(database: Database, notices: Notices, settings: Settings) -> None:
    """Judge each canary, until cancelled; trouble is logged and waited for. It waits for no update."""
    judge = CanaryJudge(database, notices, settings)
    while True:
        pause = settings.worker_poll_seconds
        try:
            await judge.look()
        except Exception as error:
            known = isinstance(error, (ServiceError, OSError))
            logger.warning("no canary is judged now: %s", error, exc_info=None if known else error)
            pause = TROUBLE_SECONDS
        await asyncio.sleep(pause)
