"""What the guardrails watch, their bounds, and what each has seen last; how far the shadows are. For operators."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from service.guardrail_settings import GuardrailSettings
from service.storage.postgres.database import Database, ReadSession
from service.storage.postgres.repositories import AlertKind, AliasName
from service.use_cases.guardrails.rules import (
    PROFILES,
    Check,
    check_drift,
    check_forgetting,
    check_loss,
    losing_in_a_row,
)
from service.use_cases.update.profile import Profile

__all__ = ["GuardrailState", "RuleState", "ShadowState", "guardrail_state"]

Unit = Literal["share", "index", "LogLoss", "AUC"]

MOST_ALERTS = 200
"""Newest open alerts that are looked at; one is open of each kind and subject."""

MOST_RESTARTS = 50
"""Newest restarts of shadows in which the last of each is looked for."""


class _Rule(NamedTuple):
    """What is said of a rule of `service.use_cases.guardrails.rules`."""

    alert: AlertKind
    watches: str
    unit: Unit
    setting: str | None = None


RULES = {
    "drift_new_users": _Rule(AlertKind.DRIFT_NEW_USERS, "share of the interactions whose user no model knows", "share"),
    "drift_new_items": _Rule(AlertKind.DRIFT_NEW_ITEMS, "share of the interactions whose item no model knows", "share"),
    "drift_clicks": _Rule(AlertKind.DRIFT_CLICKS, "share of the interactions that are clicks", "share"),
    "drift_scores": _Rule(
        AlertKind.DRIFT_SCORES,
        "population stability index of the served scores, against those of the three periods before",
        "index",
    ),
    "live_loss": _Rule(AlertKind.LIVE_LOSS, "LogLoss of what was served, less that of a constant", "LogLoss"),
    "quality": _Rule(AlertKind.QUALITY, "share of a constant's LogLoss that the served model saves", "share"),
    "decay": _Rule(
        AlertKind.QUALITY, "the same in the median of four periods, against the best median of four", "share"
    ),
    "forgetting": _Rule(
        AlertKind.FORGETTING,
        "mean fall of the AUC on earlier periods, against the versions that had just learned them",
        "AUC",
        "ASMG_FORGETTING_BOUND",
    ),
}
"""All rules by name, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class RuleState:
    """A rule and what it has seen. All is well while `now` is not outside of `low` and `high`."""

    rule: str
    alert: AlertKind
    """The kind of the alert that it opens."""
    watches: str
    """What `now` is."""
    unit: Unit
    """Of the numbers."""
    setting: str | None
    """The setting of its bound; null where the bound follows from what is usual."""
    now: float | None
    """Null while too little is known."""
    usual: float | None
    low: float | None
    """Null where there is no such bound, or while too little is known."""
    high: float | None
    open_alert: int | None
    """Number of the alert that it has opened."""


@dataclass(frozen=True, slots=True)
class ShadowState:
    """An update method that runs beside the served one, and how far it is."""

    method: str
    period: int
    """The newest that it has learned, or from which it starts; 0 before the first."""
    behind: int | None
    """Periods of the newest version that it has not learned yet; null where it will start again from that version."""
    attempts: int
    """How often workers have begun its next period; more than one where they ended or broke off."""
    restarted_at: datetime | None
    """When it last had to start again; null where it never had, or long ago."""
    restarted_for: str | None
    """Why."""


@dataclass(frozen=True, slots=True)
class GuardrailState:
    """All rules, the shadows, and the settings of the guardrails."""

    period: int | None
    """The newest that was looked at; null where none was kept."""
    version: int | None
    """The newest version, which the rule about forgetting is about."""
    rules: Sequence[RuleState]
    losing_in_a_row: int
    """Newest periods in a row on which what was served was worse than a constant."""
    rollback_after: int
    """`ASMG_ROLLBACK_AFTER`: at how many of these the service rolls back; 0: never."""
    sample_events: int
    """`ASMG_SAMPLE_EVENTS`: interactions that are kept of each period; 0 switches all rules off."""
    sample_periods: int
    """`ASMG_SAMPLE_PERIODS`: newest periods of which they are kept."""
    shadows: Sequence[ShadowState]
    """Those of `ASMG_SHADOW` of the worker, once a version was published with it."""


async def guardrail_state(database: Database, settings: GuardrailSettings) -> GuardrailState:
    """What the rules say of the newest period that was learned and of the newest version.

    Args:
        database: holds the profiles, the scores and the alerts.
        settings: the bounds.
    """
    async with database.read() as session:
        samples = await session.samples.newest(PROFILES)
        first = samples[0].period if samples else 0
        scores, _ = await session.samples.scores(first=first) if samples else ([], 0)
        learned = await session.models.learned_by(first) if samples else {}
        version = await session.models.latest_version()
        alerts = await session.alerts.list(MOST_ALERTS, None, is_open=True)
        shadows = await _shadows(session)
    profiles = [Profile.from_json(sample.profile) for sample in samples]
    checks = {check.rule: check for check in (*check_drift(profiles), *check_loss(profiles))}
    if version is not None and (found := check_forgetting(scores, version, learned, settings.forgetting_bound)):
        checks[found.rule] = found
    opened = {alert.kind: alert.number for alert in alerts}
    to_blame = {RULES[name].alert for name, check in checks.items() if check.finding is not None}
    rules = [
        _state(name, checks.get(name), opened.get(rule.alert) if _is_told(rule, checks.get(name), to_blame) else None)
        for name, rule in RULES.items()
    ]
    return GuardrailState(
        period=samples[-1].period if samples else None,
        version=version,
        rules=rules,
        losing_in_a_row=losing_in_a_row(profiles),
        rollback_after=settings.rollback_after,
        sample_events=settings.sample_events,
        sample_periods=settings.sample_periods,
        shadows=shadows,
    )


async def _shadows(session: ReadSession) -> list[ShadowState]:
    """How far each shadow is on its way to the head, and what last went wrong with it."""
    found, head = await session.shadows.list(), await session.models.alias(AliasName.HEAD)
    if not found or head is None:
        return []
    newest_first = await session.audit.list(MOST_RESTARTS, action="restart_shadow")
    restarts = {entry.detail["method"]: entry for entry in reversed(newest_first)}
    states = []
    for shadow in found:
        version, restart = await session.models.get(shadow.version), restarts.get(shadow.method)
        assert version is not None, "shadows refer to versions"
        states.append(
            ShadowState(
                method=shadow.method,
                period=version.period,
                behind=await session.shadows.behind(shadow, head.version),
                attempts=shadow.attempts,
                restarted_at=None if restart is None else restart.at,
                restarted_for=None if restart is None else restart.reason,
            )
        )
    return states


def _is_told(rule: _Rule, check: Check | None, to_blame: Collection[AlertKind]) -> bool:
    """Whether the open alert of its kind is this rule's: of two rules of a kind, that of the one which is broken."""
    return rule.alert not in to_blame or (check is not None and check.finding is not None)


def _state(name: str, check: Check | None, open_alert: int | None) -> RuleState:
    """What operators see of a rule; `check` is None while it knows too little."""
    rule = RULES[name]
    return RuleState(
        rule=name,
        alert=rule.alert,
        watches=rule.watches,
        unit=rule.unit,
        setting=rule.setting,
        now=None if check is None else check.now,
        usual=None if check is None else check.usual,
        low=None if check is None else check.low,
        high=None if check is None else check.high,
        open_alert=open_alert,
    )
