"""Alerts: what is wrong now, and what was. One is open of each kind and subject.

Alerts are opened and closed in the transaction of what caused it, with a row of the audit and the rows of the outbox
from which webhooks are told. Guardrails speak through `raise_alert` and `close_alert`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any

from service.errors import NoSuchNumber, StateConflict
from service.storage.postgres.database import Database, UnitOfWork
from service.storage.postgres.repositories import Alert, AlertKind, Severity
from service.use_cases.status import MAX_NUMBER, before_number
from service.use_cases.webhooks.announce import Event, announce, as_json

__all__ = ["AlertPage", "acknowledge_alert", "alert_counts", "close_alert", "list_alerts", "raise_alert"]

logger = logging.getLogger(__name__)

WORKER = "worker"
"""Who opens and closes alerts, in the audit, unless an operator does."""

MAX_MESSAGE_LENGTH = 2000
"""The most characters of a message."""


@dataclass(frozen=True, slots=True)
class AlertPage:
    """Alerts, newest first."""

    alerts: Sequence[Alert]
    next: int | None
    """`before` of the next page; null on the last."""


async def raise_alert(
    work: UnitOfWork,
    kind: AlertKind,
    message: str,
    *,
    severity: Severity = Severity.WARNING,
    subject: str = "",
    numbers: Mapping[str, Any] | None = None,
    period: int | None = None,
    version: int | None = None,
    actor: str = WORKER,
) -> Alert:
    """Say that something is wrong. One that is open already gets the new message and numbers.

    Only opening it, or a warning that becomes critical, is in the audit and told to webhooks; the log has a line each
    time.

    Args:
        work: the transaction of what is wrong.
        kind: what is wrong.
        message: one sentence with the numbers, without ids of users and items.
        severity: how bad it is.
        subject: what it is about, of a kind that can be wrong with several things at a time.
        numbers: the same numbers for programs, as JSON.
        period: to which it belongs, if there is one.
        version: the model version to which it belongs, if there is one.
        actor: for the audit.
    """
    before = await work.alerts.open(kind, subject)
    alert = await work.alerts.put(
        kind, subject, severity, message[:MAX_MESSAGE_LENGTH], as_json(numbers or {}), period=period, version=version
    )
    worse = before is not None and before.severity != severity == Severity.CRITICAL
    if before is None or worse:
        detail = {"alert": alert.number, "kind": kind, "subject": subject, "severity": severity}
        await work.audit.add(actor, "open_alert", detail, reason=alert.message)
        await announce(work, Event.ALERT_OPENED, _document(alert))
    work.after_commit(partial(logger.warning, "alert %s: %s", kind, alert.message))
    return alert


async def close_alert(
    work: UnitOfWork, kind: AlertKind, *, reason: str, subject: str = "", actor: str = WORKER
) -> Alert | None:
    """Say that it is not wrong any more; None if no such alert is open.

    Args:
        work: the transaction of what has set it right.
        kind: what was wrong.
        reason: why it is not any more.
        subject: as it was raised.
        actor: for the audit.
    """
    found = await work.alerts.open(kind, subject)
    return None if found is None else await _close(work, found, reason, actor)


async def acknowledge_alert(database: Database, number: int, *, reason: str, actor: str, close: bool = False) -> Alert:
    """Note that somebody has seen an alert and what they say to it; it stays open until it is not wrong any more.

    Args:
        database: holds the alerts.
        number: of the alert.
        reason: for the audit.
        actor: who has seen it.
        close: whether to close it as well; it opens again when it is raised again.

    Raises:
        NoSuchNumber: there is no such alert.
        StateConflict: it is closed already.
    """
    async with database.unit_of_work() as work:
        alert = await work.alerts.get_locked(number) if 0 < number <= MAX_NUMBER else None
        if alert is None:
            raise NoSuchNumber("alert", number)
        if alert.closed_at is not None:
            raise StateConflict(f"expected alert {number} to be open; it is closed since {alert.closed_at.isoformat()}")
        alert = await work.alerts.acknowledge(number, actor)
        detail = {"alert": number, "kind": alert.kind, "subject": alert.subject}
        await work.audit.add(actor, "acknowledge_alert", detail, reason=reason)
        if close:
            alert = await _close(work, alert, reason, actor)
        await work.commit()
    return alert


async def list_alerts(
    database: Database, *, limit: int, before: int | None = None, is_open: bool | None = None
) -> AlertPage:
    """A page of alerts, newest first.

    Args:
        database: holds the alerts.
        limit: most alerts of the page.
        before: only those with a lower number; None starts at the newest.
        is_open: only open ones, or only closed ones; None for both.
    """
    async with database.read() as session:
        found = await session.alerts.list(limit + 1, before_number(before), is_open=is_open)
    page = found[:limit]
    return AlertPage(page, next=page[-1].number if len(found) > limit else None)


async def alert_counts(database: Database) -> Mapping[str, int]:
    """Number of open alerts by kind, 0 for kinds that have none."""
    async with database.read() as session:
        return {**{str(kind): 0 for kind in AlertKind}, **await session.alerts.open_counts()}


async def _close(work: UnitOfWork, found: Alert, reason: str, actor: str) -> Alert:
    alert = await work.alerts.close(found.number, actor, reason)
    detail = {"alert": alert.number, "kind": alert.kind, "subject": alert.subject}
    await work.audit.add(actor, "close_alert", detail, reason=reason)
    await announce(work, Event.ALERT_CLOSED, _document(alert))
    work.after_commit(partial(logger.info, "alert %s is closed: %s", alert.kind, reason))
    return alert


def _document(alert: Alert) -> dict[str, Any]:
    """The alert as JSON."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(alert).items()}
