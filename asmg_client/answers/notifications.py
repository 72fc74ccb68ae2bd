"""Alerts, and the webhooks that are told of them and of other events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

__all__ = [
    "Alert",
    "Alerts",
    "Deliveries",
    "Delivery",
    "Webhook",
    "WebhookSecret",
    "Webhooks",
]


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that is wrong, or was."""

    number: int
    kind: str
    """Such as `gate_refused`, `quarantined`, `drift_clicks`, `quality`."""
    subject: str
    """What it is about, of a kind that can be wrong with several things at a time; else empty."""
    severity: str
    """`warning` or `critical`."""
    period: int | None
    version: int | None
    message: str
    """One sentence with the numbers."""
    numbers: Mapping[str, Any]
    opened_at: datetime
    raised_at: datetime
    """When it was last found to be wrong."""
    times: int
    """How often it was."""
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    closed_at: datetime | None
    """None while it is open."""
    closed_by: str | None
    closed_reason: str | None


@dataclass(frozen=True, slots=True)
class Alerts:
    """A page of alerts, newest first."""

    alerts: Sequence[Alert]
    next: int | None
    """`before` of the page that follows; None on the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """An endpoint that is told of events."""

    number: int
    url: str
    events: Sequence[str] | None
    """Those that it is told of; None for all."""
    created_at: datetime
    created_by: str
    old_secret_until: datetime | None
    """Until when the secret before the last one signs too."""
    off_at: datetime | None
    """None while it is on."""
    off_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSecret(Webhook):
    """A webhook with its new secret, which is shown only now."""

    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Webhooks:
    """All webhooks, oldest first."""

    webhooks: Sequence[Webhook]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message to a webhook, and what became of it."""

    number: int
    webhook: int
    message: str
    """Id of what is told, the same at every attempt and for all webhooks."""
    event: str
    data: Mapping[str, Any]
    occurred_at: datetime
    status: str
    attempts: int
    queued_at: datetime
    due_at: datetime | None
    """When it is sent next."""
    attempted_at: datetime | None
    answer: int | None
    """The status of the last answer."""
    error: str | None


@dataclass(frozen=True, slots=True)
class Deliveries:
    """A page of deliveries, newest first."""

    deliveries: Sequence[Delivery]
    next: int | None
    """`before` of the page that follows; None on the last."""
